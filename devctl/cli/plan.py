"""``devctl plan``: where each layer should go."""

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from devctl.cli.groups import given, grouped
from devctl.cli.options import (
    EngineOptions,
    GoalOptions,
    MachineOptions,
    OutputOptions,
    PlannedModelOptions,
    WorkloadOptions,
)
from devctl.cli.show import plan as show
from devctl.cli.show import streams
from devctl.errors import RefusedError, UsageError
from devctl.models.files.kinds import PipelineFoundError
from devctl.models.gguf.files import gguf_at
from devctl.placement.engines.records import Engine
from devctl.placement.strategy import Strategy
from devctl.planning import clashes
from devctl.planning.request import JudgeMap, Objective
from devctl.writing import write_whole

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TextIO

    from devctl.placement.explain import Explanation
    from devctl.placement.plan import Comparison, Plan, WhatIf
    from devctl.planning.fits_on import FitsOn
    from devctl.planning.pipelines import PipelinePlan

_Answer = TypeVar("_Answer", "Comparison", "WhatIf", "FitsOn", "PipelinePlan")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Options:
    """All that was given."""

    model: PlannedModelOptions
    machine: MachineOptions
    goal: GoalOptions
    workload: WorkloadOptions
    engine: EngineOptions
    output: OutputOptions


@grouped
def plan(
    model: PlannedModelOptions,
    machine: MachineOptions,
    goal: GoalOptions,
    workload: WorkloadOptions,
    engine: EngineOptions,
    output: OutputOptions,
) -> None:
    """Say whether MODEL fits, and where each of its layers goes.

    On a terminal that is a summary; redirected, piped or with -o it is the map, as JSON.
    The map is the one that transformers makes for device_map=STRATEGY, or the best there is (optimal). No weight is
    read or downloaded, only the config and the headers of the weights' files. Load it with
    from_pretrained(device_map=json.load(open("map.json"))), or with `devctl load`.

    With --context-length, the KV cache and activations count too: every strategy then places for that workload.

    Over several hosts the answer is the plan document: its stages are run by `devctl load` on each host. So it is of a
    GGUF file, or of a folder of one, whose layers are placed for llama.cpp: --to llama.cpp says how it is run.

    With --engine vllm it is what fits in vLLM, in the plan document: its cache on each GPU, and how much of it holds.

    A pipeline of diffusers is planned component by component, by its weights.
    """
    streams.clean_logs()
    about = {clashes.OVER_HOSTS} if machine.over_hosts else set()
    about |= {clashes.GGUF} if gguf_at(model.model) is not None else set()
    about |= given(model, machine, goal, workload, engine, output)
    clashes.refuse(clashes.OF_PLAN, about)
    output.require_apart()
    options = _Options(model=model, machine=machine, goal=goal, workload=workload, engine=engine, output=output)
    try:
        _answer(options, about)
        return
    except PipelineFoundError as error:
        found = error
    # not while that is handled: it would be taken for the cause of what a hub answers
    _pipeline(options, found)


def _answer(options: _Options, about: set[str]) -> None:
    """Print what is asked for of a model, which is told ``about``."""
    model, machine, goal = options.model, options.machine, options.goal
    workload, output = options.workload, options.output
    if options.engine.engine is Engine.VLLM:
        _for_vllm(options)
        return
    if machine.over_hosts:
        _over_hosts(options)
        return

    from devctl.planning.machine import open_machine  # which the help does without
    from devctl.planning.map_file import read_map
    from devctl.planning.plan import compare_strategies, goal_of, make_plan, what_fits

    if goal.fits_on is not None:
        _fits_on(options)
        return
    if goal.tp is not None:
        _of_ranks(options)
        return
    wanted = goal_of(strategy=goal.strategy, objective=goal.objective, target_context=goal.target_context)
    asked = workload.request()
    here = open_machine(machine.request(timed=goal.objective is Objective.LATENCY))
    if goal.map is not None:
        wanted = JudgeMap(device_map=read_map(goal.map))

    from devctl.planning.model import open_model  # after the options are known to make sense

    opened = open_model(model.request())
    if opened.gguf is not None:  # of one on the hub that is known only now
        clashes.refuse(clashes.OF_PLAN, about | {clashes.GGUF})
    if goal.what_if:
        table = what_fits(opened, here, asked)
        _tell(table, show.what_if_table, output)
    elif goal.compare:
        _tell(compare_strategies(opened, here, asked), show.comparison, output)
    else:
        _show(make_plan(opened, here, asked, wanted, goal.limits, max_context=goal.max_context), output)


