"""``devctl plan``: where each layer should go."""

from dataclasses import replace
from typing import TYPE_CHECKING

from devctl.cli import gather, hardware, model_options, options, render, render_plan
from devctl.errors import UntracedError, UsageError
from devctl.placement import Strategy
from devctl.placement.document import plan_document
from devctl.placement.placement import to_hf

if TYPE_CHECKING:
    pass


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
    json: options.Json = False,
    report: model_options.Report = None,
    no_cache: model_options.NoCache = False,
) -> None:
    """Print a device map for MODEL as JSON, and a summary of it on stderr.

    The map is the one that transformers makes for device_map=STRATEGY, or the best there is (optimal). No weight is
    read or downloaded, only the config and the headers of the weights' files. Load it with
    from_pretrained(device_map=json.load(open("map.json"))), or with `devctl load`.

    With --context-length, the KV cache and activations count too: every strategy then places for that workload.
    """
    _exclude(
        "--compare shows every strategy", compare, strategy=strategy, map=map, report=report, target=target_context
    )
    _exclude(
        "--what-if tries all of them", what_if, context_length=context_length, target=target_context, report=report
    )
    _exclude("--map says where everything goes", map is not None, strategy=strategy, objective=objective)
    _exclude("--target-context places by optimal", target_context is not None, map=map, context_length=context_length)
    if (objective or target_context) and strategy not in (None, Strategy.OPTIMAL):
        raise UsageError(
            f"--{'objective' if objective else 'target-context'} is for --strategy optimal, not {strategy}"
        )
    if speed is not None and objective is not model_options.Objective.LATENCY:
        raise UsageError("--speed is for --objective latency")
    wanted = strategy or (Strategy.OPTIMAL if objective or target_context else Strategy.AUTO)

    inventory, how = hardware.visible(visible, hardware.hardware(devices, machine))
    budgets = hardware.budgets(max_memory, inventory, given=devices is not None)
    budgets = hardware.reserved(replace(budgets, notes=(*budgets.notes, *how)), reserve, inventory)
    gather.require_devices(budgets)
    speeds = hardware.speeds(speed, budgets, inventory) if objective is model_options.Objective.LATENCY else None
    request = gather.Request(
        model=model,
        dtype=dtype,
        model_class=model_class,
        trust_remote_code=trust_remote_code,
        revision=revision,
        quantize=quantize,
        cache=not no_cache,
    )
    source, tree = gather.tree(request)
    planned = gather.planned_model(model, source, tree)

    from devctl.cli import workload

    question = workload.question(
        tree,
        budgets,
        workload.Footprints(request, source),
        context_length=context_length or target_context,
        batch_size=batch_size,
        new_tokens=new_tokens,
        kv_dtype=kv_dtype,
        overhead=overhead,
    )
    counted = context_length is not None or target_context is not None
    notes: tuple[str, ...] = ()
    if target_context is not None:
        question, notes = workload.at_most(question, source)
    runtime = None
    if counted or what_if or max_context:
        try:
            runtime = question.runtime(question.workload)
        except UntracedError as error:
            if what_if or max_context or target_context is not None:
                raise
            notes = (workload.untraced(error),)
    if what_if:
        render.answer(workload.what_if(planned, question, source, json=json))
        return
    if not counted:
        runtime = None
    if compare:
        placements = [gather.placement(tree, budgets, each, speeds, runtime) for each in Strategy]
        render.answer(render_plan.comparison(planned, placements, json=json))
        return
    if map is None:
        placement = gather.placement(tree, budgets, wanted, speeds, runtime)
    else:
        placement = gather.judged(tree, gather.read_map(map, inventory), budgets, runtime)
    disk_unnamed = devices is not None and not inventory.disks
    if no_offload or no_disk or disk_unnamed:
        hint = "" if no_offload or no_disk else "or add disk to --devices"
        gather.require_room(tree, placement, budgets, gather.smaller(request, tree), offload=not no_offload, hint=hint)
    if runtime is not None:
        notes += runtime.footprint.notes
    if max_context:
        notes += workload.most_tokens(question, source, placement)
    placement = replace(placement, notes=(*placement.notes, *notes))
    document = plan_document(planned, placement, gather.versions())
    document["workload"] = None if runtime is None else workload.document(placement, runtime.footprint)
    if report is not None:
        render.write_file(report, render.dumps(document))
    render.answer(render.dumps(document if json else to_hf(placement.device_map)))
    room = workload.room(question, placement) if runtime is None else ""
    render.say(render_plan.plan_summary(planned, placement, room))


def _exclude(why: str, given: bool, **others: object) -> None:
    """Refuse options that make no sense together."""
    if clash := [f"--{name.replace('_', '-')}" for name, value in others.items() if given and value is not None]:
        raise UsageError(f"{why}: leave out {' and '.join(clash)}")
