"""``devctl plan``: where each layer should go."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from devctl.cli import gather, hardware, model_options
from devctl.cli.show import plan as show_plan
from devctl.cli.show import streams
from devctl.errors import UntracedError, UsageError
from devctl.models.tree import ModuleTree
from devctl.placement import Budgets, Placement, Strategy
from devctl.placement.document import PlannedModel, plan_document
from devctl.placement.placement import to_hf
from devctl.placement.runtime import Runtime

if TYPE_CHECKING:
    from devctl.cli.workload import Question


def plan(
    model: model_options.Model,
    strategy: model_options.StrategyOption = None,
    objective: model_options.ObjectiveOption = None,
    map: model_options.MapToCheck = None,
    max_memory: model_options.MaxMemory = None,
    machine: model_options.Machine = None,
    devices: model_options.Devices = None,
    visible: model_options.Visible = None,
    reserve: model_options.ReserveOption = None,
    speed: model_options.Speed = None,
    no_offload: model_options.NoOffload = False,
    no_disk: model_options.NoDisk = False,
    context_length: model_options.ContextLength = None,
    batch_size: model_options.BatchSize = 1,
    new_tokens: model_options.NewTokens = None,
    kv_dtype: model_options.KvDtype = None,
    overhead: model_options.Overhead = None,
    max_context: model_options.MaxContext = False,
    target_context: model_options.TargetContext = None,
    what_if: model_options.WhatIf = False,
    dtype: model_options.DtypeOption = model_options.Dtype.AUTO,
    model_class: model_options.ModelClass = None,
    trust_remote_code: model_options.TrustRemoteCode = False,
    revision: model_options.Revision = None,
    quantize: model_options.QuantizeOption = None,
    compare: model_options.Compare = False,
    json: model_options.PlanJson = False,
    report: model_options.Report = None,
    why: model_options.Explain = False,
    svg: model_options.Svg = None,
    html: model_options.Html = None,
    no_cache: model_options.NoCache = False,
) -> None:
    """Print a device map for MODEL as JSON, and a summary of it on stderr.

    The map is the one that transformers makes for device_map=STRATEGY, or the best there is (optimal). No weight is
    read or downloaded, only the config and the headers of the weights' files. Load it with
    from_pretrained(device_map=json.load(open("map.json"))), or with `devctl load`.

    With --context-length, the KV cache and activations count too: every strategy then places for that workload.
    """
    latency = objective is model_options.Objective.LATENCY
    counted = context_length is not None or target_context is not None
    best = objective is not None or target_context is not None
    ways = {"strategy": strategy, "objective": objective}
    sought = {"map": map, "context-length": context_length}
    gates = {"no-offload": no_offload or None, "no-disk": no_disk or None, "max-context": max_context or None}
    shown = {"report": report, "explain": why or None, "svg": svg, "html": html}
    _refuse(
        (
            "--compare shows every strategy",
            compare,
            ways | shown | gates | {"map": map, "target-context": target_context},
        ),
        ("--what-if tries them all", what_if, ways | shown | gates | sought | {"target-context": target_context}),
        ("--what-if tries them all", what_if, {"compare": compare or None, "batch-size": batch_size - 1 or None}),
        (
            "--max-context looks for it",
            max_context,
            {"context-length": context_length, "target-context": target_context},
        ),
        ("--target-context looks for the batch", target_context is not None, {"batch-size": batch_size - 1 or None}),
        ("--map says where everything goes", map is not None, ways | {"explain": why or None}),
        ("--target-context looks for the batch or context", target_context is not None, sought),
        ("--explain is of weights and their room", latency or counted, {"explain": why or None}),
        ("--speed is for --objective latency", not latency, {"speed": speed}),
    )
    if best and strategy not in (None, Strategy.OPTIMAL):
        raise UsageError(f"--objective and --target-context are for --strategy optimal, not {strategy}")

    inventory, how = hardware.visible(visible, hardware.hardware(devices, machine))
    budgets = hardware.budgets(max_memory, inventory, given=devices is not None)
    budgets = hardware.reserved(replace(budgets, notes=(*budgets.notes, *how)), reserve, inventory)
    gather.require_devices(budgets)
    speeds = hardware.speeds(speed, budgets, inventory) if latency else None
    request = gather.Request(
        model=model,
        dtype=dtype,
        model_class=model_class,
        trust_remote_code=trust_remote_code,
        revision=revision,
        quantize=quantize,
        cache=not no_cache,
    )
    source, tree, skeleton = gather.tree_or_skeleton(request)
    planned = gather.planned_model(model, source, tree)

    from devctl.cli import footprints, workload  # after the options are known to make sense

    question = workload.question(
        tree,
        budgets,
        footprints.Footprints(request, source, skeleton if tree.quantisation is None else None),
        context_length=context_length or target_context,
        batch_size=batch_size,
        new_tokens=new_tokens,
        kv_dtype=kv_dtype,
        overhead=overhead,
    )
    if what_if:
        streams.answer(workload.what_if(planned, question, json=json))
        return
    question, notes = workload.at_most(question) if target_context is not None else (question, ())
    runtime, told = _runtime(question) if counted else (None, ())
    if compare:
        all_of_them = [gather.placement(tree, budgets, each, speeds, runtime) for each in Strategy]
        streams.answer(show_plan.comparison(planned, all_of_them, json=json))
        return

    if map is None:
        wanted = strategy or (Strategy.OPTIMAL if best else Strategy.AUTO)
        placement = gather.placement(tree, budgets, wanted, speeds, runtime)
    else:
        placement = gather.judged(tree, gather.read_map(map, inventory), budgets, runtime)
    disk_unnamed = devices is not None and not inventory.disks
    if no_offload or no_disk or disk_unnamed or runtime is not None:
        gather.require_room(
            tree,
            placement,
            budgets,
            gather.smaller(request, tree),
            runtime,
            offload=not no_offload,
            disk=not (no_offload or no_disk or disk_unnamed),
            hint="or add disk to --devices" if disk_unnamed and not (no_offload or no_disk) else "",
        )
    most = workload.most_tokens(question, placement) if max_context else None
    notes += () if most is None else (workload.told_tokens(question, most),)
    placement = replace(placement, notes=(*placement.notes, *notes, *told))

    document = plan_document(planned, placement, gather.versions(), runtime) | {"max_context": most}
    _write(planned, tree, placement, document, report=report, svg=svg, html=html)
    streams.answer(streams.dumps(document if json else to_hf(placement.device_map)))
    room = workload.room(question, placement) if runtime is None else ""
    streams.say(show_plan.plan_summary(planned, placement, room))
    if why:
        streams.say(_explanation(tree, budgets, placement))


def _refuse(*clashes: tuple[str, bool, Mapping[str, object]]) -> None:
    """Refuse options that make no sense together: (why, whether it is so, the options that are too much then)."""
    for because, asked, others in clashes:
        if asked and (too_much := [f"--{name}" for name, value in others.items() if value is not None]):
            raise UsageError(f"{because}: leave out {' and '.join(too_much)}")


def _runtime(question: "Question") -> tuple[Runtime | None, tuple[str, ...]]:
    """What the workload adds, and what to know about it; nothing where the model can't be traced."""
    from devctl.cli.footprints import longest

    try:
        runtime = question.runtime(question.workload)
    except UntracedError as error:
        return None, (f"KV cache and activations are not counted: {error.message}",)
    made_for, asked = longest(question.footprints.source), question.workload.context_length
    beyond = (f"the model is made for {made_for} tokens, and not {asked}",) if made_for and asked > made_for else ()
    return runtime, (*runtime.footprint.notes, *beyond)


# what most plans do without is imported when it is asked for


def _write(
    model: PlannedModel,
    tree: ModuleTree,
    placement: Placement,
    document: Mapping[str, object],
    *,
    report: Path | None,
    svg: Path | None,
    html: Path | None,
) -> None:
    if report is not None:
        streams.write_file(report, streams.dumps(document))
    if svg is None and html is None:
        return
    from devctl.cli.show.html import plan_html
    from devctl.cli.show.svg import plan_svg
    from devctl.placement.pieces import pieces_of

    pieces = pieces_of(tree, placement)
    if svg is not None:
        streams.write_file(svg, plan_svg(model, placement, pieces))
    if html is not None:
        streams.write_file(html, plan_html(model, placement, pieces))


def _explanation(tree: ModuleTree, budgets: Budgets, placement: Placement) -> str:
    from devctl.cli.show.explain import explanation
    from devctl.placement.explain import explain

    return explanation(explain(tree, budgets, placement))
