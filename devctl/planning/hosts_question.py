"""A question about a model in stages over several hosts: which boards there are, and what layers take on them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from devctl.errors import RefusedError
from devctl.models.footprint import Footprint, Workload
from devctl.models.over_ranks import objection
from devctl.models.tree import ModuleTree
from devctl.placement.budget import NUMBERED
from devctl.placement.parallel.costs import Costs, Handed
from devctl.placement.parallel.layers import Layers, layers_of
from devctl.placement.parallel.places import place_stages
from devctl.placement.parallel.stages import Board, Cut, Host, groups_of
from devctl.placement.parallel.tensor import Ranks, TensorParallel, rank_tree, rank_trees, style_bytes
from devctl.placement.placement import Placement
from devctl.placement.plan import writes
from devctl.placement.runtime import Runtime
from devctl.planning import parallel
from devctl.planning.building import hidden_size
from devctl.planning.gguf import refuse_gguf
from devctl.planning.hosts import NamedMachine, require_one_kind
from devctl.planning.model import Model
from devctl.planning.plan import runtime_of, versions
from devctl.planning.question import Question, libraries, question_of
from devctl.planning.request import WorkloadRequest
from devctl.planning.unpacked import as_held_by_each, told_unpacked
from devctl.units import format_bytes

COMMUNICATORS = 816 * 2**20
"""What a board gives to communicators beside a process's own libraries, where stages are on several.

vLLM 0.19.0 logged on boards of 80 GiB (H100), of a process beside its tensors: 0.51 GiB of context and 0.25 GiB more
alone, 1.48 and 0.07 in 2 or 4 pipeline stages. That is 0.79 GiB more, rounded up to 16 MiB. It makes more communicators
than transformers does. `--overhead` says better, for libraries and communicators together.
"""

_MEASURED = "9.0"
"""The compute capability of those boards."""

_ITEM_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}


ALONE = Ranks(size=1)
"""A stage on one accelerator."""

_MOST_UNEVEN = 0.99
"""Least part of the largest of a group's budgets that the smallest may be without a word of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostsQuestion:
    """A question about a model over hosts, put together.

    Attributes:
        hosts: boards by host, those with none left out; a group of ``ranks`` is one.
        ranks: how many accelerators share a stage.
        question: about the workload of the first rank of a stage; its budgets are those of the first host.
        notes: what is to be known of the hosts and the model.
    """

    model: Model
    layers: Layers
    hosts: tuple[Host, ...]
    ranks: Ranks
    question: Question
    workload: WorkloadRequest
    notes: tuple[str, ...]

    @property
    def is_shared(self) -> bool:
        """Whether several accelerators share a stage."""
        return self.ranks.size > 1

    @property
    def boards(self) -> Host:
        """All boards, in their order."""
        return tuple(board for host in self.hosts for board in host)

    def costs(self, footprint: Footprint | None, tree: ModuleTree | None = None, ranks: Ranks | None = None) -> Costs:
        """What runs of layers take on the first rank of a stage, which has most of everything.

        Args:
            tree: the model in fewer bytes.
            ranks: others that share it.
        """
        tree = tree or self.model.tree
        ranks = ranks or self.ranks
        return self._costs(tree if ranks.size == 1 else rank_tree(tree, ranks, 0), footprint)

    def rank_costs(self, footprint: Footprint | None) -> tuple[Costs, ...]:
        """The same on each rank of a stage; one and the same value for those that have as much.

        Beside its weights each rank is taken to hold what the first does.
        """
        if not self.is_shared:
            return (self.costs(footprint),)
        known: dict[int, Costs] = {}
        found = []
        for part in rank_trees(self.model.tree, self.ranks):
            if id(part) not in known:
                known[id(part)] = self._costs(part, footprint)
            found.append(known[id(part)])
        return tuple(found)

    def _costs(self, tree: ModuleTree, footprint: Footprint | None) -> Costs:
        if footprint is None:
            return Costs(tree, self.layers)
        return Costs(tree, self.layers, footprint=footprint, handed=_handed(self.model, self.layers, footprint))

    def of_workload(self) -> tuple[Runtime | None, tuple[str, ...]]:
        """What the workload adds on a rank, where one is asked for, and what is to be known of that.

        Raises:
            RefusedError: the model's code does not run on the part of it that a rank has.
        """
        if self.workload.context_length is not None:
            return parallel.runtime_of_rank(self.question) if self.is_shared else runtime_of(self.question)
        return None, parallel.tried(self.question) if self.is_shared else ()

    def workload_of(self, asked: Workload, ranks: Ranks) -> Workload:
        """The workload of the first of other ``ranks``."""
        return replace(asked, tensor_parallel=ranks.size, expert_parallel=ranks.experts)

    def in_full(self, cut: Cut) -> Cut:
        """The cut on boards whose libraries take what they do with a workload."""
        full = {(board.host, board.devices): board for board in self.boards}
        return tuple((full[board.host, board.devices], first, end) for board, first, end in cut)

    def counted(self, runtime: Runtime | None) -> tuple[Host, ...]:
        """The hosts, whose libraries take something only where a workload is counted."""
        if runtime is not None:
            return self.hosts
        return tuple(tuple(replace(board, overhead=0) for board in host) for host in self.hosts)

    def placed(
        self, costs: Sequence[Costs], cut: Cut, hosts: Sequence[Host], strategy: str, notes: tuple[str, ...] = ()
    ) -> Placement:
        """A cut as a placement, named after the ``strategy`` by which it was made."""
        boards = [board for host in hosts for board in host]
        return place_stages(self.model.tree, costs, cut, boards, strategy=strategy, notes=notes)

    def shared(self, costs: Sequence[Costs], cut: Cut) -> TensorParallel | None:
        """What the ranks of all stages have, in their order; None where a stage is on one accelerator."""
        if not self.is_shared:
            return None
        loads = [each.load(first, end) for _, first, end in cut for each in costs]
        return TensorParallel(
            ranks=self.ranks,
            bytes_per_rank=tuple(load.used for load in loads),
            state_per_rank=tuple(load.state for load in loads),
            sharded=style_bytes(self.model.tree, self.ranks),
        )


