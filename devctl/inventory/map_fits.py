"""Does a device map still fit a machine? Pure: an inventory and bytes per device in, findings out."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from devctl.devices import Device, DeviceType
from devctl.inventory.records import HOST_POOL, Inventory, label
from devctl.inventory.verdict import Finding
from devctl.units import format_bytes

_NOT_ASKED = "is here; whether its layers have room was not asked, which takes a plan document, or MODEL"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Room:
    free: int | None
    pool: str


class _Gap(NamedTuple):
    nbytes: int
    without: str


def judge_map(
    inventory: Inventory,
    used: Mapping[Device, int | None],
    gaps: Mapping[Device, int] | None = None,
    *,
    without_gaps: str = "",
) -> tuple[Finding, ...]:
    """A finding for each device of a map: is it here and usable, and has it room for its bytes (None: not asked).

    Devices that share a memory get one finding more, for their bytes together. The disk is only named: weights left
    on it are read from the checkpoint, and take no more room.

    Args:
        gaps: bytes that an allocator reserves on a device beside those ``used``.
        without_gaps: how it is told to leave none.
    """
    gaps = gaps or {}
    findings = []
    pools: dict[str, list[tuple[Device, int, int | None]]] = {}
    for device, bytes_used in used.items():
        room, problem = _room(inventory, device)
        if problem is not None:
            findings.append(Finding(requirement=str(device), met=False, said=problem, wanted=bytes_used))
            continue
        if room is None:
            findings.append(Finding(requirement=str(device), met=True, said="is here", wanted=bytes_used))
            continue
        if bytes_used is None:
            findings.append(Finding(requirement=str(device), met=True, said=_NOT_ASKED, found=room.free))
            continue
        gap = _Gap(gaps.get(device, 0), without_gaps)
        findings.append(_compare(str(device), bytes_used, room.free, gap))
        pools.setdefault(room.pool, []).append((device, bytes_used, room.free))
    for members in pools.values():
        if len(members) > 1:
            known = [free for _, _, free in members if free is not None]
            names = " + ".join(str(device) for device, _, _ in members) + " (one memory)"
            gap = _Gap(sum(gaps.get(device, 0) for device, _, _ in members), without_gaps)
            findings.append(_compare(names, sum(size for _, size, _ in members), max(known, default=None), gap))
    return tuple(findings)


def _compare(name: str, needs: int, free: int | None, gap: _Gap) -> Finding:
    wanted = needs + gap.nbytes
    if free is None:
        said = f"needs {format_bytes(wanted)}, free memory unknown"
        return Finding(requirement=name, met=False, said=said, wanted=wanted)
    short = f", {format_bytes(wanted - free)} short" if wanted > free else ""
    gaps = f" ({format_bytes(gap.nbytes)} in gaps of torch's allocator)" if gap.nbytes else ""
    out = f"; it has room with {gap.without}" if needs <= free < wanted and gap.without else ""
    said = f"needs {format_bytes(wanted)}{gaps} of {format_bytes(free)} free{short}{out}"
    return Finding(requirement=name, met=not short, said=said, wanted=wanted, found=free)


def _room(inventory: Inventory, device: Device) -> tuple[_Room | None, str | None]:
    if device.type is DeviceType.DISK:
        return None, None
    if device.type is DeviceType.CPU:
        return _Room(free=inventory.host.ram_available, pool=HOST_POOL), None
    # a device without a number is the framework's current one: the first, unless a program changes it
    plain = device.type is DeviceType.MPS or device.id is not None
    named = device if plain else Device(device.type, 0)
    for accelerator in inventory.accelerators:
        if accelerator.device == named:
            return _Room(free=accelerator.memory_free, pool=accelerator.memory_pool or str(named)), None
    usable = [str(a.device) for a in inventory.accelerators if a.device is not None]
    unusable = [
        f"{label(a)}: {a.fault or f'hidden ({a.hidden})'}" for a in inventory.accelerators if a.fault or a.hidden
    ]
    here = f"here are {', '.join(usable)}" if usable else "no usable GPU is here"
    return None, f"is not here; {here}" + "".join(f"; {text}" for text in unusable)
