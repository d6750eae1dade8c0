"""Where it goes: pure functions from a module tree and budgets to a placement. No I/O, no torch."""

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

from devctl.devices import Device
from devctl.models.tree import ModuleTree
from devctl.placement.budget import Budgets
from devctl.placement.greedy import greedy_map
from devctl.placement.latency import Speeds
from devctl.placement.optimal import optimal_map
from devctl.placement.placement import Placement, make_placement
from devctl.placement.strategy import FoundMap, Strategy
from devctl.placement.workload import Runtime, less, main_of, with_runtime
from devctl.units import format_bytes

__all__ = ["Budgets", "Placement", "Strategy", "place"]


_ROUNDS = 8


def place(
    tree: ModuleTree,
    budgets: Budgets,
    strategy: Strategy,
    speeds: Speeds | None = None,
    runtime: Runtime | None = None,
) -> Placement:
    """Place the model: the same tree, budgets and strategy give the same placement, always.

    A note says how many bytes transformers' own plan offloads that could stay where they are computed with.

    Args:
        speeds: with ``optimal``, place for the least time for a token instead of the most headroom.
        runtime: count KV cache and activations too; without it, the weights alone, as transformers does.
    """
    found = _place(tree, budgets, strategy, speeds, runtime)
    optimal = strategy is Strategy.OPTIMAL
    if not (optimal or found.offloaded):
        return found
    other = _place(tree, budgets, Strategy.AUTO if optimal else Strategy.OPTIMAL, None, runtime)
    needless = other.offloaded - found.offloaded if optimal else found.offloaded - other.offloaded
    if needless <= 0:
        return found
    note = (
        f"transformers' own plan, auto, would offload {format_bytes(needless)} more"
        if optimal
        else f"{format_bytes(needless)} are offloaded that need not be: --strategy optimal keeps them"
    )
    return replace(found, notes=(*found.notes, note))


def _place(
    tree: ModuleTree, budgets: Budgets, strategy: Strategy, speeds: Speeds | None, runtime: Runtime | None
) -> Placement:
    def find(tree: ModuleTree, budgets: Budgets) -> FoundMap:
        optimal = strategy is Strategy.OPTIMAL
        return optimal_map(tree, budgets, speeds) if optimal else greedy_map(tree, budgets, strategy)

    if runtime is None:
        found = find(tree, budgets)
        return make_placement(tree, found.device_map, budgets, strategy=strategy, notes=found.notes)
    placed = _with_room_on_main(tree, with_runtime(tree, runtime.footprint), budgets, strategy, runtime, find)
    if strategy is not Strategy.OPTIMAL:
        return placed
    # what blocks need beside their state is counted for the worst case while searching: less of it may be better
    others = (
        _with_room_on_main(tree, less_certain, budgets, strategy, runtime, find)
        for less_certain in (with_runtime(tree, runtime.footprint, needs=False), tree)
    )
    return min((placed, *others), key=_worth)


def _worth(placement: Placement) -> tuple[bool, int, int, Fraction, int]:
    return not placement.fits, placement.offloaded, placement.on_disk, placement.fullest, placement.crossings


def _with_room_on_main(
    tree: ModuleTree,
    counted: ModuleTree,
    budgets: Budgets,
    strategy: Strategy,
    runtime: Runtime,
    find: Callable[[ModuleTree, Budgets], FoundMap],
) -> Placement:
    """Place ``counted``, keeping room on the main device for what is offloaded, which it runs: states and weights."""
    kept: dict[Device, int] = {}
    for _ in range(_ROUNDS):
        found = find(counted, less(budgets, runtime, kept))
        placement = make_placement(
            tree, found.device_map, budgets, strategy=strategy, notes=found.notes, runtime=runtime
        )
        if not placement.offloaded:
            break
        main = main_of(found.device_map)
        over = max((u.total - u.budget for u in placement.devices if u.device == main and u.budget), default=0)
        if over <= 0:
            break
        kept[main] = kept.get(main, 0) + over
    return placement
