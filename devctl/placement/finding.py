"""A placement found: by each strategy, for the weights alone or with what runs beside them."""

from dataclasses import dataclass, field, replace
from fractions import Fraction

from devctl.devices import Device
from devctl.models.tree import ModuleTree
from devctl.placement.budget import Budgets, accelerators_of
from devctl.placement.counted import Counted, as_it_is, counted
from devctl.placement.device_map import FrozenMap
from devctl.placement.greedy.walk import greedy_map
from devctl.placement.installed import Installed, as_installed
from devctl.placement.optimal.find import optimal_map
from devctl.placement.optimal.latency import Speeds
from devctl.placement.placement import Placement, told, weigh, worth
from devctl.placement.runtime import Runtime, free_for_blocks, less_kept
from devctl.placement.strategy import OF_TRANSFORMERS, FoundMap, Strategy
from devctl.units import format_bytes

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
    search = _Search(tree=tree, budgets=budgets, runtime=runtime, installed=installed)
    optimal = strategy is Strategy.OPTIMAL
    best = search.best(strategy, speeds)
    found = told(
        best.placement,
        tree,
        budgets,
        strategy=strategy,
        notes=best.found.notes,
        trail=None if optimal else best.found.trail,
    )
    if not (optimal or found.offloaded):
        return found
    other = search.best(Strategy.AUTO if optimal else Strategy.OPTIMAL, None).placement
    needless = other.offloaded - found.offloaded if optimal else found.offloaded - other.offloaded
    if needless <= 0 or not (optimal or other.fits):
        return found
    note = (
        f"transformers' own plan, auto, would offload {format_bytes(needless)} more"
        if optimal
        else f"{format_bytes(needless)} are offloaded that need not be: --strategy optimal keeps them"
    )
    return replace(found, notes=(*found.notes, note))


def place_within(tree: ModuleTree, budgets: Budgets, runtime: Runtime, offloaded: int | None) -> Placement:
    """The best placement that leaves no more than ``offloaded`` bytes off the accelerators, without a note.

    Where every one leaves more, it is one of them, and not the best: that is soon known, and which is best is not.

    Args:
        offloaded: None for any number of bytes.
    """
    search = _Search(tree=tree, budgets=budgets, runtime=runtime, installed=None)
    return search.best(Strategy.OPTIMAL, None, offloaded if accelerators_of(budgets) else None).placement


def place_whole(
    tree: ModuleTree,
    budgets: Budgets,
    strategy: Strategy,
    runtime: Runtime | None = None,
    installed: Installed | None = None,
) -> Placement:
    """The placement that `place` finds by ``strategy``, without a note, if it offloads nothing; else any that does."""
    search = _Search(tree=tree, budgets=budgets, runtime=runtime, installed=installed)
    none_off = 0 if strategy is Strategy.OPTIMAL and accelerators_of(budgets) else None
    return search.best(strategy, None, none_off).placement


@dataclass(frozen=True, slots=True)
class _Way:
    """A map that was found, and what it comes to."""

    placement: Placement
    found: FoundMap


