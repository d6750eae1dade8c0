"""Where the components of a pipeline go, each as a whole, by their weights alone: pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum

from devctl.devices import Device
from devctl.placement.budget import Budgets, accelerators_of


class Way(StrEnum):
    """How diffusers runs a pipeline."""

    ONE = "one device"
    """``pipeline.to(device)``."""
    BALANCED = "balanced"
    """``from_pretrained(device_map="balanced")``: components over several accelerators, none of them divided."""
    MODEL_OFFLOAD = "model offload"
    """``pipeline.enable_model_cpu_offload()``: all in RAM, and on an accelerator the component that runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """Whether a pipeline's weights fit in a way.

    Attributes:
        devices: where each component is while it runs.
        left: bytes that are left on the fullest of those devices; negative where they are lacking.
        why: why they don't fit; empty where they do.
    """

    way: Way
    devices: Mapping[str, Device]
    left: int
    why: str = ""

    @property
    def fits(self) -> bool:
        """Whether they do."""
        return not self.why


def ways(sizes: Mapping[str, int], budgets: Budgets, order: Collection[str] | None = None) -> tuple[Fit, ...]:
    """Whether components of ``sizes``, in bytes, fit within ``budgets``, in each way that such a machine has.

    Args:
        order: the components that are brought one after another where all are in RAM, while others stay; None where
            that is not known.
    """
    limits = dict(budgets.devices)
    computing = accelerators_of(budgets)
    if not computing:
        return (_one(sizes, Device.cpu(), limits.get(Device.cpu(), 0)),)
    # the first of equal ones
    best = max(computing, key=lambda device: limits[device])
    found = [_one(sizes, best, limits[best])]
    if len(computing) > 1:
        found.append(_balanced(sizes, {device: limits[device] for device in computing}))
    found.append(_offloaded(sizes, best, limits[best], limits.get(Device.cpu(), 0), order))
    return tuple(found)


def _one(sizes: Mapping[str, int], device: Device, limit: int) -> Fit:
    left = limit - sum(sizes.values())
    return Fit(
        way=Way.ONE,
        devices=dict.fromkeys(sizes, device),
        left=left,
        why="" if left >= 0 else f"{device} holds less than all of it",
    )


def _balanced(sizes: Mapping[str, int], limits: Mapping[Device, int]) -> Fit:
    """As diffusers deals components out, the largest first, to accelerators to and fro, the largest first.

    A component that its turn's accelerator does not hold goes to the CPU (``_assign_components_to_devices``).
    """
    order = sorted(limits, key=lambda device: limits[device], reverse=True)
    cycle, free, at = [*order, *reversed(order)], dict(limits), 0
    devices, too_large = {}, []
    for name in sorted(sizes, key=lambda name: sizes[name], reverse=True):
        device = cycle[at % len(cycle)]
        if sizes[name] > free[device]:
            too_large.append(f"{name} does not fit {device} when its turn comes")
            continue
        devices[name] = device
        free[device] -= sizes[name]
        at += 1
    return Fit(way=Way.BALANCED, devices=devices, left=min(free.values()), why="; ".join(too_large[:2]))


def _offloaded(sizes: Mapping[str, int], device: Device, limit: int, ram: int, order: Collection[str] | None) -> Fit:
    brought = [name for name in sizes if order is None or name in order]
    staying = [name for name in sizes if name not in brought]
    largest = max(brought, key=lambda name: sizes[name], default=None)
    needed = sum(sizes[name] for name in staying) + (0 if largest is None else sizes[largest])
    why = ""
    if order is not None and not order:
        why = "diffusers has no order for this pipeline"
    elif needed > limit:
        beside = f", beside {' and '.join(staying)}, which stay there" if staying else ", the largest"
        why = f"{device} holds less than {largest}{beside}"
    elif sum(sizes.values()) > ram:
        why = "the RAM holds less than all of it"
    elif order is None:
        why = "it is not known which stay beside the largest: diffusers is not installed, or has no such pipeline"
    return Fit(way=Way.MODEL_OFFLOAD, devices=dict.fromkeys(sizes, device), left=limit - needed, why=why)
