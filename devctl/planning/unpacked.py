"""Quantised weights on a machine that has nothing to compute with them as they are: transformers unpacks them there."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import replace

from devctl.devices import Device, DeviceType
from devctl.inventory import Inventory
from devctl.models.tree import ModuleTree
from devctl.placement.plan import Refusal
from devctl.planning.machine import Machine
from devctl.planning.model import Model

_LEAST: Mapping[str, tuple[int, int]] = {"fp8": (8, 9), "mxfp8": (8, 9), "mxfp4": (7, 5)}
"""The least compute capability of a GPU for which transformers keeps weights packed (``validate_environment`` of its
quantizers)."""


def as_held(model: Model, machine: Machine) -> Model:
    """The model with the bytes that its weights are held with on ``machine``, packed or not.

    Every verdict is of this one, so that all of them count the same bytes.

    Raises:
        ModelError: it can't be read any more.
    """
    return model.unpacked() if is_unpacked(model.tree, machine.inventory) else model


def as_held_by_each(model: Model, machine: Machine, devices: Collection[Device]) -> Model:
    """The model with the bytes that its weights are held with where each of ``devices`` has a process of its own.

    Such a process asks about its own GPU, and not about the first. Where one of them unpacks, all count as unpacked: a
    part is never held with more.

    Raises:
        ModelError: it can't be read any more.
    """
    alone = (gpu for gpu in machine.inventory.accelerators if gpu.device in devices)
    unpacks = any(is_unpacked(model.tree, replace(machine.inventory, accelerators=(gpu,))) for gpu in alone)
    return model.unpacked() if unpacks else model


def is_unpacked(tree: ModuleTree, inventory: Inventory) -> bool:
    """Whether transformers unpacks the weights of ``tree`` on the machine of ``inventory``.

    The first of its GPUs decides, as torch is asked about that one. One of which no capability is known is taken to
    have what is needed.
    """
    if tree.unpacked is None:
        return False
    there = {gpu.device: gpu.compute_capability for gpu in inventory.accelerators if gpu.device is not None}
    kinds = {device.type for device in there}
    if tree.quantisation == "metal":
        return DeviceType.MPS not in kinds
    if DeviceType.GPU not in kinds:
        return DeviceType.XPU not in kinds
    first = min((d for d in there if d.type is DeviceType.GPU), key=lambda device: device.id or 0)
    known = re.fullmatch(r"(\d+)\.(\d+)", there[first] or "")
    least = _LEAST.get(tree.quantisation or "")
    return known is not None and least is not None and (int(known[1]), int(known[2])) < least


def told_unpacked(tree: ModuleTree) -> tuple[str, ...]:
    """That weights are counted as unpacked, as a note; none where they are not."""
    if tree.packed_as is None:
        return ()
    without = "this machine has no hardware for them"
    return (f"{tree.packed_as} weights count as unpacked to {tree.dtype}: {without}, and transformers unpacks them",)


def refused_unpacked(tree: ModuleTree, refusal: Refusal | None) -> Refusal | None:
    """A refusal that says, too, where weights are counted as unpacked."""
    if refusal is None or not (told := told_unpacked(tree)):
        return refusal
    hint = refusal.hint or "plan for hardware that computes with them, with --devices or --machine"
    return replace(refusal, findings=(*refusal.findings, *told), hint=hint)
