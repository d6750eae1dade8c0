"""What is refused, and what would help."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

from devctl.devices import Device, DeviceType
from devctl.errors import RefusedError
from devctl.inventory import Inventory
from devctl.inventory.missing import missing
from devctl.models.tree import ModuleTree
from devctl.placement import Budgets, Placement, Strategy, place
from devctl.placement.budget import accelerators_of, is_accelerator
from devctl.placement.counted import common_need, with_runtime
from devctl.placement.judge import find_faults, validate
from devctl.placement.optimal.ways_out import ways_out
from devctl.placement.placement import SEGMENTS, DeviceUse, over_budget
from devctl.placement.plan import Refusal
from devctl.placement.runtime import Runtime, less, less_kept
from devctl.planning.machine import Machine
from devctl.planning.model import Model
from devctl.planning.other_runs import Holds, in_chunks, need, other_attention
from devctl.planning.question import Question
from devctl.planning.request import Limits
from devctl.units import format_bytes, format_need

_OFF = (Device.cpu(), Device.disk())


def map_refusal(tree: ModuleTree, placement: Placement, budgets: Budgets) -> Refusal | None:
    """Why the map that somebody wrote does not hold for the model on these devices; None where it does."""
    here = [*(device for device, _ in budgets.devices), Device.disk()]
    device_map = dict(placement.device_map)
    findings = (
        *validate(tree, device_map, here),
        *find_faults(tree, device_map),
        *over_budget(placement.devices),
    )
    if not findings:
        return None
    return Refusal("the map does not hold", findings=findings, hint="`devctl plan` looks for a map that does")


def room_refusal(
    model: Model,
    machine: Machine,
    question: Question,
    placement: Placement,
    runtime: Runtime | None,
    limits: Limits,
) -> Refusal | None:
    """Why a placement is not what is asked for, and what would make it so; None where it is.

    That is where it gives a device too much, or leaves bytes on disk, or anywhere off the accelerators, that may not be
    left there. Other ways to run it are told first, then hardware, then the first of the smaller models that fits.
    """
    may_offload, may_use_disk = limits.offload, limits.offload and limits.disk and not machine.lacks_disk
    # a map of weights alone, by transformers' own counting, is refused only where somebody asks for what it is not
    is_asked = runtime is not None or not (limits.offload and limits.disk)
    over = over_budget(placement.devices) if is_asked else ()
    missing = 0 if may_use_disk else placement.on_disk if may_offload else placement.offloaded
    if not missing and not over:
        return None

    def holds(tree: ModuleTree, runtime: Runtime | None = runtime) -> bool:
        best = place(tree, machine.budgets, Strategy.OPTIMAL, None, runtime)
        left = 0 if may_use_disk else best.on_disk if may_offload else best.offloaded
        return not left and best.fits

    # room that is missing for the cache is not gained by offloading, as that is where the layers run
    cpu_may_hold = may_offload and not over
    if holds(model.tree):
        ways: tuple[str, ...] = ("--strategy optimal fits",)
    else:
        ways = () if runtime is None else _other_runs(question, runtime, partial(holds, model.tree))
        ways += _hardware(model.tree, machine, runtime, cpu_may_hold=cpu_may_hold)
        for option, other in model.smaller():
            if holds(other):
                now, then = (format_bytes(each.index.held[""]) for each in (model.tree, other))
                ways += (f"{option} fits: {then} instead of {now}{_if_it_runs(option, machine.budgets)}",)
                break
    hint = "or add disk to --devices" if machine.lacks_disk and limits.offload and limits.disk else ""
    if over:
        return Refusal("it does not fit", findings=(*over, *ways), hint=hint)
    where = (
        "disk" if may_offload else " and ".join(str(u.device) for u in placement.devices if u.device in _OFF and u.used)
    )
    return Refusal(f"it does not fit: {format_bytes(missing)} would be left on {where}", findings=ways, hint=hint)


def _other_runs(question: Question, runtime: Runtime, holds: Holds) -> tuple[str, ...]:
    return (*in_chunks(question, runtime, holds), *other_attention(question, runtime, holds))


def _if_it_runs(option: str, budgets: Budgets) -> str:
    """What advice to quantise rests on: bitsandbytes does not compute on Apple's GPUs in every release."""
    on_apple = any(device.type is DeviceType.MPS for device, _ in budgets.devices)
    return ", where bitsandbytes runs on mps" if on_apple and option.startswith("--quantize") else ""


