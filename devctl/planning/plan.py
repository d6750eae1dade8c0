"""The answer to a question about a model and a machine: a plan, a comparison, or how much fits, as frozen values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from devctl import __version__
from devctl.devices import Device
from devctl.errors import UntracedError, UsageError
from devctl.models import attention
from devctl.models.footprint import IMAGES_NOT_COUNTED, Kernels, Workload
from devctl.placement import Placement, Strategy, place
from devctl.placement.budget import as_here
from devctl.placement.optimal.latency import Speeds
from devctl.placement.optimal.reads import reads
from devctl.placement.placement import SEGMENTS, make_placement, worth
from devctl.placement.plan import Comparison, MostTokens, Plan, Refusal, WayToRun, WhatIf, way_to_run
from devctl.placement.runtime import Runtime
from devctl.planning import capacity
from devctl.planning.gates import map_refusal, room_refusal
from devctl.planning.gguf import refuse_gguf
from devctl.planning.gguf_plan import plan_gguf
from devctl.planning.installed import remember
from devctl.planning.machine import Machine
from devctl.planning.model import Model
from devctl.planning.progress import reporter
from devctl.planning.question import Question, question_of
from devctl.planning.request import (
    ByStrategy,
    Fastest,
    FillContext,
    Goal,
    JudgeMap,
    Limits,
    Objective,
    WorkloadRequest,
    one_of,
)
from devctl.planning.unpacked import as_held, refused_unpacked, told_unpacked
from devctl.units import format_bytes

ANEW = (
    "PEFT places a model anew that has layers off the accelerators: give PeftModel.from_pretrained this map, too, as "
    "device_map, each name with base_model.model. before it"
)
"""Of a plan with adapters."""


def make_plan(
    model: Model,
    machine: Machine,
    workload: WorkloadRequest,
    goal: Goal,
    limits: Limits,
    *,
    max_context: bool = False,
) -> Plan:
    """The plan for ``goal``. One that is not what was asked for has a refusal.

    Args:
        workload: without a context, the weights alone are counted, unless the goal names one.
        max_context: find how long a context may be on this map, and on the best one.

    Raises:
        UsageError: the workload is none for this model.
    """
    if model.gguf is not None:
        if goal != ByStrategy():
            refuse_gguf(model.gguf, "--strategy, --objective, --target-context and --map")
        return plan_gguf(model.gguf, machine, workload, limits, max_context=max_context)
    model = as_held(model, machine)
    if isinstance(goal, FillContext):
        workload = replace(workload, context_length=goal.tokens)
    counts = max_context or workload.context_length is not None
    question = question_of(model, machine, workload, counts=counts)
    notes: tuple[str, ...] = ()
    refusal: Refusal | None = None
    if isinstance(goal, FillContext):
        with reporter().status(f"looking for how many sequences of {goal.tokens:,} tokens fit"):
            question, notes, refusal = _filled(question, may_quantise=model.may_be_quantised)
    runtime, told = (None, ()) if workload.context_length is None else runtime_of(question)
    if runtime is not None:
        require_counted(workload, runtime)
    if isinstance(goal, JudgeMap):
        # a number is the accelerator that the machine has by it
        device_map = {name: as_here(device, machine.inventory) for name, device in goal.device_map.items()}
        placement = make_placement(model.tree, device_map, machine.budgets, strategy=None, runtime=runtime)
        refusal = map_refusal(model.tree, placement, machine.budgets)
    else:
        strategy = goal.strategy if isinstance(goal, ByStrategy) else Strategy.OPTIMAL
        rates = _rates(model, machine) if isinstance(goal, Fastest) else None
        assert rates is not None or not isinstance(goal, Fastest), "a machine for this goal knows its speeds"
        with reporter().status(f"placing {len(model.tree.index.tensors):,} tensors by {strategy}"):
            placement = place(model.tree, machine.budgets, strategy, rates, runtime, model.installed)
        remember(model.key, model.tree, placement)
    room = room_refusal(model, machine, question, placement, runtime, limits)
    if isinstance(goal, FillContext) and refusal is not None and room is not None:
        refusal = replace(refusal, findings=room.findings)
    refusal = refused_unpacked(model.tree, refusal or room)
    most = None
    if max_context and refusal is None:
        with reporter().status("looking for the longest context that fits"):
            most = capacity.longest_contexts(question, placement)
    if most is not None:
        notes += (told_tokens(question, most), *_told_gaps(most))
        notes += (*_told_attention(question), *_told_decoding(question))
        notes += () if runtime is not None else told_beside_text(question, question.workload)
    if model.adapters and placement.offloaded:
        notes += (ANEW,)
    notes += _told_pages(placement, runtime)
    run = None if runtime is None else way_to_run(runtime.footprint, model.tree)
    if run is None and most is not None:
        run = _way_to_run(question, question.workload)
    return Plan(
        model=model.planned,
        tree=model.tree,
        budgets=machine.budgets,
        placement=replace(placement, notes=(*placement.notes, *notes, *told)),
        versions=versions(),
        runtime=runtime,
        room=capacity.room(question, placement) if runtime is None and refusal is None else None,
        max_context=most,
        run=run,
        refusal=refusal,
    )


def _rates(model: Model, machine: Machine) -> Speeds | None:
    """How fast the machine is, and which bytes of the model are read a token."""
    if machine.speeds is None:
        return None
    return replace(machine.speeds, reads=reads(model.tree, model.experts_per_token, has_encoder=model.has_encoder))


def compare_strategies(model: Model, machine: Machine, workload: WorkloadRequest) -> Comparison:
    """The plans of all strategies, and which one to take.

    Raises:
        UsageError: the workload is none for this model.
    """
    refuse_gguf(model.gguf, "--compare")
    model = as_held(model, machine)
    question = question_of(model, machine, workload, counts=workload.context_length is not None)
    runtime = None if workload.context_length is None else runtime_of(question)[0]
    beside = () if runtime is None else told_beside_text(question, question.workload)
    with reporter().status(f"placing it by {len(Strategy)} strategies"):
        placements = tuple(
            place(model.tree, machine.budgets, each, None, runtime, model.installed) for each in Strategy
        )
    held = tuple(each for each in placements if not (machine.lacks_disk and each.on_disk))
    chosen, why = choose(held or placements)
    if not held:
        why += "; but it leaves bytes on disk, and there is none: none of them fits"
    elif held[0] is not placements[0] and chosen is held[0]:
        why = f"{placements[0].strategy} leaves bytes on disk, and there is none"
    return Comparison(
        model=model.planned,
        placements=placements,
        chosen=chosen,
        why=why,
        notes=(*machine.missing, *told_unpacked(model.tree), *beside),
        lacks_disk=machine.lacks_disk,
        run=None if runtime is None else way_to_run(runtime.footprint, model.tree),
    )


def what_fits(model: Model, machine: Machine, workload: WorkloadRequest) -> WhatIf:
    """Which contexts and batch sizes fit on the best placement.

    Raises:
        UsageError: the workload is none for this model.
        UntracedError: what the model holds beside its weights is not known.
    """
    refuse_gguf(model.gguf, "--what-if")
    model = as_held(model, machine)
    question = question_of(model, machine, workload, counts=True)
    with reporter().status("trying contexts and batch sizes"):
        cases = capacity.what_if(question)
    # the shortest was traced, so that this one is at hand
    first = replace(question.workload, context_length=cases[0].context_length, batch_size=1)
    notes = (*machine.missing, *told_unpacked(model.tree), *told_beside_text(question, first))
    return WhatIf(model=model.planned, cases=cases, run=_way_to_run(question, first), notes=notes)


def capacity_of(model: Model, machine: Machine, workload: WorkloadRequest) -> capacity.Capacity:
    """The longest context, the most sequences, and which contexts and batch sizes fit, on the best placement.

    Raises:
        UsageError: the workload is none for this model.
        UntracedError: what the model holds beside its weights is not known.
    """
    refuse_gguf(model.gguf, "capacity")
    model = as_held(model, machine)
    question = question_of(model, machine, workload, counts=True)
    return capacity.Capacity(
        model=model.planned,
        context_length=question.workload.context_length,
        batch_size=question.workload.batch_size,
        max_context=capacity.largest_context(question, None),
        max_batch=capacity.largest_batch(question),
        what_if=capacity.what_if(question),
        run=_way_to_run(question, question.workload),
        notes=(*machine.missing, *told_unpacked(model.tree), *told_beside_text(question, question.workload)),
    )


def runtime_of(question: Question) -> tuple[Runtime | None, tuple[str, ...]]:
    """What the workload adds, and what to know about it; nothing where the model can't be traced."""
    try:
        runtime = question.runtime(question.workload)
    except UntracedError as error:
        return None, (f"KV cache and activations are not counted: {error.message}",)
    question.keep_room()
    made_for, asked = question.made_for, question.workload.context_length
    beyond = (f"the model is made for {made_for:,} tokens, and not {asked:,}",) if made_for and asked > made_for else ()
    return runtime, (*runtime.footprint.notes, *_told_attention(question), *_told_decoding(question), *beyond)


