"""Plans of a model that several ranks share: tensor and expert parallelism, as transformers does them.

Each rank is a process with an accelerator of its own, and has a part of every layer. What a rank holds is counted as
what a model holds that is as small as its part, on its device.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from devctl.devices import Device
from devctl.errors import RefusedError, UntracedError
from devctl.models.footprint import state_bytes
from devctl.models.over_ranks import objection
from devctl.models.sharding import CUTS, KEY_HEADS, Sharding
from devctl.models.tree import Module, ModuleTree
from devctl.placement.budget import NUMBERED, Budgets, accelerators_of
from devctl.placement.device_map import FrozenMap
from devctl.placement.parallel.layers import largest_list
from devctl.placement.parallel.records import RankUse, Stages, stage_of
from devctl.placement.parallel.tensor import (
    Ranks,
    StyleBytes,
    TensorParallel,
    rank_tree,
    rank_trees,
    style_bytes,
)
from devctl.placement.placement import DeviceUse, Placement, over_budget, weigh
from devctl.placement.plan import MostTokens, Plan, Refusal, way_to_run
from devctl.placement.runtime import Runtime
from devctl.planning.capacity import largest, margin
from devctl.planning.gguf import refuse_gguf
from devctl.planning.machine import Machine
from devctl.planning.model import Model
from devctl.planning.plan import require_counted, runtime_of, told_beside_text, versions
from devctl.planning.question import Question, question_of
from devctl.planning.request import MOST_TOKENS, ByRanks, WorkloadRequest
from devctl.planning.unpacked import as_held_by_each, refused_unpacked, told_unpacked
from devctl.units import format_bytes

COMMUNICATORS = 1600 * 2**20
"""Bytes that the communicators of a rank take, beside what the libraries take of one accelerator by itself.

It is the most by which a process holds more before it has a model, with 2 or 4 ranks than with one, in vLLM 0.19.0's
logs of 20 models on H100 (github llm-d-incubation/llm-d-planner, d3121e05): 2.07 GiB less 0.51 GiB, rounded up to
16 MiB. None is known of transformers, which has one group of all ranks, where vLLM has several; so it is an estimate.
"""

RULES = "transformers 5.23"
"""Whose rules the parts of ranks are counted by."""

_UNEVEN = 1.05
"""Times an even share of the model that a rank may have before it is told."""

_ALONE = "leave out --tp: its layers can be placed one after another"
"""What to do where ranks can't share a model."""

_FEW = 16
"""Tokens that are traced to see whether a rank's part runs."""

_MORE_RANKS = 64
"""The most ranks that are tried as a way to make a model fit."""


