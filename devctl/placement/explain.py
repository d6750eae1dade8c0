"""Why each part of a model went where it did, in plain words with the numbers that decided."""

from dataclasses import dataclass

from devctl.models.tree import ModuleTree
from devctl.placement.budget import Budgets
from devctl.placement.greedy.reasons import greedy_reasons, greedy_rules
from devctl.placement.installed import planned_otherwise
from devctl.placement.optimal.reasons import optimal_reasons, optimal_rules
from devctl.placement.placement import Placement
from devctl.placement.reason import Reason
from devctl.placement.strategy import Strategy


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Why a placement is as it is.

    Attributes:
        rules: what held for all of the model.
        reasons: for each run of parts that followed each other to a device, in the order of the model.
    """

    rules: tuple[str, ...]
    reasons: tuple[Reason, ...]


def explain(tree: ModuleTree, budgets: Budgets, placement: Placement) -> Explanation:
    """Why ``placement``, which ``budgets`` led to, is as it is; empty for a map that somebody wrote.

    Of a map that is another planner's own, not more is known than that.
    """
    if placement.strategy is None:
        return Explanation(rules=(), reasons=())
    if placement.strategy == Strategy.OPTIMAL:
        return Explanation(
            rules=optimal_rules(tree, budgets, placement), reasons=optimal_reasons(tree, budgets, placement)
        )
    if note := planned_otherwise(placement.notes):
        return Explanation(rules=(note,), reasons=())
    trail = placement.trail
    assert trail is not None, "the greedy strategies leave one"
    return Explanation(rules=greedy_rules(budgets, trail), reasons=greedy_reasons(tree, placement, trail))
