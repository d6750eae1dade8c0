"""AMD GPUs, through what the amdgpu and amdkfd kernel modules show in /sys. No ROCm library is needed.

Files: Linux' Documentation/gpu/amdgpu ("Misc AMDGPU driver information") and drivers/gpu/drm/amd/amdkfd/kfd_topology.c.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from devctl.devices import Device
from devctl.inventory import visibility
from devctl.inventory.probes import pci
from devctl.inventory.probes.findings import Findings
from devctl.inventory.probes.processes import process_name
from devctl.inventory.records import HOST_POOL, Accelerator, Driver, Hidden, Process, Vendor


@dataclass(frozen=True, slots=True, kw_only=True)
class KfdNode:
    """A GPU in the compute driver's topology; the runtimes count GPUs in its order.

    Attributes:
        number: the node's, by which GPUs are ordered.
        gpu_id: by which the per-process files name the GPU.
        has_cores: processor cores share the node, so the GPU is part of an APU.
    """

    number: int
    gpu_id: str
    bus_id: str
    architecture: str | None
    has_cores: bool


def probe(
    environment: Mapping[str, str],
    on_bus: Iterable[pci.PciDevice],
    sys: Path = pci.SYS,
    kfd_device: Path = Path("/dev/kfd"),
) -> Findings:
    """AMD's boards on the bus, in PCI order."""
    boards = [device for device in on_bus if device.vendor == pci.AMD]
    if not boards:
        return Findings()
    nodes = {node.bus_id: node for node in kfd_nodes(sys)}
    usable = os.access(kfd_device, os.R_OK | os.W_OK)
    found = []
    for index, board in enumerate(boards):
        node = nodes.get(board.bus_id)
        accelerator = _read_board(index, board, node, sys)
        if accelerator.fault is None and node is not None and not usable:
            accelerator = replace(
                accelerator, fault=f"no permission to use {kfd_device}: add the user to the group render"
            )
        found.append(accelerator)
    order = [nodes[board.bus_id].number if board.bus_id in nodes else None for board in boards]
    numbered = number(found, order, environment)
    return Findings(
        accelerators=numbered,
        notes=notes(numbered, environment),
        driver=Driver(vendor=Vendor.AMD, version=pci.read(sys / "module/amdgpu/version"), cuda=None),
    )


def kfd_nodes(sys: Path = pci.SYS) -> tuple[KfdNode, ...]:
    """The GPUs of the compute driver's topology, in its order."""
    folder = sys / "class/kfd/kfd/topology/nodes"
    try:
        numbers = sorted(int(entry.name) for entry in folder.iterdir() if entry.name.isdecimal())
    except OSError:
        return ()
    nodes = (
        parse_kfd_node(
            number,
            pci.read(folder / str(number) / "gpu_id") or "",
            pci.read(folder / str(number) / "properties") or "",
        )
        for number in numbers
    )
    return tuple(node for node in nodes if node is not None)


def parse_kfd_node(number: int, gpu_id: str, properties: str) -> KfdNode | None:
    """A node's files; None for one that is only a processor."""
    facts = {}
    for line in properties.splitlines():
        key, _, value = line.partition(" ")
        if value.strip().isdecimal():
            facts[key] = int(value)
    if not facts.get("simd_count") or "location_id" not in facts:
        return None
    location, domain = facts["location_id"], facts.get("domain", 0)
    return KfdNode(
        number=number,
        gpu_id=gpu_id,
        bus_id=f"{domain:04x}:{location >> 8 & 0xFF:02x}:{location >> 3 & 0x1F:02x}.{location & 7:x}",
        architecture=parse_gfx_version(facts.get("gfx_target_version", 0)),
        has_cores=facts.get("cpu_cores_count", 0) > 0,
    )


def parse_gfx_version(version: int) -> str | None:
    """The compiler's name for 90402: "gfx942"; None for 0. The last two digits are hexadecimal."""
    if version <= 0:
        return None
    return f"gfx{version // 10000}{version // 100 % 100:x}{version % 100:x}"