def plan_of_ranks(
    model: Model, machine: Machine, workload: WorkloadRequest, goal: ByRanks, *, max_context: bool = False
) -> Plan:
    """The plan of a model that the ranks of ``goal`` share. One that does not fit has a refusal.

    Args:
        workload: without a context, the weights alone are counted.
        max_context: find how long a context may be.

    Raises:
        RefusedError: they can't share it: transformers has no plan for it, heads that do not divide, too few
            accelerators, or its code does not run on a part of it.
        UsageError: the workload is none for this model.
    """
    refuse_gguf(model.gguf, "--tp")
    model.require_alone("how adapters are cut for --tp is not known")
    ranks = goal.ranks
    if why := refusal(model.tree, ranks):
        raise why.error()
    devices = _devices(machine, ranks)
    model = as_held_by_each(model, machine, devices)
    if why := refusal(model.tree, ranks):  # what is unpacked is cut by rules of its own
        raise why.error()
    counts = max_context or workload.context_length is not None
    question = of_ranks(question_of(model, machine, workload, counts=counts), ranks, devices, asked=workload)
    if workload.context_length is None:
        runtime, told = None, tried(question)
    else:
        runtime, told = runtime_of_rank(question)
    if runtime is not None:
        require_counted(workload, runtime)
    uses = rank_uses(model.tree, ranks, devices, machine.budgets, runtime)
    most = _longest(question, ranks, devices) if max_context else None
    shared = _shared(model.tree, ranks, uses)
    notes = (
        *model.tree.notes,
        *machine.budgets.notes,
        *told_unpacked(model.tree),
        *_told_sharing(model.tree, shared),
        *_told_rules(model.tree),
        *told_of_load(model.tree, ranks),
        *_told_idle(machine, devices),
        *(
            (f"the most tokens of a sequence: {f'{most.this_map:,}' if most.this_map else 'none'}",)
            if most is not None
            else ()
        ),
        *(told_beside_text(question, question.workload) if most is not None else ()),
        *told_cache(question, runtime),
        *((TOLD_COMMUNICATORS,) if runtime is not None and workload.overhead is None else ()),
        *told,
    )
    return Plan(
        model=model.planned,
        tree=model.tree,
        budgets=machine.budgets,
        placement=Placement(
            strategy=None,
            device_map=FrozenMap.of({"": devices[0]}),
            devices=uses,
            crossings=0,
            notes=tuple(dict.fromkeys(notes)),
        ),
        versions=versions(),
        runtime=runtime,
        run=None if runtime is None else way_to_run(runtime.footprint, model.tree),
        max_context=most,
        refusal=refused_unpacked(model.tree, _too_much(question, ranks, devices, uses, runtime)),
        stages=_one_stage(model.tree, uses),
        tensor_parallel=shared,
    )


def rank_uses(
    tree: ModuleTree, ranks: Ranks, devices: Sequence[Device], budgets: Budgets, runtime: Runtime | None
) -> tuple[DeviceUse, ...]:
    """What each rank of a group holds on its device.

    Args:
        tree: of the model, or of those layers of it that the group runs.
        devices: of the ranks, in their order.
        budgets: of those devices among others.
        runtime: what runs beside the weights on the first rank, which has most of everything; None for nothing.

    Raises:
        KeyError: the plan has a style that is not known.
    """
    limits = dict(budgets.devices)
    known: dict[tuple[int, Device], DeviceUse] = {}
    uses = []
    for part, device in zip(rank_trees(tree, ranks), devices, strict=True):
        key = id(part), device
        if key not in known:
            alone = replace(budgets, devices=((device, limits[device]),))
            placement = weigh(part, {"": device}, alone, runtime)
            known[key] = next(use for use in placement.devices if use.device == device)
        uses.append(replace(known[key], modules=("",)))
    return tuple(uses)


def refusal(tree: ModuleTree, ranks: Ranks) -> Refusal | None:
    """Why so many ranks can't share the model, and what to do instead; None where they can."""
    sharding = tree.sharding
    if sharding is None:
        return Refusal("how a module that is there already would be sharded is not known", hint="give its folder or id")
    return _no_plan(sharding, tree.class_name, ranks) or _uneven(sharding, ranks)


def _no_plan(sharding: Sharding, class_name: str, ranks: Ranks) -> Refusal | None:
    if sharding.refusal is not None:
        return Refusal(f"{class_name} can't be sharded: {sharding.refusal}", hint=_ALONE)
    if not sharding.tensor:
        why = f"{sharding.release} has no plan for tensor parallelism of {class_name}"
        return Refusal(why, hint=_ALONE)
    if ranks.dispatches and not sharding.experts:
        why = f"{sharding.release} has no plan for expert parallelism of {class_name}"
        return Refusal(why, hint="leave out --ep")
    if unknown := [style for style in sharding.styles(experts=ranks.dispatches) if style not in CUTS]:
        return Refusal(f"{class_name} is sharded as {unknown[0]!r}, and what that does is not known", hint=_ALONE)
    return None


