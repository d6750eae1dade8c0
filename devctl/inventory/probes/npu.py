"""Accelerators of all other kinds, as far as Linux has a common name for them: /sys/class/accel."""

import re
from pathlib import Path

from devctl.inventory.probes import pci
from devctl.inventory.probes.findings import Findings
from devctl.inventory.records import Accelerator, Hidden, Vendor


def probe(sys: Path = pci.SYS) -> Findings:
    """NPUs and the like, by their kernel driver's name; no framework's device type here covers them."""
    try:
        entries = list((sys / "class/accel").iterdir())
    except OSError:
        return Findings()
    names = sorted((e for e in entries if re.fullmatch(r"accel[0-9]{1,6}", e.name)), key=lambda e: int(e.name[5:]))
    return Findings(accelerators=tuple(_device(index, entry) for index, entry in enumerate(names)))


def _device(index: int, entry: Path) -> Accelerator:
    facts = pci.parse_uevent(pci.read(entry / "device/uevent") or "")
    driver, number = facts.get("DRIVER"), facts.get("PCI_ID", "").lower()
    return Accelerator(
        vendor=Vendor.OTHER,
        device=None,
        index=index,
        name=f"{driver or 'accelerator'} {number}".strip(),
        uuid=None,
        pci_bus_id=pci.normal_bus_id(facts.get("PCI_SLOT_NAME")),
        numa_node=pci.parse_numa_node(pci.read(entry / "device/numa_node")),
        memory_total=None,
        memory_free=None,
        hidden=Hidden.UNSUPPORTED,
    )
