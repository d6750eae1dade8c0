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
from devctl.placement.placement import DeviceUse, Placement, over_budget


def devices_of(board: Board) -> tuple[HostDevice, ...]:
    """The accelerators of a board, with the name of their host."""
    plain = (Device.from_str(device) for device in board.devices)
    return tuple(HostDevice(device.type, device.id, host=board.host) for device in plain)


def place_stages(
    tree: ModuleTree,
    costs: Costs,
    cut: Cut,
    boards: Sequence[Board],
    *,
    strategy: str,
    notes: tuple[str, ...] = (),
) -> Placement:
    """The cut as a placement: a module is on the first accelerator of its stage; each of them has a row.

    Args:
        boards: all that there are; those without a stage hold nothing.
        strategy: what to call the way in which it was cut.
    """
    layers = costs.layers
    found: list[tuple[str, Device]] = []
    uses: list[DeviceUse] = []
    for board, first, end in cut:
        names = [*layers.names[first:end]]
        names += [*layers.first, *layers.everywhere] if first == 0 else []
        names += layers.last if end == costs.count else []
        names.sort(key=tree.index.places.__getitem__)
        load = costs.load(first, end, board.overhead)
        devices = devices_of(board)
        found += [(name, devices[0]) for name in names]
        uses += [
            DeviceUse(
                device=device,
                budget=board.budget,
                modules=tuple(names),
                used=load.used,
                state=load.state,
                activations=load.activations,
                overhead=load.overhead,
                unallocated=load.unallocated,
                loading=load.loading,
            )
            for device in devices
        ]
    taken = {use.device for use in uses}
    uses += [
        DeviceUse(device=device, used=0, budget=board.budget, modules=())
        for board in boards
        for device in devices_of(board)
        if device not in taken
    ]
    found.sort(key=lambda pair: tree.index.places[pair[0]])
    placement = Placement(
        strategy=strategy, device_map=FrozenMap(tuple(found)), devices=tuple(uses), crossings=len(cut) - 1
    )
    return replace(placement, notes=(*tree.notes, *notes, *over_budget(placement.devices)))
