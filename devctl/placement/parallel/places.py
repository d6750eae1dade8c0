"""Accelerators of several hosts, and what a cut puts on each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from devctl.devices import Device
from devctl.models.tree import ModuleTree
from devctl.placement.device_map import FrozenMap
from devctl.placement.parallel.costs import Costs
from devctl.placement.parallel.host_device import HostDevice
from devctl.placement.parallel.stages import Board, Cut
from devctl.placement.placement import DeviceUse, Placement, over_budget, tight


def devices_of(board: Board) -> tuple[HostDevice, ...]:
    """The accelerators of a board, with the name of their host."""
    plain = (Device.from_str(device) for device in board.devices)
    return tuple(HostDevice(device.type, device.id, host=board.host) for device in plain)


def group_of(host: str, devices: Sequence[str]) -> HostDevice:
    """Accelerators of a host that share a stage, as one that says the first and the last of them."""
    first = Device.from_str(devices[0])
    return HostDevice(first.type, first.id, host=host, last=devices[-1] if len(devices) > 1 else "")


def place_stages(
    tree: ModuleTree,
    ranks: Sequence[Costs],
    cut: Cut,
    boards: Sequence[Board],
    *,
    strategy: str,
    notes: tuple[str, ...] = (),
) -> Placement:
    """The cut as a placement: a module is on the accelerators of its stage, as one; each of them has a row.

    Args:
        ranks: what layers take on each accelerator of a board.
        boards: all that there are; those without a stage hold nothing.
        strategy: what to call the way in which it was cut.
    """
    layers = ranks[0].layers
    found: list[tuple[str, Device]] = []
    uses: list[DeviceUse] = []
    for board, first, end in cut:
        names = [*layers.names[first:end]]
        names += [*layers.first, *layers.everywhere] if first == 0 else []
        names += layers.last if end == len(layers.names) else []
        names.sort(key=tree.index.places.__getitem__)
        loads = [costs.load(first, end, board.overhead) for costs in ranks]
        devices = devices_of(board)
        found += [(name, group_of(board.host, board.devices)) for name in names]
        uses += [
            DeviceUse(
                device=device,
                budget=budget,
                modules=tuple(names),
                used=load.used,
                state=load.state,
                activations=load.activations,
                unallocated=load.unallocated,
                overhead=load.overhead,
                loading=load.loading,
            )
            for device, budget, load in zip(devices, board.budgets, loads, strict=True)
        ]
    taken = {use.device for use in uses}
    uses += [
        DeviceUse(device=device, used=0, budget=budget, modules=())
        for board in boards
        for device, budget in zip(devices_of(board), board.budgets, strict=True)
        if device not in taken
    ]
    found.sort(key=lambda pair: tree.index.places[pair[0]])
    placement = Placement(
        strategy=strategy, device_map=FrozenMap(tuple(found)), devices=tuple(uses), crossings=len(cut) - 1
    )
    return replace(placement, notes=(*tree.notes, *notes, *over_budget(placement.devices), *tight(placement.devices)))