def hosts_question(
    model: Model,
    hosts: Sequence[NamedMachine],
    workload: WorkloadRequest,
    *,
    counts: bool,
    ranks: Ranks = ALONE,
) -> HostsQuestion:
    """The question, with what can't be asked refused.

    Args:
        counts: whether a workload is counted, that of ``workload`` or another.
        ranks: how many accelerators of a host share a stage.

    Raises:
        RefusedError: the model has no stages, or can't be shared, or there are no boards, too many, or such as do not
            work together.
        UsageError: the workload is none for this model.
    """
    refuse_gguf(model.gguf, "several hosts")
    model.require_alone("what runs layers in stages over several hosts loads no adapter")
    with_boards = [each for each in hosts if each.accelerators]
    if not with_boards:
        why = tuple(f"{each.name}: {line}" for each in hosts for line in each.machine.missing)
        raise RefusedError("there is no accelerator for a stage: none is on CPU or disk", findings=why)
    require_one_kind(with_boards)
    for each in with_boards:
        model = as_held_by_each(model, each.machine, [device for device, _ in each.accelerators])
    layers = _layers(model)
    if ranks.size > 1:
        _require_groups(model.tree, ranks, with_boards)
    single = sum(len(each.accelerators) for each in with_boards) == 1
    communicators = 0 if single else parallel.COMMUNICATORS if ranks.size > 1 else COMMUNICATORS
    boards = tuple(groups_of(_boards(each, workload, communicators=communicators), ranks.size) for each in with_boards)
    _require_layers(model.tree, layers, boards, ranks)
    # several sequences of one length: what transformers' stages do with padded ones is wrong
    question = question_of(model, with_boards[0].machine, replace(workload, padding=False), counts=counts)
    asked = replace(question.workload, tensor_parallel=ranks.size, expert_parallel=ranks.experts)
    notes = (
        *_told_hosts(hosts, with_boards),
        *told_unpacked(model.tree),
        *_told_model(model.tree, layers, with_boards, ranks),
        *_told_groups(boards),
        *(_told_communicators(with_boards, ranks) if counts and workload.overhead is None and not single else ()),
    )
    return HostsQuestion(
        model=model,
        layers=layers,
        hosts=boards,
        ranks=ranks,
        question=replace(question, workload=asked),
        workload=workload,
        notes=notes,
    )