def _hardware(tree: ModuleTree, machine: Machine, runtime: Runtime | None, *, cpu_may_hold: bool) -> tuple[str, ...]:
    """What hardware would hold the model and its workload."""
    budgets, of_host = machine.budgets, machine.of_host
    # what is held for a while as the model is loaded, beyond what each device that computes holds as it runs
    loading = tree.index.making.get("", 0) + sum(nbytes for _, nbytes in tree.index.until_tied)
    if runtime is None:
        kept = {device: loading for device, _ in budgets.devices if loading}
        left = less_kept(budgets, budgets.devices, kept) if kept else budgets
        return ways_out(tree, left, cpu_may_hold=cpu_may_hold, beside=loading, of_host=of_host)
    loading = max(0, loading - common_need(runtime.footprint) - runtime.footprint.rounded)
    beside = need(runtime) + loading
    left = less(budgets, runtime, dict.fromkeys((device for device, _ in budgets.devices), loading))
    gpus = accelerators_of(budgets)
    if gpus and not any(size for device, size in left.devices if device in gpus):
        larger = "a machine with more memory" if of_host.issuperset(gpus) else "larger GPUs"
        return (
            f"beside weights and cache each GPU needs {format_need(beside)}, which none has: "
            f"less --batch-size or --context-length, or {larger}",
        )
    counted = with_runtime(tree, runtime.footprint)
    return ways_out(counted, left, cpu_may_hold=cpu_may_hold, beside=beside, of_host=of_host)


def require_valid(tree: ModuleTree, placement: Placement, inventory: Inventory) -> None:
    """Refuse a placement that does not hold for this model on this machine.

    Raises:
        RefusedError: with every finding.
    """
    here = [*(a.device for a in inventory.accelerators if a.device), Device.cpu(), Device.disk()]
    if findings := validate(tree, dict(placement.device_map), here):
        absent = any(is_accelerator(device) and device not in here for _, device in placement.device_map)
        raise RefusedError(
            "the map does not hold for this model on this machine",
            findings=(*findings, *(missing(inventory) if absent else ())),
            hint="`devctl plan` looks for a map that does",
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
        f"{use.device} would hold {_at_load(use, available)}, and has {format_bytes(available)} free"
        for use in placement.devices
        if (available := free.get(use.device)) is not None and max(use.used, use.loading) > available
    ]
    if findings:
        raise RefusedError(
            "the map does not fit this machine as it is now",
            findings=tuple(findings),
            hint="`devctl plan` looks for one that does",
        )


def _at_load(use: DeviceUse, available: int) -> str:
    if use.used > available:
        return format_bytes(use.used)
    return f"{format_bytes(use.loading)} while the model is loaded"


def require_ram(parts: Mapping[str, int], available: int | None) -> None:
    """Refuse a load whose ``parts``, by name, are together more RAM than this process can have.

    Beyond a control group's limit the system ends the process without a word.

    Raises:
        RefusedError: with every part.
    """
    need = sum(parts.values())
    if available is None or need <= available:
        return
    raise RefusedError(
        f"the load needs {format_need(need)} of RAM beside mapped files, and {format_bytes(available)} can be had",
        findings=tuple(f"{name}: {format_bytes(size)}" for name, size in parts.items() if size),
        hint="put less on the CPU, run less at a time, or raise the limit of this process's memory",
    )


def tight(
    placement: Placement, beside: Mapping[Device, int], gaps: Mapping[Device, int], inventory: Inventory
) -> Iterator[str]:
    """A line for each accelerator that has less free than it should hold while the model runs.

    Args:
        beside: bytes beside the weights.
        gaps: bytes that torch's allocator reserves beside all that, as it is set here.
    """
    free = _free(inventory)
    for use in placement.devices:
        peak, available = use.used + beside.get(use.device, 0), free.get(use.device)
        if available is not None and peak > available:
            yield (
                f"{use.device} should hold {format_bytes(peak)} while it runs, and has {format_bytes(available)} free: "
                "expect it to run out of memory"
            )
        elif available is not None and peak + gaps.get(use.device, 0) > available:
            yield (
                f"{use.device} should hold {format_bytes(peak)} while it runs, and torch's allocator up to "
                f"{format_bytes(gaps[use.device])} in gaps; {format_bytes(available)} is free: should it run out of "
                f"memory, set {SEGMENTS}"
            )
