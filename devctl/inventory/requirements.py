"""Does a machine meet what a job asks for? Pure: an inventory and requirements in, findings out."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from devctl.errors import UsageError
from devctl.inventory.gpus_fit import GpusAsked, judge_gpus, total_memory
from devctl.inventory.records import Disk, Inventory, Vendor
from devctl.inventory.verdict import Finding, Verdict, at_least
from devctl.inventory.versions import dotted, parse_version, reaches
from devctl.units import format_bytes, parse_size

__all__ = ["Finding", "Requirements", "Verdict", "disk_use", "judge", "parse_version"]

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


def _capability(text: str) -> tuple[int, ...]:
    """A compute capability like "9.0"; "90", as compilers write it, would be one that no board has.

    Raises:
        ValueError: it is none.
    """
    version = parse_version(text)
    if len(version) == 1 and version[0] >= 20:
        digits = str(version[0])
        raise ValueError(f"{text!r} is no compute capability; write it like {digits[:-1]}.{digits[-1]}")
    return version


def _bytes(name: str, value: Size | None) -> int | None:
    """What is asked for, in bytes: an integer is that already."""
    size = _parsed(name, parse_size, value)
    if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 0):
        raise UsageError(f"--{name.replace('_', '-')}: {value!r} is not a size; give bytes, or text like 10GiB")
    return size


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirements:
    """What a job asks for; None asks for nothing.

    ``gpu_memory``, ``compute_capability``, ``idle`` and ``healthy`` say what a GPU must offer to count, ``gpus`` how
    many must count (1 unless said), ``select`` how many of them to name. Sizes are bytes, or text with a unit, like
    "40GiB"; versions may be text, like "12.4".

    Raises:
        UsageError: a size has no unit, a version is none, or something is asked of no GPU.
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
    healthy: bool = False
    p2p: bool = False

    def __post_init__(self) -> None:
        _in_numbers(self)
        for name, least in (("gpus", 0), ("select", 1)):
            number = getattr(self, name)
            if number is not None and number < least:
                raise UsageError(f"--{name} {number}: it is at least {least}")
        asked = [name for name in _OF_EACH if getattr(self, name) not in (None, False)]
        if self.gpus == 0 and asked:
            options = " and ".join(f"--{name.replace('_', '-')}" for name in asked)
            raise UsageError(f"--gpus 0 asks for no GPU: leave out {options}", hint="or say how many must qualify")


_OF_EACH = ("select", "gpu_memory", "compute_capability", "idle", "healthy", "p2p")
"""What is asked of the GPUs that count, so that there must be some."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """`Requirements` in numbers: bytes, and versions as tuples."""

    of_gpus: GpusAsked
    total_gpu_memory: int | None
    ram: int | None
    disks: tuple[tuple[Path, int], ...]
    driver: tuple[int, ...] | None
    cuda: tuple[int, ...] | None


def _in_numbers(wanted: Requirements) -> _Asked:
    return _Asked(
        of_gpus=GpusAsked(
            gpus=wanted.gpus,
            select=wanted.select,
            gpu_memory=_bytes("gpu_memory", wanted.gpu_memory),
            compute_capability=_parsed("compute_capability", _capability, wanted.compute_capability),
            idle=wanted.idle,
            healthy=wanted.healthy,
            p2p=wanted.p2p,
        ),
        total_gpu_memory=_bytes("total_gpu_memory", wanted.total_gpu_memory),
        ram=_bytes("ram", wanted.ram),
        disks=tuple((path, _bytes("disk", size) or 0) for path, size in wanted.disks),
        driver=_parsed("driver", parse_version, wanted.driver),
        cuda=_parsed("cuda", parse_version, wanted.cuda),
    )


def judge(inventory: Inventory, requirements: Requirements) -> Verdict:
    """Whether ``inventory`` meets ``requirements``: a finding for each, in the order of the fields above."""
    wanted = _in_numbers(requirements)
    findings, selected = judge_gpus(inventory, wanted.of_gpus)
    if wanted.total_gpu_memory is not None:
        findings.append(total_memory(inventory, wanted.total_gpu_memory))
    if wanted.ram is not None:
        name = f"--ram {format_bytes(wanted.ram)}"
        findings.append(at_least(name, wanted.ram, inventory.host.ram_available, "available"))
    for path, size in wanted.disks:
        disk = next((disk for disk in inventory.disks if disk.use == disk_use(path)), None)
        findings.append(_disk(path, size, disk))
    findings += _versions(inventory, wanted)
    verdict = Verdict(findings=tuple(findings))
    return Verdict(findings=verdict.findings, selected=selected) if verdict.ok else verdict


def disk_use(path: Path) -> str:
    """The ``use`` of the disk that a requirement on ``path`` is held against."""
    return f"--disk {path}"


def _disk(path: Path, wanted: int, disk: Disk | None) -> Finding:
    requirement = f"--disk {path}={format_bytes(wanted)}"
    if disk is None or disk.fault:
        return Finding(requirement=requirement, met=False, said=(disk and disk.fault) or "unknown", wanted=wanted)
    return at_least(requirement, wanted, disk.free, "free")


def _versions(inventory: Inventory, wanted: _Asked) -> list[Finding]:
    findings = []
    drivers = sorted(inventory.drivers, key=lambda driver: driver.vendor is not Vendor.NVIDIA)
    first = drivers[0] if drivers else None
    for name, version in (("--driver", wanted.driver), ("--cuda", wanted.cuda)):
        if version is None:
            continue
        found = None if first is None or first.fault else first.version if name == "--driver" else first.cuda
        said = found or ("no driver" if first is None else first.fault or f"{first.vendor} driver: unknown")
        met = found is not None and reaches(found, version)
        requirement = f"{name} {dotted(version)}"
        findings.append(Finding(requirement=requirement, met=met, said=said, wanted=dotted(version), found=found))
    return findings