def _require_groups(tree: ModuleTree, ranks: Ranks, hosts: Sequence[NamedMachine]) -> None:
    """Refuse ranks that can't share the model, or of which the accelerators of a host make no whole groups.

    Raises:
        RefusedError: naming the numbers that work.
    """
    kind = next((d for each in hosts for d, _ in each.accelerators if d.type not in NUMBERED), None)
    if kind is not None:
        raise RefusedError(f"transformers does not run tensor parallelism on {kind}", hint="leave out --tp")
    works = sizes_that_work(tree, hosts, experts=ranks.dispatches)
    option = "--tp and --ep" if ranks.dispatches else "--tp"
    hint = f"leave out {option}: no number of ranks can share the model and divides the accelerators of every host"
    if works:
        listed = str(works[0]) if len(works) == 1 else f"{', '.join(map(str, works[:-1]))} or {works[-1]}"
        hint = f"{option} can be {listed}"
    if why := parallel.refusal(tree, ranks):
        # what is said of numbers there knows nothing of the hosts
        raise replace(why, hint=hint if works or why.hint.startswith("--") else why.hint).error()
    for each in hosts:
        if (count := len(each.accelerators)) % ranks.size:
            there = "one accelerator" if count == 1 else f"{count} accelerators"
            raise RefusedError(
                f"--tp {ranks.size}: {each.name} has {there} with free memory, of which groups of {ranks.size} leave "
                f"{count % ranks.size} over",
                findings=tuple(f"{each.name}: {line}" for line in each.machine.missing),
                hint=hint,
            )


def sizes_that_work(tree: ModuleTree, hosts: Sequence[NamedMachine], *, experts: bool) -> list[int]:
    """How many ranks could share each stage, of the accelerators that the hosts have."""
    common = math.gcd(*(len(each.accelerators) for each in hosts))
    found = []
    for size in range(2, common + 1):
        others = Ranks(size=size, experts=size if experts else 1)
        if common % size == 0 and parallel.refusal(tree, others) is None:
            found.append(size)
    return found


def _require_layers(tree: ModuleTree, layers: Layers, hosts: Sequence[Host], ranks: Ranks) -> None:
    """Refuse more boards than layers.

    Raises:
        RefusedError: naming how many serve.
    """
    count, most = sum(map(len, hosts)), len(layers.names)
    if count <= most:
        return
    each = "accelerators" if ranks.size == 1 else f"groups of {ranks.size} accelerators"
    raise RefusedError(
        f"{count} {each} are more than the {most} layer{'s' * (most > 1)} of {tree.class_name}, and a "
        f"stage has at least one: {most} serve",
        hint=f"leave out {(count - most) * ranks.size}"
        + (" accelerators, or give a larger --tp" if ranks.size > 1 else ""),
    )


def _layers(model: Model) -> Layers:
    tree = model.tree
    if model.has_encoder:
        raise RefusedError(
            f"{tree.class_name} is an encoder and a decoder: stages are of one list of layers",
            hint="plan it on one host",
        )
    if not writes(tree.class_name):
        raise RefusedError(f"{tree.class_name} writes no text: only decoders go in stages", hint="plan it on one host")
    found = layers_of(tree)
    if isinstance(found, str):
        raise RefusedError(f"{found}: stages are of one list of layers", hint="plan it on one host")
    return found


