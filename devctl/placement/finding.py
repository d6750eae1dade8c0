"""A placement found: by each strategy, for the weights alone or with what runs beside them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction

from devctl.devices import Device
from devctl.models.tree import ModuleTree
from devctl.placement.budget import Budgets, accelerators_of
from devctl.placement.counted import Counted, as_it_is, counted, ways_to_load
from devctl.placement.device_map import FrozenMap
from devctl.placement.greedy.walk import greedy_map
from devctl.placement.installed import Installed, as_installed
from devctl.placement.optimal.find import optimal_map
from devctl.placement.optimal.latency import Speeds
from devctl.placement.placement import Placement, over_budget, told, weigh, worth
from devctl.placement.runtime import Runtime, brought_at_most, free_for_blocks, less_kept, main_of
from devctl.placement.strategy import OF_TRANSFORMERS, FoundMap, Strategy
from devctl.units import format_bytes

_ROUNDS = 16
"""How often room is looked for: what is kept free doubles."""

_HALVINGS = 6
"""How often what is kept free is brought nearer to what is needed."""

OwnMaps = dict[Strategy, FoundMap]
"""transformers' own maps, which are the same whatever the workload: kept by who asks again."""


def place(
    tree: ModuleTree,
    budgets: Budgets,
    strategy: Strategy,
    speeds: Speeds | None = None,
    runtime: Runtime | None = None,
    installed: Installed | None = None,
) -> Placement:
    """Place the model: the same tree, budgets and strategy give the same placement, always.

    By a strategy of transformers, the answer is its own map, of the weights alone. Only where that does not hold what
    runs beside them, the strategy is given less room, and no less than it must. A note says so, and how many bytes are
    offloaded that could stay where they are computed with.

    Args:
        speeds: with ``optimal``, place for the least time for a token instead of the most headroom.
        runtime: count KV cache and activations too; without it, the weights alone, as transformers does.
        installed: the planner that transformers' own map of ``strategy`` is held against.
    """
    search = _search(tree, budgets, strategy, runtime, installed)
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
    return replace(found, notes=(*found.notes, *_beside_others(search, found, strategy)))


def _search(
    tree: ModuleTree, budgets: Budgets, strategy: Strategy, runtime: Runtime | None, installed: Installed | None
) -> "_Search":
    """A search whose own map of ``strategy``, and of auto for ``optimal``, is held against the installed planner."""
    search = _Search(tree=tree, budgets=budgets, runtime=runtime)
    if installed is not None:
        of = Strategy.AUTO if strategy is Strategy.OPTIMAL else strategy
        found = search.own(of).found
        search.own_maps[of] = as_installed(tree, found, budgets, of, installed)
    return search


def _beside_others(search: "_Search", found: Placement, strategy: Strategy) -> Iterator[str]:
    """What to tell of a placement beside transformers' own map, and beside the best."""
    optimal = strategy is Strategy.OPTIMAL
    of = Strategy.AUTO if optimal else strategy
    own = search.own(of).placement
    if search.runtime is not None and not own.fits:
        yield f"transformers' own plan, {of}, does not hold this workload: {over_budget(own.devices)[0]}"
    elif optimal and own.offloaded > found.offloaded:
        yield f"transformers' own plan, {of}, would offload {format_bytes(own.offloaded - found.offloaded)} more"
    if not optimal and found.offloaded:
        # only one that offloads less is told of. Of weights alone that is soon known; with what runs beside them, the
        # greedy rounds that are left out for offloading too much do so as a rule alone
        less = found.offloaded - 1 if search.runtime is None and accelerators_of(search.budgets) else None
        best = search.best(Strategy.OPTIMAL, None, less).placement
        if best.fits and best.offloaded < found.offloaded:
            needless = format_bytes(found.offloaded - best.offloaded)
            yield f"{needless} are offloaded that need not be: --strategy optimal keeps them"


def place_within(
    tree: ModuleTree, budgets: Budgets, runtime: Runtime, offloaded: int | None, own: OwnMaps | None = None
) -> Placement:
    """The best placement that leaves no more than ``offloaded`` bytes off the accelerators, without a note.

    Where every one leaves more, it is one of them, and not the best: that is soon known, and which is best is not.

    Args:
        offloaded: None for any number of bytes.
        own: what was found for the tree and the budgets before, and is kept for the next time.
    """
    known = {} if own is None else own
    search = _Search(tree=tree, budgets=budgets, runtime=runtime, few_moves=False, own_maps=known)
    return search.best(Strategy.OPTIMAL, None, offloaded if accelerators_of(budgets) else None).placement


def place_whole(
    tree: ModuleTree,
    budgets: Budgets,
    strategy: Strategy,
    runtime: Runtime | None = None,
    installed: Installed | None = None,
) -> Placement:
    """The placement that `place` finds by ``strategy``, without a note, if it offloads nothing; else any that does."""
    search = _search(tree, budgets, strategy, runtime, installed)
    none_off = 0 if strategy is Strategy.OPTIMAL and accelerators_of(budgets) else None
    return search.best(strategy, None, none_off).placement


