"""Intel GPUs, through what the i915 and xe kernel modules show in /sys. No oneAPI library is needed."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from devctl.devices import Device, DeviceType
from devctl.inventory.probes import pci
from devctl.inventory.probes.findings import Findings
from devctl.inventory.records import HOST_POOL, Accelerator, Driver, Hidden, Vendor

_INTEGRATED = re.compile(r"0000:00:02\.0")
"""Where Intel's processors have had their graphics since there are any."""


def probe(environment: Mapping[str, str], on_bus: Iterable[pci.PciDevice], sys: Path = pci.SYS) -> Findings:
    """Intel's GPUs on the bus, in PCI order; network and accelerator cards that are no GPU are left out."""
    boards = [device for device in on_bus if device.vendor == pci.INTEL and device.driver in ("i915", "xe", None)]
    if not boards:
        return Findings()
    mask = environment.get("ZE_AFFINITY_MASK")
    found: list[Accelerator] = []
    working = 0
    for index, board in enumerate(boards):
        integrated = _INTEGRATED.fullmatch(board.bus_id) is not None
        # torch's XPU build begins with Arc and Xe2: the older graphics, which are all that i915 drives in processors
        # that xe does not, have no device there
        fault = None if board.driver else "no driver: neither i915 nor xe is bound to the board"
        supported = fault is None and not (integrated and board.driver == "i915")
        ordinal = parse_affinity_mask(mask, working) if supported else None
        total = _memory_total(board)
        found.append(
            Accelerator(
                vendor=Vendor.INTEL,
                device=None if ordinal is None else Device(DeviceType.XPU, ordinal),
                index=index,
                name=f"Intel {'integrated graphics' if integrated else 'GPU'} 8086:{board.device}",
                uuid=None,
                pci_bus_id=board.bus_id,
                numa_node=board.numa_node,
                memory_total=total,
                memory_free=None,  # only the kernel's debug files know
                memory_pool=HOST_POOL if integrated else None,
                fault=fault,
                hidden=None
                if fault or ordinal is not None
                else Hidden.ENVIRONMENT
                if supported
                else Hidden.UNSUPPORTED,
            )
        )
        working += supported
    driver = next((board.driver for board in boards if board.driver), None)
    version = driver and pci.read(sys / "module" / driver / "version")
    return Findings(
        accelerators=tuple(found),
        driver=Driver(vendor=Vendor.INTEL, version=version, cuda=None) if driver else None,
        notes=notes(mask, working),
    )


def parse_affinity_mask(mask: str | None, device: int) -> int | None:
    """What ``device`` is counted as under ZE_AFFINITY_MASK ("0,2.1": a device, or one tile of it); None if left out.

    Level Zero's specification, "Environment Variables": the order of the entries does not matter.
    """
    if mask is None or not mask.strip():
        return device
    named = {int(match[1]) for entry in mask.split(",") if (match := re.fullmatch(r"\s*(\d{1,6})(\.\d+)*\s*", entry))}
    return sorted(named).index(device) if device in named else None


def notes(mask: str | None, working: int) -> tuple[str, ...]:
    """What of ZE_AFFINITY_MASK names no GPU, of so many that there are."""
    for entry in (mask or "").split(",") if (mask or "").strip() else ():
        match = re.fullmatch(r"\s*(\d{1,6})(\.\d+)*\s*", entry)
        if match is None or int(match[1]) >= working:
            return (f"ZE_AFFINITY_MASK: its entry {entry.strip()[:48]!r} names no GPU: there are {working}, from 0 on",)
    return ()


def _memory_total(board: pci.PciDevice) -> int | None:
    # xe: one file a tile; i915: one a card
    tiles = [pci.parse_int(pci.read(file)) for file in sorted(board.folder.glob("tile*/physical_vram_size_bytes"))]
    if tiles and None not in tiles:
        return sum(tile for tile in tiles if tile is not None)
    cards = sorted(board.folder.glob("drm/card*/lmem_total_bytes"))
    return pci.parse_int(pci.read(cards[0])) if cards else None
