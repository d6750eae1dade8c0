"""Why stages are cut where they are, in plain words with the numbers that decided."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

from devctl.models.tree import ModuleTree
from devctl.placement.explain import Explanation
from devctl.placement.parallel.costs import Costs
from devctl.placement.parallel.layers import Layers, layers_of
from devctl.placement.parallel.places import group_of
from devctl.placement.parallel.records import Stage, Stages
from devctl.placement.parallel.tensor import Ranks, rank_tree
from devctl.placement.reason import Reason


def explain_stages(tree: ModuleTree, stages: Stages, ranks: Ranks | None = None) -> Explanation:
    """Why ``stages``, of weights alone, are as they are.

    Args:
        ranks: that share each of them; None where each is on one accelerator.
    """
    layers = layers_of(tree)
    assert isinstance(layers, Layers), "stages are made of them"
    costs = Costs(tree if ranks is None else rank_tree(tree, ranks, 0), layers)
    fullest = max(_part(costs, stage, *stage.layers) for stage in stages.stages)
    rules = (
        f"a stage is a run of whole layers of {layers.container}, and runs when the one before it has",
        "the first has the embedding, the last the norm and the head; nothing is on CPU or disk",
        *(
            ()
            if ranks is None
            else (f"{ranks.size} ranks share each, and what is said is of the one that has least room",)
        ),
        f"no other cut leaves more room on the fullest stage, which is {_percent(fullest)} full",
    )
    reasons = []
    for stage in stages.stages:
        first, end = stage.layers
        names = [*(layers.first if first == 0 else ()), *layers.names[first:end]]
        names += layers.last if end == costs.count else ()
        because = tuple(_because(costs, stage, fullest))
        device = group_of(stage.host, stage.devices)
        reasons.append(Reason(names=tuple(names), device=device, nbytes=stage.used, because=because))
    return Explanation(rules=rules, reasons=tuple(reasons))


def _because(costs: Costs, stage: Stage, fullest: Fraction) -> Iterator[str]:
    first, end = stage.layers
    full = _part(costs, stage, first, end)
    if full == fullest:
        yield f"{_percent(full)} full: this is the fullest stage"
    else:
        yield f"{_percent(full)} full"
    if end < costs.count:
        more = _part(costs, stage, first, end + 1)
        if more > fullest:
            yield f"with layer {end} too it would be {_percent(more)} full, more than the fullest is"


def _part(costs: Costs, stage: Stage, first: int, end: int) -> Fraction:
    return Fraction(costs.most(first, end), stage.budget)


def _percent(part: Fraction) -> str:
    return f"{float(part):.1%}"
