"""What is here, as frozen values. Sizes are bytes; unknown is None."""

from dataclasses import dataclass

from devctl.devices import Device


@dataclass(frozen=True, slots=True, kw_only=True)
class Accelerator:
    """One GPU.

    Attributes:
        device: what a framework calls it; None while no framework can use it (hidden, or at fault).
        index: its place among the boards of its vendor, in PCI order.
        fault: why it can't be used, in the driver's words; None when it can.
    """

    device: Device | None
    index: int
    name: str | None
    uuid: str | None
    memory_total: int | None
    memory_free: int | None
    fault: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """The processor and its memory. ``ram_available`` is what can be had without swapping."""

    cpu: str | None
    cores_physical: int | None
    cores_logical: int | None
    ram_total: int | None
    ram_available: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """The file system under one folder that matters; ``use`` says why: "working directory", "hf cache"."""

    use: str
    path: str
    total: int | None
    free: int | None
    fault: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """One machine at one moment."""

    accelerators: tuple[Accelerator, ...]
    host: Host
    disks: tuple[Disk, ...]
