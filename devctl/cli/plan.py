"""``devctl plan``: where each layer should go."""

from typing import TYPE_CHECKING

from devctl.cli.groups import grouped, refuse_clashes
from devctl.cli.options import (
    GoalOptions,
    MachineOptions,
    OutputOptions,
    PlannedModelOptions,
    WorkloadOptions,
)
from devctl.cli.show import plan as show
from devctl.cli.show import streams
from devctl.placement.strategy import Strategy
from devctl.planning import clashes
from devctl.planning.request import JudgeMap, Objective
from devctl.writing import write_whole

if TYPE_CHECKING:
    from devctl.placement.plan import Plan


@grouped
def plan(
    model: PlannedModelOptions,
    machine: MachineOptions,
    goal: GoalOptions,
    workload: WorkloadOptions,
    output: OutputOptions,
) -> None:
    """Print a device map for MODEL as JSON, and a summary of it on stderr.

    The map is the one that transformers makes for device_map=STRATEGY, or the best there is (optimal). No weight is
    read or downloaded, only the config and the headers of the weights' files. Load it with
    from_pretrained(device_map=json.load(open("map.json"))), or with `devctl load`.

    With --context-length, the KV cache and activations count too: every strategy then places for that workload.
    """
    streams.clean_logs()
    refuse_clashes(clashes.OF_PLAN, machine, goal, workload, output)

    from devctl.planning.machine import open_machine  # which the help does without
    from devctl.planning.map_file import read_map
    from devctl.planning.plan import compare_strategies, goal_of, make_plan, what_fits

    if goal.fits_on is not None:
        _fits_on(model, machine, goal, workload, output)
        return
    wanted = goal_of(strategy=goal.strategy, objective=goal.objective, target_context=goal.target_context)
    asked = workload.request()
    here = open_machine(machine.request(timed=goal.objective is Objective.LATENCY))
    if goal.map is not None:
        wanted = JudgeMap(device_map=read_map(goal.map))

    from devctl.planning.model import open_model  # after the options are known to make sense

    opened = open_model(model.request())
    if goal.what_if:
        table = what_fits(opened, here, asked)
        streams.answer(streams.dumps(table.to_document()) if output.json else show.what_if_table(table))
        show.say_notes(table.notes)
    elif goal.compare:
        comparison = compare_strategies(opened, here, asked)
        streams.answer(streams.dumps(comparison.to_document()) if output.json else show.comparison(comparison))
        show.say_notes(comparison.notes)
    else:
        _show(make_plan(opened, here, asked, wanted, goal.limits, max_context=goal.max_context), output)


def _fits_on(
    model: PlannedModelOptions,
    machine: MachineOptions,
    goal: GoalOptions,
    workload: WorkloadOptions,
    output: OutputOptions,
) -> None:
    """Print on how many of each board the model runs."""
    from devctl.planning.fits_on import find_boards, fits_on
    from devctl.planning.model import open_model

    assert goal.fits_on is not None, "asked where it is given"
    asked, here = workload.request(), machine.request(timed=False)
    boards = find_boards(goal.fits_on)
    found = fits_on(
        open_model(model.request()),
        boards,
        asked,
        strategy=goal.strategy or Strategy.AUTO,
        max_memory=here.max_memory,
        reserve=here.reserve,
    )
    streams.answer(streams.dumps(found.to_document()) if output.json else show.fits_on_table(found))
    show.say_notes(found.notes)


def _show(plan: "Plan", output: OutputOptions) -> None:
    """Write and print the plan.

    Raises:
        RefusedError: it is not what was asked for; nothing is written then.
    """
    if plan.refusal is not None:
        show.say_notes(plan.budgets.notes)  # what is counted with is half of why it does not fit
        raise plan.refusal.error()
    _write(plan, output)
    streams.answer(streams.dumps(plan.to_document() if output.json else plan.to_hf()))
    room, run = show.room_line(plan.room), show.run_line(plan.run)
    streams.say(show.plan_summary(plan.model, plan.placement, room, run, plan.engine))
    if output.explain:
        from devctl.cli.show.explain import explanation
        from devctl.placement.explain import explain

        streams.say(explanation(explain(plan.tree, plan.budgets, plan.placement)))


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
    if output.svg is not None:
        write_whole(output.svg, plan_svg(plan.model, plan.placement, pieces))
    if output.html is not None:
        write_whole(output.html, plan_html(plan.model, plan.placement, pieces))
