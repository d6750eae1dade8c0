"""Plans over several hosts: which machines they are, and the stages of a model over their accelerators."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from devctl.errors import RefusedError
from devctl.models.footprint import Footprint
from devctl.models.over_ranks import objection
from devctl.models.tree import ModuleTree
from devctl.placement.budget import Budgets
from devctl.placement.parallel.costs import Costs, Handed
from devctl.placement.parallel.layers import Layers, layers_of
from devctl.placement.parallel.places import devices_of, place_stages
from devctl.placement.parallel.stages import (
    Board,
    Cut,
    Found,
    Host,
    boards_needed,
    cut_by,
    even_by_transformers,
    even_by_vllm,
    find_stages,
    fits_within,
    groups_of,
    to_stages,
)
from devctl.placement.placement import Placement, over_budget
from devctl.placement.plan import Comparison, MostTokens, Plan, Refusal, Room, way_to_run, writes
from devctl.placement.runtime import Runtime
from devctl.planning import capacity
from devctl.planning.building import hidden_size
from devctl.planning.hosts import NamedMachine, require_one_kind
from devctl.planning.model import Model
from devctl.planning.other_runs import in_chunks, other_attention
from devctl.planning.plan import require_counted, runtime_of, told_tokens, versions
from devctl.planning.question import Question, libraries, question_of
from devctl.planning.request import MOST_TOKENS, WorkloadRequest
from devctl.units import format_bytes

COMMUNICATORS = 816 * 2**20
"""What a board gives to communicators beside a process's own libraries, where stages are on several.

