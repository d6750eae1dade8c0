"""What several commands gather before they compute."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from devctl.cli.map_file import read_map_file, read_text
from devctl.cli.show import streams
from devctl.devices import Device
from devctl.errors import DevctlError, RefusedError, UsageError
from devctl.inventory import Inventory
from devctl.loading.baseline import BASELINE_HINT, Baseline, parse_baseline
from devctl.models.cache import load_tree, store_tree, tree_key
from devctl.models.files.resolve import ModelSource, resolve
from devctl.models.tree import ModuleTree, sizes
from devctl.placement import Budgets, Placement, Strategy, place
from devctl.placement.budget import as_here, is_accelerator
from devctl.placement.document import PlannedModel, normal
from devctl.placement.optimal.latency import Speeds
from devctl.placement.optimal.ways_out import ways_out
from devctl.placement.placement import find_faults, make_placement, over_budget, validate
from devctl.placement.runtime import Runtime, common_need, less, with_runtime
from devctl.units import format_bytes, format_need

if TYPE_CHECKING:
    from devctl.models.quantised.quantise import Quantize
    from devctl.models.skeleton import Purpose, Skeleton


_OFF = (Device.cpu(), Device.disk())


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Which model, built how: what the options say."""

    model: str
    dtype: str = "auto"
    model_class: str | None = None
    trust_remote_code: bool = False
    revision: str | None = None
    quantize: Quantize | None = None
    cache: bool = True


def skeleton(request: Request, *, random_weights: bool) -> tuple[ModelSource, Skeleton]:
    """The model without its weights, as it is loaded here, and where it is read from."""
    source = _resolve(request)
    from devctl.models.skeleton import Purpose

    return source, _read(source, request, Purpose.RANDOM if random_weights else Purpose.LOAD)


def plain_skeleton(source: ModelSource, request: Request) -> Skeleton:
    """The model without its weights, as if they were not quantised: what it computes is the same."""
    from devctl.models.skeleton import Purpose

    return _read(source, replace(request, quantize=None), Purpose.RANDOM)


def tree(request: Request) -> tuple[ModelSource, ModuleTree]:
    """The model's modules, and where it is read from; a tree that was kept needs no torch."""
    source, found, _ = tree_or_skeleton(request)
    return source, found


def tree_or_skeleton(request: Request) -> tuple[ModelSource, ModuleTree, Skeleton | None]:
    """The same, and the whole skeleton where the tree was not kept."""
    source = _resolve(request)
    key = None
    if request.cache:
        key = tree_key(
            source,
            dtype=request.dtype,
            model_class=request.model_class,
            trust_remote_code=request.trust_remote_code,
            quantize=request.quantize,
        )
    if key is not None and (kept := load_tree(key)) is not None:
        return source, kept, None
    from devctl.models.skeleton import Purpose

    built = _read(source, request, Purpose.PLAN)
    if key is not None:
        store_tree(key, built.tree)
    return source, built.tree, built


def smaller(request: Request, built: ModuleTree) -> Iterator[tuple[str, ModuleTree]]:
    """The model in fewer bytes and the option that makes it so, the least change first; built as they are asked for."""
    from devctl.models.quantised.quantise import Quantize

    ways = []
    if built.dtype in {"float32", "float64"}:
        ways.append(("--dtype bfloat16", replace(request, dtype="bfloat16")))
    if built.quantisation is None:
        ways += [(f"--quantize {m}", replace(request, quantize=m)) for m in (Quantize.INT8, Quantize.NF4)]
    for option, changed in ways:
        with contextlib.suppress(DevctlError):  # a way that there is not for this model
            yield option, tree(changed)[1]


def _resolve(request: Request) -> ModelSource:
    with streams.status(f"looking for {request.model}"):
        return resolve(request.model, revision=request.revision)


def _read(source: ModelSource, request: Request, purpose: Purpose) -> Skeleton:
    from devctl.models.skeleton import read_skeleton

    with _keeping():
        with streams.status("importing torch and transformers"):
            import torch  # noqa: F401
            import transformers  # noqa: F401
        with streams.status(f"reading the config of {request.model}"):
            return read_skeleton(
                source,
                dtype=request.dtype,
                model_class=request.model_class,
                trust_remote_code=request.trust_remote_code,
                quantize=request.quantize,
                purpose=purpose,
            )


