"""One trial of a placement: load, look every tensor up, run, and report."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from devctl.devices import Device
from devctl.errors import RefusedError
from devctl.loading import loader, memory, nonfinite, offload, smoke
from devctl.loading.inputs import prepare
from devctl.loading.loader import LoadFormat
from devctl.loading.measure import LoadReport, device_bytes
from devctl.loading.proof import find_places
from devctl.placement.budget import is_accelerator
from devctl.placement.placement import Placement

if TYPE_CHECKING:
    from devctl.models.resolve import ModelSource
    from devctl.models.skeleton import Skeleton

Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""Given a text and a total of bytes, shows a bar that is told how many more are done."""

Status = Callable[[str], AbstractContextManager[None]]
"""Shows what is going on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialOptions:
    """How to load and run.

    Attributes:
        offload_folder: for weights on disk; None is a temporary folder, removed afterwards.
        prompt: text to run; None is a sentence of our own.
        trust_remote_code: run Python code that comes with the tokenizer.
        max_new_tokens: tokens to generate, where the model generates.
    """

    load_format: LoadFormat
    offload_folder: Path | None
    prompt: str | None
    max_new_tokens: int
    trust_remote_code: bool


def try_out(
    name: str,
    source: ModelSource,
    skeleton: Skeleton,
    placement: Placement,
    options: TrialOptions,
    *,
    progress: Progress,
    status: Status,
) -> LoadReport:
    """Load the model called ``name`` as ``placement`` says, run it, and report.

    Raises:
        UsageError: a prompt without a tokenizer, too many tokens, or an offload folder that can't be used.
        RefusedError: torch can't use a device of the map, or there is no room for the weights on disk.
        ModelError: the weights are missing or corrupt.
        LoadError: loading or the smoke inference failed.
    """
    device_map = dict(placement.device_map)
    computing = {device for device in device_map.values() if is_accelerator(device)}
    if findings := loader.unusable(sorted(computing, key=str)):
        raise RefusedError("the map does not hold for this installation of torch", findings=findings)
    inputs = prepare(
        source,
        skeleton,
        prompt=options.prompt,
        new_tokens=options.max_new_tokens,
        trust_remote_code=options.trust_remote_code,
    )
    total = sum(use.used for use in placement.devices)
    on_disk = sum(use.used for use in placement.devices if use.device == Device.disk())
    random_weights = options.load_format is LoadFormat.DUMMY
    if not random_weights:
        source = loader.fetched(source)
    with ExitStack() as stack:
        folder = None
        if on_disk:
            written = offload.bytes_to_write(source, skeleton, device_map, random_weights=random_weights)
            folder = stack.enter_context(offload.offload_folder(written, options.offload_folder))
        start = time.perf_counter()
        with progress("loading", total) as advance:
            model, missing = loader.load(
                source, skeleton, device_map, load_format=options.load_format, folder=folder, on_progress=advance
            )
        load_seconds = time.perf_counter() - start
        places = find_places(model, device_map)
        main = loader.main_device(model, device_map)
        predicted = {use.device: use.used for use in placement.devices}
        with status("running the smoke inference"), memory.explained("in the smoke inference", predicted):
            ran = smoke.run(model, inputs, device=main, new_tokens=options.max_new_tokens)
        blamed = (nonfinite.blame(model),) if ran.nonfinite else ()
    return LoadReport(
        model=name,
        model_class=skeleton.tree.class_name,
        dtype=skeleton.tree.dtype,
        strategy=placement.strategy,
        load_format=options.load_format,
        load_seconds=load_seconds,
        loaded_bytes=total,
        devices=device_bytes(skeleton.tree, device_map, main, places),
        tensors=places.count,
        misplaced=places.misplaced,
        smoke=ran,
        ok=not places.misplaced and not ran.nonfinite,
        notes=(*placement.notes, *missing, *inputs.notes, *blamed),
    )
