"""``devctl plan``: where each layer should go."""

from devctl.cli import gather, options, render
from devctl.placement import Strategy
from devctl.placement.document import plan_document
from devctl.placement.placement import to_hf


def plan(
    model: options.Model,
    strategy: options.StrategyOption = Strategy.AUTO,
    max_memory: options.MaxMemory = None,
    dtype: options.DtypeOption = options.Dtype.AUTO,
    model_class: options.ModelClass = None,
    trust_remote_code: options.TrustRemoteCode = False,
    revision: options.Revision = None,
    report: options.Report = None,
) -> None:
    """Print a device map for MODEL as JSON, and a summary of it on stderr.

    The map is the one that transformers makes for device_map=STRATEGY. No weight is read or downloaded, only the
    config. Load it with from_pretrained(device_map=json.load(open("map.json"))), or with `devctl load`.
    """
    budgets = gather.budgets(max_memory)
    source, skeleton = gather.skeleton(
        model, dtype=dtype, model_class=model_class, trust_remote_code=trust_remote_code, revision=revision
    )
    placement = gather.placement(skeleton.tree, budgets, strategy)
    planned = gather.planned_model(model, source, skeleton.tree)
    if report is not None:
        render.write_file(report, render.dumps(plan_document(planned, placement, gather.versions())))
    render.answer(render.dumps(to_hf(placement.device_map)))
    render.say(render.plan_summary(planned, placement))