def _read_board(index: int, board: pci.PciDevice, node: KfdNode | None, sys: Path) -> Accelerator:
    if board.driver == "vfio-pci":
        fault: str | None = "given to a virtual machine (vfio-pci)"
    elif board.driver != "amdgpu":
        fault = f"no amdgpu driver: the board is bound to {board.driver or 'none'}"
    else:
        fault = None

    def file(name: str) -> int | None:
        return pci.parse_int(pci.read(board.folder / name))

    unified = node is not None and node.has_cores
    # an APU computes in the RAM that its driver may map (GTT); its "VRAM" is what the firmware set aside for the screen
    pool = "gtt" if unified and file("mem_info_gtt_total") else "vram"
    total, used = file(f"mem_info_{pool}_total"), file(f"mem_info_{pool}_used")
    unique = pci.read(board.folder / "unique_id")
    temperature, power = _sensor(board, "temp1_input"), _sensor(board, "power1_average", "power1_input")
    limit = _sensor(board, "power1_cap")
    return Accelerator(
        vendor=Vendor.AMD,
        device=None,
        index=index,
        name=pci.read(board.folder / "product_name") or f"AMD GPU 1002:{board.device}",
        uuid=f"GPU-{unique}" if unique else None,
        pci_bus_id=board.bus_id,
        numa_node=board.numa_node,
        memory_total=total,
        memory_used=used,
        memory_free=None if total is None or used is None else max(0, total - used),
        memory_pool=HOST_POOL if unified else None,
        utilization=file("gpu_busy_percent"),
        temperature=None if temperature is None else temperature // 1000,
        power=None if power is None else power / 1e6,
        power_limit=None if limit is None else limit / 1e6,
        architecture=node.architecture if node else None,
        processes=None if node is None else _processes(node.gpu_id, sys),
        fault=fault,
        hidden=Hidden.UNSUPPORTED if fault is None and node is None else None,
    )


def _sensor(board: pci.PciDevice, *names: str) -> int | None:
    try:
        monitors = sorted((board.folder / "hwmon").iterdir())
    except OSError:
        return None
    values = (pci.parse_int(pci.read(monitor / name)) for monitor in monitors for name in names)
    return next((value for value in values if value is not None), None)


def _processes(gpu_id: str, sys: Path) -> tuple[Process, ...] | None:
    try:
        folders = sorted((sys / "class/kfd/kfd/proc").iterdir(), key=lambda folder: folder.name)
    except OSError:
        return None
    held = [(int(f.name), pci.parse_int(pci.read(f / f"vram_{gpu_id}"))) for f in folders if f.name.isdecimal()]
    return tuple(Process(pid=pid, name=process_name(pid), memory=memory) for pid, memory in held if memory)


def number(
    accelerators: Sequence[Accelerator], order: Sequence[int | None], environment: Mapping[str, str]
) -> tuple[Accelerator, ...]:
    """``accelerators`` with the device and HIP index of each; ``order`` is the compute driver's, None outside of it.

    ROCR_VISIBLE_DEVICES chooses first, and HIP_VISIBLE_DEVICES (or CUDA_VISIBLE_DEVICES, which HIP reads too) from
    what it left: "GPU Isolation Techniques" in AMD's ROCm documentation.
    """
    places = [i for i, a in enumerate(accelerators) if order[i] is not None and a.fault is None and a.hidden is None]
    places.sort(key=lambda place: order[place] or 0)
    boards = [visibility.CudaBoard(uuid=accelerators[place].uuid) for place in places]
    left = visibility.seats(boards, range(len(boards)), environment.get("ROCR_VISIBLE_DEVICES"))
    chosen = environment.get(_hip_variable(environment))
    remaining = [seat.board for seat in left]
    shown = visibility.seats([boards[i] for i in remaining], range(len(remaining)), chosen)
    ordinals = {places[remaining[seat.board]]: ordinal for ordinal, seat in enumerate(shown)}

    def numbered(place: int, accelerator: Accelerator) -> Accelerator:
        if place not in places:
            return accelerator
        ordinal = ordinals.get(place)
        return replace(
            accelerator,
            device=None if ordinal is None else Device.gpu(ordinal),
            cuda_index=places.index(place),
            hidden=Hidden.ENVIRONMENT if ordinal is None else None,
        )

    return tuple(numbered(place, accelerator) for place, accelerator in enumerate(accelerators))


def _hip_variable(environment: Mapping[str, str]) -> str:
    return "HIP_VISIBLE_DEVICES" if "HIP_VISIBLE_DEVICES" in environment else "CUDA_VISIBLE_DEVICES"


def notes(accelerators: Sequence[Accelerator], environment: Mapping[str, str]) -> tuple[str, ...]:
    """What of the variables names no GPU, of accelerators that have their numbers already."""
    counted = sorted((a for a in accelerators if a.cuda_index is not None), key=lambda a: a.cuda_index or 0)
    boards = [visibility.CudaBoard(uuid=accelerator.uuid) for accelerator in counted]
    first, second = "ROCR_VISIBLE_DEVICES", _hip_variable(environment)
    left = [boards[seat.board] for seat in visibility.seats(boards, range(len(boards)), environment.get(first))]
    wrong = {
        first: visibility.unnamed(boards, range(len(boards)), environment.get(first)),
        second: visibility.unnamed(left, range(len(left)), environment.get(second)),
    }
    return tuple(f"{variable}: {words}" for variable, words in wrong.items() if words)
