"""``devctl plan``: where each layer should go."""

from dataclasses import replace
from pathlib import Path

from devctl.cli import gather, model_options, render, render_plan
from devctl.models.tree import ModuleTree
from devctl.placement import Budgets, Placement, Strategy
from devctl.placement.document import PlannedModel, plan_document
from devctl.placement.placement import to_hf


def plan(
    model: model_options.Model,
    strategy: model_options.StrategyOption = Strategy.AUTO,
    max_memory: model_options.MaxMemory = None,
    machine: model_options.Machine = None,
    devices: model_options.Devices = None,
    visible: model_options.Visible = None,
    dtype: model_options.DtypeOption = model_options.Dtype.AUTO,
    model_class: model_options.ModelClass = None,
    trust_remote_code: model_options.TrustRemoteCode = False,
    revision: model_options.Revision = None,
    report: model_options.Report = None,
    why: model_options.Explain = False,
    svg: model_options.Svg = None,
    html: model_options.Html = None,
    no_cache: model_options.NoCache = False,
) -> None:
    """Print a device map for MODEL as JSON, and a summary of it on stderr.

    The map is the one that transformers makes for device_map=STRATEGY. No weight is read or downloaded, only the
    config. Load it with from_pretrained(device_map=json.load(open("map.json"))), or with `devctl load`.
    """
    inventory, how = gather.visible(visible, gather.hardware(devices, machine))
    budgets = gather.budgets(max_memory, inventory, given=devices is not None)
    source, tree = gather.tree(
        model,
        dtype=dtype,
        model_class=model_class,
        trust_remote_code=trust_remote_code,
        revision=revision,
        cache=not no_cache,
    )
    budgets = replace(budgets, notes=(*budgets.notes, *how))
    placement = gather.placement(tree, budgets, strategy)
    planned = gather.planned_model(model, source, tree)
    if report is not None:
        render.write_file(report, render.dumps(plan_document(planned, placement, gather.versions())))
    if svg is not None or html is not None:
        _draw(planned, tree, placement, svg=svg, html=html)
    render.answer(render.dumps(to_hf(placement.device_map)))
    render.say(render_plan.plan_summary(planned, placement))
    if why:
        render.say(_explanation(tree, budgets, placement))


# what most plans do without is imported when it is asked for


def _draw(model: PlannedModel, tree: ModuleTree, placement: Placement, *, svg: Path | None, html: Path | None) -> None:
    from devctl.cli.render_page import plan_html
    from devctl.cli.render_picture import plan_svg
    from devctl.placement.pieces import pieces_of

    pieces = pieces_of(tree, placement)
    if svg is not None:
        render.write_file(svg, plan_svg(model, placement, pieces))
    if html is not None:
        render.write_file(html, plan_html(model, placement, pieces))


def _explanation(tree: ModuleTree, budgets: Budgets, placement: Placement) -> str:
    from devctl.cli.render_explain import explanation
    from devctl.placement.explain import explain

    return explanation(explain(tree, budgets, placement))
