"""The processor and its memory."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from devctl.inventory.probes import cgroup, mounts
from devctl.inventory.probes.pci import SYS, parse_int, read
from devctl.inventory.records import Host, NumaNode

UNKNOWN = Host(cpu=None, cores_physical=None, cores_logical=None, ram_total=None, ram_available=None)
"""A host that was not looked at."""


class Memory(NamedTuple):
    """Bytes of a host's memory, as its system counts them."""

    total: int
    available: int
    swap_total: int | None
    swap_free: int | None


def probe() -> Host:
    """The host as the operating system tells it, under the limits of the control groups that this process is in.

    Linux' own files are read; where they are not there, or not whole, psutil is asked. To import it takes longer than
    all else here.
    """
    limits = cgroup.probe(mounts.probe())
    memory, fault = _asked(lambda: parse_meminfo(read(Path("/proc/meminfo")) or "") or _memory_of_psutil())
    total, available = (memory.total, memory.available) if memory else (None, None)
    return Host(
        cpu=_cpu_name(),
        cores_physical=physical_cores() or _cores_of_psutil(logical=False),
        cores_logical=_logical_cores(),
        cores_usable=_usable_cores(),
        cpu_quota=limits.cpus,
        ram_total=tightest(total, limits.memory),
        ram_available=tightest(available, limits.memory_available),
        ram_limit=limits.memory,
        ram_total_system=total,
        ram_available_system=available,
        swap_total=memory and memory.swap_total,
        swap_free=memory and memory.swap_free,
        numa_nodes=numa_nodes(),
        fault=fault,
    )


def tightest(*sizes: int | None) -> int | None:
    """The smallest of the known sizes; None where none is known."""
    return min((size for size in sizes if size is not None), default=None)


def _asked(question: Callable[[], Memory]) -> tuple[Memory | None, str | None]:
    # a sandbox may hide /proc/meminfo, or show one that psutil cannot read
    try:
        return question(), None
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        return None, f"the memory could not be read: {error}"


def parse_meminfo(text: str) -> Memory | None:
    """What Linux' /proc/meminfo says; None where a line is missing, or more is said to be available than there is.

    Kernels before 3.14 and some sandboxes have no MemAvailable, and containers of LXC one that is too large; psutil
    makes one of other lines there.
    """
    found = dict(re.findall(r"^(MemTotal|MemAvailable|SwapTotal|SwapFree):\s*(\d{1,18}) kB$", text, re.MULTILINE))
    if len(found) < len(Memory._fields):
        return None
    sizes = {name: int(size) * 1024 for name, size in found.items()}
    if not 0 < sizes["MemAvailable"] <= sizes["MemTotal"]:
        return None
    return Memory(sizes["MemTotal"], sizes["MemAvailable"], sizes["SwapTotal"], sizes["SwapFree"])


def _memory_of_psutil() -> Memory:
    import psutil

    memory = psutil.virtual_memory()
    try:
        swap = psutil.swap_memory()
    except (OSError, ValueError, KeyError, RuntimeError):
        return Memory(memory.total, memory.available, None, None)
    return Memory(memory.total, memory.available, swap.total, swap.free)


def physical_cores(sys: Path = SYS) -> int | None:
    """Cores, each with all its threads, of the processors that are on; None where Linux does not tell."""
    cores = {read(path) for path in (sys / "devices/system/cpu").glob("cpu[0-9]*/topology/core_cpus_list")}
    return len(cores - {None, ""}) or None


def _cores_of_psutil(*, logical: bool) -> int | None:
    import psutil

    cores: int | None = psutil.cpu_count(logical=logical)
    return cores


def _logical_cores() -> int | None:
    # os.cpu_count can be told another number, by PYTHON_CPU_COUNT
    if "SC_NPROCESSORS_ONLN" in getattr(os, "sysconf_names", {}):
        return os.sysconf("SC_NPROCESSORS_ONLN")
    return _cores_of_psutil(logical=True)


def _usable_cores() -> int | None:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return _logical_cores()


def _cpu_name() -> str | None:
    name = parse_cpuinfo(read(Path("/proc/cpuinfo")) or "")
    if name is not None:
        return name
    import platform

    if platform.system() == "Darwin":
        from devctl.inventory.probes.apple import sysctl

        name = sysctl("machdep.cpu.brand_string")
    return name or platform.processor() or platform.machine() or None


def parse_cpuinfo(text: str) -> str | None:
    """The model name in Linux' /proc/cpuinfo; None where it has none, as on many Arm chips."""
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name" and value.strip():
            return value.strip()
    return None


def numa_nodes(sys: Path = SYS) -> tuple[NumaNode, ...] | None:
    """The NUMA nodes that Linux shows; None where it shows none."""
    try:
        folders = list((sys / "devices/system/node").iterdir())
    except OSError:
        return None
    numbers = sorted(int(folder.name[4:]) for folder in folders if re.fullmatch(r"node[0-9]{1,6}", folder.name))
    nodes = []
    for number in numbers:
        folder = sys / f"devices/system/node/node{number}"
        meminfo = parse_node_meminfo(read(folder / "meminfo") or "")
        nodes.append(
            NumaNode(
                id=number,
                cpus=read(folder / "cpulist"),
                memory_total=meminfo.get("MemTotal"),
                memory_free=meminfo.get("MemFree"),
            )
        )
    return tuple(nodes) or None


def parse_node_meminfo(text: str) -> dict[str, int]:
    """A node's meminfo, "Node 0 MemTotal:  1024 kB": bytes by name; other lines are left out."""
    sizes = {}
    for line in text.splitlines():
        match = re.fullmatch(r"Node \d+ (\S+):\s*(\S+) kB", line.strip())
        value = parse_int(match[2]) if match else None
        if match and value is not None:
            sizes[match[1]] = value * 1024
    return sizes
