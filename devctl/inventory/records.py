"""What is here, as frozen values. Sizes are bytes; unknown is None."""

from dataclasses import dataclass
from enum import StrEnum

from devctl.devices import Device

HOST_POOL = "host"
"""The `Accelerator.memory_pool` of a GPU whose memory is the host's RAM."""


class Vendor(StrEnum):
    """Who makes an accelerator; ``OTHER`` is whatever else the kernel calls one."""

    NVIDIA = "nvidia"
    AMD = "amd"
    INTEL = "intel"
    APPLE = "apple"
    OTHER = "other"


class Hidden(StrEnum):
    """Why frameworks do not see an accelerator that works."""

    ENVIRONMENT = "environment"
    """A variable such as CUDA_VISIBLE_DEVICES leaves it out."""
    MIG_PARENT = "mig-parent"
    """MIG is on: its instances are CUDA devices, the board is not."""
    MIG_LIMIT = "mig-limit"
    """CUDA shows a process one MIG instance, and no whole GPU beside it; naming this one would show it."""
    OTHER_BUILD = "other-build"
    """One torch build drives either NVIDIA's or AMD's GPUs, and the other vendor's are taken."""
    UNSUPPORTED = "unsupported"
    """No device type of the frameworks covers it."""


class LinkPath(StrEnum):
    """How two accelerators reach each other, nearest first."""

    SELF = "self"
    NVLINK = "nvlink"
    BOARD = "board"
    SWITCH = "switch"
    """One PCIe switch."""
    SWITCHES = "switches"
    """Several PCIe switches, no host bridge."""
    HOST_BRIDGE = "host-bridge"
    NODE = "node"
    """Across host bridges of one NUMA node."""
    SYSTEM = "system"
    """Across NUMA nodes."""


class DiskKind(StrEnum):
    """What a file system lies on."""

    NVME = "nvme"
    SSD = "ssd"
    HDD = "hdd"
    VIRTUAL = "virtual"
    NETWORK = "network"
    MEMORY = "memory"


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """A process that holds an accelerator's memory.

    Attributes:
        pid: as the driver counts it, which inside a container is the host's number.
        name: None where the number names no process that can be seen from here.
        memory: None where the driver does not say.
    """

    pid: int
    name: str | None
    memory: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MigInstance:
    """A MIG instance: the UUID of its board, and NVIDIA's numbers of its GPU instance and compute instance."""

    parent: str | None
    gpu_instance: int | None
    compute_instance: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """How well a board is, as its driver tells; None where the board or the driver has no such thing.

    Attributes:
        ecc_uncorrected: errors of its memory since the driver was loaded that could not be corrected.
        retirement_pending: whether pages of its memory are to be retired at the next reset.
        remapping_pending: whether rows of its memory are to be remapped at the next reset.
        remapping_failed: whether there was no row left to remap one to.
        recovery_action: what the driver wants done: "none", "gpu-reset", "node-reboot", …
        link_width, link_width_max: PCIe lanes now, and as many as board and slot allow.
        link_generation, link_generation_max: of PCIe; it drops while the board has nothing to do.
        throttled_by: what slows its clocks down: "heat", "power-brake", "hardware" where the board doesn't tell which.
        problems: what is wrong of these, and what the driver failed to tell, in words.
    """

    ecc_uncorrected: int | None = None
    retirement_pending: bool | None = None
    remapping_pending: bool | None = None
    remapping_failed: bool | None = None
    recovery_action: str | None = None
    link_width: int | None = None
    link_width_max: int | None = None
    link_generation: int | None = None
    link_generation_max: int | None = None
    throttled_by: tuple[str, ...] | None = None
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Accelerator:
    """One GPU, or one MIG instance of a GPU.

    Attributes:
        device: what a framework calls it; None while no framework can use it (hidden, or at fault).
        index: its place among the boards of its vendor, in PCI order; a MIG instance has its board's.
        cuda_index: its place in CUDA's (or HIP's) own order, before a variable such as CUDA_VISIBLE_DEVICES leaves
            some out; None for what they do not count, MIG instances among them.
        fault: why it can't be used, in the driver's words; None when it can.
        hidden: why no framework sees it although it works.
        memory_used: what processes hold, without what the driver keeps for itself (``memory_reserved``) where the
            driver tells them apart.
        memory_pool: which memory its bytes are part of; None for its own. All that share a pool share its bytes.
        utilization: percent of the last sample period in which it was busy.
        temperature: degrees Celsius.
        power, power_limit: watts.
        compute_capability: as NVIDIA writes it, "9.0".
        architecture: what a compiler calls it: "sm_90", "gfx942".
        mig_mode: whether MIG is on; None for a board that has none.
        mig: what the instance is, if it is one.
        processes: None where the driver does not say who is on it.
        host_to_device: measured bytes a second, copied from pinned host memory; None unless measured.
        health: None where the vendor's driver is not asked for it; a MIG instance has its board's.
    """

    device: Device | None
    index: int
    name: str | None
    uuid: str | None
    memory_total: int | None
    memory_free: int | None
    fault: str | None = None
    vendor: Vendor = Vendor.NVIDIA
    hidden: Hidden | None = None
    cuda_index: int | None = None
    pci_bus_id: str | None = None
    numa_node: int | None = None
    memory_used: int | None = None
    memory_reserved: int | None = None
    memory_pool: str | None = None
    utilization: int | None = None
    temperature: int | None = None
    power: float | None = None
    power_limit: float | None = None
    compute_capability: str | None = None
    architecture: str | None = None
    mig_mode: bool | None = None
    mig: MigInstance | None = None
    processes: tuple[Process, ...] | None = None
    host_to_device: int | None = None
    health: Health | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Links:
    """How accelerators reach each other, as square matrices over the same rows and columns.

    Attributes:
        accelerators: what a row stands for: a position in ``Inventory.accelerators``.
        path: the nearest way between two; None where the driver does not say.
        nvlinks: active NVLinks between two, directly or through a switch.
        p2p: whether one can read and write the other's memory.
    """

    accelerators: tuple[int, ...] = ()
    path: tuple[tuple[LinkPath | None, ...], ...] = ()
    nvlinks: tuple[tuple[int | None, ...], ...] = ()
    p2p: tuple[tuple[bool | None, ...], ...] = ()


