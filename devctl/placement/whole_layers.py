"""Whole layers over devices as llama.cpp has them: the first ones on the CPU, the others in runs on the GPUs.

The embedding is on the CPU whatever else is, and what makes the output is with the last layer. As few layers as may be
are left on the CPU; of the ways to cut the others, that with most room on the fullest GPU is taken.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

from devctl.devices import Device
from devctl.placement.budget import Budgets, accelerators_of, is_accelerator
from devctl.placement.device_map import FrozenMap
from devctl.placement.placement import DeviceUse, Placement

STRATEGY = "layers"

_STEPS = 2**20
"""Shares of a budget that are told apart: a part in a million."""

_MOST_SHARE = 2**24
"""Budgets that what is placed may be at most, so that a share is found for what does not fit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A part of a model that is placed whole.

    Attributes:
        nbytes: of its weights.
        state: bytes that it keeps between steps.
    """

    name: str
    nbytes: int
    state: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeLayers:
    """What is placed.

    Attributes:
        first: on the CPU.
        layers: in the order in which they run; there is one at least.
        last: with the last layer.
        everywhere: on every device that has a layer.
        tied: bytes of ``first`` that ``last`` has again where it is on another device.
        overhead: bytes that the libraries of each accelerator take.
    """

    first: tuple[Part, ...]
    layers: tuple[Part, ...]
    last: tuple[Part, ...]
    everywhere: tuple[Part, ...] = ()
    tied: int = 0
    overhead: Mapping[Device, int] = field(default_factory=dict)

    def on_cpu(self, count: int) -> tuple[int, int]:
        """Bytes of weights and of state on the CPU, with the first ``count`` layers there."""
        parts = [*self.first, *self.layers[:count]]
        if count == len(self.layers):
            parts += self.last  # the embedding is the output there, and not a second time
        if count:
            parts += self.everywhere
        return sum(part.nbytes for part in parts), sum(part.state for part in parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """How many layers are on the CPU, and the run of layers on each accelerator that has some.

    Attributes:
        on_cpu: the first so many layers.
        runs: (device, first layer, one past the last), in the order of the layers.
    """

    on_cpu: int
    runs: tuple[tuple[Device, int, int], ...]


def cut_layers(parts: WholeLayers, budgets: Budgets) -> Cut:
    """The best cut; where none fits, one that is least over.

    Layers are left on the CPU only where there is a budget for it.
    """
    gpus = accelerators_of(budgets)
    count = len(parts.layers)
    if not gpus:
        return Cut(on_cpu=count, runs=())
    filling = _Filling(parts, [(device, size) for device, size in budgets.devices if device in gpus])
    may_offload = Device.cpu() in dict(budgets.devices)
    low, high = 0, count if may_offload else 0
    while low < high:  # more layers on the CPU are never more on the GPUs
        middle = (low + high) // 2
        if filling.runs(middle, _STEPS) is not None:
            high = middle
        else:
            low = middle + 1
    if low == count:
        return Cut(on_cpu=count, runs=())
    least, most = 0, _STEPS
    while filling.runs(low, most) is None and most < _STEPS * _MOST_SHARE:
        least, most = most, most * 2
    while most - least > 1:
        middle = (least + most) // 2
        if filling.runs(low, middle) is not None:
            most = middle
        else:
            least = middle
    found = filling.runs(low, most)
    if found is None:  # no accelerator may hold as much as its libraries take
        found = ((gpus[0], low, count),)
    return Cut(on_cpu=low, runs=found)


class _Filling:
    """How far accelerators get, each filled up to a share of what it may hold."""

    def __init__(self, parts: WholeLayers, limits: Sequence[tuple[Device, int]]) -> None:
        self._parts = parts
        self._limits = limits
        sizes = [part.nbytes + part.state for part in parts.layers]
        sizes[-1] += sum(part.nbytes + part.state for part in parts.last) + parts.tied
        self._sums = list(accumulate(sizes, initial=0))
        self._everywhere = sum(part.nbytes for part in parts.everywhere)

    def runs(self, start: int, share: int) -> tuple[tuple[Device, int, int], ...] | None:
        """The layers from ``start`` on, each accelerator filled to ``share`` of `_STEPS`; None where some are left."""
        found, at, count = [], start, len(self._parts.layers)
        for device, limit in self._limits:
            room = limit * share // _STEPS - self._parts.overhead.get(device, 0) - self._everywhere
            end = min(bisect_right(self._sums, self._sums[at] + room) - 1, count) if room >= 0 else at
            if end > at:
                found.append((device, at, end))
                at = end
        return tuple(found) if at == count else None


def place_layers(parts: WholeLayers, budgets: Budgets, cut: Cut, *, notes: tuple[str, ...] = ()) -> Placement:
    """The placement of ``cut``: a row for each device, also for those that hold nothing."""
    cpu, count = Device.cpu(), len(parts.layers)
    limits: dict[Device, int | None] = dict(budgets.devices)
    limits.setdefault(cpu, None)
    held, state = parts.on_cpu(cut.on_cpu)
    where = {part.name: cpu for part in (*parts.first, *parts.layers[: cut.on_cpu])}
    used, kept = {cpu: held}, {cpu: state}
    for device, start, end in cut.runs:
        here = [*parts.layers[start:end], *parts.everywhere, *(parts.last if end == count else ())]
        used[device] = sum(part.nbytes for part in here) + (parts.tied if end == count else 0)
        kept[device] = sum(part.state for part in here)
        where |= {part.name: device for part in parts.layers[start:end]}
    last = cut.runs[-1][0] if cut.runs else cpu
    where |= {part.name: last for part in (*parts.everywhere, *parts.last)}
    pairs = tuple((part.name, where[part.name]) for part in _in_order(parts))
    names: dict[Device, list[str]] = {device: [] for device in limits}
    for name, device in pairs:
        names[device].append(name)
    uses = tuple(
        DeviceUse(
            device=device,
            used=used.get(device, 0),
            state=kept.get(device, 0),
            overhead=parts.overhead.get(device, 0) if device in used else 0,
            budget=limit,
            modules=tuple(names[device]),
        )
        for device, limit in limits.items()
        if is_accelerator(device) or device == cpu
    )
    order = [device for _, device in pairs]
    return Placement(
        strategy=STRATEGY,
        device_map=FrozenMap(pairs),
        devices=uses,
        crossings=sum(one != other for one, other in pairwise(order)),
        notes=notes,
    )


def _in_order(parts: WholeLayers) -> tuple[Part, ...]:
    return (*parts.first, *parts.layers, *parts.everywhere, *parts.last)