def _uneven(sharding: Sharding, ranks: Ranks) -> Refusal | None:
    """What can't be shared out evenly, and how many ranks could."""
    heads = [(each.what, each.count) for each in sharding.heads]
    experts = [("experts", count) for count in sharding.expert_counts]
    if not ranks.dispatches:
        experts = [(each.what, each.count) for each in sharding.widths]
    uneven = [(what, count) for what, count in (*heads, *experts) if count % ranks.size]
    if not uneven:
        return None
    what, count = uneven[0]
    why = f"{count} {what} can't be shared out evenly among {ranks.size} ranks, as transformers needs"
    common = math.gcd(*(count for _, count in (*heads, *experts)))
    work = [str(size) for size in range(2, common + 1) if common % size == 0]
    option = "--tp and --ep" if ranks.dispatches else "--tp"
    if not work:
        return Refusal(why, hint=f"leave out {option}: no number of ranks can share them")
    listed = work[0] if len(work) == 1 else f"{', '.join(work[:-1])} or {work[-1]}"
    return Refusal(why, hint=f"{option} can be {listed}")


def _devices(machine: Machine, ranks: Ranks) -> tuple[Device, ...]:
    """The accelerator of each rank: the first ones.

    Raises:
        RefusedError: there are fewer, or none that ranks can be on.
    """
    found = accelerators_of(machine.budgets)
    if found and found[0].type not in NUMBERED:
        raise RefusedError(f"transformers does not run tensor parallelism on {found[0]}", hint="leave out --tp")
    if len(found) < ranks.size:
        there = {0: "is none", 1: "is one"}.get(len(found), f"are {len(found)}")
        raise RefusedError(
            f"--tp {ranks.size} needs an accelerator for each of {ranks.size} ranks, and there {there}",
            findings=machine.missing,
            hint="give fewer ranks, or other hardware with --devices",
        )
    return tuple(found[: ranks.size])


def of_ranks(question: Question, ranks: Ranks, devices: Sequence[Device], *, asked: WorkloadRequest) -> Question:
    """The question about the first rank, with what the communicators take unless that is said."""
    more = COMMUNICATORS if asked.overhead is None else 0
    return replace(
        question,
        overhead={device: question.overhead.get(device, 0) + more for device in devices},
        workload=replace(question.workload, tensor_parallel=ranks.size, expert_parallel=ranks.experts),
    )


def runtime_of_rank(question: Question) -> tuple[Runtime | None, tuple[str, ...]]:
    """What runs beside the weights of a rank, and what to know of it.

    Raises:
        RefusedError: the model can be traced, but not a rank's part of it.
    """
    try:
        question.footprints.of(question.workload)
    except UntracedError as error:
        with_whole = replace(question, workload=replace(question.workload, tensor_parallel=1, expert_parallel=1))
        runtime, told = runtime_of(with_whole)
        if runtime is None:
            return None, told
        raise RefusedError(
            f"the model's code does not run on the part of it that a rank has: {error.message}",
            hint=_ALONE,
        ) from error
    return runtime_of(question)


def tried(question: Question) -> tuple[str, ...]:
    """What to know of whether the model's code runs on a part of it, where no workload is asked for: a few tokens are.

    Raises:
        RefusedError: it does not.
    """
    few = min(_FEW, question.workload.context_length)
    workload = replace(question.workload, context_length=few, new_tokens=min(1, few - 1), batch_size=1, images=None)
    runtime, _ = runtime_of_rank(replace(question, workload=workload))
    return () if runtime is not None else ("whether the model's code runs on a rank's part is not known",)


def _longest(question: Question, ranks: Ranks, devices: Sequence[Device]) -> MostTokens:
    """Tokens of the longest sequences that fit; of a plan of ranks there is no better one to compare it with."""
    less = question.footprints.least_context(question.workload) - 1
    most = question.made_for or MOST_TOKENS

    def left(context: int) -> int:
        runtime = question.runtime(replace(question.workload, context_length=context + less))
        return _margin(question.tree, ranks, devices, question.budgets, runtime)

    try:
        found = largest(left, max(1, most - less))
    except UntracedError:
        runtime_of_rank(question)  # which tells whether it is the sharing that fails
        raise
    return MostTokens(this_map=found + less if found else 0, optimal=None)


