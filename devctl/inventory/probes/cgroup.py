"""The memory and processor time that Linux' control groups leave to this process, versions 1 and 2.

A process lies under every ancestor of its group, and the tightest limit wins. In a container the files of the outer
groups are out of sight; what is mounted is what is counted.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from devctl.inventory.probes.mounts import Mount
from devctl.inventory.probes.pci import read

_UNLIMITED = 1 << 60
"""Version 1 writes the largest number of pages for "no limit"; no machine has an exabyte."""


class Limits(NamedTuple):
    """What the groups allow; None without a limit.

    Attributes:
        memory: bytes, the tightest limit.
        memory_available: bytes that may still be taken before one of the limits is met.
        cpus: cores' worth of time.
    """

    memory: int | None = None
    memory_available: int | None = None
    cpus: float | None = None


def probe(mounts: Sequence[Mount], proc: Path = Path("/proc/self"), root: Path = Path("/")) -> Limits:
    """The limits that this process is under; none where there are no control groups."""
    groups = parse_groups(read(proc / "cgroup") or "")
    memory: list[tuple[int, int]] = []
    cpus: list[float] = []
    for mount in mounts:
        if mount.filesystem == "cgroup2":
            versions = {"": 2}
        elif mount.filesystem == "cgroup":
            versions = dict.fromkeys(("memory", "cpu"), 1)
        else:
            continue
        for controller, version in versions.items():
            group = groups.get(controller)
            if group is None or (version == 1 and controller not in mount.options):
                continue
            for folder in ancestors(mount, group):
                here = root / folder.lstrip("/")
                if controller != "cpu":
                    memory += _memory(here, version=version)
                if controller != "memory":
                    cpus += _cpus(here, version=version)
    return Limits(
        memory=min((limit for limit, _ in memory), default=None),
        memory_available=min((available for _, available in memory), default=None),
        cpus=min(cpus, default=None),
    )


def parse_groups(text: str) -> dict[str, str]:
    """/proc/self/cgroup: the group's path by version 1 controller; "" is version 2's."""
    groups = {}
    for line in text.splitlines():
        number, _, rest = line.partition(":")
        controllers, colon, path = rest.partition(":")
        if not colon or not number.strip().isdigit() or not path.startswith("/"):
            continue
        for controller in controllers.split(",") if controllers else [""]:
            groups[controller] = path
    return groups


def ancestors(mount: Mount, group: str) -> Iterator[str]:
    """The folders of ``group`` and of all above it that ``mount`` shows, innermost first."""
    inner, outer = PurePosixPath(group), PurePosixPath(mount.root)
    # a container may see its own group as the mount's root, or be told a path outside of what is mounted ("/../x")
    inside = inner.relative_to(outer) if inner.is_relative_to(outer) and ".." not in inner.parts else PurePosixPath()
    folder = PurePosixPath(mount.point) / inside
    yield str(folder)
    for _ in inside.parts:
        folder = folder.parent
        yield str(folder)


def parse_limit(text: str | None) -> int | None:
    """memory.max, memory.high or memory.limit_in_bytes: bytes; None for "max", no limit and what is no number."""
    try:
        value = int((text or "").strip())
    except ValueError:
        return None
    return value if 0 <= value < _UNLIMITED else None


def parse_cpu_max(text: str | None) -> float | None:
    """cpu.max, "200000 100000": the quota over the period, in cores; None for "max" and what is no quota."""
    quota, _, period = (text or "").strip().partition(" ")
    try:
        cores = int(quota) / int(period or "100000")
    except (ValueError, ZeroDivisionError):
        return None
    return cores if cores > 0 else None


def parse_stat(text: str | None, key: str) -> int:
    """The number after ``key`` in memory.stat; 0 where it has none."""
    for line in (text or "").splitlines():
        name, _, value = line.partition(" ")
        if name == key and value.strip().isdecimal():
            return int(value)
    return 0


def _memory(folder: Path, *, version: int) -> list[tuple[int, int]]:
    """The limits of one group with what each leaves. Cache that the kernel gives up first counts as available."""
    if version == 2:
        limits = [parse_limit(read(folder / "memory.max")), parse_limit(read(folder / "memory.high"))]
        current, reclaimable = "memory.current", "inactive_file"
    else:
        limits = [parse_limit(read(folder / "memory.limit_in_bytes"))]
        current, reclaimable = "memory.usage_in_bytes", "total_inactive_file"
    found = [limit for limit in limits if limit is not None]
    if not found:
        return []
    cache = parse_stat(read(folder / "memory.stat"), reclaimable)
    used = max(0, (parse_limit(read(folder / current)) or 0) - cache)
    return [(limit, max(0, limit - used)) for limit in found]


def _cpus(folder: Path, *, version: int) -> list[float]:
    if version == 2:
        quota = parse_cpu_max(read(folder / "cpu.max"))
    else:
        quota = parse_cpu_max(f"{read(folder / 'cpu.cfs_quota_us')} {read(folder / 'cpu.cfs_period_us')}")
    return [] if quota is None else [quota]
