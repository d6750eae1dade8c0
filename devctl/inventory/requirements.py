"""Does a machine meet what a job asks for? Pure: an inventory and requirements in, findings out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations, islice
from pathlib import Path
from typing import Any, TypeVar

from devctl.as_json import to_json_values
from devctl.errors import UsageError
from devctl.inventory.records import Accelerator, Disk, Hidden, Inventory, Vendor, label
from devctl.units import format_bytes, parse_size

SCHEMA = 1


Size = int | str
Version = tuple[int, ...] | str

_T = TypeVar("_T")


def _parsed(name: str, parse: Callable[[str], _T], value: _T | str | None) -> _T | None:
    if not isinstance(value, str):
        return value
    try:
        return parse(value)
    except ValueError as error:
        raise UsageError(f"--{name.replace('_', '-')}: {error}") from None


def _bytes(name: str, value: Size | None) -> int | None:
    """What is asked for, in bytes: an integer is that already."""
    size = _parsed(name, parse_size, value)
    if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 0):
        raise UsageError(f"--{name.replace('_', '-')}: {value!r} is not a size; give bytes, or text like 10GiB")
    return size


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirements:
    """What a job asks for; None asks for nothing.

    ``gpu_memory``, ``compute_capability`` and ``idle`` say what a GPU must offer to count, ``gpus`` how many must
    count (1 unless said), ``select`` how many of them to name. Sizes may be given as text with a unit, like "40GiB",
    versions as text, like "12.4".

    Raises:
        UsageError: a size has no unit, or a version is none.
    """

    gpus: int | None = None
    select: int | None = None
    gpu_memory: Size | None = None
    total_gpu_memory: Size | None = None
    ram: Size | None = None
    disks: tuple[tuple[Path, Size], ...] = ()
    compute_capability: Version | None = None
    driver: Version | None = None
    cuda: Version | None = None
    idle: bool = False
    p2p: bool = False

    def __post_init__(self) -> None:
        _in_numbers(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """`Requirements` in numbers: bytes, and versions as tuples."""

    gpus: int | None
    select: int | None
    gpu_memory: int | None
    total_gpu_memory: int | None
    ram: int | None
    disks: tuple[tuple[Path, int], ...]
    compute_capability: tuple[int, ...] | None
    driver: tuple[int, ...] | None
    cuda: tuple[int, ...] | None
    idle: bool
    p2p: bool


def _in_numbers(wanted: Requirements) -> _Asked:
    versions = {
        name: _parsed(name, parse_version, getattr(wanted, name)) for name in ("compute_capability", "driver", "cuda")
    }
    return _Asked(
        gpus=wanted.gpus,
        select=wanted.select,
        gpu_memory=_bytes("gpu_memory", wanted.gpu_memory),
        total_gpu_memory=_bytes("total_gpu_memory", wanted.total_gpu_memory),
        ram=_bytes("ram", wanted.ram),
        disks=tuple((path, _bytes("disk", size) or 0) for path, size in wanted.disks),
        idle=wanted.idle,
        p2p=wanted.p2p,
        **versions,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One requirement, whether it is met, and what was found, as a person reads it."""

    requirement: str
    met: bool
    found: str

    def __str__(self) -> str:
        return f"{self.requirement}: {self.found}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Every finding, and the accelerators that were selected, best first: none unless all is met."""

    findings: tuple[Finding, ...]
    selected: tuple[Accelerator, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every requirement is met."""
        return all(finding.met for finding in self.findings)

    @property
    def reasons(self) -> tuple[str, ...]:
        """What is not met, one line each."""
        return tuple(str(finding) for finding in self.findings if not finding.met)

    def to_document(self) -> dict[str, Any]:
        """The verdict as JSON values."""
        return {
            "schema": SCHEMA,
            "kind": "devctl.check",
            "ok": self.ok,
            "requirements": to_json_values(self.findings),
            "selected": to_json_values(self.selected),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class _PerGpu:
    requirement: str
    meets: Callable[[Accelerator], bool]
    shows: Callable[[Accelerator], str]


def parse_version(text: str) -> tuple[int, ...]:
    """ "550.54" as (550, 54).

    Raises:
        ValueError: a part is no number.
    """
    parts = text.strip().split(".")
    if not all(part.isascii() and part.isdigit() and len(part) < 10 for part in parts):
        raise ValueError(f"{text!r} is not a version; write numbers with dots, like 12.4")
    return tuple(int(part) for part in parts)


def judge(inventory: Inventory, requirements: Requirements) -> Verdict:
    """Whether ``inventory`` meets ``requirements``: a finding for each, in the order of the fields above."""
    wanted = _in_numbers(requirements)
    findings: list[Finding] = []
    selected: tuple[Accelerator, ...] = ()
    per_gpu = _per_gpu(wanted)
    if wanted.gpus is not None or wanted.select is not None or per_gpu or wanted.p2p:
        gpu_findings, selected = _judge_gpus(inventory, wanted, per_gpu)
        findings += gpu_findings
    if wanted.total_gpu_memory is not None:
        findings.append(_total_memory(inventory, wanted.total_gpu_memory))
    if wanted.ram is not None:
        findings.append(_at_least(f"--ram {_size(wanted.ram)}", wanted.ram, inventory.host.ram_available, "available"))
    for path, size in wanted.disks:
        disk = next((disk for disk in inventory.disks if disk.use == disk_use(path)), None)
        findings.append(_disk(path, size, disk))
    findings += _versions(inventory, wanted)
    verdict = Verdict(findings=tuple(findings))
    return Verdict(findings=verdict.findings, selected=selected) if verdict.ok else verdict


def disk_use(path: Path) -> str:
    """The ``use`` of the disk that a requirement on ``path`` is held against."""
    return f"--disk {path}"


def rank(accelerator: Accelerator) -> tuple[int, int, int, int, int]:
    """The order of selection, best first: most free memory, fewest processes, least busy, then the PCI order."""
    unknown = 1 << 62
    return (
        -(accelerator.memory_free if accelerator.memory_free is not None else -1),
        unknown if accelerator.processes is None else len(accelerator.processes),
        unknown if accelerator.utilization is None else accelerator.utilization,
        accelerator.index,
        (accelerator.mig.gpu_instance or 0) if accelerator.mig else 0,
    )


def _per_gpu(wanted: _Asked) -> list[_PerGpu]:
    checks: list[_PerGpu] = []
    if (memory := wanted.gpu_memory) is not None:
        checks.append(
            _PerGpu(
                requirement=f"--gpu-memory {_size(memory)}",
                meets=lambda a: a.memory_free is not None and a.memory_free >= memory,
                shows=lambda a: "unknown" if a.memory_free is None else f"{_size(a.memory_free)} free",
            )
        )
    if (capability := wanted.compute_capability) is not None:
        checks.append(
            _PerGpu(
                requirement=f"--compute-capability {_dotted(capability)}",
                meets=lambda a: a.compute_capability is not None and _reaches(a.compute_capability, capability),
                shows=lambda a: a.compute_capability or "unknown",
            )
        )
    if wanted.idle:
        checks.append(_PerGpu(requirement="--idle", meets=lambda a: a.processes == (), shows=_shown_processes))
    return checks


def _shown_processes(accelerator: Accelerator) -> str:
    if accelerator.processes is None:
        return "processes unknown"
    return " + ".join(f"{p.name or 'process'} {p.pid}" for p in accelerator.processes) or "idle"


def _judge_gpus(
    inventory: Inventory, wanted: _Asked, per_gpu: Sequence[_PerGpu]
) -> tuple[list[Finding], tuple[Accelerator, ...]]:
    candidates = sorted(_candidates(inventory, wanted.select), key=rank)
    # --p2p alone asks it of all GPUs
    only_p2p = wanted.gpus is None and wanted.select is None
    need = max(1 if wanted.gpus is None else wanted.gpus, wanted.select or 0)
    if wanted.p2p and only_p2p:
        need = max(1, len(candidates))
    qualified = [a for a in candidates if all(check.meets(a) for check in per_gpu)]

    findings = []
    for check in per_gpu:
        able = [a for a in candidates if check.meets(a)]
        unable = sorted((a for a in candidates if not check.meets(a)), key=lambda a: a.index)
        text = f"{_of(len(able), len(candidates))} enough"
        if len(able) < need:
            text = f"{_of(len(able), len(candidates))} enough, {need} wanted"
            text += "".join(f"; {label(a)}: {check.shows(a)}" for a in unable) if unable else ""
        findings.append(Finding(requirement=check.requirement, met=len(able) >= need, found=text))

    count = [f"--gpus {wanted.gpus}"] if wanted.gpus is not None else []
    count += [f"--select {wanted.select}"] if wanted.select is not None else []
    jointly_short = bool(per_gpu) and len(qualified) < need and all(finding.met for finding in findings)
    if count or jointly_short:
        names = " ".join(count) or "all of " + " ".join(check.requirement for check in per_gpu)
        text = f"{_of(len(qualified), len(candidates))} what is asked of each" if per_gpu else ""
        text = text or f"{len(candidates)} usable"
        if len(qualified) < need:
            text += f", {need} wanted{_unusable(inventory, candidates)}"
        findings.insert(0, Finding(requirement=names, met=len(qualified) >= need, found=text))

    chosen = tuple(qualified[:need])
    if wanted.p2p:
        chosen = peers(inventory, qualified, need)
        met = len(chosen) == need and need > 0 and bool(candidates)
        what = f"{need} GPUs" if need > 1 else "one GPU, which needs no peer"
        text = f"{what} that reach each other's memory: {', '.join(label(a) for a in chosen)}"
        if not met:
            text = f"no {need} GPUs that qualify all reach each other's memory" if candidates else "no usable GPU"
        findings.append(Finding(requirement="--p2p", met=met, found=text))
    return findings, chosen[: wanted.select] if wanted.select is not None else ()


def _candidates(inventory: Inventory, select: int | None) -> list[Accelerator]:
    """The GPUs that count. Selecting may also name what CUDA shows only when it is named: one MIG instance."""
    usable = [a for a in inventory.accelerators if a.fault is None]
    if select is None:
        return [a for a in usable if a.device is not None]
    nameable = [a for a in usable if a.device is not None or a.hidden is Hidden.MIG_LIMIT]
    return [a for a in nameable if a.mig is None] if select > 1 else nameable


def peers(inventory: Inventory, ranked: Sequence[Accelerator], count: int) -> tuple[Accelerator, ...]:
    """The best ``count`` of ``ranked`` that all reach each other's memory; empty if there are none.

    Tries combinations in the order of ranking, at most 100,000 of them: enough for 8 of 16.
    """
    place = {id(inventory.accelerators[number]): row for row, number in enumerate(inventory.links.accelerators)}

    def linked(a: Accelerator, b: Accelerator) -> bool:
        rows = place.get(id(a)), place.get(id(b))
        return rows[0] is not None and rows[1] is not None and inventory.links.p2p[rows[0]][rows[1]] is True

    for group in islice(combinations(ranked, count), 100_000):
        if all(linked(a, b) for a, b in combinations(group, 2)):
            return group
    return ()


def _unusable(inventory: Inventory, candidates: Sequence[Accelerator]) -> str:
    known = {id(a) for a in candidates}
    others = [a for a in inventory.accelerators if id(a) not in known and a.vendor is not Vendor.OTHER]
    texts = [f"{label(a)}: {a.fault or f'hidden ({a.hidden})'}" for a in others if a.fault or a.hidden]
    texts += [f"{d.vendor} driver: {d.fault}" for d in inventory.drivers if d.fault and not others]
    return "".join(f"; {text}" for text in texts)


def _total_memory(inventory: Inventory, wanted: int) -> Finding:
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
    found = f"{_size(total)} free on all usable GPUs"
    found += f"; unknown: {', '.join(unknown)}" if unknown else ""
    return Finding(requirement=f"--total-gpu-memory {_size(wanted)}", met=total >= wanted, found=found)


def _disk(path: Path, wanted: int, disk: Disk | None) -> Finding:
    requirement = f"--disk {path}={_size(wanted)}"
    if disk is None or disk.fault:
        return Finding(requirement=requirement, met=False, found=(disk and disk.fault) or "unknown")
    return _at_least(requirement, wanted, disk.free, "free")


def _versions(inventory: Inventory, wanted: _Asked) -> list[Finding]:
    findings = []
    drivers = sorted(inventory.drivers, key=lambda driver: driver.vendor is not Vendor.NVIDIA)
    first = drivers[0] if drivers else None
    for name, version in (("--driver", wanted.driver), ("--cuda", wanted.cuda)):
        if version is None:
            continue
        found = None if first is None or first.fault else first.version if name == "--driver" else first.cuda
        text = found or ("no driver" if first is None else first.fault or f"{first.vendor} driver: unknown")
        met = found is not None and _reaches(found, version)
        findings.append(Finding(requirement=f"{name} {_dotted(version)}", met=met, found=text))
    return findings


def _reaches(found: str, wanted: tuple[int, ...]) -> bool:
    try:
        version = parse_version(found)
    except ValueError:
        return False
    # 550 is reached by 550.54, and 12.0 by 12
    length = max(len(version), len(wanted))
    return version + (0,) * (length - len(version)) >= wanted + (0,) * (length - len(wanted))


def _at_least(requirement: str, wanted: int, found: int | None, word: str) -> Finding:
    text = "unknown" if found is None else f"{_size(found)} {word}"
    return Finding(requirement=requirement, met=found is not None and found >= wanted, found=text)


def _of(able: int, all_: int) -> str:
    return f"{able} of {all_} usable GPUs {'has' if able == 1 else 'have'}"


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(str(part) for part in version)


def _size(size: int) -> str:
    return format_bytes(size)