def _margin(
    tree: ModuleTree, ranks: Ranks, devices: Sequence[Device], budgets: Budgets, runtime: Runtime | None
) -> int:
    """Bytes that are left on the rank that has least; negative where one is given too much."""
    uses = rank_uses(tree, ranks, devices, budgets, runtime)
    none = FrozenMap.of({"": devices[0]})
    left = margin(Placement(strategy=None, device_map=none, devices=uses, crossings=0))
    return min(left, *(use.budget - use.most for use in uses if use.budget is not None))


def _shared(tree: ModuleTree, ranks: Ranks, uses: Sequence[DeviceUse]) -> TensorParallel:
    return TensorParallel(
        ranks=ranks,
        bytes_per_rank=tuple(use.used for use in uses),
        state_per_rank=tuple(use.state for use in uses),
        sharded=style_bytes(tree, ranks),
    )


def _one_stage(tree: ModuleTree, uses: Sequence[DeviceUse]) -> Stages:
    """All layers as one stage, whose devices are those of the ranks."""
    layers = _layer_list(tree)
    ranks = [RankUse.of(use, use.budget or 0) for use in uses]
    names = [str(use.device) for use in uses]
    stage = stage_of(0, "localhost", names, (0, len(layers.children)), ranks)
    return Stages(container=layers.name, stages=(stage,))


def _layer_list(tree: ModuleTree) -> Module:
    """The module whose children are the layers.

    Raises:
        RefusedError: there is none.
    """
    if (found := largest_list(tree)) is None:
        raise RefusedError(f"{tree.class_name} has no list of layers", hint=_ALONE)
    return found


TOLD_COMMUNICATORS = (
    f"{format_bytes(COMMUNICATORS)} of the overhead are for the communicators of a rank, an estimate from vLLM's logs "
    "with 2 and 4 ranks; --overhead says better where it is known"
)


def _told_sharing(tree: ModuleTree, shared: TensorParallel) -> Iterator[str]:
    """Where sharing does not do what one would expect of it."""
    ranks, held = shared.ranks, tree.index.held[""]
    most, even = max(shared.bytes_per_rank), shared.even
    whole = sum(style.nbytes for style in shared.sharded if not style.is_cut)
    if most > _UNEVEN * even:
        helps = "" if whole < held / 2 else "tensor parallelism hardly helps: "
        yield (
            f"{helps}a rank holds {format_bytes(most)} of {format_bytes(held)}, an even share would be "
            f"{format_bytes(even)}: {format_bytes(whole)} are on every rank"
        )
        with_experts = Ranks(size=ranks.size, experts=ranks.size)
        if not ranks.dispatches and tree.sharding is not None and refusal(tree, with_experts) is None:
            fewest = max(part.index.held[""] for part in rank_trees(tree, with_experts))
            if fewest < most:
                yield f"with --ep {ranks.size} a rank would hold {format_bytes(fewest)}: experts are in that plan"


def told_sharing_of_stages(tree: ModuleTree, ranks: Ranks, sharded: Sequence[StyleBytes]) -> Iterator[str]:
    """The same of stages, each of which ``ranks`` share."""
    held = tree.index.held[""]
    most = sum(style.on_each for style in sharded)
    whole = sum(style.nbytes for style in sharded if not style.is_cut)
    if most > _UNEVEN * held / ranks.size:
        helps = "" if whole < held / 2 else "tensor parallelism hardly helps: "
        yield (
            f"{helps}of {format_bytes(held)} in all layers, {format_bytes(whole)} are not shared: "
            "every rank of a stage has what its layers have of it"
        )
        with_experts = Ranks(size=ranks.size, experts=ranks.size)
        if not ranks.dispatches and refusal(tree, with_experts) is None:
            now = rank_tree(tree, with_experts, 0).index.held[""]
            if now < most:
                yield f"with --ep {ranks.size} a rank would have {now / most:.0%} as much: experts are in that plan"
    yield from _told_rules(tree)