@dataclass(frozen=True, slots=True)
class _Way:
    """A map that was found, and what it comes to."""

    placement: Placement
    found: FoundMap


@dataclass(frozen=True, slots=True, kw_only=True)
class _By:
    """How a map is looked for.

    Attributes:
        speeds: with ``optimal``, for the least time for a token.
        few_moves: with ``optimal``, in an order with the fewest moves.
    """

    strategy: Strategy
    speeds: Speeds | None = None
    few_moves: bool = True

    def find(self, counted: Counted, budgets: Budgets, most_off: int | None = None) -> FoundMap:
        """A map of what is counted; of maps that offload more than ``most_off``, any."""
        if self.strategy is Strategy.OPTIMAL:
            return optimal_map(counted, budgets, self.speeds, most_off, few_moves=self.few_moves)
        return greedy_map(counted, budgets, self.strategy)


_DISTINCT = tuple(strategy for strategy in OF_TRANSFORMERS if strategy is not Strategy.BALANCED)
"""Without another name for ``auto``."""


@dataclass(slots=True, kw_only=True)
class _Search:
    """Placements of one model on one set of devices; what was found for one of them serves the others.

    Attributes:
        few_moves: whether ``optimal`` looks for the fewest moves too: among other ways, so that nothing fits without it
            that does not fit with it.
    """

    tree: ModuleTree
    budgets: Budgets
    runtime: Runtime | None
    few_moves: bool = True
    own_maps: OwnMaps = field(default_factory=dict)
    _weighed: dict[FrozenMap, Placement] = field(default_factory=dict)
    _roomy: dict[tuple[int, _By], _Way] = field(default_factory=dict)
    _ways: list[Counted] = field(default_factory=list)
    _free: list[tuple[Device, int]] = field(default_factory=list)

    def own(self, strategy: Strategy) -> _Way:
        """transformers' own map, of the weights alone, and what it comes to with all that is counted."""
        if (found := self.own_maps.get(strategy)) is None:
            found = self.own_maps[strategy] = _By(strategy=strategy).find(as_it_is(self.tree), self.budgets)
        return _Way(self._weigh(found.device_map), found)

    def best(self, strategy: Strategy, speeds: Speeds | None, most_off: int | None = None) -> _Way:
        """The best way by ``strategy``; of ways that all offload more than ``most_off``, one that is soon found."""
        if self.runtime is not None:
            self._count(self.runtime)
        if strategy is not Strategy.OPTIMAL:
            return self._greedy(strategy, None)
        by = _By(strategy=strategy, speeds=speeds, few_moves=self.few_moves or self.runtime is None)
        if speeds is not None:
            return min(self._exact(by, None), key=_worth)
        # what the quick ones fit spares the others most of their rounds; of equal ways the exact one counts
        quick = []
        for other in _DISTINCT:
            way = self._greedy(other, most_off)
            if self._runs(way):
                quick.append(way)
                most_off = self._no_more(most_off, way)
        tried = quick
        for each in (replace(by, few_moves=False), by) if self.runtime is not None and self.few_moves else (by,):
            for way in self._exact(each, most_off):
                tried.append(way)
                most_off = self._no_more(most_off, way)
        return min(reversed(tried), key=_worth)

    def _greedy(self, strategy: Strategy, most_off: int | None) -> _Way:
        """transformers' own map where it holds all that is counted; else the best for which it is given less room."""
        own = self.own(strategy)
        if self.runtime is None or own.placement.fits:
            return own
        by = _By(strategy=strategy)
        return min((self._with_room(at, by, most_off) for at in range(len(self._ways))), key=_worth)

    def _exact(self, by: _By, most_off: int | None) -> Iterator[_Way]:
        """The best of every way to count."""
        if self.runtime is None:
            found = by.find(as_it_is(self.tree), self.budgets, most_off)
            way = _Way(self._weigh(found.device_map), found)
            yield way
            if not way.placement.fits:
                yield from self._with_room_to_load(by, most_off)
            return
        for at in range(len(self._ways)):
            way = self._with_room(at, by, most_off)
            most_off = self._no_more(most_off, way)
            yield way

    def _with_room_to_load(self, by: _By, most_off: int | None) -> Iterator[_Way]:
        """Ways to place weights alone that keep room for what a device holds only while they are loaded."""
        for loaded, common in (*ways_to_load(self.tree), (as_it_is(self.tree), 0)):

            def left(kept: dict[Device, int], common: int = common) -> Budgets:
                devices = ((d, max(0, size - common - kept.get(d, 0))) for d, size in self.budgets.devices)
                return replace(self.budgets, devices=tuple(devices))

            way = self._rounds(loaded, left, by, most_off)
            most_off = self._no_more(most_off, way)
            yield way

    def _runs(self, way: _Way) -> bool:
        """Whether a greedy map can be run: no block and no tied weight is split, and there is room for what is brought.

        With what runs beside the weights, that room is counted among the activations.
        """
        device_map, placement = way.found.device_map, way.placement
        for block in self.tree.index.blocks:
            devices = {device_map.device_of(name) for name in block.names if self.tree.index.held[name]}
            if len(devices) > 1 or None in devices:
                return False
        if self.runtime is not None:
            return True
        main = main_of(device_map)
        brought = brought_at_most(self.tree, device_map)
        return placement.fits and all(
            use.budget is None or use.used + brought <= use.budget for use in placement.devices if use.device == main
        )

    def _no_more(self, most_off: int | None, way: _Way) -> int | None:
        """Bytes off the accelerators above which no way is worth a search, once ``way`` is known."""
        if not (way.placement.fits and accelerators_of(self.budgets)):
            return most_off
        return way.placement.offloaded if most_off is None else min(most_off, way.placement.offloaded)

    def _count(self, runtime: Runtime) -> None:
        """Count what runs beside the weights, in all ways that differ."""
        if self._ways:
            return
        self._free = free_for_blocks(self.budgets, runtime)
        # what blocks need beside their state is counted for the worst case: less of it may be better
        for way in (
            counted(self.tree, runtime.footprint),
            counted(self.tree, runtime.footprint, needs=False),
            as_it_is(self.tree, held=True),
        ):
            if all(way.extra != other.extra for other in self._ways):
                self._ways.append(way)

    def _with_room(self, at: int, by: _By, most_off: int | None = None) -> _Way:
        """The best of the rounds of one of the ways to count; where none is left out, it is kept."""
        if (known := self._roomy.get((at, by))) is None:
            known = self._rounds(self._ways[at], lambda kept: less_kept(self.budgets, self._free, kept), by, most_off)
            if most_off is None:
                self._roomy[at, by] = known
        return known

    def _rounds(
        self,
        counted: Counted,
        left_with: Callable[[dict[Device, int]], Budgets],
        by: _By,
        most_off: int | None = None,
    ) -> _Way:
        """Place what is counted, keeping room on devices for what they hold beside their blocks.

        That is what is offloaded and runs on the main device, its states and weights, what blocks hand from one device
        to another, and what is there for a while as weights are loaded. How much it is depends on the map, so that it
        is found by trying.

        Args:
            left_with: what each device may hold, once so many bytes are kept.
            most_off: what offloads more bytes is of no use: each round leaves less room, and so offloads no less.
        """
        kept: dict[Device, int] = {}
        too_little: dict[Device, int] | None = None
        tried: list[_Way] = []
        known_found: dict[Budgets, _Way] = {}

        def way_with(kept: dict[Device, int]) -> _Way:
            left = left_with(kept)
            if (way := known_found.get(left)) is None:
                found = by.find(counted, left, most_off)
                way = known_found[left] = _Way(self._weigh(found.device_map), found)
            return way

        for _ in range(_ROUNDS):
            way = way_with(kept)
            same = bool(tried) and tried[-1].placement.device_map == way.placement.device_map
            tried.append(way)
            over = {u.device: u.most - u.budget for u in way.placement.devices if u.budget and u.most > u.budget}
            if not over:
                break
            if most_off is not None and self._least_off(way, by.strategy) > most_off:
                break
            too_little = dict(kept)
            for device, nbytes in over.items():
                before = kept.get(device, 0)
                # a little more makes no difference until a whole block finds no room
                kept[device] = before + (max(nbytes, before) if same else nbytes)
        if tried[-1].placement.fits and too_little is not None and self.few_moves and by.strategy in OF_TRANSFORMERS:
            tried += self._no_less_than_needed(way_with, too_little, kept)
        return min(tried, key=_worth)

    def _no_less_than_needed(
        self, way_with: Callable[[dict[Device, int]], _Way], too_little: dict[Device, int], enough: dict[Device, int]
    ) -> Iterator[_Way]:
        """Ways that keep less than ``enough`` and more than ``too_little``, ever nearer to what is needed."""
        for _ in range(_HALVINGS):
            middle = {device: (too_little.get(device, 0) + kept) // 2 for device, kept in enough.items()}
            way = way_with(middle)
            if way.placement.fits:
                enough = middle
            else:
                too_little = middle
            yield way

    def _least_off(self, way: _Way, strategy: Strategy) -> int:
        """Bytes off the accelerators that no later round is below; of a greedy strategy, as a rule."""
        if strategy is Strategy.OPTIMAL:
            return way.found.least_off
        return way.placement.offloaded if accelerators_of(self.budgets) else 0

    def _weigh(self, device_map: FrozenMap) -> Placement:
        if device_map not in self._weighed:
            self._weighed[device_map] = weigh(self.tree, device_map, self.budgets, self.runtime)
        return self._weighed[device_map]


def _worth(way: _Way) -> tuple[bool, int, int, Fraction, int]:
    return worth(way.placement)