def _for_vllm(asked: _Options) -> None:
    """Print the plan for vLLM: always the document, as no map says it."""
    from devctl.placement.engines.asking import HERE
    from devctl.planning.engine import plan_for_vllm
    from devctl.planning.hosts import NamedMachine, open_hosts
    from devctl.planning.machine import open_machine
    from devctl.planning.model import open_model

    wanted, workload = asked.engine.request(asked.goal), asked.workload.request()
    if asked.machine.over_hosts:
        hosts = open_hosts(asked.machine.several())
    else:
        hosts = (NamedMachine(name=HERE, machine=open_machine(asked.machine.request(timed=False))),)
    _show(plan_for_vllm(open_model(asked.model.request()), hosts, workload, wanted), asked.output)


def _over_hosts(asked: _Options) -> None:
    """Print the stages over several hosts."""
    from devctl.planning.hosts import open_hosts
    from devctl.planning.hosts_question import ALONE
    from devctl.planning.model import open_model
    from devctl.planning.over_hosts import compare_over_hosts, plan_over_hosts, what_fits_over_hosts
    from devctl.planning.request import ByRanks, FillContext

    goal, workload = asked.goal, asked.workload.request()
    ranks = ALONE if goal.tp is None else ByRanks(size=goal.tp, experts=goal.ep).ranks
    fill = None if goal.target_context is None else FillContext(tokens=goal.target_context)
    hosts = open_hosts(asked.machine.several())
    opened = open_model(asked.model.request())
    if goal.what_if:
        _tell(what_fits_over_hosts(opened, hosts, workload, ranks=ranks), show.what_if_table, asked.output)
    elif goal.compare:
        _tell(compare_over_hosts(opened, hosts, workload, ranks=ranks), show.comparison, asked.output)
    else:
        found = plan_over_hosts(opened, hosts, workload, ranks=ranks, fill=fill, max_context=goal.max_context)
        _show(found, asked.output)


def _fits_on(asked: _Options) -> None:
    """Print on how many of each board the model runs."""
    from devctl.planning.fits_on import find_boards, fits_on
    from devctl.planning.model import open_model

    goal = asked.goal
    assert goal.fits_on is not None, "asked where it is given"
    workload, here = asked.workload.request(), asked.machine.request(timed=False)
    boards = find_boards(goal.fits_on)
    found = fits_on(
        open_model(asked.model.request()),
        boards,
        workload,
        strategy=goal.strategy or Strategy.AUTO,
        max_memory=here.max_memory,
        reserve=here.reserve,
    )
    _tell(found, show.fits_on_table, asked.output)


def _of_ranks(asked: _Options) -> None:
    """Print the plan of a model that ranks share: always the document, as no map says it."""
    from devctl.planning.machine import open_machine
    from devctl.planning.model import open_model
    from devctl.planning.parallel import plan_of_ranks
    from devctl.planning.request import ByRanks

    goal = asked.goal
    assert goal.tp is not None, "asked where it is given"
    wanted, workload = ByRanks(size=goal.tp, experts=goal.ep), asked.workload.request()
    here = open_machine(asked.machine.request(timed=False))
    opened = open_model(asked.model.request())
    _show(plan_of_ranks(opened, here, workload, wanted, max_context=goal.max_context), asked.output)


_OF_PIPELINES = {
    "dtype",
    "revision",
    "no-cache",
    "devices",
    "machine",
    "max-memory",
    "visible",
    "reserve",
    "json",
    "output",
}
"""Options that mean something for a pipeline, of which whole components are placed by their weights."""


def _pipeline(asked: _Options, found: PipelineFoundError) -> None:
    """Print what the components of a pipeline hold, and in which ways they fit.

    Raises:
        UsageError: something is asked of it that is known of models alone.
        ModelError: a component can't be read.
        RefusedError: its weights fit in no way.
    """
    from devctl.cli.show.pipeline import pipeline_table, way_line
    from devctl.planning.machine import open_machine
    from devctl.planning.pipelines import plan_pipeline, require_known, told

    if asked.machine.over_hosts:
        raise UsageError(f"{found.given} is a pipeline of diffusers, which is run on one machine", hint="name one")
    names = given(asked.model, asked.machine, asked.goal, asked.workload, asked.engine, asked.output)
    about = clashes.Clash(
        f"{found.given} is a pipeline of diffusers, of which whole components are placed by their weights",
        tuple(sorted(name for name in names if " " not in name and name not in {*_OF_PIPELINES, "model"})),
    )
    clashes.refuse((about,), names)
    plan = plan_pipeline(asked.model.request(), found, open_machine(asked.machine.request(timed=False)))
    require_known(plan)
    if not any(fit.fits for fit in plan.fits):
        show.say_notes(plan.notes)
        smaller = "" if plan.dtype in ("float16", "bfloat16") else ", or --dtype bfloat16,"
        raise RefusedError(
            f"the weights of {found.given} fit in no way that diffusers has for whole components",
            findings=(*(told(each) for each in plan.components if each.nbytes), *map(way_line, plan.fits)),
            hint=f"more memory{smaller} may help; enable_sequential_cpu_offload() divides components",
        )
    _tell(plan, pipeline_table, asked.output)