def told_of_load(tree: ModuleTree, ranks: Ranks) -> Iterator[str]:
    """Where ``devctl load`` runs no such ranks, so that nothing proves what the plan says of them."""
    if ranks.dispatches:
        yield "`devctl load` runs no experts that are spread over ranks: what --ep does is planned, and not proven"
    elif (why := objection(tree.class_name, versions()["transformers"], shared=True)) is not None:
        yield f"`devctl load` refuses to run it so: {why}"


def _told_rules(tree: ModuleTree) -> Iterator[str]:
    if tree.sharding is not None and not tree.sharding.release.startswith(f"{RULES}."):
        yield f"the parts are counted by the rules of {RULES}, and {tree.sharding.release} is installed"


def told_cache(question: Question, runtime: Runtime | None, *, in_stages: bool = False) -> Iterator[str]:
    """Where every rank keeps all keys and values, as its plan does not cut them."""
    sharding = question.tree.sharding
    if runtime is None or sharding is None or any(each.what == KEY_HEADS for each in sharding.heads):
        return
    here = state_bytes(runtime.footprint)
    alone = replace(question.workload, tensor_parallel=1, expert_parallel=1)
    if here and here >= state_bytes(question.footprints.of(alone)):
        kept = "of its stage's layers" if in_stages else format_bytes(here)
        yield f"every rank keeps the whole KV cache, {kept}: the plan does not cut it"


def _told_idle(machine: Machine, devices: Sequence[Device]) -> Iterator[str]:
    idle = [device for device in accelerators_of(machine.budgets) if device not in devices]
    if idle:
        yield f"{', '.join(map(str, idle))} {'has' if len(idle) == 1 else 'have'} no rank: --visible chooses others"


def _too_much(
    question: Question, ranks: Ranks, devices: Sequence[Device], uses: Sequence[DeviceUse], runtime: Runtime | None
) -> Refusal | None:
    """Why a rank is given too much, and what would help; None where none is. Nothing can be offloaded."""
    over = over_budget(uses)
    if not over:
        return None
    others = "so is another rank" if len(over) == 2 else f"so are {len(over) - 1} other ranks"
    folded = over if len(over) == 1 else (over[0], others)
    return Refusal("it does not fit", findings=(*folded, *_ways_out(question, ranks, devices, runtime)))


def _ways_out(question: Question, ranks: Ranks, devices: Sequence[Device], runtime: Runtime | None) -> Iterator[str]:
    """Other ways to share it that fit, each counted."""

    def fits(other: Ranks, on: Sequence[Device], budgets: Budgets) -> bool:
        if refusal(question.tree, other) is not None:
            return False
        beside = None
        if runtime is not None:
            workload = replace(question.workload, tensor_parallel=other.size, expert_parallel=other.experts)
            try:
                beside = Runtime(
                    footprint=question.footprints.of(workload),
                    overhead={device: max(question.overhead.values()) for device in on},
                )
            except UntracedError:
                return False
        return _margin(question.tree, other, on, budgets, beside) >= 0

    with_experts = Ranks(size=ranks.size, experts=ranks.size)
    if not ranks.dispatches and fits(with_experts, devices, question.budgets):
        yield f"--ep {ranks.size} beside --tp {ranks.size} fits"
        return
    smallest = min(dict(question.budgets.devices)[device] for device in devices)
    size = 2 * ranks.size
    while size <= _MORE_RANKS:
        other = Ranks(size=size, experts=size if ranks.dispatches else 1)
        on = [Device(devices[0].type, number) for number in range(size)]
        if fits(other, on, replace(question.budgets, devices=tuple((device, smallest) for device in on))):
            option = f"--tp {size}" + (f" --ep {size}" if ranks.dispatches else "")
            yield f"{option} fits, on {size} accelerators with {format_bytes(smallest)} for each rank"
            return
        size *= 2
