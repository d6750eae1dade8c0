"""How many bytes each device may hold: what the user says, or what the machine has free."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction

from devctl.devices import Device, DeviceType
from devctl.inventory.records import HOST_POOL, Inventory
from devctl.units import AmbiguousSizeError, format_bytes, parse_size

NUMBERED = (DeviceType.GPU, DeviceType.XPU)
"""Kinds of accelerator that there may be several of, so that a device map has their ids."""

MOST_ID = 99_999
"""The largest number of a device that is taken for one."""

ACCELERATORS = (*NUMBERED, DeviceType.MPS)

_ORDER = {DeviceType.GPU: 0, DeviceType.XPU: 0, DeviceType.MPS: 1, DeviceType.CPU: 2, DeviceType.DISK: 3}

_HOST_SHARE = 0.90
"""transformers' ``get_max_memory`` leaves a tenth of the free RAM for the peaks of loading."""


_SINGLE_GPU_SHARE = 0.9
"""A lone GPU whose budget was measured keeps a tenth for activations, in transformers."""

_SHARE = re.compile(r"[0-9]{1,3}(\.[0-9]{1,12})?\s*%")


@dataclass(frozen=True, slots=True, kw_only=True)
class Budgets:
    """Bytes that each device may hold, in the order in which devices are filled.

    Attributes:
        devices: (device, bytes), GPUs by id, then mps, cpu and disk. A disk's bytes are not a limit.
        given: whether the user set them; a single GPU keeps a tenth free only if not.
        notes: what a reader of the plan should know about them.
    """

    devices: tuple[tuple[Device, int], ...]
    given: bool
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reserve:
    """What is kept free.

    Attributes:
        everywhere: on each accelerator that ``named`` leaves out: bytes, or a share of its budget.
        named: the same of single devices, the CPU among them.
    """

    everywhere: int | Fraction = 0
    named: tuple[tuple[Device, int | Fraction], ...] = ()


def is_accelerator(device: Device) -> bool:
    """Whether ``device`` computes and has memory of its own: a GPU."""
    return device.type in ACCELERATORS


def accelerators_of(budgets: Budgets) -> list[Device]:
    """The accelerators that may hold something."""
    return [device for device, size in budgets.devices if is_accelerator(device) and size > 0]


def less_for_one(limits: Mapping[Device, int]) -> dict[Device, int]:
    """Measured ``limits``, less what the first numbered accelerator keeps free when it is the only one."""
    first = next((device for device in limits if device.type in NUMBERED), None)
    return {d: int(limit * _SINGLE_GPU_SHARE) if d == first else limit for d, limit in limits.items()}


def parse_max_memory(texts: Iterable[str]) -> dict[Device, int]:
    """Read ``0=10GiB,cpu=30GiB``: keys as in transformers' ``max_memory`` (GPU ids, "mps", "cpu", "disk").

    Raises:
        ValueError: an entry is not KEY=SIZE, names no device, or names one twice.
    """
    budgets: dict[Device, int] = {}
    for entry in (part for text in texts for part in text.split(",") if part.strip()):
        key, equals, value = (part.strip() for part in entry.partition("="))
        if not equals:
            raise ValueError(f"{entry.strip()!r} is not DEVICE=SIZE, as in 0=10GiB or cpu=30GiB")
        device = _parse_key(key)
        if device in budgets:
            raise ValueError(f"{key!r} is given twice")
        budgets[device] = parse_size(value)
    if set(NUMBERED) <= {device.type for device in budgets}:
        raise ValueError("cuda and xpu are both in it; a map's numbers mean one of them")
    if not budgets:
        raise ValueError("no DEVICE=SIZE in it, as in 0=10GiB,cpu=30GiB")
    return budgets


def _parse_key(key: str) -> Device:
    device: Device | None
    try:
        device = Device.gpu(int(key)) if key.isascii() and key.isdigit() else Device.from_str(key)
    except ValueError:  # int() has one too, for thousands of digits
        device = None
    if device is not None and (device.id or 0) > MOST_ID:
        device = None
    # transformers takes ids only; "cuda:0" is what everything else prints, so it is understood too
    if device is None or (device.type in NUMBERED) == (device.id is None):
        raise ValueError(f"{key!r} is not a device; use a GPU's id, mps, cpu or disk")
    return device


def parse_reserve(texts: Iterable[str]) -> Reserve:
    """Read ``1GiB`` or ``10%``, for every accelerator, and ``0=2GiB,cpu=10%``, for the devices named.

    Raises:
        ValueError: an entry is neither, or a device is named twice.
    """
    everywhere: int | Fraction | None = None
    named: dict[Device, int | Fraction] = {}
    for entry in (part for text in texts for part in text.split(",") if part.strip()):
        key, equals, value = (part.strip() for part in entry.rpartition("="))
        amount = _parse_amount(value)
        if not equals:
            if everywhere is not None:
                raise ValueError("what is kept on every accelerator is given twice")
            everywhere = amount
            continue
        device = _parse_key(key)
        if device in named:
            raise ValueError(f"{key!r} is given twice")
        named[device] = amount
    if everywhere is None and not named:
        raise ValueError("no size in it, as in 1GiB, 10% or 0=2GiB,cpu=10%")
    return Reserve(everywhere=everywhere or 0, named=tuple(named.items()))


def _parse_amount(text: str) -> int | Fraction:
    if not text.endswith("%"):
        try:
            return parse_size(text)
        except AmbiguousSizeError as error:
            if text[-1:].isalpha():
                raise
            raise ValueError(f"{error}; a share has a %, like 10%") from None
    share = Fraction(text[:-1].strip()) / 100 if _SHARE.fullmatch(text) else Fraction(-1)
    if not 0 <= share <= 1:
        raise ValueError(f"{text!r} is no share; write it like 10%")
    return share


