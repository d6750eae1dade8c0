"""The GPU of an Apple chip, through ioreg and sysctl."""

import platform
import plistlib
import subprocess
from typing import Any

from devctl.devices import Device
from devctl.inventory.probes.findings import Findings
from devctl.inventory.records import HOST_POOL, Accelerator, Vendor


def probe() -> Findings:
    """The GPU of this Mac; nothing on any other machine."""
    if platform.system() != "Darwin" or platform.machine() != "arm64":
        return Findings()
    text = _output("ioreg", "-r", "-d", "1", "-c", "AGXAccelerator", "-a")
    return parse_ioreg(text, sysctl("machdep.cpu.brand_string"))


def parse_ioreg(text: str | None, chip: str | None) -> Findings:
    """``ioreg -a`` of the class AGXAccelerator. Its memory is the host's RAM, so the host's numbers are filled in."""
    entries = _plist(text)
    properties = entries[0] if entries and isinstance(entries[0], dict) else {}
    statistics = properties.get("PerformanceStatistics")
    statistics = statistics if isinstance(statistics, dict) else {}
    model = properties.get("model")
    cores = properties.get("gpu-core-count")
    name = model if isinstance(model, str) else chip
    return Findings(
        accelerators=(
            Accelerator(
                vendor=Vendor.APPLE,
                device=Device.mps(),
                index=0,
                name=f"{name or 'Apple GPU'}{f' ({cores} GPU cores)' if isinstance(cores, int) else ''}",
                uuid=None,
                memory_total=None,
                memory_free=None,
                memory_used=_int(statistics.get("In use system memory")),
                memory_pool=HOST_POOL,
                utilization=_int(statistics.get("Device Utilization %")),
            ),
        )
    )


def sysctl(name: str) -> str | None:
    """What ``sysctl -n name`` prints; None where it fails."""
    return _output("sysctl", "-n", name)


def _int(value: object) -> int | None:
    return value if isinstance(value, int) else None


def _plist(text: str | None) -> list[Any]:
    try:
        value = plistlib.loads((text or "").encode())
    except (plistlib.InvalidFileException, ValueError, OverflowError, SyntaxError):
        return []
    return value if isinstance(value, list) else []


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
