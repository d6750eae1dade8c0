"""Some of a machine's accelerators: what a process started with a variable such as CUDA_VISIBLE_DEVICES sees."""

from collections.abc import Sequence
from dataclasses import replace

from devctl.devices import Device, DeviceType
from devctl.inventory.records import Accelerator, Hidden, Inventory, Vendor

_NUMBERED = (DeviceType.GPU, DeviceType.XPU)


def parse_ids(text: str) -> tuple[int, ...]:
    """The ids in "0,2", as they are counted before.

    Raises:
        ValueError: an entry is no id, or is given twice.
    """
    ids: list[int] = []
    for entry in (part.strip() for part in text.split(",")):
        if not (entry.isascii() and entry.isdigit() and len(entry) <= 6):
            raise ValueError(f"{entry!r} is no accelerator's id; write ids like 0,2")
        if int(entry) in ids:
            raise ValueError(f"{int(entry)} is given twice")
        ids.append(int(entry))
    return tuple(ids)


def show_only(inventory: Inventory, ids: Sequence[int]) -> Inventory:
    """``inventory`` as a process sees it that is shown the accelerators ``ids`` alone: counted from 0, in that order.

    The others stay in it, hidden by the environment.

    Raises:
        ValueError: an id is not there, or the vendor's variable can't bring them into that order.
    """
    _chosen(inventory, ids)

    def seen(accelerator: Accelerator) -> Accelerator:
        device = accelerator.device
        if device is None:
            return accelerator
        if device.id in ids and device.type in _NUMBERED:
            return replace(accelerator, device=Device(device.type, ids.index(device.id)))
        return replace(accelerator, device=None, hidden=Hidden.ENVIRONMENT)

    return replace(inventory, accelerators=tuple(seen(accelerator) for accelerator in inventory.accelerators))


def variable(inventory: Inventory, ids: Sequence[int]) -> str:
    """What to start the process with, so that it sees them: "CUDA_VISIBLE_DEVICES=0,2".

    It is by UUID for MIG instances, and where CUDA's own order of unequal boards is not known. NVIDIA's and AMD's ids
    are those before any such variable; Intel's are as ``inventory`` counts.
    """
    chosen = _chosen(inventory, ids)
    if all(accelerator.device and accelerator.device.type is DeviceType.XPU for accelerator in chosen):
        return f"ZE_AFFINITY_MASK={','.join(str(number) for number in ids)}"
    by_uuid = any(a.mig for a in chosen) or (not inventory.cuda_order_certain and chosen[0].vendor is Vendor.NVIDIA)
    names = [
        accelerator.uuid
        if by_uuid and accelerator.uuid
        else str(number if accelerator.cuda_index is None else accelerator.cuda_index)
        for number, accelerator in zip(ids, chosen, strict=True)
    ]
    amd = any(accelerator.vendor is Vendor.AMD for accelerator in chosen)
    return f"{'HIP' if amd else 'CUDA'}_VISIBLE_DEVICES={','.join(names)}"


def _chosen(inventory: Inventory, ids: Sequence[int]) -> list[Accelerator]:
    here = {a.device.id: a for a in inventory.accelerators if a.device is not None and a.device.type in _NUMBERED}
    missing = [number for number in ids if number not in here]
    if missing:
        there = ", ".join(str(a.device) for a in inventory.accelerators if a.device is not None) or "no accelerator"
        raise ValueError(f"{missing[0]} is not there; the machine has {there}")
    chosen = [here[number] for number in ids]
    if any(a.vendor is Vendor.INTEL for a in chosen) and list(ids) != sorted(ids):
        raise ValueError("Intel's ZE_AFFINITY_MASK keeps the order of the ids: write them in it")
    return chosen