def _boards(host: NamedMachine, workload: WorkloadRequest, *, communicators: int) -> Host:
    overhead = libraries(workload.overhead, host.machine)
    more = communicators if workload.overhead is None else 0
    return tuple(
        Board(host=host.name, devices=(str(device),), budget=size, overhead=overhead.get(device, 0) + more)
        for device, size in host.accelerators
    )


def _told_hosts(hosts: Sequence[NamedMachine], used: Sequence[NamedMachine]) -> Iterator[str]:
    for each in hosts:
        # what is said of the CPU is of no concern where nothing is placed on it
        about = (note for note in each.machine.budgets.notes if "cpu" not in note.split())
        yield from (f"{each.name}: {note}" for note in about)
        if each not in used:
            yield f"{each.name} has no accelerator with free memory, and takes no part"


def _told_groups(hosts: Sequence[Host]) -> Iterator[str]:
    """Where unequal accelerators share a stage: all can hold no more than the smallest does."""
    for board in (board for host in hosts for board in host):
        least, most = min(board.budgets), max(board.budgets)
        if least < _MOST_UNEVEN * most:
            yield (
                f"{board.host}: {board.devices[0]} to {board.devices[-1]} share a stage, and the smallest of them, "
                f"of {format_bytes(least)}, decides what each is given of their {format_bytes(most)}"
            )


def _told_model(tree: ModuleTree, layers: Layers, hosts: Sequence[NamedMachine], ranks: Ranks) -> Iterator[str]:
    if ranks.size > 1:
        yield from parallel.told_sharing_of_stages(tree, ranks, style_bytes(tree, ranks))
        return
    others = {str(device.type) for host in hosts for device, _ in host.accelerators} - {"cuda"}
    for kind in sorted(others):
        yield f"transformers' pipeline parallelism is not known to run on {kind}"
    if tree.quantisation is not None:
        yield f"transformers' pipeline parallelism is not known to run {tree.quantisation} weights"
    if odd := layers.odd:
        yield (
            "transformers' pipeline parallelism does not run this model, whose parts it does not know: "
            + ", ".join(odd[:3])
            + (f" and {len(odd) - 3} more" if len(odd) > 3 else "")
        )
    elif (why := objection(tree.class_name, versions()["transformers"])) is not None:
        yield f"`devctl load` refuses to run it in stages: {why}"


def _told_communicators(hosts: Sequence[NamedMachine], ranks: Ranks) -> Iterator[str]:
    if ranks.size > 1:
        yield parallel.TOLD_COMMUNICATORS
    else:
        yield f"{format_bytes(COMMUNICATORS)} on each board are counted for communicators; --overhead says better"
    known = {gpu.compute_capability for host in hosts for gpu in host.machine.inventory.accelerators if gpu.device}
    if known != {_MEASURED}:
        yield "what communicators take was measured only on H100s: on other boards it is not known"


def _handed(model: Model, layers: Layers, footprint: Footprint) -> Handed:
    """The hidden states that a stage hands on, as ``_hidden_states_shape`` of transformers' pipeline has them."""
    workload, tree = footprint.workload, model.tree
    width = hidden_size(_config(model)) or _width(tree, layers)
    decodes = any(block.decode for block in footprint.blocks)
    prompt = workload.context_length - (workload.new_tokens if decodes else 0)
    beams = dict(workload.generation).get("num_beams", 1)
    row = workload.batch_size * int(beams) * width * _ITEM_BYTES.get(tree.dtype, 8)
    at_once = min(workload.prefill_chunk or prompt, prompt)
    return Handed(prefill=row * at_once, decode=row if decodes else 0)


def _config(model: Model) -> dict[str, Any]:
    if model.source is not None:
        return dict(model.source.config)
    config = getattr(model.request.model, "config", None)
    return {} if config is None else dict(config.to_dict())


def _width(tree: ModuleTree, layers: Layers) -> int:
    """The last dimension of the widest weights around the layers, where no config says how wide hidden states are."""
    names = (*layers.first, *layers.last)
    return max((t.shape[-1] for name in names for t in tree.index.tensors_of(name) if len(t.shape) > 1), default=0)