@dataclass(slots=True, kw_only=True)
class _Search:
    """Placements of one model on one set of devices; what was found for one of them serves the others."""

    tree: ModuleTree
    budgets: Budgets
    runtime: Runtime | None
    installed: Installed | None
    _weighed: dict[FrozenMap, Placement] = field(default_factory=dict)
    _roomy: dict[tuple[int, Strategy], _Way] = field(default_factory=dict)
    _ways: list[Counted] = field(default_factory=list)
    _free: list[tuple[Device, int]] = field(default_factory=list)

    def best(self, strategy: Strategy, speeds: Speeds | None, most_off: int | None = None) -> _Way:
        """The best way by ``strategy``; of ways that all offload more than ``most_off``, one that is soon found."""
        if self.runtime is None:
            found = _find(as_it_is(self.tree), self.budgets, strategy, speeds, most_off)
            if self.installed is not None:
                found = as_installed(self.tree, found, self.budgets, strategy, self.installed)
            return _Way(self._weigh(found.device_map), found)
        self._count(self.runtime, all_ways=strategy is Strategy.OPTIMAL)
        if strategy is not Strategy.OPTIMAL:
            return self._with_room(0, strategy)
        ways = range(len(self._ways))
        if speeds is not None:
            return min((self._with_room(way, strategy, speeds) for way in ways), key=_worth)
        # the quick ones first: what they fit spares the others most of their rounds; of equal ways the exact one counts
        quick = min((self._with_room(way, other) for way in ways for other in _DISTINCT), key=_worth)
        exact = []
        most = self._no_more(most_off, quick)
        for at in ways:
            if (way := self._rounds(at, strategy, most_off=most)) is not None:
                exact.append(way)
                most = self._no_more(most, way)
        return min([*exact, quick], key=_worth)

    def _no_more(self, most_off: int | None, way: _Way) -> int | None:
        """Bytes off the accelerators above which no way is worth a search, once ``way`` is known."""
        if not (way.placement.fits and accelerators_of(self.budgets)):
            return most_off
        return way.placement.offloaded if most_off is None else min(most_off, way.placement.offloaded)

    def _count(self, runtime: Runtime, *, all_ways: bool) -> None:
        """Count what runs beside the weights, in one way or in all that differ."""
        if not self._ways:
            self._ways.append(counted(self.tree, runtime.footprint))
            self._free = free_for_blocks(self.budgets, runtime)
        if all_ways and len(self._ways) == 1:
            # what blocks need beside their state is counted for the worst case: less of it may be better
            for way in (counted(self.tree, runtime.footprint, needs=False), as_it_is(self.tree)):
                if all(way.extra != other.extra for other in self._ways):
                    self._ways.append(way)

    def _with_room(self, at: int, strategy: Strategy, speeds: Speeds | None = None) -> _Way:
        """The best of the rounds of one of the ways to count; those of a greedy strategy are kept."""
        if speeds is None and (known := self._roomy.get((at, strategy))) is not None:
            return known
        best = self._rounds(at, strategy, speeds)
        assert best is not None, "there is a first round"
        if speeds is None:
            self._roomy[at, strategy] = best
        return best

    def _rounds(
        self, at: int, strategy: Strategy, speeds: Speeds | None = None, most_off: int | None = None
    ) -> _Way | None:
        """Place one of the ways to count, keeping room on devices for what they hold beside their blocks.

        That is what is offloaded and runs on the main device, its states and weights, and what blocks hand from one
        device to another. How much it is depends on the map, so that it is found by trying.

        Args:
            most_off: what is known to fit offloads so many bytes.

        Returns:
            None where it is not better than that: each round leaves less room, and so offloads no less.
        """
        kept: dict[Device, int] = {}
        tried: list[_Way] = []
        known_found: dict[Budgets, _Way] = {}
        for _ in range(_ROUNDS):
            left = less_kept(self.budgets, self._free, kept)
            way = known_found.get(left)
            if way is None:
                found = _find(self._ways[at], left, strategy, speeds, most_off)
                way = known_found[left] = _Way(self._weigh(found.device_map), found)
            same = bool(tried) and tried[-1].placement.device_map == way.placement.device_map
            tried.append(way)
            over = {u.device: u.total - u.budget for u in way.placement.devices if u.budget and u.total > u.budget}
            if not over:
                break
            if most_off is not None and way.found.least_off > most_off:
                return None
            for device, nbytes in over.items():
                before = kept.get(device, 0)
                # a little more makes no difference until a whole block finds no room
                kept[device] = before + (max(nbytes, before) if same else nbytes)
        return min(tried, key=_worth)

    def _weigh(self, device_map: FrozenMap) -> Placement:
        if device_map not in self._weighed:
            self._weighed[device_map] = weigh(self.tree, device_map, self.budgets, self.runtime)
        return self._weighed[device_map]


def _worth(way: _Way) -> tuple[bool, int, int, Fraction, int]:
    return worth(way.placement)


_DISTINCT = tuple(strategy for strategy in OF_TRANSFORMERS if strategy is not Strategy.BALANCED)
"""Without another name for ``auto``."""


def _find(
    counted: Counted, budgets: Budgets, strategy: Strategy, speeds: Speeds | None, most_off: int | None = None
) -> FoundMap:
    if strategy is Strategy.OPTIMAL:
        return optimal_map(counted, budgets, speeds, most_off)
    return greedy_map(counted, budgets, strategy)
