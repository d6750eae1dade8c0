"""The processor and its memory."""

import os
import platform
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from devctl.inventory.probes import cgroup, mounts
from devctl.inventory.probes.pci import SYS, parse_int, read
from devctl.inventory.records import Host, NumaNode

UNKNOWN = Host(cpu=None, cores_physical=None, cores_logical=None, ram_total=None, ram_available=None)
"""A host that was not looked at."""


def probe() -> Host:
    """The host as the operating system tells it, under the limits of the control groups that this process is in."""
    import psutil

    limits = cgroup.probe(mounts.probe())
    memory, fault = _asked(psutil.virtual_memory)
    swap, _ = _asked(psutil.swap_memory)
    total, available = (memory.total, memory.available) if memory else (None, None)
    return Host(
        cpu=_cpu_name(),
        cores_physical=psutil.cpu_count(logical=False),
        cores_logical=psutil.cpu_count(),
        cores_usable=_usable_cores(psutil),
        cpu_quota=limits.cpus,
        ram_total=tightest(total, limits.memory),
        ram_available=tightest(available, limits.memory_available),
        ram_limit=limits.memory,
        ram_total_system=total,
        ram_available_system=available,
        swap_total=swap and swap.total,
        swap_free=swap and swap.free,
        numa_nodes=numa_nodes(),
        fault=fault,
    )


def tightest(*sizes: int | None) -> int | None:
    """The smallest of the known sizes; None where none is known."""
    return min((size for size in sizes if size is not None), default=None)


def _asked(question: Callable[[], Any]) -> tuple[Any, str | None]:
    # a sandbox may hide /proc/meminfo, or show one that psutil cannot read
    try:
        return question(), None
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        return None, f"the memory could not be read: {error}"


def _usable_cores(psutil: Any) -> int | None:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    cores: int | None = psutil.cpu_count()
    return cores


def _cpu_name() -> str | None:
    name = parse_cpuinfo(read(Path("/proc/cpuinfo")) or "")
    if name is None and platform.system() == "Darwin":
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