def _tell(found: "_Answer", table: "Callable[[_Answer, TextIO | None], str]", output: OutputOptions) -> None:
    """Print or write an answer that is no map, and its notes."""
    seen = sys.stdout if output.on_stdout else None
    streams.deliver(streams.dumps(found.to_document()) if output.json else table(found, seen), output.output)
    show.say_notes(found.notes)


def _show(plan: "Plan", output: OutputOptions) -> None:
    """Write and print the plan.

    Raises:
        RefusedError: it is not what was asked for; nothing is written then.
    """
    if plan.refusal is not None:
        # what is counted with is half of why it does not fit
        of_ranks = plan.is_shared_whole or plan.fit_in is not None
        show.say_notes(plan.notes if of_ranks else plan.budgets.notes)
        raise plan.refusal.error()
    exported = None
    if output.to is not None:  # before anything is written: an engine may refuse
        from devctl.export.engines import export
        from devctl.planning.exporting import as_exportable

        exported = export(as_exportable(plan.to_document(), "the plan"), output.to)
    _write(plan, output)
    if exported is not None:
        from devctl.cli.export import print_export

        streams.say(_summary(plan, output, sys.stderr))
        print_export(exported, json=output.json, path=output.output)
        return
    # what is no device_map that anything loads: of several hosts, or of a GGUF file
    is_whole = output.json or not plan.has_map
    if output.output is None and not output.json and streams.is_terminal(sys.stdout):
        # a person looks, who has asked for no JSON
        what = "plan" if is_whole else "map"
        hint = f"the {what}: -o {what}.json writes it, -o - prints it\n"
        streams.answer(_summary(plan, output, sys.stdout) + hint)
        return
    streams.deliver(streams.dumps(plan.to_document() if is_whole else plan.to_hf()), output.output)
    streams.say(_summary(plan, output, sys.stderr))


def _summary(plan: "Plan", output: OutputOptions, stream: "TextIO | None") -> str:
    """What a person should know of the plan, and why it is so where that is asked for."""
    if plan.fit_in is not None:
        from devctl.cli.show.engine import summary_of as of_engine

        return of_engine(plan, stream)
    if plan.tensor_parallel is None:
        text = show.summary_of(plan, stream)
    else:
        from devctl.cli.show.ranks import stages_summary, summary_of

        text = summary_of(plan, stream) if plan.is_shared_whole else stages_summary(plan, stream)
    if not output.explain or output.to is not None:
        return text
    from devctl.cli.show.explain import explanation

    return text + explanation(_why(plan), stream)


def _why(plan: "Plan") -> "Explanation":
    if plan.stages is not None:
        from devctl.placement.parallel.reasons import explain_stages

        shared = plan.tensor_parallel
        return explain_stages(plan.tree, plan.stages, None if shared is None else shared.ranks)
    from devctl.placement.explain import explain

    return explain(plan.tree, plan.budgets, plan.placement)


# what most plans do without is imported when it is asked for


def _write(plan: "Plan", output: OutputOptions) -> None:
    if output.report is not None:
        write_whole(output.report, streams.dumps(plan.to_document()))
    if output.svg is None and output.html is None:
        return
    from devctl.cli.show.html import plan_html
    from devctl.cli.show.svg import plan_svg
    from devctl.placement.pieces import pieces_of

    pieces = pieces_of(plan.tree, plan.placement)
    counted = show.counted(None if plan.runtime is None else plan.runtime.footprint.workload)
    verdict = show.verdict_of(plan)
    if output.svg is not None:
        write_whole(output.svg, plan_svg(plan.model, plan.placement, pieces, counted, verdict))
    if output.html is not None:
        write_whole(output.html, plan_html(plan.model, plan.placement, pieces, counted, verdict))
