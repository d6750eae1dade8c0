"""Quantised weights on a machine that has nothing to compute with them as they are."""

from __future__ import annotations

from dataclasses import replace

from devctl.devices import Device
from devctl.models.tree import ModuleTree
from devctl.placement import Placement
from devctl.placement.placement import over_budget
from devctl.placement.plan import Refusal
from devctl.planning.machine import Machine


def unpacked_refusal(tree: ModuleTree, machine: Machine, placement: Placement) -> Refusal | None:
    """Why a map of packed weights does not hold on a machine without an accelerator; None where it does.

    transformers unpacks them there as it loads them, so that the CPU has to hold more than is planned. What is left on
    a disk is taken to be packed as well as the rest.
    """
    held = tree.index.held[""]
    if tree.unpacked is None or not held or machine.inventory.accelerators:
        return None
    cpu = [
        replace(use, used=use.used * tree.unpacked // held) for use in placement.devices if use.device == Device.cpu()
    ]
    over = over_budget(cpu)
    if not over:
        return None
    return Refusal(
        f"it does not fit: without an accelerator, transformers unpacks {tree.quantisation} weights to {tree.dtype}",
        findings=over,
        hint="plan for hardware that computes with them, with --devices or --machine",
    )
