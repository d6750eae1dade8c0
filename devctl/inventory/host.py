"""The processor and its memory."""

import platform
from pathlib import Path

from devctl.inventory.records import Host


def probe() -> Host:
    """The host as the operating system tells it."""
    import psutil

    memory = psutil.virtual_memory()
    return Host(
        cpu=_cpu_name(),
        cores_physical=psutil.cpu_count(logical=False),
        cores_logical=psutil.cpu_count(),
        ram_total=memory.total,
        ram_available=memory.available,
    )


def _cpu_name() -> str | None:
    cpuinfo = Path("/proc/cpuinfo")
    name = parse_cpuinfo(cpuinfo.read_text(errors="replace")) if cpuinfo.exists() else None
    return name or platform.processor() or platform.machine() or None


def parse_cpuinfo(text: str) -> str | None:
    """The model name in Linux' /proc/cpuinfo; None where it has none, as on many Arm chips."""
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name" and value.strip():
            return value.strip()
    return None
