"""``devctl plan``: where each layer should go."""

from dataclasses import replace

from devctl.cli import gather, hardware, model_options, options, render, render_plan
from devctl.errors import UsageError
from devctl.placement import Strategy
from devctl.placement.document import plan_document
from devctl.placement.placement import to_hf


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
    dtype: model_options.DtypeOption = model_options.Dtype.AUTO,
    model_class: model_options.ModelClass = None,
    quantize: model_options.QuantizeOption = None,
    trust_remote_code: model_options.TrustRemoteCode = False,
    revision: model_options.Revision = None,
    compare: model_options.Compare = False,
    json: options.Json = False,
    report: model_options.Report = None,
    no_cache: model_options.NoCache = False,
) -> None:
    """Print a device map for MODEL as JSON, and a summary of it on stderr.

    The map is the one that transformers makes for device_map=STRATEGY, or the best there is (optimal). No weight is
    read or downloaded, only the config and the headers of the weights' files. Load it with
    from_pretrained(device_map=json.load(open("map.json"))), or with `devctl load`.
    """
    _require_sense(strategy, objective, map, speed, compare, report is not None)
    inventory, how = hardware.visible(visible, hardware.hardware(devices, machine))
    budgets = hardware.budgets(max_memory, inventory, given=devices is not None)
    budgets = hardware.reserved(replace(budgets, notes=(*budgets.notes, *how)), reserve, inventory)
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
    if compare:
        placements = [gather.placement(tree, budgets, each, speeds) for each in Strategy]
        render.answer(render_plan.comparison(planned, placements, json=json))
        return
    if map is None:
        wanted = strategy or (Strategy.OPTIMAL if objective else Strategy.AUTO)
        placement = gather.placement(tree, budgets, wanted, speeds)
    else:
        placement = gather.judged(tree, gather.read_map(map, inventory), budgets)
    disk_unnamed = devices is not None and not inventory.disks
    if no_offload or no_disk or disk_unnamed:
        hint = "" if no_offload or no_disk else "or add disk to --devices"
        gather.require_room(tree, placement, budgets, gather.smaller(request, tree), offload=not no_offload, hint=hint)
    document = render.dumps(plan_document(planned, placement, gather.versions()))
    if report is not None:
        render.write_file(report, document)
    render.answer(document if json else render.dumps(to_hf(placement.device_map)))
    render.say(render_plan.plan_summary(planned, placement))


def _require_sense(
    strategy: Strategy | None,
    objective: model_options.Objective | None,
    map: str | None,
    speed: list[str] | None,
    compare: bool,
    report: bool,
) -> None:
    """Refuse options that exclude each other."""
    if objective is not None and strategy not in (None, Strategy.OPTIMAL):
        raise UsageError(f"--objective is for --strategy optimal, not {strategy}")
    if speed is not None and objective is not model_options.Objective.LATENCY:
        raise UsageError("--speed is for --objective latency")
    if map is not None and (strategy is not None or objective is not None):
        raise UsageError("--map says where everything goes: leave out --strategy and --objective")
    if compare and (map is not None or strategy is not None or report):
        raise UsageError("--compare shows every strategy: leave out --map, --strategy and --report")
