"""Layers in stages over the accelerators of hosts: the cut that leaves most room on the fullest of them, exactly.

For a given order of accelerators, a share of their budgets that no stage may exceed is tried by giving each as many
layers as it takes: since more layers never take less, nothing gets further. The least such share is found by halving,
and by asking at the end for less than what was found. Where the order is free, the furthest layer that a set of hosts
reaches is all that must be known of it, so that sets are gone through instead of orders.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from math import ceil, floor, prod

from devctl.placement.parallel.costs import Costs
from devctl.placement.parallel.records import RankUse, Stages, stage_of

MOST_HOSTS = 8
"""Hosts among which the order is looked for."""

_MOST_WORK = 1 << 17
"""Steps of one look through all sets of hosts and of their boards: a fraction of a second."""

_FINE = Fraction(1, 10**6)
"""Part of what was found by which halving may be off before less than that is asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """What a stage may be on: an accelerator, or a tensor-parallel group of them.

    Attributes:
        devices: accelerators of the host, like "cuda:0".
        budget: bytes that each may hold; of unequal ones, the least.
        overhead: bytes that libraries and communicators take there; of unequal ones, the most.
        uneven: the budget of each; empty where they are equal.
    """

    host: str
    devices: tuple[str, ...]
    budget: int
    overhead: int = 0
    uneven: tuple[int, ...] = ()

    @property
    def kind(self) -> tuple[int, int]:
        """What is equal of boards that may change places."""
        return self.budget, self.overhead

    @property
    def budgets(self) -> tuple[int, ...]:
        """What each of its accelerators may hold."""
        return self.uneven or (self.budget,) * len(self.devices)


Host = tuple[Board, ...]
Cut = tuple[tuple[Board, int, int], ...]
"""(board, its first layer, one past its last) in the order in which they run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The best cut.

    Attributes:
        fullest: the part of its budget that the fullest stage takes at any time; above 1 it does not fit.
        notes: what a reader should know of the search.
    """

    cut: Cut
    fullest: Fraction
    notes: tuple[str, ...] = ()


def find_stages(costs: Costs, hosts: Sequence[Host], *, ordered: bool = False) -> Found:
    """The cut whose fullest stage has most room, over as many boards as that allows.

    Args:
        hosts: each with at least one board, all with budgets above 0; no more boards than layers.
        ordered: take hosts and boards in the order in which they are given. Else it is free, where there are not too
            many, and the given one wins where none is better.
    """
    search = _Search(costs)
    order = tuple(board for host in hosts for board in host)
    limit, found = search.least(lambda limit: search.in_order(order, limit))
    notes: tuple[str, ...] = ()
    if not ordered and len({board.kind for board in order}) > 1:
        notes, free = _freedom(hosts)
        if free is not None:
            ordering = _Orders(search, hosts, free)
            limit, other = search.least(ordering.furthest, Limit(share=search.fullest(found), strict=True), found)
            if other is not found:
                found = other
                used = [board for board, _, _ in found]
                left = [board for board in order if board not in used]
                order = _in_places(used, left)
    cut = _spread(search, order, limit, found)
    return Found(cut=cut, fullest=search.fullest(cut), notes=notes)


def fits_within(costs: Costs, hosts: Sequence[Host]) -> bool:
    """Whether there is a cut of which every stage fits; the order is as free as in `find_stages`."""
    search, whole = _Search(costs), Limit(share=Fraction(1))
    order = tuple(board for host in hosts for board in host)
    if search.in_order(order, whole) is not None:
        return True
    free = _freedom(hosts)[1] if len({board.kind for board in order}) > 1 else None
    return free is not None and _Orders(search, hosts, free).furthest(whole) is not None


def boards_needed(costs: Costs, board: Board) -> int | None:
    """How many boards like ``board`` hold all; None where not even one for each layer does."""
    found = _Search(costs).in_order([board] * costs.count, Limit(share=Fraction(1)))
    return None if found is None else len(found)


def to_stages(ranks: Sequence[Costs], cut: Cut) -> Stages:
    """The record of a cut.

    Args:
        ranks: what layers take on each accelerator of a board.
    """
    stages = []
    for number, (board, first, end) in enumerate(cut):
        loads = [costs.load(first, end, board.overhead) for costs in ranks]
        uses = [RankUse.of(load, budget) for load, budget in zip(loads, board.budgets, strict=True)]
        stages.append(stage_of(number, board.host, board.devices, (first, end), uses))
    return Stages(container=ranks[0].layers.container, stages=tuple(stages))


def even_by_transformers(layers: int, stages: int) -> tuple[int, ...]:
    """Layers of each stage as transformers cuts: what is left over is on the last.

    As ``PipelineStage.layer_range_for_rank`` of ``transformers.distributed.pipeline_parallel`` has it, in 5.23.
    """
    each = layers // stages
    return (*[each] * (stages - 1), layers - each * (stages - 1))


