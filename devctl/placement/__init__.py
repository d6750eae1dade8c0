"""Where it goes: pure functions from a module tree and budgets to a placement. No I/O, no torch."""

from devctl.models.tree import ModuleTree
from devctl.placement.budget import Budgets
from devctl.placement.greedy import greedy_map
from devctl.placement.optimal import optimal_map
from devctl.placement.placement import Placement, make_placement
from devctl.placement.strategy import Strategy

__all__ = ["Budgets", "Placement", "Strategy", "place"]


def place(tree: ModuleTree, budgets: Budgets, strategy: Strategy) -> Placement:
    """Place the model: the same tree, budgets and strategy give the same placement, always."""
    found = optimal_map(tree, budgets) if strategy is Strategy.OPTIMAL else greedy_map(tree, budgets, strategy)
    return make_placement(tree, found.device_map, budgets, strategy=strategy, notes=found.notes)
