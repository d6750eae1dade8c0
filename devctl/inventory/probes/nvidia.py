"""NVIDIA GPUs, through NVML: first everything is read, then pure functions say what it means."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from devctl.inventory.probes import cuda, pci
from devctl.inventory.probes.findings import Findings
from devctl.inventory.probes.nvidia_health import read_health
from devctl.inventory.probes.nvidia_links import read_links
from devctl.inventory.probes.nvidia_numbers import notes, number
from devctl.inventory.probes.nvml import (
    DRIVER_NOT_LOADED,
    FUNCTION_NOT_FOUND,
    LIBRARY_NOT_FOUND,
    NO_ANSWER,
    NO_PERMISSION,
    NOT_SUPPORTED,
    VERSION_MISMATCH,
    Nvml,
    words,
)
from devctl.inventory.probes.processes import process_name
from devctl.inventory.records import (
    HOST_POOL,
    NO_LINKS,
    Accelerator,
    Driver,
    Links,
    MigInstance,
    Process,
    Vendor,
)

_Gate = TypeVar("_Gate")

_MOST_BOARDS, _MOST_INSTANCES = 256, 64
"""More than any machine, and any board, has: a driver that says more is broken, and not asked for each."""

_MOST_BYTES, _MOST_CUDA, _MOST_MAJOR, _MOST_DEGREES, _MOST_WATTS = 2**50, 100_000, 99, 300, 10_000
"""Answers above these are none: a gate must not be passed by garbage."""

_INIT_FAULTS = {
    NO_PERMISSION: "no permission to ask the NVIDIA driver: may this user read /dev/nvidiactl?",
    DRIVER_NOT_LOADED: "the NVIDIA driver is not loaded: see `dmesg`, or try `modprobe nvidia`",
    LIBRARY_NOT_FOUND: "no NVIDIA driver: the library libnvidia-ml.so.1 was not found",
    VERSION_MISMATCH: "the NVIDIA driver's kernel module and library are of different versions: reboot, or reload it",
}

# boards whose memory is the machine's RAM: their names are all that NVML tells of it
_SHARES_RAM = re.compile(r"\b(GB10|N1X?|Tegra|Xavier|Orin|Thor|Jetson|nvgpu)\b")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What one board said of itself and of its MIG instances."""

    board: Accelerator
    instances: tuple[Accelerator, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Together:
    """What is asked of all boards in PCI order: their links, and what CUDA's order is guessed from, by index."""

    links: Links = NO_LINKS
    speeds: Mapping[int, float | None] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class Heard:
    """What was heard of the driver so far; boards go by NVML's own numbers.

    Attributes:
        refusal: NVML's error, its words, and the driver's version, where it does not start.
        bus_ids: of boards that were asked for it, whether or not they answered more.
    """

    refusal: tuple[int, str, str | None] | None = None
    driver: Driver | None = None
    count: int = 0
    bus_ids: dict[int, str | None] = field(default_factory=dict)
    readings: dict[int, Reading] = field(default_factory=dict)
    together: Together | None = None
    notes: tuple[str, ...] = ()

    def take(self, answer: tuple[Any, ...]) -> None:
        """Note one of the ``answers``."""
        kind, *facts = answer
        if kind == "refusal":
            self.refusal = (facts[0], facts[1], facts[2])
        elif kind == "driver":
            self.driver, self.count = facts
        elif kind == "bus":
            self.bus_ids[facts[0]] = facts[1]
        elif kind == "board":
            self.readings[facts[0]] = facts[1]
        elif kind == "together":
            self.together = facts[0]


def probe(environment: Mapping[str, str], sys: Path = pci.SYS) -> Findings:
    """The boards that the driver knows, in PCI order, or those on the bus with what is wrong with the driver.

    Asked in this process, which waits as long as the driver does: ``nvidia_apart`` does not.
    """
    heard = Heard()
    for answer in answers(environment, sys, {}):
        heard.take(answer)
    return findings(heard, environment, sys)


def answers(
    environment: Mapping[str, str], sys: Path, known: Mapping[int, Reading]
) -> Generator[tuple[Any, ...], None, None]:
    """What the driver says, one answer after the other, for ``Heard.take``.

    Args:
        known: what boards said before, or why they are not to be asked, by NVML's number.
    """
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        yield "refusal", error.value, words(error), pci.read(sys / "module/nvidia/version")
        return
    machine = Nvml(pynvml)
    try:
        driver = _read_driver(machine)
        count = machine.ask("nvmlDeviceGetCount")
        if count is None:
            yield "refusal", machine.refused or 0, machine.words, driver.version
            return
        yield "driver", driver, min(count, _MOST_BOARDS)
        boards: list[tuple[Nvml, Reading]] = []
        for index in range(min(count, _MOST_BOARDS)):
            yield "at", index
            before = known.get(index)
            gate = _open(machine, index, None if before is None else before.board.fault)
            if before is None:
                bus_id = gate.bus_id("nvmlDeviceGetPciInfo_v3")
                yield "bus", index, bus_id
                before = _read_board(gate, index, bus_id, sys)
                yield "board", index, before
            boards.append((gate, before))
        yield "at", None
        yield "together", _read_together(in_pci_order(boards), environment)
    finally:
        machine.ask("nvmlShutdown")  # what was found is as good if the library does not close


def findings(heard: Heard, environment: Mapping[str, str], sys: Path) -> Findings:
    """What was heard, as the inventory's records."""
    if heard.refusal is not None:
        error, said, version = heard.refusal
        return without_driver(error, said, pci.scan(sys), version)
    boards = [reading for _, reading in in_pci_order([(None, heard.readings[i]) for i in sorted(heard.readings)])]
    together = heard.together or Together()
    known = None
    if _needs_order(boards, environment) and not any(each.board.fault for each in boards):
        known = cuda.order(environment)  # only the CUDA driver knows; with a board at fault it may not come back
    accelerators = [one for each in boards for one in (each.board, *each.instances)]
    numbered, certain = number(accelerators, together.speeds, environment, known)
    return Findings(
        accelerators=numbered,
        driver=heard.driver,
        links=together.links,
        order_certain=certain,
        notes=(*notes(numbered, certain, environment), *heard.notes),
    )


def _needs_order(boards: Sequence[Reading], environment: Mapping[str, str]) -> bool:
    """Whether CUDA may count the boards otherwise than by their places."""
    alike = len({(each.board.name, each.board.compute_capability) for each in boards if each.board.fault is None}) < 2
    return not alike and environment.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID"


def silent(index: int, fault: str, bus_id: str | None, sys: Path) -> Reading:
    """A board of which nothing is known but where it is, and its ``fault``."""
    board = Accelerator(
        device=None,
        index=index,
        name=None,
        uuid=None,
        memory_total=None,
        memory_free=None,
        pci_bus_id=bus_id,
        numa_node=_numa_node(bus_id, sys),
        fault=fault,
    )
    return Reading(board=board)


def without_driver(
    error: int, said: str, on_bus: Iterable[pci.PciDevice], module_version: str | None = None
) -> Findings:
    """What can be said when NVML does not start: every NVIDIA board on the bus, each with the fault.

    A machine with neither library nor board has no NVIDIA part at all, which is no fault.
    """
    boards = [device for device in on_bus if device.vendor == pci.NVIDIA and device.driver != "vfio-pci"]
    if error == LIBRARY_NOT_FOUND and not boards:
        return Findings()
    does_not = f"the NVIDIA driver {said if error == NO_ANSWER else f'does not answer: {said}'}"
    fault = _INIT_FAULTS.get(error, does_not)
    return Findings(
        driver=Driver(vendor=Vendor.NVIDIA, version=module_version, cuda=None, fault=fault),
        accelerators=tuple(
            Accelerator(
                device=None,
                index=index,
                name=None,
                uuid=None,
                memory_total=None,
                memory_free=None,
                pci_bus_id=board.bus_id,
                numa_node=board.numa_node,
                fault=fault,
            )
            for index, board in enumerate(boards)
        ),
    )


def _read_together(boards: Sequence[tuple[Nvml, Reading]], environment: Mapping[str, str]) -> Together:
    positions, position = [], 0
    for _, reading in boards:
        positions.append(position)
        position += 1 + len(reading.instances)
    speeds: dict[int, float | None] = {}
    if _needs_order([reading for _, reading in boards], environment):
        speeds = {reading.board.index: _speed(gate) for gate, reading in boards}
    bus_ids = [reading.board.pci_bus_id for _, reading in boards]
    return Together(links=read_links([gate for gate, _ in boards], bus_ids, positions), speeds=speeds)


def in_pci_order(boards: Sequence[tuple[_Gate, Reading]]) -> list[tuple[_Gate, Reading]]:
    """The boards by bus id, numbered anew. NVML promises no order; where a lost board's bus id is unknown, keep its."""
    if all(reading.board.pci_bus_id for _, reading in boards):
        boards = sorted(boards, key=lambda pair: pair[1].board.pci_bus_id or "")
    return [(gate, _numbered(reading, index)) for index, (gate, reading) in enumerate(boards)]


def _numbered(reading: Reading, index: int) -> Reading:
    instances = tuple(replace(instance, index=index) for instance in reading.instances)
    return Reading(board=replace(reading.board, index=index), instances=instances)


def _read_driver(machine: Nvml) -> Driver:
    cuda = machine.ask("nvmlSystemGetCudaDriverVersion_v2")
    return Driver(
        vendor=Vendor.NVIDIA,
        version=machine.ask("nvmlSystemGetDriverVersion"),
        cuda=None if not cuda or not 0 < cuda < _MOST_CUDA else f"{cuda // 1000}.{cuda % 1000 // 10}",
    )


def _open(machine: Nvml, index: int, fault: str | None) -> Nvml:
    """The gate to board ``index``; one that asks nothing where it has a ``fault``, or can't be had."""
    if fault is not None:
        return Nvml(machine.library, None, fault=fault)
    try:
        return Nvml(machine.library, machine.library.nvmlDeviceGetHandleByIndex(index))
    except machine.library.NVMLError as error:
        return Nvml(machine.library, None, fault=words(error))


def _read_board(gate: Nvml, index: int, bus_id: str | None, sys: Path) -> Reading:
    if gate.handle is None:
        return silent(index, gate.fault or "", None, sys)
    mig = gate.ask("nvmlDeviceGetMigMode")
    board = _read_device(gate, index)
    board = replace(
        board,
        pci_bus_id=bus_id,
        numa_node=_numa_node(bus_id, sys),
        mig_mode=None if mig is None else mig[0] == 1,
        health=read_health(gate, board.utilization),
        fault=gate.fault,
    )
    return Reading(board=board, instances=tuple(_read_instances(gate, board)) if board.mig_mode else ())


def _numa_node(bus_id: str | None, sys: Path) -> int | None:
    return pci.parse_numa_node(pci.read(sys / "bus/pci/devices" / (bus_id or "-") / "numa_node"))


def _read_device(gate: Nvml, index: int) -> Accelerator:
    name = gate.ask("nvmlDeviceGetName")
    uuid = gate.ask("nvmlDeviceGetUUID")
    memory = _memory(gate)
    utilization = gate.ask("nvmlDeviceGetUtilizationRates")
    capability = gate.ask("nvmlDeviceGetCudaComputeCapability")
    if capability is not None and not all(0 <= number <= _MOST_MAJOR for number in capability):
        capability = None
    return Accelerator(
        device=None,
        index=index,
        name=name,
        uuid=uuid,
        memory_total=memory.get("total"),
        memory_free=memory.get("free"),
        memory_used=memory.get("used"),
        memory_reserved=memory.get("reserved"),
        memory_pool=HOST_POOL if name and _SHARES_RAM.search(name) else None,
        utilization=None if utilization is None else _at_most(utilization.gpu, 100),
        temperature=_at_most(gate.ask("nvmlDeviceGetTemperature", 0), _MOST_DEGREES),
        power=_watts(gate.ask("nvmlDeviceGetPowerUsage")),
        power_limit=_watts(gate.ask("nvmlDeviceGetEnforcedPowerLimit")),
        compute_capability=None if capability is None else f"{capability[0]}.{capability[1]}",
        architecture=None if capability is None else f"sm_{capability[0]}{capability[1]}",
        processes=_processes(gate),
        fault=gate.fault,
    )


def _memory(gate: Nvml) -> dict[str, int]:
    # the second version tells what the driver keeps for itself apart from what processes use; older drivers lack it
    memory = gate.ask("nvmlDeviceGetMemoryInfo", gate.library.nvmlMemory_v2)
    if memory is None and gate.refused != NOT_SUPPORTED:
        memory = gate.ask("nvmlDeviceGetMemoryInfo")
    if memory is None:
        return {}
    sizes = {key: getattr(memory, key) for key in ("total", "free", "used", "reserved") if hasattr(memory, key)}
    known = {key: size for key, size in sizes.items() if size <= min(sizes["total"], _MOST_BYTES)}
    # what is free of an unknown whole is not known either
    return known if "total" in known else {}


def _at_most(value: int | None, most: int) -> int | None:
    return value if value is not None and 0 <= value <= most else None


def _processes(gate: Nvml) -> tuple[Process, ...] | None:
    answers = [_running(gate, "Compute"), _running(gate, "Graphics")]
    if all(answer is None for answer in answers):
        return None
    return merge_processes([(process.pid, process.usedGpuMemory) for answer in answers for process in answer or ()])


def _running(gate: Nvml, kind: str) -> Any:
    answer = gate.ask(f"nvmlDeviceGet{kind}RunningProcesses_v3")
    if answer is None and gate.refused == FUNCTION_NOT_FOUND:
        answer = gate.ask(f"nvmlDeviceGet{kind}RunningProcesses_v2")
    return answer


def merge_processes(
    entries: Sequence[tuple[int, int | None]], name: Callable[[int], str | None] = process_name
) -> tuple[Process, ...]:
    """One entry a process, by pid; one that both computes and draws is listed twice with the same bytes."""
    held: dict[int, int | None] = {}
    for pid, memory in entries:
        known = held.get(pid)
        held[pid] = known if memory is None else max(memory, known or 0)
    return tuple(Process(pid=pid, name=name(pid), memory=memory) for pid, memory in sorted(held.items()))


def _read_instances(gate: Nvml, board: Accelerator) -> list[Accelerator]:
    instances = []
    for place in range(min(gate.ask("nvmlDeviceGetMaxMigDeviceCount") or 0, _MOST_INSTANCES)):
        handle = gate.ask("nvmlDeviceGetMigDeviceHandleByIndex", place)
        if handle is None:
            continue  # the places of a board need not be filled in order
        instance = Nvml(gate.library, handle)
        read = _read_device(instance, board.index)
        instances.append(
            replace(
                read,
                name=read.name if read.name and "MIG" in read.name else f"{read.name or board.name} MIG",
                pci_bus_id=board.pci_bus_id,
                numa_node=board.numa_node,
                # NVML asks these of boards only
                compute_capability=board.compute_capability,
                architecture=board.architecture,
                health=board.health,
                mig=MigInstance(
                    parent=board.uuid,
                    gpu_instance=instance.ask("nvmlDeviceGetGpuInstanceId"),
                    compute_instance=instance.ask("nvmlDeviceGetComputeInstanceId"),
                ),
                fault=instance.fault,
            )
        )
    return instances


def _speed(gate: Nvml) -> float | None:
    """Cores times their highest clock: what CUDA's guess at the fastest board is guessed from here."""
    cores = gate.ask("nvmlDeviceGetNumGpuCores")
    clock = gate.ask("nvmlDeviceGetMaxClockInfo", 1)  # 1: the streaming multiprocessors'
    return cores * clock if cores and clock else None


def _watts(milliwatts: int | None) -> float | None:
    known = _at_most(milliwatts, _MOST_WATTS * 1000)
    return None if known is None else known / 1000