vLLM 0.19.0 logged on boards of 80 GiB (H100), of a process beside its tensors: 0.51 GiB of context and 0.25 GiB more
alone, 1.48 and 0.07 in 2 or 4 pipeline stages. That is 0.79 GiB more, rounded up to 16 MiB. It makes more communicators
than transformers does. `--overhead` says better, for libraries and communicators together.
"""

_MEASURED = "9.0"
"""The compute capability of those boards."""

STAGES, TRANSFORMERS, VLLM = "stages", "transformers", "vllm"
"""How layers are cut: with most room on the fullest board, or evenly as these engines do by themselves."""

_ITEM_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """A question about a model over hosts, put together.

    Attributes:
        hosts: boards by host, those with none left out.
        question: about the workload; its budgets are those of the first host.
        notes: what is to be known of the hosts and the model.
    """

    model: Model
    layers: Layers
    hosts: tuple[Host, ...]
    question: Question
    workload: WorkloadRequest
    notes: tuple[str, ...]

    @property
    def boards(self) -> Host:
        """All boards, in their order."""
        return tuple(board for host in self.hosts for board in host)

    def costs(self, footprint: Footprint | None, tree: ModuleTree | None = None) -> Costs:
        """What runs of layers take; of ``tree``, where that is the model in fewer bytes."""
        tree = tree or self.model.tree
        if footprint is None:
            return Costs(tree, self.layers)
        return Costs(tree, self.layers, footprint=footprint, handed=_handed(self.model, self.layers, footprint))

    def in_full(self, cut: Cut) -> Cut:
        """The cut on boards whose libraries take what they do with a workload."""
        full = {(board.host, board.devices): board for board in self.boards}
        return tuple((full[board.host, board.devices], first, end) for board, first, end in cut)

    def counted(self, runtime: Runtime | None) -> tuple[Host, ...]:
        """The hosts, whose libraries take something only where a workload is counted."""
        if runtime is not None:
            return self.hosts
        return tuple(tuple(replace(board, overhead=0) for board in host) for host in self.hosts)


def plan_over_hosts(
    model: Model,
    hosts: Sequence[NamedMachine],
    workload: WorkloadRequest,
    *,
    max_context: bool = False,
    tensor_parallel: int = 1,
) -> Plan:
    """The stages of ``model`` over ``hosts`` that leave most room on the fullest board.

    Args:
        max_context: find how long a context may be in these stages, and in the best ones.
        tensor_parallel: accelerators of a host that share a stage.

    Raises:
        RefusedError: the model has no stages, or there are no boards, too many, or such as do not work together.
        UsageError: the workload is none for this model.
    """
    asked = _asked(model, hosts, workload, counts=max_context or workload.context_length is not None,
                   group=tensor_parallel)  # fmt: skip
    runtime, told = (None, ()) if workload.context_length is None else runtime_of(asked.question)
    if runtime is not None:
        require_counted(workload, runtime)
    costs, counted = asked.costs(None if runtime is None else runtime.footprint), asked.counted(runtime)
    found = find_stages(costs, counted)
    notes = (*asked.notes, *found.notes, *_idle(counted, found.cut), *told, *_told_run(asked, runtime))
    placement = _placed(asked, costs, found, counted, notes)
    refusal = _refusal(asked, costs, counted, placement, runtime)
    most = None
    if max_context and refusal is None:
        most = _longest(asked, asked.in_full(found.cut))
        told_most = told_tokens(asked.question, most, ("in these stages", "in the best ones"))
        placement = replace(placement, notes=(*placement.notes, told_most))
    return Plan(
        model=model.planned,
        tree=model.tree,
        budgets=_budgets(counted, asked.notes),
        placement=placement,
        versions=versions(),
        runtime=runtime,
        run=None if runtime is None else way_to_run(runtime.footprint, model.tree),
        room=_room(asked, asked.in_full(found.cut)) if runtime is None and refusal is None else None,
        max_context=most,
        refusal=refusal,
        stages=to_stages(costs, found.cut),
    )


def compare_over_hosts(model: Model, hosts: Sequence[NamedMachine], workload: WorkloadRequest) -> Comparison:
    """The best cut beside the even ones that transformers and vLLM make, on all boards in their order.

    Raises:
        RefusedError, UsageError: as `plan_over_hosts`.
    """
    asked = _asked(model, hosts, workload, counts=workload.context_length is not None)
    runtime = None if workload.context_length is None else runtime_of(asked.question)[0]
    costs, counted = asked.costs(None if runtime is None else runtime.footprint), asked.counted(runtime)
    boards = tuple(board for host in counted for board in host)
    best = find_stages(costs, counted)
    ways: dict[str, Cut] = {STAGES: best.cut}
    for name, even in ((TRANSFORMERS, even_by_transformers), (VLLM, even_by_vllm)):
        ways[name] = cut_by(boards, even(costs.count, len(boards)))
    placements = tuple(
        place_stages(model.tree, costs, cut, boards, strategy=strategy) for strategy, cut in ways.items()
    )
    others = ", ".join(f"{float(each.fullest):.1%} as {each.strategy} cuts" for each in placements[1:])
    return Comparison(
        model=model.planned,
        placements=placements,
        chosen=placements[0],
        why=f"its fullest stage is {float(placements[0].fullest):.1%} full, and {others}",
        notes=(*asked.notes, *best.notes),
    )


def question_over_hosts(
    model: Model, hosts: Sequence[NamedMachine], workload: WorkloadRequest
) -> tuple[Costs, tuple[Host, ...]]:
    """What runs of layers take, and the boards that there are, for a search of one's own.

    Raises:
        RefusedError, UsageError: as `plan_over_hosts`.
    """
    asked = _asked(model, hosts, workload, counts=workload.context_length is not None)
    runtime = None if workload.context_length is None else runtime_of(asked.question)[0]
    return asked.costs(None if runtime is None else runtime.footprint), asked.counted(runtime)


def _asked(
    model: Model, hosts: Sequence[NamedMachine], workload: WorkloadRequest, *, counts: bool, group: int = 1
) -> _Asked:
    """The question, with what can't be asked refused."""
    model.require_alone("what runs layers in stages over several hosts loads no adapter")
    layers = _layers(model)
    with_boards = [each for each in hosts if each.accelerators]
    if not with_boards:
        why = tuple(f"{each.name}: {line}" for each in hosts for line in each.machine.missing)
        raise RefusedError("there is no accelerator for a stage: none is on CPU or disk", findings=why)
    require_one_kind(with_boards)
    single = sum(len(each.accelerators) for each in with_boards) == 1
    boards = tuple(
        grouped
        for each in with_boards
        if (grouped := groups_of(_boards(each, workload, communicators=0 if single else COMMUNICATORS), group))
    )
    count, most = sum(map(len, boards)), len(layers.names)
    if count > most:
        raise RefusedError(
            f"{count} accelerators are more than the {most} layer{'s' * (most > 1)} of {model.tree.class_name}, and a "
            f"stage has at least one: {most} serve",
            hint=f"leave out {count - most}",
        )
    # several sequences of one length: what transformers' stages do with padded ones is wrong
    question = question_of(model, with_boards[0].machine, replace(workload, padding=False), counts=counts)
    notes = (
        *_told_hosts(hosts, with_boards),
        *_told_model(model.tree, layers, with_boards),
        *(_told_communicators(with_boards) if counts and workload.overhead is None and not single else ()),
    )
    return _Asked(model=model, layers=layers, hosts=boards, question=question, workload=workload, notes=notes)


def _layers(model: Model) -> Layers:
    tree = model.tree
    if model.has_encoder:
        raise RefusedError(
            f"{tree.class_name} is an encoder and a decoder: stages are of one list of layers",
            hint="plan it on one host",
        )
    if not writes(tree.class_name):
        raise RefusedError(
            f"{tree.class_name} writes no text: stages are of decoders alone", hint="plan it on one host"
        )
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


def _told_model(tree: ModuleTree, layers: Layers, hosts: Sequence[NamedMachine]) -> Iterator[str]:
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


def _told_communicators(hosts: Sequence[NamedMachine]) -> Iterator[str]:
    yield f"{format_bytes(COMMUNICATORS)} on each board are counted for communicators; --overhead says better"
    known = {gpu.compute_capability for host in hosts for gpu in host.machine.inventory.accelerators if gpu.device}
    if known != {_MEASURED}:
        yield "what communicators take was measured on H100s alone: on other boards it is not known"


