"""A question about a workload: the model, the machine and what the model should do there, put together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from devctl.devices import Device
from devctl.errors import UsageError
from devctl.models.footprint import Kernels, Workload
from devctl.models.tree import ModuleTree
from devctl.placement import Placement, place_within
from devctl.placement.budget import NUMBERED, Budgets, accelerators_of, is_accelerator
from devctl.placement.placement import make_placement
from devctl.placement.runtime import Runtime
from devctl.planning.footprints import Footprints
from devctl.planning.machine import Machine
from devctl.planning.model import Model
from devctl.planning.request import WorkloadRequest
from devctl.units import parse_size

OVERHEAD: Mapping[str, int] = {
    "7.5": 128 * 2**20,  # T4, 123 MiB
    "8.0": 512 * 2**20,  # A100, 501
    "8.6": 320 * 2**20,  # RTX 3090, 317
    "8.9": 528 * 2**20,  # L40S, 522
    "9.0": 672 * 2**20,  # GH200, 543; H200, 525 to 671; H100, 522
    "10.0": 720 * 2**20,  # B200, 712
}
"""What is taken for the context of CUDA and the workspaces of its libraries, by compute capability.

It is the most that torch's out-of-memory errors have in public logs: what a process holds ("including non-PyTorch
memory, this process has …") less what PyTorch allocated or reserved, rounded up to 16 MiB. `--overhead` says better
where it is known.
"""

MOST_OVERHEAD = max(OVERHEAD.values())
"""The same of a GPU of which no log is known: another maker's, or one that has no name."""

REFERENCE = 4096
"""Tokens at which what a token takes is looked at, where none are asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is planned, all but the way to place it.

    Attributes:
        overhead: bytes that each accelerator's libraries take.
        made_for: tokens that the model is made for; None where it does not say.
        workload: what the model should do; of a question about weights alone, what their room is measured by.
        lacks_disk: whether nothing may be left on a disk, as the machine has none.
    """

    tree: ModuleTree
    budgets: Budgets
    overhead: Mapping[Device, int]
    footprints: Footprints
    made_for: int | None
    workload: Workload
    lacks_disk: bool = False

    def runtime(self, workload: Workload, *, scaled: bool = False) -> Runtime:
        """What ``workload`` adds to the weights.

        Args:
            scaled: the batch is not traced, but on the line through one sequence and two.
        """
        footprint = self.footprints.scaled(workload) if scaled else self.footprints.of(workload)
        return Runtime(footprint=footprint, overhead=self.overhead)

    def best(self, workload: Workload, offloaded: int | None = None, *, scaled: bool = False) -> Placement:
        """The best placement for ``workload``.

        Args:
            offloaded: bytes that it may leave off the accelerators, where not all may be; where every placement leaves
                more, it is one of them.
            scaled: as in `runtime`.
        """
        return place_within(self.tree, self.budgets, self.runtime(workload, scaled=scaled), offloaded)

    def on(self, device_map: dict[str, Device], workload: Workload) -> Placement:
        """The given map, with what ``workload`` adds."""
        return make_placement(self.tree, device_map, self.budgets, strategy=None, runtime=self.runtime(workload))


def question_of(model: Model, machine: Machine, asked: WorkloadRequest) -> Question:
    """What is planned.

    Raises:
        UsageError: it makes no workload: no prompt is left, or more tokens than the model is made for.
    """
    context = asked.context_length or min(REFERENCE, model.made_for or REFERENCE)
    new = asked.new_tokens if asked.new_tokens is not None else min(1, context - 1)
    if model.made_for is not None and new >= max(model.made_for, asked.context_length or 0):
        raise UsageError(f"--new-tokens {new}: the model is made for {model.made_for} tokens in all", hint="give fewer")
    if context <= new:
        raise UsageError(f"--new-tokens {new} leaves no prompt of --context-length {context}", hint="give fewer")
    return Question(
        tree=model.tree,
        budgets=machine.budgets,
        overhead=_libraries(asked.overhead, machine),
        footprints=model.footprints,
        made_for=model.made_for,
        workload=Workload(
            context_length=context,
            batch_size=asked.batch_size,
            new_tokens=new,
            kv_dtype=None if asked.kv_dtype is None else str(asked.kv_dtype),
            kernels=_kernels(machine.budgets),
        ),
        lacks_disk=machine.lacks_disk,
    )


def _libraries(given: str | None, machine: Machine) -> dict[Device, int]:
    """What each accelerator's libraries take: what is said, or what is usual.

    Raises:
        UsageError: it is no size.
    """
    try:
        size = None if given is None else parse_size(given)
    except ValueError as error:
        raise UsageError(f"--overhead: {error}") from None
    here = {gpu.device: gpu.compute_capability for gpu in machine.inventory.accelerators}
    return {
        device: _usual_overhead(device, here.get(device)) if size is None else size
        for device, _ in machine.budgets.devices
        if is_accelerator(device)
    }


def _usual_overhead(device: Device, compute_capability: str | None) -> int:
    if device.type not in NUMBERED:
        return 0  # Metal's are part of what macOS keeps
    return OVERHEAD.get(compute_capability or "", MOST_OVERHEAD)


def _kernels(budgets: Budgets) -> Kernels:
    """Whose kernels run on these devices."""
    return Kernels.ACCELERATOR if accelerators_of(budgets) else Kernels.CPU
