"""Plans over several hosts: the stages of a model over their accelerators, and how much fits in them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from devctl.errors import UntracedError
from devctl.models.footprint import Footprint
from devctl.placement.budget import Budgets
from devctl.placement.engines.records import title_of
from devctl.placement.parallel.costs import Costs
from devctl.placement.parallel.layers import Layers, layers_of
from devctl.placement.parallel.places import devices_of
from devctl.placement.parallel.stages import (
    Board,
    Cut,
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
from devctl.placement.parallel.tensor import Ranks
from devctl.placement.placement import DeviceUse, Placement, over_budget
from devctl.placement.plan import Comparison, Plan, Refusal, WhatIf, way_to_run
from devctl.placement.runtime import Runtime
from devctl.planning import hosts_capacity, parallel
from devctl.planning.capacity import Capacity
from devctl.planning.hosts import NamedMachine
from devctl.planning.hosts_question import ALONE, HostsQuestion, hosts_question
from devctl.planning.model import Model
from devctl.planning.other_runs import in_chunks, other_attention
from devctl.planning.plan import require_counted, told_beside_text, told_tokens, versions
from devctl.planning.request import FillContext, WorkloadRequest
from devctl.planning.unpacked import refused_unpacked
from devctl.units import format_bytes

STAGES, TRANSFORMERS, VLLM = "stages", "transformers", "vllm"
"""How layers are cut: with most room on the fullest board, or evenly as these engines do by themselves."""


def plan_over_hosts(
    model: Model,
    hosts: Sequence[NamedMachine],
    workload: WorkloadRequest,
    *,
    ranks: Ranks = ALONE,
    fill: FillContext | None = None,
    max_context: bool = False,
) -> Plan:
    """The stages of ``model`` over ``hosts`` that leave most room on the fullest board.

    Args:
        ranks: accelerators of a host that share a stage.
        fill: find how many sequences of so many tokens fit, and place for them.
        max_context: find how long a context may be in these stages, and in the best ones.

    Raises:
        RefusedError: the model has no stages, or there are no boards, too many, or such as do not work together, or
            can't share it.
        UsageError: the workload is none for this model.
    """
    if fill is not None:
        workload = replace(workload, context_length=fill.tokens)
    counts = max_context or workload.context_length is not None
    asked = hosts_question(model, hosts, workload, counts=counts, ranks=ranks)
    told_fill: tuple[str, ...] = ()
    too_long: Refusal | None = None
    if fill is not None:
        asked, told_fill, too_long = hosts_capacity.filled(asked)
    runtime, told = asked.of_workload()
    if runtime is not None:
        require_counted(asked.workload, runtime)
    footprint = None if runtime is None else runtime.footprint
    costs, counted = asked.costs(footprint), asked.counted(runtime)
    each = asked.rank_costs(footprint)
    found = find_stages(costs, counted)
    notes = (
        *asked.notes,
        *found.notes,
        *told_fill,
        *_idle(counted, found.cut),
        *(parallel.told_cache(asked.question, runtime, in_stages=True) if asked.is_shared else ()),
        *told,
        *_told_run(runtime),
        *(_told_shared(asked, found.cut) if asked.is_shared else ()),
    )
    placement = asked.placed(each, found.cut, counted, STAGES, notes)
    refusal = _refusal(asked, costs, counted, placement, runtime)
    if too_long is not None and refusal is not None:
        refusal = replace(too_long, findings=refusal.findings)
    refusal = refused_unpacked(asked.model.tree, refusal)
    most = None
    if max_context and refusal is None:
        most = hosts_capacity.longest(asked, asked.in_full(found.cut))
        told_most = told_tokens(asked.question, most, ("in these stages", "in the best ones"))
        placement = replace(placement, notes=(*placement.notes, told_most))
    has_room = runtime is None and refusal is None
    return Plan(
        model=asked.model.planned,
        tree=asked.model.tree,
        budgets=_budgets(counted, asked.notes),
        placement=placement,
        versions=versions(),
        runtime=runtime,
        run=None if runtime is None else way_to_run(runtime.footprint, asked.model.tree),
        room=hosts_capacity.room(asked, asked.in_full(found.cut)) if has_room else None,
        max_context=most,
        refusal=refusal,
        stages=to_stages(each, found.cut),
        tensor_parallel=asked.shared(each, found.cut),
    )


def compare_over_hosts(
    model: Model, hosts: Sequence[NamedMachine], workload: WorkloadRequest, *, ranks: Ranks = ALONE
) -> Comparison:
    """The best cut beside the even ones that transformers and vLLM make, on all boards in their order.

    Raises:
        RefusedError, UsageError: as `plan_over_hosts`.
    """
    asked = hosts_question(model, hosts, workload, counts=workload.context_length is not None, ranks=ranks)
    runtime = asked.of_workload()[0]
    footprint = None if runtime is None else runtime.footprint
    costs, counted = asked.costs(footprint), asked.counted(runtime)
    boards = tuple(board for host in counted for board in host)
    best = find_stages(costs, counted)
    ways: dict[str, Cut] = {STAGES: best.cut}
    for name, even in ((TRANSFORMERS, even_by_transformers), (VLLM, even_by_vllm)):
        ways[name] = cut_by(boards, even(costs.count, len(boards)))
    each_rank = asked.rank_costs(footprint)
    placements = tuple(asked.placed(each_rank, cut, counted, strategy) for strategy, cut in ways.items())
    others = ", ".join(f"{float(each.fullest):.1%} as {title_of(each.strategy)} cuts" for each in placements[1:])
    return Comparison(
        model=asked.model.planned,
        placements=placements,
        chosen=placements[0],
        why=f"its fullest stage is {float(placements[0].fullest):.1%} full, and {others}",
        notes=(*asked.notes, *best.notes),
        run=None if runtime is None else way_to_run(runtime.footprint, asked.model.tree),
    )


def capacity_over_hosts(model: Model, hosts: Sequence[NamedMachine], workload: WorkloadRequest) -> Capacity:
    """The longest context, the most sequences, and which contexts and batch sizes fit, in the best stages for each.

    Raises:
        RefusedError, UsageError: as `plan_over_hosts`.
        UntracedError: what the model holds beside its weights is not known.
    """
    asked = hosts_question(model, hosts, workload, counts=True)
    question = asked.question
    return Capacity(
        model=asked.model.planned,
        context_length=question.workload.context_length,
        batch_size=question.workload.batch_size,
        max_context=hosts_capacity.longest_context(asked),
        max_batch=hosts_capacity.largest_batch(asked),
        what_if=hosts_capacity.what_if(asked),
        run=way_to_run(question.footprints.of(question.workload), asked.model.tree),
        notes=(*asked.notes, *told_beside_text(question, question.workload)),
    )


def what_fits_over_hosts(
    model: Model, hosts: Sequence[NamedMachine], workload: WorkloadRequest, *, ranks: Ranks = ALONE
) -> WhatIf:
    """Which contexts and batch sizes fit in the best stages for each.

    Raises:
        RefusedError, UsageError: as `plan_over_hosts`.
        UntracedError: what the model holds beside its weights is not known.
    """
    asked = hosts_question(model, hosts, workload, counts=True, ranks=ranks)
    if asked.is_shared:
        parallel.tried(asked.question)  # which tells whether it is the sharing that fails
    cases = hosts_capacity.what_if(asked)
    # the shortest was traced, so that this one is at hand
    first = replace(asked.question.workload, context_length=cases[0].context_length, batch_size=1)
    footprint = asked.question.footprints.of(first)
    return WhatIf(
        model=asked.model.planned,
        cases=cases,
        run=way_to_run(footprint, asked.model.tree),
        notes=(*asked.notes, *told_beside_text(asked.question, first)),
        placed="in the best stages",
    )


def question_over_hosts(
    model: Model, hosts: Sequence[NamedMachine], workload: WorkloadRequest, *, ranks: Ranks = ALONE
) -> tuple[Costs, tuple[Host, ...]]:
    """What runs of layers take, and the boards that there are, for a search of one's own.

    Raises:
        RefusedError, UsageError: as `plan_over_hosts`.
    """
    asked = hosts_question(model, hosts, workload, counts=workload.context_length is not None, ranks=ranks)
    runtime = asked.of_workload()[0]
    return asked.costs(None if runtime is None else runtime.footprint), asked.counted(runtime)


_TOLD_ENGINES = (
    "transformers does not load stages that ranks share: `devctl export PLAN --to vllm`, or sglang, writes the lines "
    "of engines that do, which shard by rules of their own"
)


def _told_shared(asked: HostsQuestion, cut: Cut) -> Iterator[str]:
    """What runs stages that ranks share."""
    if len(cut) > 1:
        yield _TOLD_ENGINES
    else:
        yield from parallel.told_of_load(asked.model.tree, asked.ranks)


def _told_run(runtime: Runtime | None) -> Iterator[str]:
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


def _budgets(hosts: Sequence[Host], notes: tuple[str, ...]) -> Budgets:
    devices = tuple(
        pair for host in hosts for board in host for pair in zip(devices_of(board), board.budgets, strict=True)
    )
    return Budgets(devices=devices, given=True, notes=notes)


def _refusal(
    asked: HostsQuestion, costs: Costs, hosts: Sequence[Host], placement: Placement, runtime: Runtime | None
) -> Refusal | None:
    """Why the best cut does not fit, and what would; None where it does."""
    over = over_budget(_tightest(placement.devices, asked.ranks.size))
    if not over:
        return None

    def holds(other: Runtime) -> bool:
        return fits_within(asked.costs(other.footprint), hosts)

    ways: list[str] = []
    if runtime is not None:
        ways += in_chunks(asked.question, runtime, holds, by="")
        ways += other_attention(asked.question, runtime, holds, by="")
    ways += [_needed(costs, hosts), *_other_ways(asked, hosts, None if runtime is None else runtime.footprint)]
    shown = over if len(over) <= _MOST_SHOWN else (*over[:_MOST_SHOWN], f"and {len(over) - _MOST_SHOWN} more")
    return Refusal("it does not fit", findings=(*shown, *ways))


_MOST_SHOWN = 4
"""Boards that are given too much, and have a line each."""


def _tightest(uses: Sequence[DeviceUse], group: int) -> list[DeviceUse]:
    """Of each ``group`` of devices that share a stage the one with least room."""
    groups = [uses[at : at + group] for at in range(0, len(uses), group)]
    return [min(each, key=lambda use: (use.budget or 0) - use.most) for each in groups]


def _needed(costs: Costs, hosts: Sequence[Host]) -> str:
    """How many boards like the largest would hold it."""
    largest = max((board for host in hosts for board in host), key=lambda board: board.budget - board.overhead)
    needed, size = boards_needed(costs, largest), format_bytes(largest.budget)
    group = len(largest.devices)
    kind = "boards" if group == 1 else f"groups of {group} boards"
    alike = f"{kind} like the largest, of {size},"
    return f"no number of {alike} holds it" if needed is None else f"{needed} {alike} would hold it"


def _other_ways(asked: HostsQuestion, hosts: Sequence[Host], footprint: Footprint | None) -> Iterator[str]:
    """Another number of ranks for each stage, or the model in fewer bytes, where that fits."""
    if asked.is_shared:
        yield from _other_ranks(asked, hosts, footprint)
        return
    for option, other in asked.model.smaller():
        if isinstance(layers_of(other), Layers):
            now, then = (format_bytes(each.index.held[""]) for each in (asked.model.tree, other))
            if fits_within(asked.costs(footprint, other), hosts):
                yield f"{option} fits: {then} instead of {now}"
                return


def _other_ranks(asked: HostsQuestion, hosts: Sequence[Host], footprint: Footprint | None) -> Iterator[str]:
    tree, ranks = asked.model.tree, asked.ranks
    boards = sum(len(board.devices) for host in hosts for board in host)
    counts = [sum(len(board.devices) for board in host) for host in hosts]
    others = [
        Ranks(size=size, experts=size if dispatches else 1)
        for dispatches in (False, True)
        for size in range(2, max(counts) + 1)
        if boards // size <= len(asked.layers.names) and all(count % size == 0 for count in counts)
    ]
    for other in sorted(others, key=lambda each: (abs(each.size - ranks.size), each.dispatches)):
        if other == ranks or parallel.refusal(tree, other) is not None:
            continue
        beside = footprint
        if footprint is not None:
            try:
                beside = asked.question.footprints.of(asked.workload_of(footprint.workload, other))
            except UntracedError:
                continue
        if fits_within(asked.costs(beside, ranks=other), [_regrouped(host, other.size) for host in hosts]):
            yield f"--tp {other.size}{f' --ep {other.size}' if other.dispatches else ''} fits"
            return


def _regrouped(host: Host, size: int) -> Host:
    single = tuple(
        Board(host=board.host, devices=(device,), budget=budget, overhead=board.overhead)
        for board in host
        for device, budget in zip(board.devices, board.budgets, strict=True)
    )
    return groups_of(single, size)