def _told_run(asked: _Asked, runtime: Runtime | None) -> Iterator[str]:
    """What a reader should know of how stages run."""
    if runtime is None:
        return
    workload = runtime.footprint.workload
    if workload.batch_size > 1:
        yield "a batch over hosts is unpadded: all of its sequences are as long"
    if dict(workload.generation).get("do_sample"):
        yield "every rank chooses its own tokens: sampling needs one seed on all, or --decode greedy"


def _idle(hosts: Sequence[Host], cut: Cut) -> Iterator[str]:
    used = {board for board, _, _ in cut}
    idle = [str(devices_of(board)[0]) for host in hosts for board in host if board not in used]
    if idle:
        some = ", ".join(idle[:3]) + (f" and {len(idle) - 3} more" if len(idle) > 3 else "")
        yield f"without a stage, which would leave no more room on the fullest: {some}"


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


def _placed(asked: _Asked, costs: Costs, found: Found, hosts: Sequence[Host], notes: tuple[str, ...]) -> Placement:
    boards = [board for host in hosts for board in host]
    return place_stages(asked.model.tree, costs, found.cut, boards, strategy=STAGES, notes=notes)


def _budgets(hosts: Sequence[Host], notes: tuple[str, ...]) -> Budgets:
    devices = tuple((device, board.budget) for host in hosts for board in host for device in devices_of(board))
    return Budgets(devices=devices, given=True, notes=notes)


def _refusal(
    asked: _Asked, costs: Costs, hosts: Sequence[Host], placement: Placement, runtime: Runtime | None
) -> Refusal | None:
    """Why the best cut does not fit, and what would; None where it does."""
    over = over_budget(placement.devices)
    if not over:
        return None

    def holds(other: Runtime) -> bool:
        return fits_within(asked.costs(other.footprint), hosts)

    footprint = None if runtime is None else runtime.footprint
    boards = [board for host in hosts for board in host]
    largest = max(boards, key=lambda board: board.budget - board.overhead)
    needed = boards_needed(costs, largest)
    size = format_bytes(largest.budget)
    alike = f"boards like the largest, of {size}"
    others: tuple[str, ...] = ()
    if runtime is not None:
        others = (
            *in_chunks(asked.question, runtime, holds, by=""),
            *other_attention(asked.question, runtime, holds, by=""),
        )
    ways = (
        *others,
        f"{needed} {alike}, would hold it" if needed is not None else f"no number of {alike}, holds it",
    )
    for option, other in asked.model.smaller():
        found = layers_of(other)
        if isinstance(found, Layers):
            now, then = (format_bytes(each.index.held[""]) for each in (asked.model.tree, other))
            if fits_within(asked.costs(footprint, other), hosts):
                ways += (f"{option} fits: {then} instead of {now}",)
                break
    shown = over if len(over) <= 4 else (*over[:4], f"and {len(over) - 4} more")
    return Refusal("it does not fit", findings=(*shown, *ways))


def _longest(asked: _Asked, cut: Cut) -> MostTokens:
    """Tokens of the longest sequences in these stages, and in the best ones for each length."""
    question = asked.question
    most = question.made_for or MOST_TOKENS
    less = question.footprints.least_context(question.workload) - 1

    def costs(tokens: int) -> Costs:
        return asked.costs(question.footprints.of(capacity.with_context(question.workload, tokens + less)))

    def left(tokens: int) -> int:
        of = costs(tokens)
        return min(board.budget - of.most(first, end) - board.overhead for board, first, end in cut)

    def in_best(tokens: int) -> int:
        return 1 if fits_within(costs(tokens), asked.hosts) else -1

    here, best = (capacity.largest(each, max(1, most - less)) for each in (left, in_best))
    this_map = here + less if here else 0
    return MostTokens(this_map=this_map, optimal=max(this_map, best + less if best else 0))


def _room(asked: _Asked, cut: Cut) -> Room | None:
    """What the stages leave, and about how long a text fits beside the weights."""
    plain = asked.costs(None)
    left = [(board, first, end, board.budget - plain.most(first, end)) for board, first, end in cut]
    found = Room(free=sum(free for *_, free in left), made_for=asked.question.made_for)
    footprint = asked.question.footprints.at_hand(asked.question.workload)
    if footprint is None:
        return found
    costs = asked.costs(footprint)
    tokens = []
    for board, first, end, free in left:
        load = costs.load(first, end)
        if load.state:
            room = free - board.overhead
            line = load.state + load.activations - footprint.square
            tokens.append((capacity.times(room, line, footprint.square) * footprint.workload.context_length, board))
    if not tokens:
        return found
    least, board = min(tokens, key=lambda each: each[0])
    return replace(found, tokens=least, full=devices_of(board)[0] if len(cut) > 1 else None)