def _way_to_run(question: Question, traced: Workload) -> WayToRun:
    """How the workload of ``question`` is run, of which ``traced`` is at hand."""
    run = way_to_run(question.footprints.of(traced), question.tree)
    # one sequence is never padded, and others are asked about
    return replace(run, workload=replace(run.workload, padded=question.workload.padded))


def told_beside_text(question: Question, workload: Workload) -> tuple[str, ...]:
    """What is counted beside the text, or is not though the model takes it, as notes."""
    footprint = question.footprints.of(workload)
    uncounted = (note for note in footprint.notes if note.startswith(IMAGES_NOT_COUNTED))
    return (*uncounted, *([footprint.beside_text] if footprint.beside_text else []))


def _told_decoding(question: Question) -> tuple[str, ...]:
    """What the model's files ask of generate that is not counted."""
    return tuple(f"the generation config asks for {what}, which is not counted" for what in question.uncounted)


def require_counted(asked: WorkloadRequest, runtime: Runtime) -> None:
    """Refuse what is asked of generate, and changes nothing for this model.

    Raises:
        UsageError: naming it.
    """
    run = runtime.footprint.workload
    if asked.decode not in (None, "config", "greedy") and not run.generation:
        raise UsageError(f"--decode {asked.decode}: this model does not generate", hint="leave it out")
    if asked.prefill_chunk_size is not None and run.prefill_chunk is None:
        raise UsageError(
            f"--prefill-chunk-size {asked.prefill_chunk_size}: this model does not generate from its prompt",
            hint="leave it out",
        )


