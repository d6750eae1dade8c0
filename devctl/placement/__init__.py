"""Where it goes: pure functions from a module tree and budgets to a placement. No I/O, no torch."""

from dataclasses import replace

from devctl.models.tree import ModuleTree
from devctl.placement.budget import Budgets
from devctl.placement.greedy import greedy_map
from devctl.placement.latency import Speeds
from devctl.placement.optimal import optimal_map
from devctl.placement.placement import Placement, make_placement
from devctl.placement.strategy import Strategy
from devctl.units import format_bytes

__all__ = ["Budgets", "Placement", "Strategy", "place"]


def place(tree: ModuleTree, budgets: Budgets, strategy: Strategy, speeds: Speeds | None = None) -> Placement:
    """Place the model: the same tree, budgets and strategy give the same placement, always.

    A note says how many bytes transformers' own plan offloads that could stay where they are computed with.

    Args:
        speeds: with ``optimal``, place for the least time for a token instead of the most headroom.
    """
    found = _place(tree, budgets, strategy, speeds)
    optimal = strategy is Strategy.OPTIMAL
    if not (optimal or found.offloaded):
        return found
    other = _place(tree, budgets, Strategy.AUTO if optimal else Strategy.OPTIMAL)
    needless = other.offloaded - found.offloaded if optimal else found.offloaded - other.offloaded
    if needless <= 0:
        return found
    note = (
        f"transformers' own plan, auto, would offload {format_bytes(needless)} more"
        if optimal
        else f"{format_bytes(needless)} are offloaded that need not be: --strategy optimal keeps them"
    )
    return replace(found, notes=(*found.notes, note))


def _place(tree: ModuleTree, budgets: Budgets, strategy: Strategy, speeds: Speeds | None = None) -> Placement:
    optimal = strategy is Strategy.OPTIMAL
    found = optimal_map(tree, budgets, speeds) if optimal else greedy_map(tree, budgets, strategy)
    return make_placement(tree, found.device_map, budgets, strategy=strategy, notes=found.notes)
