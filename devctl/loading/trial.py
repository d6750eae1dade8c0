"""One trial of a placement: load, look every tensor up, run, compare, and report."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from devctl.devices import Device
from devctl.errors import RefusedError
from devctl.loading.measure import (
    LoadReport,
    above_prediction,
    device_bytes,
    device_peaks,
    device_reserved,
    forget_peaks,
    host_peak,
)
from devctl.loading.proofs import nonfinite
from devctl.loading.proofs.copies import check_copies
from devctl.loading.proofs.places import find_places, find_ties
from devctl.loading.proofs.reference import Reference, Verification, fits_in_ram, reference_map, verify
from devctl.loading.proofs.verdict import judge_proofs
from devctl.loading.proofs.watch import block_names
from devctl.loading.run import out_of_memory, smoke
from devctl.loading.run.attention import require_used
from devctl.loading.run.inputs import Inputs
from devctl.loading.weights import loader, offload
from devctl.loading.weights.loader import LoadFormat
from devctl.placement.budget import is_accelerator
from devctl.placement.placement import Placement, bytes_per_device, to_hf

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from devctl.models.files.resolve import ModelSource
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
        max_new_tokens: tokens to generate, where the model generates.
        repeat: how often the forward and the generate are timed.
        warmup: how often each runs before; None is one forward.
        verify: compare with the same model on the CPU.
        allow_missing: leave weights random that the checkpoint does not have.
        ram: bytes of RAM that are free, for a second copy of the model; None where that is not known.
        beside: bytes beside its weights that each device should hold while it runs, where that is known.
        notes: what a reader of them should know.
        attention: how the model should attend, where that is known.
    """

    load_format: LoadFormat
    offload_folder: Path | None
    max_new_tokens: int
    repeat: int = 1
    warmup: int | None = None
    verify: bool = False
    allow_missing: bool = False
    ram: int | None = None
    beside: Mapping[Device, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    attention: str | None = None


def require_usable(placement: Placement) -> list[Device]:
    """The accelerators of ``placement``, all of which torch can use.

    Raises:
        RefusedError: it can't use one.
    """
    computing = sorted({device for _, device in placement.device_map if is_accelerator(device)}, key=str)
    if findings := loader.unusable(computing):
        raise RefusedError("the map does not hold for this installation of torch", findings=findings)
    return computing


def try_out(
    name: str,
    source: ModelSource,
    skeleton: Skeleton,
    placement: Placement,
    inputs: Inputs,
    options: TrialOptions,
    *,
    progress: Progress,
    status: Status,
) -> LoadReport:
    """Load the model called ``name`` as ``placement`` says, run it on ``inputs``, and report.

    Raises:
        UsageError: the offload folder can't be used.
        RefusedError: torch can't use a device of the map, or there is no room for the weights on disk.
        ModelError: the weights are missing or corrupt.
        LoadError: loading or the smoke inference failed.
    """
    computing = require_usable(placement)
    device_map, blocks = dict(placement.device_map), block_names(skeleton.tree)
    if options.load_format is not LoadFormat.DUMMY:
        source = loader.local_copy(source)
    with status("checking copies between accelerators"):
        copies = check_copies(computing)
    forget_peaks(computing)
    with _loaded(source, skeleton, device_map, options, "loading weights", progress) as loaded:
        model = loaded.model
        attending = require_used(model, options.attention)
        places = find_places(model, device_map)
        ties = find_ties(model, skeleton.tree)
        main = loader.main_device(model, device_map)
        predicted = {use.device: use.used + options.beside.get(use.device, 0) for use in placement.devices}
        with status("running the smoke inference"), out_of_memory.on_device("in the smoke inference", predicted):
            ran = smoke.run(
                model,
                inputs,
                device=main,
                new_tokens=options.max_new_tokens,
                blocks=blocks,
                repeat=options.repeat,
                warmup=options.warmup,
            )
        blamed = (nonfinite.blame(model),) if ran.nonfinite else ()
        peaks, reserved, in_ram = device_peaks(computing), device_reserved(computing), host_peak()
        if ran.allocated is not None:
            peaks[main] = dict(places.measured).get(main, 0) + ran.allocated
        verification = None
        if options.verify:
            forward = smoke.forward_arguments(model, inputs, main)
            verification = _verify(
                source, skeleton, placement, options, model, forward, progress=progress, status=status
            )
    proofs = judge_proofs(
        tensors=places.count,
        misplaced=places.misplaced,
        ties=ties,
        smoke=ran,
        copies=copies,
        verification=verification,
        blocks=blocks,
    )
    devices = device_bytes(
        skeleton.tree, device_map, main, places, beside=options.beside, peaks=peaks, reserved=reserved
    )
    notes = (*placement.notes, *loaded.missing, *inputs.notes, *options.notes, *above_prediction(devices), *blamed)
    return LoadReport(
        model=name,
        model_class=skeleton.tree.class_name,
        dtype=skeleton.tree.dtype,
        attention=attending,
        generation=dict(inputs.generation),
        prefill_chunk=inputs.prefill_chunk,
        strategy=placement.strategy,
        load_format=options.load_format,
        device_map=to_hf(placement.device_map),
        max_new_tokens=options.max_new_tokens,
        load_seconds=loaded.seconds,
        loaded_bytes=sum(use.used for use in placement.devices),
        devices=devices,
        host_peak=in_ram,
        tensors=places.count,
        misplaced=places.misplaced,
        ties=ties,
        copies=copies,
        smoke=ran,
        verification=verification,
        proofs=proofs,
        ok=all(proof.passed for proof in proofs),
        notes=notes,
    )


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A model in evaluation mode.

    Attributes:
        missing: notes on what the checkpoint did not have.
        seconds: what loading took.
    """

    model: PreTrainedModel
    missing: tuple[str, ...]
    seconds: float


@contextmanager
def _loaded(
    source: ModelSource,
    skeleton: Skeleton,
    device_map: Mapping[str, Device],
    options: TrialOptions,
    doing: str,
    progress: Progress,
) -> Iterator[_Loaded]:
    """The model on ``device_map``, whose weights on disk are there until the end."""
    nbytes = bytes_per_device(skeleton.tree, device_map)
    with ExitStack() as stack:
        folder = None
        if nbytes.get(Device.disk()):
            random_weights = options.load_format is LoadFormat.DUMMY
            written = offload.bytes_to_write(source, skeleton, device_map, random_weights=random_weights)
            folder = stack.enter_context(offload.offload_folder(written, options.offload_folder))
        start = time.perf_counter()
        with progress(doing, sum(nbytes.values())) as advance:
            model, missing = loader.load(
                source,
                skeleton,
                device_map,
                load_format=options.load_format,
                folder=folder,
                on_progress=advance,
                allow_missing=options.allow_missing,
            )
        yield _Loaded(model, missing, time.perf_counter() - start)


def _verify(
    source: ModelSource,
    skeleton: Skeleton,
    placement: Placement,
    options: TrialOptions,
    model: PreTrainedModel,
    forward: dict[str, torch.Tensor],
    *,
    progress: Progress,
    status: Status,
) -> Verification:
    """Load the same model again, in RAM where it fits beside the first and else on disk, and compare."""
    total = sum(use.used for use in placement.devices)
    on_cpu = sum(use.used for use in placement.devices if use.device == Device.cpu())
    kind = Reference.RAM if fits_in_ram(total, on_cpu, options.ram) else Reference.DISK
    dtype, blocks = skeleton.tree.dtype, block_names(skeleton.tree)
    loading = "loading the reference on the CPU"
    with (
        _loaded(source, skeleton, reference_map(kind), options, loading, progress) as reference,
        status("running it on the CPU, to compare every block"),
    ):
        return verify(model, reference.model, forward, blocks, dtype=dtype, kind=kind)
