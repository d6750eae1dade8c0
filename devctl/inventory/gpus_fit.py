"""Do the GPUs of a machine meet what a job asks of them, and which are the best that do? Pure."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations, islice

from devctl.inventory.idle import who_is_on
from devctl.inventory.records import Accelerator, Hidden, Inventory, Vendor, label
from devctl.inventory.verdict import Finding
from devctl.inventory.versions import dotted, reaches
from devctl.units import format_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class GpusAsked:
    """What is asked of GPUs, in numbers; None asks for nothing."""

    gpus: int | None
    select: int | None
    gpu_memory: int | None
    compute_capability: tuple[int, ...] | None
    idle: bool
    healthy: bool
    p2p: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _PerGpu:
    """What each GPU must offer to count.

    Attributes:
        shows: what a GPU that does not meet it has instead.
        wanted: the same in numbers; None where it is a yes or no.
        offers: what of that a GPU has.
    """

    requirement: str
    meets: Callable[[Accelerator], bool]
    shows: Callable[[Accelerator], str]
    wanted: int | str | None = None
    offers: Callable[[Accelerator], int | str | None] | None = None


def judge_gpus(inventory: Inventory, wanted: GpusAsked) -> tuple[list[Finding], tuple[Accelerator, ...]]:
    """A finding for each thing asked, and the GPUs to select, best first. What one finding tells, no other repeats."""
    per_gpu = _per_gpu(wanted)
    if wanted.gpus is None and wanted.select is None and not per_gpu and not wanted.p2p:
        return [], ()
    candidates = sorted(_candidates(inventory, wanted.select), key=rank)
    # --p2p alone asks it of all GPUs
    only_p2p = wanted.p2p and wanted.gpus is None and wanted.select is None
    need = max(1 if wanted.gpus is None else wanted.gpus, wanted.select or 0)
    need = max(1, len(candidates)) if only_p2p else need
    qualified = [a for a in candidates if all(check.meets(a) for check in per_gpu)]

    count = [f"--gpus {wanted.gpus}"] if wanted.gpus is not None else []
    count += [f"--select {wanted.select}"] if wanted.select is not None else []
    others = [check.requirement for check in per_gpu] + (["--p2p"] if wanted.p2p else [])
    if not candidates and need:
        # there is one reason for all that is asked
        said = f"0 usable, {need} wanted{_unusable(inventory, candidates, wanted.select)}"
        names = " ".join([*count, *others])
        return [Finding(requirement=names, met=False, said=said, wanted=need, found=0)], ()
    findings = []
    if count:
        short = len(candidates) < need
        said = f"{len(candidates)} usable"
        said += f", {need} wanted{_unusable(inventory, candidates, wanted.select)}" if short else ""
        name = " ".join(count)
        findings.append(Finding(requirement=name, met=not short, said=said, wanted=need, found=len(candidates)))
    # that there are too few at all is told above
    findings += [_judge_each(check, candidates, min(need, len(candidates)) if count else need) for check in per_gpu]
    if all(finding.met for finding in findings) and len(qualified) < need:
        names = "all of " + " ".join(check.requirement for check in per_gpu)
        said = f"{_of(len(qualified), len(candidates))} what is asked of each, {need} wanted"
        findings.append(Finding(requirement=names, met=False, said=said, wanted=need, found=len(qualified)))
    chosen = tuple(qualified[:need])
    if wanted.p2p:
        chosen = peers(inventory, qualified, need)
        findings.append(_judge_peers(inventory, qualified, need, chosen))
    return findings, chosen[: wanted.select] if wanted.select is not None else ()


def _judge_each(check: _PerGpu, candidates: Sequence[Accelerator], need: int) -> Finding:
    """Whether enough GPUs meet it; ``found`` is what the last of as many as are needed has, the best of them first."""
    able = [a for a in candidates if check.meets(a)]
    unable = sorted((a for a in candidates if not check.meets(a)), key=lambda a: a.index)
    met = len(able) >= need
    said = f"{_of(len(able), len(candidates))} enough"
    if not met:
        said += f", {need} wanted" + "".join(f"; {label(a)}: {check.shows(a)}" for a in unable)
    if check.offers is None:
        return Finding(requirement=check.requirement, met=met, said=said, wanted=need, found=len(able))
    known = [offer for a in candidates if (offer := check.offers(a)) is not None]
    ranked = sorted(known, key=lambda offer: offer if isinstance(offer, int) else _numbers(offer), reverse=True)
    found = ranked[need - 1] if 0 < need <= len(ranked) else None
    return Finding(requirement=check.requirement, met=met, said=said, wanted=check.wanted, found=found)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) if part.isdecimal() and len(part) < 10 else -1 for part in version.split("."))


def _judge_peers(
    inventory: Inventory, qualified: Sequence[Accelerator], need: int, chosen: Sequence[Accelerator]
) -> Finding:
    met = len(chosen) == need and need > 0
    said = f"no {need} GPUs that qualify all reach each other's memory"
    if met:
        what = f"{need} GPUs" if need > 1 else "one GPU, which needs no peer"
        said = f"{what} that reach each other's memory: {', '.join(label(a) for a in chosen)}"
    smaller = min(need - 1, len(qualified))
    found = need if met else next((n for n in range(smaller, 0, -1) if peers(inventory, qualified, n)), 0)
    return Finding(requirement="--p2p", met=met, said=said, wanted=need, found=found)


def _per_gpu(wanted: GpusAsked) -> list[_PerGpu]:
    checks: list[_PerGpu] = []
    if (memory := wanted.gpu_memory) is not None:
        checks.append(
            _PerGpu(
                requirement=f"--gpu-memory {format_bytes(memory)}",
                meets=lambda a: a.memory_free is not None and a.memory_free >= memory,
                shows=lambda a: "unknown" if a.memory_free is None else f"{format_bytes(a.memory_free)} free",
                wanted=memory,
                offers=lambda a: a.memory_free,
            )
        )
    if (capability := wanted.compute_capability) is not None:
        checks.append(
            _PerGpu(
                requirement=f"--compute-capability {dotted(capability)}",
                meets=lambda a: a.compute_capability is not None and reaches(a.compute_capability, capability),
                shows=lambda a: a.compute_capability or "unknown",
                wanted=dotted(capability),
                offers=lambda a: a.compute_capability,
            )
        )
    if wanted.idle:
        checks.append(_PerGpu(requirement="--idle", meets=lambda a: not who_is_on(a), shows=who_is_on))
    if wanted.healthy:
        checks.append(_PerGpu(requirement="--healthy", meets=lambda a: not ailments(a), shows=ailments))
    return checks


def ailments(accelerator: Accelerator) -> str:
    """What is wrong with its health, in words; empty where nothing is."""
    if accelerator.health is None:
        return f"{accelerator.vendor} boards do not tell their health"
    return ", ".join(accelerator.health.problems)


def rank(accelerator: Accelerator) -> tuple[int, ...]:
    """The order of selection, best first: healthy, most free memory, fewest processes, least busy, the PCI order.

    Those that no UUID names are last.
    """
    unknown = 1 << 62
    return (
        0 if nameable(accelerator.uuid) else 1,
        1 if accelerator.health and accelerator.health.problems else 0,
        -(accelerator.memory_free if accelerator.memory_free is not None else -1),
        unknown if accelerator.processes is None else len(accelerator.processes),
        unknown if accelerator.utilization is None else accelerator.utilization,
        accelerator.index,
        (accelerator.mig.gpu_instance or 0) if accelerator.mig else 0,
    )


def nameable(uuid: str | None) -> bool:
    """Whether CUDA_VISIBLE_DEVICES can name a device by ``uuid``: "GPU-…", "MIG-…", "MIG-GPU-…/1/0"."""
    return uuid is not None and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9/_.-]{0,99}", uuid) is not None


def _candidates(inventory: Inventory, select: int | None) -> list[Accelerator]:
    """The GPUs that count. Selecting may also name what CUDA shows only when it is named: one MIG instance."""
    usable = [a for a in inventory.accelerators if a.fault is None]
    if select is None:
        return [a for a in usable if a.device is not None]
    twins = _same_uuid(inventory)
    nameable = [a for a in usable if a.device is not None or a.hidden is Hidden.MIG_LIMIT]
    return [a for a in nameable if a.uuid not in twins and (a.mig is None or select == 1)]


def _same_uuid(inventory: Inventory) -> set[str | None]:
    """UUIDs that several boards have: none of these can be named by it."""
    count = Counter(a.uuid for a in inventory.accelerators if a.uuid is not None)
    return {uuid for uuid, times in count.items() if times > 1}


def peers(inventory: Inventory, ranked: Sequence[Accelerator], count: int) -> tuple[Accelerator, ...]:
    """The best ``count`` of ``ranked`` that all reach each other's memory; empty if there are none.

    Tries combinations in the order of ranking, at most 100,000 of them: enough for 8 of 16.
    """
    place = {id(inventory.accelerators[number]): row for row, number in enumerate(inventory.links.accelerators)}

    def linked(a: Accelerator, b: Accelerator) -> bool:
        rows = place.get(id(a)), place.get(id(b))
        return rows[0] is not None and rows[1] is not None and inventory.links.p2p[rows[0]][rows[1]] is True

    if count > len(ranked):
        return ()
    for group in islice(combinations(ranked, count), 100_000):
        if all(linked(a, b) for a, b in combinations(group, 2)):
            return group
    return ()


def _unusable(inventory: Inventory, candidates: Sequence[Accelerator], select: int | None) -> str:
    known = {id(a) for a in candidates}
    twins = _same_uuid(inventory) if select is not None else set()
    others = [a for a in inventory.accelerators if id(a) not in known and a.vendor is not Vendor.OTHER]

    def reason(accelerator: Accelerator) -> str | None:
        if accelerator.fault or accelerator.hidden:
            return accelerator.fault or f"hidden ({accelerator.hidden})"
        return "its UUID is another board's too" if accelerator.uuid in twins else None

    faults = {d.fault for d in inventory.drivers}
    # a driver that does not start is the fault of each of its boards
    texts = [f"{label(a)}: {said}" for a in others if (said := reason(a)) and said not in faults]
    texts += [f"{d.vendor} driver: {d.fault}" for d in inventory.drivers if d.fault and not texts]
    return "".join(f"; {text}" for text in texts)


def total_memory(inventory: Inventory, wanted: int) -> Finding:
    """What all usable GPUs have free together, memory that they share counted once."""
    total, pools, unknown = 0, set(), []
    for accelerator in inventory.accelerators:
        if accelerator.device is None or accelerator.fault is not None:
            continue
        if accelerator.memory_free is None:
            unknown.append(label(accelerator))
        elif accelerator.memory_pool is None or accelerator.memory_pool not in pools:
            total += accelerator.memory_free
        if accelerator.memory_pool is not None:
            pools.add(accelerator.memory_pool)
    said = f"{format_bytes(total)} free on all usable GPUs"
    said += f"; unknown: {', '.join(unknown)}" if unknown else ""
    name = f"--total-gpu-memory {format_bytes(wanted)}"
    return Finding(requirement=name, met=total >= wanted, said=said, wanted=wanted, found=total)


def _of(able: int, all_: int) -> str:
    return f"{able} of {all_} usable GPUs {'has' if able == 1 else 'have'}"