@contextlib.contextmanager
def _keeping() -> Iterator[None]:
    """What is imported and built here stays: to look for garbage among it is in vain, and takes a sixth of the time."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        if collects:
            gc.enable()


def placement(
    tree: ModuleTree,
    limits: Budgets,
    strategy: Strategy,
    speeds: Speeds | None = None,
    runtime: Runtime | None = None,
) -> Placement:
    """The placement, once there is something to place on."""
    require_devices(limits)
    return place(tree, limits, strategy, speeds, runtime)


def require_devices(limits: Budgets) -> None:
    """Refuse to plan for nothing.

    Raises:
        UsageError: no device is known.
    """
    if not limits.devices:
        raise UsageError("no device has a known amount of memory", hint="give it with --max-memory, like cpu=30GiB")


def judged(
    tree: ModuleTree, device_map: dict[str, Device], budgets: Budgets, runtime: Runtime | None = None
) -> Placement:
    """The placement of a map that somebody wrote, once nothing is wrong with it.

    Raises:
        RefusedError: with every finding.
    """
    here = [*(device for device, _ in budgets.devices), Device.disk()]
    placement = make_placement(tree, device_map, budgets, strategy=None, runtime=runtime)
    findings = (
        *validate(tree, device_map, here),
        *find_faults(tree, device_map),
        *over_budget(placement.devices),
    )
    if findings:
        raise RefusedError("the map does not hold", findings=findings, hint="`devctl plan` makes a map that does")
    return placement


def require_room(
    tree: ModuleTree,
    placement: Placement,
    budgets: Budgets,
    smaller: Iterable[tuple[str, ModuleTree]],
    runtime: Runtime | None = None,
    *,
    offload: bool,
    disk: bool,
    hint: str,
) -> None:
    """Refuse a placement that gives a device too much, leaves bytes on disk, or anywhere off the accelerators.

    Args:
        offload, disk: where bytes may be left.
        smaller: the same model in fewer bytes, and the option that makes it so; the first that fits is told.

    Raises:
        RefusedError: with what would make it fit.
    """
    over = over_budget(placement.devices) if runtime is not None else ()
    missing = 0 if disk else placement.on_disk if offload else placement.offloaded
    if not missing and not over:
        return

    def holds(tree: ModuleTree) -> bool:
        best = place(tree, budgets, Strategy.OPTIMAL, None, runtime)
        left = 0 if disk else best.on_disk if offload else best.offloaded
        return not left and (runtime is None or best.fits)

    if holds(tree):
        ways: tuple[str, ...] = ("--strategy optimal fits",)
    else:
        # room that is missing for the cache is not gained by offloading, as that is where the layers run
        ways = _hardware(tree, budgets, runtime, cpu_may_hold=offload and not over)
        for option, other in smaller:
            if holds(other):
                ways += (f"{option} fits: {format_bytes(sizes(other)[''])} instead of {format_bytes(sizes(tree)[''])}",)
                break
    if over:
        raise RefusedError("it does not fit", findings=(*over, *ways), hint=hint)
    where = "disk" if offload else " and ".join(str(u.device) for u in placement.devices if u.device in _OFF and u.used)
    raise RefusedError(f"it does not fit: {format_bytes(missing)} would be left on {where}", findings=ways, hint=hint)


def _hardware(tree: ModuleTree, budgets: Budgets, runtime: Runtime | None, *, cpu_may_hold: bool) -> tuple[str, ...]:
    """What hardware would hold the model and its workload."""
    if runtime is None:
        return ways_out(tree, budgets, cpu_may_hold=cpu_may_hold)
    beside = common_need(runtime.footprint) + max(runtime.overhead.values(), default=0)
    left = less(budgets, runtime)
    gpus = [device for device, size in budgets.devices if is_accelerator(device) and size]
    if gpus and not any(size for device, size in left.devices if device in gpus):
        return (
            f"beside weights and cache each GPU needs {format_need(beside)}, which none has: "
            "less --batch-size or --context-length, or larger GPUs",
        )
    return ways_out(with_runtime(tree, runtime.footprint), left, cpu_may_hold=cpu_may_hold, beside=beside)


def require_valid(tree: ModuleTree, placement: Placement, inventory: Inventory) -> None:
    """Refuse a placement that does not hold for this model on this machine.

    Raises:
        RefusedError: with every finding.
    """
    here = [*(a.device for a in inventory.accelerators if a.device), Device.cpu(), Device.disk()]
    if findings := validate(tree, dict(placement.device_map), here):
        raise RefusedError(
            "the map does not hold for this model on this machine",
            findings=findings,
            hint="`devctl plan` makes a map that does",
        )


def _free(inventory: Inventory) -> dict[Device, int | None]:
    """Bytes that are free on each accelerator, where that is known."""
    return {a.device: a.memory_free for a in inventory.accelerators if a.device is not None}


def require_memory(placement: Placement, inventory: Inventory, *, random_weights: bool) -> None:
    """Refuse what can't be held: more than an accelerator has free, or than the RAM has for weights that are made up.

    A checkpoint's weights on the CPU are mapped from their files, which the system can read again as it needs them.

    Raises:
        RefusedError: with every device that has too little.
    """
    free = _free(inventory)
    if random_weights:
        free[Device.cpu()] = inventory.host.ram_available
    findings = [
        f"{use.device} would hold {format_bytes(use.used)}, and has {format_bytes(available)} free"
        for use in placement.devices
        if (available := free.get(use.device)) is not None and use.used > available
    ]
    if findings:
        raise RefusedError(
            "the map does not fit this machine as it is now",
            findings=tuple(findings),
            hint="`devctl plan` makes one that does",
        )


def tight(placement: Placement, beside: Mapping[Device, int], inventory: Inventory) -> Iterator[str]:
    """A line for each accelerator that has less free than it should hold while the model runs.

    Args:
        beside: bytes beside the weights.
    """
    free = _free(inventory)
    for use in placement.devices:
        peak, available = use.used + beside.get(use.device, 0), free.get(use.device)
        if available is not None and peak > available:
            yield (
                f"{use.device} should hold {format_bytes(peak)} while it runs, and has {format_bytes(available)} free: "
                "expect it to run out of memory"
            )


def read_map(argument: str, inventory: Inventory) -> dict[str, Device]:
    """The map that ``--map`` names: a file, "-" for stdin, or a bare device for the whole model.

    A number is the accelerator that ``inventory`` has by it.

    Raises:
        UsageError: it can't be read, or is no map.
    """
    if argument in (*Strategy, "disk"):
        hint = f"use --strategy {argument}" if argument != "disk" else 'a file with {"": "disk"} puts all on disk'
        raise UsageError(f"--map {argument} is neither a file nor a device that computes", hint=hint)
    try:
        found = {"": bare_device(argument)}
    except ValueError:
        found = dict(read_map_file(Path(argument)).device_map)
    return {name: as_here(device, inventory) for name, device in found.items()}


def read_baseline(path: Path) -> Baseline:
    """The earlier report of a load that ``--baseline`` names.

    Raises:
        UsageError: it can't be read, or is none.
    """
    import json

    text, origin = read_text(path, "the baseline", BASELINE_HINT)
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        raise UsageError(f"{origin} is broken JSON, and so no baseline", hint=BASELINE_HINT) from None
    return parse_baseline(document, origin)


def bare_device(text: str) -> Device:
    """A device as ``from_pretrained(device_map=…)`` takes it: "cpu", "cuda:1", or a GPU's id.

    "cuda" is the GPU of this process, ``LOCAL_RANK``, as in transformers.

    Raises:
        ValueError: ``text`` is no device.
    """
    if text == "cuda":
        return Device.gpu(int(os.environ.get("LOCAL_RANK", "0")))
    return normal(Device.gpu(int(text)) if text.isascii() and text.isdigit() else Device.from_str(text))


def planned_model(name: str, source: ModelSource, tree: ModuleTree) -> PlannedModel:
    """What a plan document says of the model."""
    return PlannedModel(
        name=name,
        revision=source.revision,
        class_name=tree.class_name,
        dtype=tree.dtype,
        nbytes=sizes(tree)[""],
        quantisation=tree.quantisation,
    )


def versions() -> dict[str, str]:
    """The versions that decide what a plan says."""
    from importlib.metadata import version

    return {name: version(name) for name in ("devctl", "transformers", "accelerate", "torch")}
