"""The PCI bus as Linux' /sys shows it: the boards that are there even when no driver speaks for them."""

from dataclasses import dataclass
from pathlib import Path

SYS = Path("/sys")

NVIDIA, AMD, INTEL = "10de", "1002", "8086"


@dataclass(frozen=True, slots=True, kw_only=True)
class PciDevice:
    """A display controller or processing accelerator; ``driver`` is the kernel module bound to it."""

    bus_id: str
    vendor: str
    device: str
    driver: str | None
    numa_node: int | None
    folder: Path


def scan(sys: Path = SYS) -> tuple[PciDevice, ...]:
    """Every display controller (class 03) and processing accelerator (class 12) on the bus, in bus order."""
    folder = sys / "bus/pci/devices"
    try:
        entries = sorted(folder.iterdir())
    except OSError:
        return ()
    found = (_device(entry) for entry in entries)
    return tuple(device for device in found if device is not None)


def _device(folder: Path) -> PciDevice | None:
    facts = parse_uevent(read(folder / "uevent") or "")
    vendor, _, device = facts.get("PCI_ID", "").lower().partition(":")
    # the class is written without its leading zero: 30200 is class 03, a display, 02, a 3D controller
    if facts.get("PCI_CLASS", "").zfill(6)[:2] not in ("03", "12") or not device:
        return None
    return PciDevice(
        bus_id=normal_bus_id(facts.get("PCI_SLOT_NAME", folder.name)) or folder.name,
        vendor=vendor,
        device=device,
        driver=facts.get("DRIVER"),
        numa_node=parse_numa_node(read(folder / "numa_node")),
        folder=folder,
    )


def read(path: Path) -> str | None:
    """The text of a small file; None where it is missing, unreadable or, as sysfs does, refuses to be read."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return None


def parse_uevent(text: str) -> dict[str, str]:
    """KEY=value lines; others are left out."""
    pairs = (line.partition("=") for line in text.splitlines())
    return {key.strip(): value.strip() for key, equals, value in pairs if equals}


def parse_numa_node(text: str | None) -> int | None:
    """The node's number; None for -1, which is how the kernel says that the machine has no such thing."""
    node = parse_int(text)
    return None if node is None or node < 0 else node


def parse_int(text: str | None) -> int | None:
    """The decimal or 0x number; None where ``text`` is none."""
    try:
        return None if text is None else int(text, 0)
    except ValueError:
        return None


def normal_bus_id(text: str | None) -> str | None:
    """``text`` as /sys writes it, 0000:17:00.0; NVML writes 00000000:17:00.0. None where it is no bus id."""
    parts = (text or "").strip().lower().split(":")
    try:
        domain, bus, (device, function) = int(parts[0], 16), int(parts[1], 16), parts[2].split(".")
        return f"{domain:04x}:{bus:02x}:{int(device, 16):02x}.{int(function, 16):x}"
    except (IndexError, ValueError):
        return None