def _told_attention(question: Question) -> tuple[str, ...]:
    """What is not known of the kernels of the attention."""
    name = question.workload.attention or question.tree.attention
    if name is not None and attention.is_kernel(name) and "flash" not in name:
        return (f"what {name} takes is not known: counted as flash attention",)
    if name == attention.FLEX:
        return ("what the kernels that torch compiles for flex_attention take for themselves is not counted",)
    if question.workload.kernels is Kernels.ACCELERATOR_BEFORE_8 and name == "sdpa":
        return (
            "a board below compute capability 8 has no flash attention: torch may make all scores there, of every "
            "token with every other, in float32",
        )
    return ()


def _filled(question: Question, *, may_quantise: bool) -> tuple[Question, tuple[str, ...], Refusal | None]:
    """The question with the most sequences of its context that fit; where not one does, the longest that does."""
    wanted = question.workload.context_length
    if batch := capacity.largest_batch(question):
        found = replace(question, workload=replace(question.workload, batch_size=batch))
        most = "at least " if batch == capacity.MOST_SEQUENCES else ""
        each = "sequence fits" if batch == 1 else "sequences fit"
        return found, (f"{most}{batch:,} {each} at once, of {wanted:,} tokens",), None
    one = replace(question, workload=replace(question.workload, batch_size=1))
    context = capacity.largest_context(one, None, most=wanted)
    if not context:
        help_ = "more memory, or --quantize, may help" if may_quantise else "more memory may help"
        refusal = Refusal(f"not one sequence fits, of {wanted:,} tokens or fewer", hint=help_)
        return one, (), refusal
    found = replace(one, workload=capacity.with_context(one.workload, context))
    return found, (f"not one sequence of {wanted:,} tokens fits: planned for {context:,}, the longest that does",), None