def even_by_vllm(layers: int, stages: int) -> tuple[int, ...]:
    """Layers of each stage as vLLM cuts: what is left over is on those before the last, one each, from the back on.

    As ``get_pp_indices`` of ``vllm.distributed.utils`` has it, in 0.33: the last stage has the head, and the first the
    embedding, so that the first is given one more only where all others have.
    """
    found = [layers // stages] * stages
    for at in range(2, layers % stages + 2):
        found[-at] += 1
    return tuple(found)


def cut_by(order: Sequence[Board], counts: Sequence[int]) -> Cut:
    """The cut that gives each board so many layers, one after another."""
    found, at = [], 0
    for board, count in zip(order, counts, strict=True):
        found.append((board, at, at + count))
        at += count
    return tuple(found)


def groups_of(host: Host, size: int) -> Host:
    """The boards of a host in groups of ``size``, each as one; those that are left over take no part."""
    return tuple(
        Board(
            host=group[0].host,
            devices=tuple(device for board in group for device in board.devices),
            budget=min(board.budget for board in group),
            overhead=max(board.overhead for board in group),
            uneven=tuple(b.budget for b in group) if len({board.budget for board in group}) > 1 else (),
        )
        for group in (host[at : at + size] for at in range(0, len(host) - size + 1, size))
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """The share of its budget that a stage may take; with ``strict``, less than it."""

    share: Fraction
    strict: bool = False

    def of(self, board: Board) -> int:
        """Bytes that this leaves for layers."""
        whole = self.share * board.budget
        return (ceil(whole) - 1 if self.strict else floor(whole)) - board.overhead


@dataclass(slots=True)
class _Search:
    """What the search for one model has found out."""

    costs: Costs
    _ends: dict[tuple[int, int], int] = field(default_factory=dict)

    def fullest(self, cut: Cut) -> Fraction:
        """The part of its budget that the fullest stage takes."""
        return max(Fraction(self.costs.most(first, end) + board.overhead, board.budget) for board, first, end in cut)

    def end(self, first: int, nbytes: int) -> int:
        """One past the last layer that fits with those from ``first`` on; ``first`` where not one does."""
        known = self._ends.get((nbytes, first))
        if known is None:
            low, high = first, self.costs.count + 1
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (middle, high) if self.costs.most(first, middle) <= nbytes else (low, middle)
            known = self._ends[nbytes, first] = low
        return known

    def in_order(self, order: Sequence[Board], limit: Limit) -> Cut | None:
        """Each board with as many layers as it takes; those that take none are left out. None where layers remain."""
        at, cut = 0, []
        for board in order:
            end = self.end(at, limit.of(board))
            if end > at:
                cut.append((board, at, end))
                at = end
                if at == self.costs.count:
                    return tuple(cut)
        return None

    def least(
        self, reach: Callable[[Limit], Cut | None], least: Limit | None = None, known: Cut | None = None
    ) -> tuple[Limit, Cut]:
        """The least share for which ``reach`` finds a cut, and that.

        Args:
            least: where nothing is found for this, ``known`` is the best.
        """
        if known is None:
            top = Fraction(1)
            while (known := reach(Limit(share=top))) is None:
                self._ends.clear()
                top *= 2
        else:
            assert least is not None, "said with what is known"
            better = reach(least)
            if better is None:
                return Limit(share=least.share), known
            known = better
        low, found = Fraction(0), self.fullest(known)
        while True:
            self._ends.clear()
            if found - low <= _FINE * found:
                closer = reach(Limit(share=found, strict=True))
                if closer is None:
                    self._ends.clear()
                    return Limit(share=found), known
                known, found = closer, self.fullest(closer)
                continue
            middle = Fraction(round((low + found) / 2 * 2**40), 2**40)
            closer = reach(Limit(share=middle))
            if closer is None:
                low = middle
            else:
                known, found = closer, self.fullest(closer)


def _freedom(hosts: Sequence[Host]) -> tuple[tuple[str, ...], bool | None]:
    """A note on what is not searched, and whether boards of a host may change places; None where no host may either."""
    if len(hosts) > MOST_HOSTS:
        return (f"the order of {len(hosts)} hosts is as given: it is searched among {MOST_HOSTS} at most",), None
    ways = [prod(count + 1 for count in _kinds(host).values()) * len(_kinds(host)) for host in hosts]
    if sum(ways) * 2 ** (len(hosts) - 1) <= _MOST_WORK:
        return (), True
    return ("unequal boards of a host are in the order of their numbers: there are too many orders to search",), False


def _kinds(host: Host) -> dict[tuple[int, int], int]:
    found: dict[tuple[int, int], int] = {}
    for board in host:
        found[board.kind] = found.get(board.kind, 0) + 1
    return found


@dataclass(slots=True)
class _Orders:
    """All orders of hosts, and of the boards in each where ``free``."""

    search: _Search
    hosts: Sequence[Host]
    free: bool

    def furthest(self, limit: Limit) -> Cut | None:
        """The cut of any order that gets through all layers."""
        alike = [tuple(sorted(board.kind for board in host)) for host in self.hosts]
        reached: dict[int, tuple[int, Cut]] = {0: (0, ())}
        known: dict[tuple[int, int], tuple[int, Cut]] = {}
        for taken in range(1, 1 << len(self.hosts)):
            best: tuple[int, Cut] | None = None
            for number in _members(taken):
                # of equal hosts one that comes later is not taken without those before it
                if any(alike[other] == alike[number] and not taken >> other & 1 for other in range(number)):
                    continue
                before = reached.get(taken ^ (1 << number))
                if before is None:
                    continue
                at, cut = before
                if (number, at) not in known:
                    known[number, at] = self._through(self.hosts[number], at, limit)
                end, more = known[number, at]
                if best is None or end > best[0]:
                    best = end, (*cut, *more)
            if best is not None:
                if best[0] == self.search.costs.count:
                    return best[1]
                reached[taken] = best
        return None

    def _through(self, host: Host, first: int, limit: Limit) -> tuple[int, Cut]:
        """How far the boards of one host get in the best order, and how."""
        kinds = _kinds(host)
        if not self.free or len(kinds) == 1:
            return self._straight(host, first, limit)
        of_kind = {kind: [board for board in host if board.kind == kind] for kind in kinds}
        order = list(kinds)
        reached: dict[tuple[int, ...], tuple[int, Cut]] = {(0,) * len(order): (first, ())}
        furthest: tuple[int, Cut] = first, ()
        for counts in _counts([kinds[kind] for kind in order]):
            best = reached.get(counts)
            for place, count in enumerate(counts):
                if not count:
                    continue
                at, cut = reached[*counts[:place], count - 1, *counts[place + 1 :]]
                board = of_kind[order[place]][count - 1]
                end = self.search.end(at, limit.of(board)) if at < self.search.costs.count else at
                if best is None or end > best[0]:
                    best = end, (*cut, (board, at, end)) if end > at else cut
            assert best is not None
            reached[counts] = best
            furthest = max(furthest, best, key=lambda found: found[0])
        return furthest

    def _straight(self, host: Host, first: int, limit: Limit) -> tuple[int, Cut]:
        at, cut = first, []
        for board in host:
            end = self.search.end(at, limit.of(board)) if at < self.search.costs.count else at
            if end > at:
                cut.append((board, at, end))
                at = end
        return at, tuple(cut)


def _members(taken: int) -> Iterator[int]:
    number = 0
    while taken >> number:
        if taken >> number & 1:
            yield number
        number += 1


def _counts(most: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Every choice of 0 to so many of each, those with less of everything before those with more."""
    if not most:
        yield ()
        return
    for first in range(most[0] + 1):
        for rest in _counts(most[1:]):
            yield (first, *rest)


def _in_places(used: Sequence[Board], left: Sequence[Board]) -> tuple[Board, ...]:
    """An order that was found, with the boards that it left out behind those of their hosts."""
    found: list[Board] = []
    for number, board in enumerate(used):
        found.append(board)
        if number + 1 == len(used) or used[number + 1].host != board.host:
            found += [other for other in left if other.host == board.host]
    hosts = {board.host for board in found}
    return (*found, *(board for board in left if board.host not in hosts))


def _spread(search: _Search, order: Sequence[Board], limit: Limit, found: Cut) -> Cut:
    """A cut within ``limit`` over all boards in ``order``, or all that any layer fits on, or else those of ``found``.

    Each stage is made about as full as those behind it will be on average.
    """
    least = min(search.costs.most(at, at + 1) for at in range(search.costs.count))
    able = [board for board in order if limit.of(board) >= least]
    for boards in dict.fromkeys((tuple(order), tuple(able), tuple(board for board, _, _ in found))):
        if (cut := _over_all(search, boards, limit)) is not None:
            return cut
    return found


def _over_all(search: _Search, boards: Sequence[Board], limit: Limit) -> Cut | None:
    """A cut within ``limit`` that gives each of ``boards`` a layer at least; None where there is none."""
    count, costs = search.costs.count, search.costs
    if len(boards) > count:
        return None
    furthest = [0]
    for number, board in enumerate(boards):
        # no further than leaves a layer for each that comes
        furthest.append(min(search.end(furthest[-1], limit.of(board)), count - (len(boards) - 1 - number)))
    if furthest[-1] < count:
        return None
    # bits: the layers from which the boards behind get through all
    through = [0] * len(boards) + [1 << count]
    for number in range(len(boards) - 1, -1, -1):
        nbytes = limit.of(boards[number])
        for at in range(number, furthest[number] + 1):
            end = search.end(at, nbytes)
            if end > at and through[number + 1] >> (at + 1) & ((1 << (end - at)) - 1):
                through[number] |= 1 << at
    if not through[0] & 1:
        return None
    cut, at = [], 0
    room = [sum(board.budget for board in boards[number:]) for number in range(len(boards))]
    for number, board in enumerate(boards):
        share = Fraction(costs.most(at, count) + sum(b.overhead for b in boards[number:]), room[number])
        wanted = share * board.budget - board.overhead
        ends = [end for end in range(at + 1, search.end(at, limit.of(board)) + 1) if through[number + 1] >> end & 1]
        end = min(ends, key=lambda end: (abs(costs.most(at, end) - wanted), -end))
        cut.append((board, at, end))
        at = end
    return tuple(cut)