def parse_speeds(texts: Iterable[str]) -> dict[Device | str, int]:
    """Read ``0=2TB,link=25GB,disk=3GB``: bytes a second of a GPU's memory, of "link" and of "disk".

    Raises:
        ValueError: an entry is not KEY=SIZE, names none of these, or one twice, or is 0.
    """
    speeds: dict[Device | str, int] = {}
    for entry in (part for text in texts for part in text.split(",") if part.strip()):
        name, equals, value = (part.strip() for part in entry.partition("="))
        if not equals:
            raise ValueError(f"{entry.strip()!r} is not DEVICE=SIZE, as in 0=2TB, link=25GB or disk=3GB")
        key: Device | str = name if name in {"link", "disk"} else _parse_key(name)
        if key in speeds:
            raise ValueError(f"{name!r} is given twice")
        speeds[key] = parse_size(value.removesuffix("/s"))
        if not speeds[key]:
            raise ValueError(f"{name!r} has the speed 0")
    return speeds


def keep_free(budgets: Budgets, reserve: Reserve, inventory: Inventory | None = None) -> Budgets:
    """``budgets``, less what is kept free; with a note that says how much.

    Raises:
        ValueError: a device that is named has no budget.
    """
    named = {as_here(device, inventory) if inventory else device: amount for device, amount in reserve.named}
    limits = dict(budgets.devices)
    if missing := [str(device) for device in named if device not in limits]:
        raise ValueError(f"{missing[0]} is not among the devices, which are {', '.join(map(str, limits))}")
    kept: dict[Device, int] = {}
    for device, limit in limits.items():
        amount = named.get(device, reserve.everywhere if is_accelerator(device) else 0)
        kept[device] = min(limit, int(limit * amount) if isinstance(amount, Fraction) else amount)
    told = ", ".join(f"{format_bytes(size)} of {device}" for device, size in kept.items() if size)
    return replace(
        budgets,
        devices=tuple((device, limit - kept[device]) for device, limit in limits.items()),
        notes=(*budgets.notes, *([f"kept free: {told}"] if told else [])),
    )


def as_here(device: Device, inventory: Inventory) -> Device:
    """A numbered GPU as the machine has it: on one whose only accelerators are Intel's, ids mean "xpu"."""
    kinds = {a.device.type for a in inventory.accelerators if a.device is not None}
    if device.type is DeviceType.GPU and DeviceType.XPU in kinds and DeviceType.GPU not in kinds:
        return Device(DeviceType.XPU, device.id)
    return device


def from_max_memory(max_memory: Mapping[Device, int], inventory: Inventory | None = None) -> Budgets:
    """What the user says. Accelerators that ``inventory`` does not have are planned for, with a note."""
    notes = []
    if inventory is not None:
        max_memory = {as_here(device, inventory): size for device, size in max_memory.items()}
        here = {a.device for a in inventory.accelerators}
        missing = [str(d) for d in max_memory if is_accelerator(d) and d not in here]
        if missing:
            notes.append(f"the machine has no {', '.join(missing)}: the map is for another one")
    return Budgets(devices=_in_order(max_memory), given=True, notes=tuple(notes))


def override(budgets: Budgets, max_memory: Mapping[Device, int], inventory: Inventory) -> Budgets:
    """``budgets`` with what the user says of some of its devices, or of cpu and disk.

    Raises:
        ValueError: an accelerator is not among them.
    """
    named = {as_here(device, inventory): size for device, size in max_memory.items()}
    devices = dict(budgets.devices)
    missing = [str(device) for device in named if is_accelerator(device) and device not in devices]
    if missing:
        there = ", ".join(str(device) for device in devices) or "nothing"
        raise ValueError(f"{missing[0]} is not among the devices given, which are {there}")
    return replace(budgets, devices=_in_order(devices | named))


def from_inventory(inventory: Inventory, *, given: bool = False) -> Budgets:
    """What is free on the machine: each usable accelerator's memory, and nine tenths of the available RAM.

    A GPU that shares the host's RAM (Apple's, GB10, Jetson) has it, and cpu is left out, as in transformers.

    Args:
        given: whether the user wrote the inventory, and so means each figure as it is: nothing is kept free of it, and
            RAM that it does not have is not unknown.
    """
    free: dict[Device, int] = {}
    notes = []
    for gpu in inventory.accelerators:
        if gpu.device is None:
            continue
        if gpu.memory_free is None:
            notes.append(f"{gpu.device} does not tell its free memory and is left out; give it with --max-memory")
            continue
        free[gpu.device] = gpu.memory_free
    host = inventory.host
    if any(gpu.memory_pool == HOST_POOL for gpu in inventory.accelerators if gpu.device in free):
        notes.append("cpu is left out: a GPU here shares its memory")
    elif host.ram_available is None and given:
        pass
    elif host.ram_available is None:
        notes.append("the available RAM is unknown and cpu is left out; give it with --max-memory")
    else:
        free[Device.cpu()] = host.ram_available if given else int(host.ram_available * _HOST_SHARE)
        if host.ram_available_system is not None and host.ram_available < host.ram_available_system:
            notes.append(
                f"cpu counts the {format_bytes(host.ram_available)} of RAM that the cgroup leaves, where transformers "
                f"would count the machine's {format_bytes(host.ram_available_system)}"
            )
    return Budgets(devices=_in_order(free), given=given, notes=tuple(notes))


def _in_order(budgets: Mapping[Device, int]) -> tuple[tuple[Device, int], ...]:
    return tuple(sorted(budgets.items(), key=lambda item: (_ORDER[item[0].type], item[0].id or 0)))
