"""A question about a workload: the model, the machine and what the model should do there, put together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from devctl.devices import Device
from devctl.errors import UsageError
from devctl.models import attention
from devctl.models.decoding import CONFIG, Decoding, decoding
from devctl.models.files.processor import limited
from devctl.models.footprint import Kernels, Workload
from devctl.models.images import Images
from devctl.models.tree import ModuleTree
from devctl.models.whose_kernels import kernels_on
from devctl.placement import Placement, place_within
from devctl.placement.budget import NUMBERED, Budgets, accelerators_of, is_accelerator
from devctl.placement.finding import OwnMaps
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
    "9.0": 720 * 2**20,  # GH200, 543; H200, 525 to 671; H100, 522, and 718 to 720 as measured
    "10.0": 720 * 2**20,  # B200, 712
}
"""What is taken for the context of CUDA and the workspaces of its libraries, by compute capability.

It is the most that torch's out-of-memory errors have in public logs: what a process holds ("including non-PyTorch
memory, this process has …") less what PyTorch allocated or reserved, rounded up to 16 MiB. One board was measured, by
`python -m tests.boards`: an H100 80GB HBM3 with driver 580.159.04 and torch 2.11.0+cu130, where a process that runs
one model holds 686 to 688 MiB beside what PyTorch reserved, and a workspace of 32 MiB for cuBLAS among that. Logs of
the same board have 522 MiB: newer drivers and CUDA take more, and the other boards' figures are of older ones.
`--overhead` says better where it is known.
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
        uncounted: what its files ask of generate that is not counted.
        lacks_disk: whether nothing may be left on a disk, as the machine has none.
    """

    tree: ModuleTree
    budgets: Budgets
    overhead: Mapping[Device, int]
    footprints: Footprints
    made_for: int | None
    workload: Workload
    uncounted: tuple[str, ...] = ()
    lacks_disk: bool = False
    _own: OwnMaps = field(default_factory=dict, repr=False, compare=False)

    def runtime(self, workload: Workload, *, scaled: bool = False) -> Runtime:
        """What ``workload`` adds to the weights.

        Args:
            scaled: the batch is not traced, but on the line through one sequence and two.
        """
        footprint = self.footprints.scaled(workload) if scaled else self.footprints.of(workload)
        return Runtime(footprint=footprint, overhead=self.overhead)

    def keep_room(self) -> None:
        """Keep what the room of a plan of weights alone is measured by, while the model is built.

        Such a plan says the same whatever is kept; what is kept saves it the frameworks.
        """
        context = min(REFERENCE, self.made_for or REFERENCE)
        workload = Workload(context_length=context, new_tokens=min(1, context - 1), kernels=self.workload.kernels)
        self.footprints.keep_prefill(workload)

    def best(self, workload: Workload, offloaded: int | None = None, *, scaled: bool = False) -> Placement:
        """The best placement for ``workload``.

        Args:
            offloaded: bytes that it may leave off the accelerators, where not all may be; where every placement leaves
                more, it is one of them.
            scaled: as in `runtime`.
        """
        runtime = self.runtime(workload, scaled=scaled)
        return place_within(self.tree, self.budgets, runtime, offloaded, self._own)

    def on(self, device_map: dict[str, Device], workload: Workload) -> Placement:
        """The given map, with what ``workload`` adds."""
        return make_placement(self.tree, device_map, self.budgets, strategy=None, runtime=self.runtime(workload))


def question_of(model: Model, machine: Machine, asked: WorkloadRequest, *, counts: bool) -> Question:
    """What is planned.

    Args:
        counts: whether a workload is counted: else the weights alone are, and a greedy generate measures their room.

    Raises:
        UsageError: it makes no workload: no prompt is left, more tokens than the model is made for, or an attention
            that it does not have.
        ModelError: the model's files say of generate what can't be meant.
    """
    context = asked.context_length or min(REFERENCE, model.made_for or REFERENCE)
    new = asked.new_tokens if asked.new_tokens is not None else min(1, context - 1)
    if model.made_for is not None and new >= max(model.made_for, asked.context_length or 0):
        raise UsageError(
            f"--new-tokens {new}: the model is made for {model.made_for:,} tokens in all", hint="give fewer"
        )
    if context <= new:
        raise UsageError(f"--new-tokens {new} leaves no prompt of --context-length {context}", hint="give fewer")
    told = decoding(asked.decode or CONFIG, model.generation) if counts else Decoding()
    settings = dict(told.settings)
    chunk = settings.pop("prefill_chunk_size", None)
    question = Question(
        tree=model.tree,
        budgets=machine.budgets,
        overhead=libraries(asked.overhead, machine),
        footprints=model.footprints,
        made_for=model.made_for,
        workload=Workload(
            context_length=context,
            batch_size=asked.batch_size,
            new_tokens=new,
            kv_dtype=None if asked.kv_dtype is None else str(asked.kv_dtype),
            kernels=kernels_of(machine),
            padded=asked.padding,
            generation=tuple(settings.items()),
            prefill_chunk=asked.prefill_chunk_size or (None if chunk is None else int(chunk)),
            attention=_attention(model, asked, machine.budgets, counts=counts),
            images=limited(asked.images, model.source) if isinstance(asked.images, Images) else None,
        ),
        uncounted=told.uncounted,
        lacks_disk=machine.lacks_disk,
    )
    question.keep_room()
    return question


def _attention(model: Model, asked: WorkloadRequest, budgets: Budgets, *, counts: bool) -> str | None:
    """How the model attends, where something is asked for; None for what transformers chooses.

    Raises:
        UsageError: the class does not have it, or it does not run on these devices.
    """
    tree = model.tree
    name = asked.attn_implementation
    if name is not None:
        name = attention.chosen(name, tree.attentions, tree.class_name)
    runs = name or tree.attention
    if runs is not None and attention.is_flash(runs) and counts:
        require_flash(runs, tree, on_gpu=bool(accelerators_of(budgets)))
    return name


def require_flash(name: str, tree: ModuleTree, *, on_gpu: bool) -> None:
    """Refuse flash attention where its kernels do not run.

    Raises:
        UsageError: naming what it needs.
    """
    others = " or ".join(each for each in tree.attentions if not attention.is_flash(each))
    hint = f"give another with --attn-implementation: {others}"
    if not on_gpu:
        raise UsageError(f"{name} runs only on GPUs, and there is none", hint=hint)
    if tree.dtype not in ("float16", "bfloat16"):
        raise UsageError(f"{name} runs only in float16 and bfloat16, and the model is in {tree.dtype}", hint=hint)


def libraries(given: str | None, machine: Machine) -> dict[Device, int]:
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


def kernels_of(machine: Machine) -> Kernels:
    """Whose kernels run on the accelerators that may hold something."""
    here = {gpu.device: gpu.compute_capability for gpu in machine.inventory.accelerators}
    return kernels_on([here.get(device) for device in accelerators_of(machine.budgets)], machine.build)
