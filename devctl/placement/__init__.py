"""Where it goes: pure functions from a module tree and budgets to a placement. No I/O, no torch."""

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from functools import partial

from devctl.devices import Device
from devctl.models.tree import ModuleTree
from devctl.placement.budget import Budgets
from devctl.placement.greedy.walk import greedy_map
from devctl.placement.installed import Installed, as_installed
from devctl.placement.optimal.find import optimal_map
from devctl.placement.optimal.latency import Speeds
from devctl.placement.placement import Placement, make_placement
from devctl.placement.runtime import Runtime, less, with_runtime
from devctl.placement.strategy import OF_TRANSFORMERS, FoundMap, Strategy
from devctl.units import format_bytes

__all__ = ["Budgets", "Installed", "Placement", "Strategy", "place"]


_ROUNDS = 16
"""How often room is looked for: what is kept free doubles."""


def place(
    tree: ModuleTree,
    budgets: Budgets,
    strategy: Strategy,
    speeds: Speeds | None = None,
    runtime: Runtime | None = None,
    installed: Installed | None = None,
) -> Placement:
    """Place the model: the same tree, budgets and strategy give the same placement, always.

    A note says how many bytes transformers' own plan offloads that could stay where they are computed with.

    Args:
        speeds: with ``optimal``, place for the least time for a token instead of the most headroom.
        runtime: count KV cache and activations too; without it, the weights alone, as transformers does.
        installed: the planner to be held against where weights alone are placed by a strategy of transformers.
    """
    found = _place(tree, budgets, strategy, speeds, runtime, installed)
    optimal = strategy is Strategy.OPTIMAL
    if not (optimal or found.offloaded):
        return found
    other = _place(tree, budgets, Strategy.AUTO if optimal else Strategy.OPTIMAL, None, runtime, installed)
    needless = other.offloaded - found.offloaded if optimal else found.offloaded - other.offloaded
    if needless <= 0 or not (optimal or other.fits):
        return found
    note = (
        f"transformers' own plan, auto, would offload {format_bytes(needless)} more"
        if optimal
        else f"{format_bytes(needless)} are offloaded that need not be: --strategy optimal keeps them"
    )
    return replace(found, notes=(*found.notes, note))


def _place(
    tree: ModuleTree,
    budgets: Budgets,
    strategy: Strategy,
    speeds: Speeds | None,
    runtime: Runtime | None,
    installed: Installed | None,
) -> Placement:
    def find(tree: ModuleTree, budgets: Budgets) -> FoundMap:
        optimal = strategy is Strategy.OPTIMAL
        return optimal_map(tree, budgets, speeds) if optimal else greedy_map(tree, budgets, strategy)

    if runtime is None:
        found = find(tree, budgets)
        if installed is not None:
            found = as_installed(tree, found, budgets, strategy, installed)
        return make_placement(tree, found.device_map, budgets, strategy=strategy, notes=found.notes)
    counted = with_runtime(tree, runtime.footprint)
    if strategy is not Strategy.OPTIMAL:
        return _with_room(tree, counted, budgets, strategy, runtime, find)
    # what blocks need beside their state is counted for the worst case while searching: less of it may be better
    ways = (counted, with_runtime(tree, runtime.footprint, needs=False), tree)
    tries = [(way, find) for way in ways]
    if speeds is None:
        tries += [(way, partial(greedy_map, strategy=other)) for way in ways for other in OF_TRANSFORMERS]
    return min((_with_room(tree, way, budgets, strategy, runtime, finder) for way, finder in tries), key=_worth)


def _worth(placement: Placement) -> tuple[bool, int, int, Fraction, int]:
    return not placement.fits, placement.offloaded, placement.on_disk, placement.fullest, placement.crossings


def _with_room(
    tree: ModuleTree,
    counted: ModuleTree,
    budgets: Budgets,
    strategy: Strategy,
    runtime: Runtime,
    find: Callable[[ModuleTree, Budgets], FoundMap],
) -> Placement:
    """Place ``counted``, keeping room on devices for what they hold beside their blocks.

    That is what is offloaded and runs on the main device, its states and weights, and what blocks hand from one device
    to another. How much it is depends on the map, so that it is found by trying.
    """
    kept: dict[Device, int] = {}
    tried: list[Placement] = []
    for _ in range(_ROUNDS):
        found = find(counted, less(budgets, runtime, kept))
        placement = make_placement(
            tree, found.device_map, budgets, strategy=strategy, notes=found.notes, runtime=runtime
        )
        same = bool(tried) and tried[-1].device_map == placement.device_map
        tried.append(placement)
        over = {u.device: u.total - u.budget for u in placement.devices if u.budget and u.total > u.budget}
        if not over:
            break
        for device, nbytes in over.items():
            before = kept.get(device, 0)
            # a little more makes no difference until a whole block finds no room
            kept[device] = before + (max(nbytes, before) if same else nbytes)
    return min(tried, key=_worth)