NO_LINKS = Links()


@dataclass(frozen=True, slots=True, kw_only=True)
class Driver:
    """A vendor's driver, or what is wrong with it; ``cuda`` is the newest CUDA it can run, "12.4"."""

    vendor: Vendor
    version: str | None
    cuda: str | None
    fault: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NumaNode:
    """One NUMA node; ``cpus`` is the kernel's list, "0-15,32-47"."""

    id: int
    cpus: str | None
    memory_total: int | None
    memory_free: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """The processor and its memory.

    Attributes:
        cores_usable: logical cores that this process may run on.
        cpu_quota: cores' worth of time that the cgroup allows; None without a limit.
        ram_total: the machine's RAM, or the cgroup's limit where that is lower.
        ram_available: what this process can have without swapping, under the cgroup's limit too.
        ram_limit: the tightest limit of the cgroups that this process is in; None without one.
        ram_total_system, ram_available_system: the same for the whole machine, as if there were no cgroup.
        numa_nodes: None where the system does not say.
    """

    cpu: str | None
    cores_physical: int | None
    cores_logical: int | None
    ram_total: int | None
    ram_available: int | None
    cores_usable: int | None = None
    cpu_quota: float | None = None
    ram_limit: int | None = None
    ram_total_system: int | None = None
    ram_available_system: int | None = None
    swap_total: int | None = None
    swap_free: int | None = None
    numa_nodes: tuple[NumaNode, ...] | None = None
    fault: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """The file system under one folder that matters.

    Attributes:
        use: why it matters: "working directory", "hf cache", "offload folder".
        mount: where the file system is mounted; folders with the same mount share its bytes.
        free: what an ordinary user may still write.
        filesystem: "ext4", "nfs4", "overlay".
        read_speed: measured bytes a second, read in sequence past the page cache; None unless measured.
        fault: why it could not be looked at, or measured.
    """

    use: str
    path: str
    total: int | None
    free: int | None
    fault: str | None = None
    mount: str | None = None
    filesystem: str | None = None
    kind: DiskKind | None = None
    read_speed: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """One machine at one moment.

    Attributes:
        taken_at: ISO 8601, UTC.
        cuda_order_certain: whether ``device`` and ``cuda_index`` are known to be CUDA's: with unequal boards CUDA's
            default order is its own guess at the fastest, and CUDA_DEVICE_ORDER=PCI_BUS_ID settles it.
        notes: what a person should know and no field says.
    """

    accelerators: tuple[Accelerator, ...]
    host: Host
    disks: tuple[Disk, ...]
    drivers: tuple[Driver, ...] = ()
    links: Links = NO_LINKS
    cuda_order_certain: bool = True
    notes: tuple[str, ...] = ()
    taken_at: str | None = None


def label(accelerator: Accelerator) -> str:
    """What a person calls it: the framework's name, or vendor and index where it has none."""
    if accelerator.device is not None:
        return str(accelerator.device)
    instance = f" MIG {accelerator.mig.gpu_instance}" if accelerator.mig else ""
    return f"{accelerator.vendor} {accelerator.index}{instance}"
