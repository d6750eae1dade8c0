"""``devctl load``: does it really run there?"""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from devctl.cli import gather, model_options, options, render, render_load
from devctl.errors import LoadError, RefusedError, UsageError
from devctl.inventory import take_inventory
from devctl.loading.loader import LoadFormat
from devctl.placement import Placement, Strategy
from devctl.placement.budget import is_accelerator

if TYPE_CHECKING:
    from devctl.loading.measure import LoadReport
    from devctl.models.resolve import ModelSource
    from devctl.models.skeleton import Skeleton

MapOption = Annotated[
    str | None,
    typer.Option("--map", metavar="FILE|-|DEVICE", help="A device map or plan, - for stdin, or one device for all."),
]


def load(
    model: model_options.Model,
    map: MapOption = None,
    strategy: Annotated[
        Strategy | None, typer.Option("--strategy", help="Place it so, when no map is given.  [default: auto]")
    ] = None,
    max_memory: model_options.MaxMemory = None,
    dtype: model_options.DtypeOption = model_options.Dtype.AUTO,
    model_class: model_options.ModelClass = None,
    trust_remote_code: model_options.TrustRemoteCode = False,
    revision: model_options.Revision = None,
    load_format: Annotated[
        LoadFormat, typer.Option("--load-format", help="dummy makes random weights: nothing is read or downloaded.")
    ] = LoadFormat.AUTO,
    offload_folder: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="For weights on disk.  [default: a temporary folder, removed afterwards]"),
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="Text to run, where the model has a tokenizer.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=0, help="Tokens to generate; 0 for none.")] = 8,
    json: options.Json = False,
) -> None:
    """Load MODEL on a device map, run it, and prove that every tensor is where the map says.

    Runs a forward, and a short greedy generate where the model generates, and reports seconds, tokens per second, and
    predicted beside measured bytes. Exits 5 when a tensor is misplaced or an output is not finite.
    """
    if map is not None and (strategy is not None or max_memory is not None):
        raise UsageError("--map says where everything goes: leave out --strategy and --max-memory")
    given = None if map is None else gather.read_map(map)
    budgets = None if given is not None else gather.budgets(max_memory)
    source, skeleton = gather.skeleton(
        model, dtype=dtype, model_class=model_class, trust_remote_code=trust_remote_code, revision=revision
    )
    if budgets is not None:
        given = dict(gather.placement(skeleton.tree, budgets, strategy or Strategy.AUTO).device_map)
    assert given is not None
    placement = gather.placement_of_map(
        skeleton.tree, given, take_inventory(), strategy=None if map else strategy or Strategy.AUTO
    )
    report = _load_and_run(
        model,
        source,
        skeleton,
        placement,
        load_format=load_format,
        offload_folder=offload_folder,
        prompt=prompt,
        max_new_tokens=max_new_tokens,
    )
    render.answer(render.to_json(report) if json else render_load.load_report(report))
    if not report.ok:
        raise LoadError("the model does not run as the map says: see the report")


def _load_and_run(
    name: str,
    source: ModelSource,
    skeleton: Skeleton,
    placement: Placement,
    *,
    load_format: LoadFormat,
    offload_folder: Path | None,
    prompt: str | None,
    max_new_tokens: int,
) -> LoadReport:
    from devctl.loading import loader, smoke
    from devctl.loading.measure import LoadReport, device_bytes
    from devctl.loading.proof import find_places

    device_map = dict(placement.device_map)
    computing = {device for device in device_map.values() if is_accelerator(device)}
    if findings := loader.unusable(sorted(computing, key=str)):
        raise RefusedError("the map does not hold for this installation of torch", findings=findings)
    on_disk = sum(use.used for use in placement.devices if use.device.type == "disk")
    with ExitStack() as stack:
        folder = stack.enter_context(loader.offload_folder(on_disk, offload_folder)) if on_disk else None
        start = time.perf_counter()
        total = sum(use.used for use in placement.devices)
        with render.progress("loading", total) as advance:
            loaded, missing = loader.load(
                source, skeleton, device_map, load_format=load_format, folder=folder, on_progress=advance
            )
        load_seconds = time.perf_counter() - start
        places = find_places(loaded, device_map)
        with render.status("running the smoke inference"):
            tokenizer, trouble = smoke.load_tokenizer(source)
            ran = smoke.run(
                loaded, tokenizer, device=loader.main_device(device_map), prompt=prompt, new_tokens=max_new_tokens
            )
    return LoadReport(
        model=name,
        model_class=skeleton.tree.class_name,
        dtype=skeleton.tree.dtype,
        strategy=placement.strategy,
        load_format=load_format,
        load_seconds=load_seconds,
        loaded_bytes=total,
        devices=device_bytes(placement, places),
        tensors=places.count,
        misplaced=places.misplaced,
        smoke=ran,
        ok=not places.misplaced and not ran.nonfinite,
        notes=(*placement.notes, *missing, *trouble),
    )
