"""Is anybody on a GPU, seen or not? Pure but for the records."""

from collections.abc import Sequence
from dataclasses import replace

from devctl.inventory.records import HOST_POOL, Accelerator, Inventory
from devctl.units import format_bytes

UNEXPLAINED = 256 * 2**20
"""Bytes beside what the driver reserves that a board may hold without anybody on it, as for a display."""

BUSY = 5
"""Percent of a sample period; more is somebody's work."""


def who_is_on(accelerator: Accelerator) -> str:
    """Who or what is on it, in words; empty where it is idle.

    In a container, or without permission, a driver shows no process: memory that none explains, and work, tell of them.
    What is not known is not idle; only utilisation, which MIG instances do not have, may be.
    """
    if accelerator.processes:
        return " + ".join(f"{p.name or 'process'} {p.pid}" for p in accelerator.processes)
    signs, taken = [], False
    if accelerator.memory_pool != HOST_POOL:
        if accelerator.memory_used is None:
            signs.append("memory in use unknown")
        elif accelerator.memory_used > UNEXPLAINED:
            taken = True
            signs.append(f"{format_bytes(accelerator.memory_used)} in use that no process explains")
    if accelerator.utilization is not None and accelerator.utilization > BUSY:
        taken = True
        signs.append(f"{accelerator.utilization}% busy")
    elif accelerator.utilization is None and accelerator.mig is None:
        signs.append("utilisation unknown")
    if accelerator.processes is None:
        return ", ".join([*signs, "processes unknown"])
    return ", ".join([*signs, "whose processes can't be seen from here"] if taken else signs)


def busiest(samples: Sequence[Inventory]) -> Inventory:
    """The last of several looks at one machine, each board as busy as it was at most, and with the processes of all.

    A board that is not in each of them at its place, or has a fault in one, is as it was last.
    """
    last = samples[-1]

    def over_time(place: int, now: Accelerator) -> Accelerator:
        seen = [sample.accelerators[place] for sample in samples if place < len(sample.accelerators)]
        if any((each.uuid, each.pci_bus_id, each.mig) != (now.uuid, now.pci_bus_id, now.mig) for each in seen):
            return now
        known = [each.utilization for each in seen if each.utilization is not None]
        used = [each.memory_used for each in seen if each.memory_used is not None]
        processes = next((each.processes for each in reversed(seen) if each.processes), now.processes)
        return replace(
            now,
            utilization=max(known) if now.utilization is not None else None,
            memory_used=max(used) if now.memory_used is not None else None,
            processes=processes,
        )

    boards = tuple(over_time(place, board) for place, board in enumerate(last.accelerators))
    return replace(last, accelerators=boards)