def told_tokens(
    question: Question, most: MostTokens, where: tuple[str, str] = ("on this map", "by --strategy optimal")
) -> str:
    """The most tokens, as a note; ``where`` says on what both of them are."""
    limit = question.made_for
    batch = question.workload.batch_size
    each = "" if batch == 1 else f" for each of {batch:,} sequences"
    gaps = f" ({most.by_default:,} by default)" if most.by_default not in (None, most.this_map) else ""
    here, best = (
        ("none" if not tokens else f"{tokens:,}") + (" (all that the model is made for)" if tokens == limit else "")
        for tokens in (most.this_map, most.optimal)
    )
    return f"the most tokens{each}: {here} {where[0]}{gaps}, {best} {where[1]}"


def _told_gaps(most: MostTokens) -> tuple[str, ...]:
    """What of the longest context on this map rests on an allocator that leaves no gaps."""
    if not most.this_map or most.by_default == most.this_map:
        return ()
    fits = "how many fit is not known" if most.by_default is None else f"{most.by_default:,} tokens fit"
    return (f"by default torch's allocator leaves gaps, and {fits} on this map: the most needs {SEGMENTS}",)


def _told_pages(placement: Placement, runtime: Runtime | None) -> tuple[str, ...]:
    """What torch's allocator needs with segments that grow, where a plan fits only with them: it is in no total."""
    pages = 0 if runtime is None else runtime.footprint.pages
    left = {
        use.device: use.budget - use.total
        for use in placement.devices
        if use.budget is not None and use.total <= use.budget < use.with_gaps
    }
    if not (pages and left):
        return ()
    least = min(left, key=lambda device: left[device])
    said = f"with segments that grow it may need {format_bytes(pages)} beside what is counted, in pages filled in part"
    missing = pages - left[least]
    return (f"{said}: {format_bytes(missing)} more than is left on {least}" if missing > 0 else said,)


def versions() -> dict[str, str]:
    """The versions that decide what a plan says."""
    from importlib.metadata import version

    return {"devctl": __version__, **{name: version(name) for name in ("transformers", "accelerate", "torch")}}


def choose(placements: Sequence[Placement]) -> tuple[Placement, str]:
    """The placement to take, and why: the least offloaded, then the most room left, then the fewest crossings.

    The first of equal ones, so that transformers' own default is left only for something better.
    """
    best = min(placements, key=worth)
    first = placements[0]
    if best is first:
        return (
            best,
            f"no other is better, {'and it is' if best.fits else 'but it does not fit; it is'} transformers' default",
        )
    if not first.fits and best.fits:
        return best, f"it fits, and {first.strategy} does not"
    for less, where in ((first.offloaded - best.offloaded, "offloaded"), (first.on_disk - best.on_disk, "on disk")):
        if less > 0:
            return best, f"{format_bytes(less)} less {where} than with {first.strategy}"
    if best.fullest < first.fullest:
        fractions = f"{float(best.fullest):.1%} full, and {float(first.fullest):.1%} with {first.strategy}"
        return best, f"the fullest device is {fractions}"
    return best, f"{best.crossings} crossings, and {first.crossings} with {first.strategy}"


def goal_of(
    *,
    strategy: str | None = None,
    objective: str | None = None,
    target_context: int | None = None,
    device_map: Mapping[str, Device] | None = None,
) -> Goal:
    """What to find, from what is said of it; by transformers' default where nothing is.

    Raises:
        UsageError: there is no such strategy or objective, or it is not for that strategy.
    """
    named = None if strategy is None else one_of(Strategy, strategy, "--strategy")
    best_in = None if objective is None else one_of(Objective, objective, "--objective")
    if (best_in is not None or target_context is not None) and named not in (None, Strategy.OPTIMAL):
        raise UsageError(f"--objective and --target-context are for --strategy optimal, not {named}")
    if device_map is not None:
        return JudgeMap(device_map=device_map)
    if target_context is not None:
        return FillContext(tokens=target_context)
    if best_in is Objective.LATENCY:
        return Fastest()
    return ByStrategy(strategy=named or (Strategy.AUTO if best_in is None else Strategy.OPTIMAL))
