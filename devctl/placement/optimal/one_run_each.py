"""One run of blocks after another: every device holds blocks that follow each other, or none.

Exact for devices of few kinds (budgets), or few devices: how far the runs of a multiset of devices reach decides all,
so a state is how many of each kind are used, and its value the place that they reach.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from devctl.placement.optimal.bounded import Work

_Counts = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hole:
    """Blocks from ``start`` to before ``stop`` that are none of the accelerators': they are on ``device``."""

    start: int
    stop: int
    device: int


@dataclass(slots=True)
class Partition:
    """Ways to cut a row of blocks into one run a device.

    Args:
        sizes: bytes of the blocks, in order, each more than 0.
        limits: bytes that each device may hold now.
        needs_first: the first device has to hold something.
        holes: runs that are on other devices already, in order.
        work: steps that may be taken; `TooMuchWorkError` is raised beyond.
    """

    sizes: Sequence[int]
    limits: Sequence[int]
    work: Work
    needs_first: bool = False
    holes: Sequence[Hole] = ()
    _prefix: list[int] = field(init=False)
    _kinds: list[list[int]] = field(init=False)
    _reach: dict[_Counts, int] = field(init=False)
    _by_number: dict[int, list[tuple[_Counts, int]]] = field(init=False)

    def __post_init__(self) -> None:
        self._prefix = list(accumulate(self.sizes, initial=0))
        kinds: dict[tuple[int, bool], list[int]] = {}
        for device, limit in enumerate(self.limits):
            kinds.setdefault((limit, self.needs_first and device == 0), []).append(device)
        self._kinds = list(kinds.values())  # that of the first device is the first
        self._reach = self._cover()
        self._by_number = {}
        for state in self._reach.items():
            self._by_number.setdefault(sum(state[0]), []).append(state)

    def first(self) -> list[int] | None:
        """The device of each block: with the fewest devices, and of those ways the lowest numbers first.

        None where there is no way.
        """
        left = self._fewest()
        if left is None:
            return None
        found: list[int] = []
        unused = tuple(len(devices) for devices in self._kinds)
        current: int | None = None  # kind of the device in use
        device, room = -1, 0
        while len(found) < len(self.sizes):
            at = len(found)
            if (hole := self._hole_from(at)) is not None:
                found += [hole.device] * (hole.stop - hole.start)
                current = None
                continue
            stays = current is not None and self.sizes[at] <= room
            fresh = self._lowest_start(at, unused, left, device if stays else None)
            if fresh is not None:
                current = fresh
                device = self._kinds[current][len(self._kinds[current]) - unused[current]]
                unused = _less(unused, current)
                left -= 1
                room = self.limits[device]
            found.append(device)
            room -= self.sizes[at]
            self.work.take(1)
        return found

    def _fewest(self) -> int | None:
        good = [sum(n) for n, reached in self._reach.items() if reached == 0 and (n[0] or not self.needs_first)]
        return min(good, default=None)

    def _lowest_start(self, at: int, unused: _Counts, left: int, instead_of: int | None) -> int | None:
        """The kind of the lowest device that can begin a run at ``at`` so that the rest is covered by ``left`` devices.

        Only devices below ``instead_of`` are asked for, where that one can go on.
        """
        order = sorted(
            (self._kinds[kind][len(self._kinds[kind]) - count], kind) for kind, count in enumerate(unused) if count
        )
        for device, kind in order:
            if instead_of is not None and device > instead_of:
                return None
            end = self._run_from(at, self.limits[device])
            if end > at and self._can_end(end, _less(unused, kind), left - 1):
                return kind
        assert instead_of is not None, "the states say that there is a way"
        return None

    def _can_end(self, at: int, unused: _Counts, left: int) -> bool:
        """Whether the blocks from ``at`` on can be covered by ``left`` of the ``unused`` devices.

        Fewer than ``left`` can't, as no way has fewer devices in all.
        """
        at = self._past_holes(at)
        states = self._by_number.get(left, [])
        self.work.take(len(states))
        return any(
            reached <= at
            and all(c <= u for c, u in zip(counts, unused, strict=True))
            and (counts[0] == unused[0] or not self.needs_first)
            for counts, reached in states
        )

    def _cover(self) -> dict[_Counts, int]:
        """For each multiset of devices, the first block of the longest rest of the row that it covers."""
        total = tuple(len(devices) for devices in self._kinds)
        caps = [self.limits[devices[0]] for devices in self._kinds]
        wanted = self._prefix[-1] - sum(self._prefix[h.stop] - self._prefix[h.start] for h in self.holes)
        slack = sum(self.limits) - wanted
        found = {(0,) * len(total): self._before_holes(len(self.sizes))}
        layer = found
        while layer and slack >= 0:
            following: dict[_Counts, int] = {}
            for counts, reached in layer.items():
                self.work.take(len(caps) * (1 + len(caps) // 8))
                for kind, cap in enumerate(caps):
                    if counts[kind] == total[kind]:
                        continue
                    start = self._start_of(reached, cap, needed=self.needs_first and kind == 0)
                    if start is None:
                        continue
                    more = (*counts[:kind], counts[kind] + 1, *counts[kind + 1 :])
                    if start < following.get(more, reached + 1):
                        following[more] = start
            # what the devices used so far leave empty must not be more than all of them can in the end
            layer = {
                counts: reached
                for counts, reached in following.items()
                if sum(c * cap for c, cap in zip(counts, caps, strict=True)) - self._covered(reached) <= slack
            }
            found |= layer
            if all(reached == 0 and (counts[0] or not self.needs_first) for counts, reached in layer.items()):
                break
        return found

    def _start_of(self, reached: int, cap: int, *, needed: bool) -> int | None:
        """Where a device's run begins when the blocks from ``reached`` on are on others.

        One that is ``needed`` takes a block from them if there is no other for it; None if it can hold none of theirs.
        """
        start = self._run_to(reached, cap)
        if needed and start == reached:
            inside = {place for hole in self.holes for place in range(hole.start, hole.stop)}
            self.work.take(len(self.sizes) - reached)
            fits = (p for p in range(reached, len(self.sizes)) if self.sizes[p] <= cap and p not in inside)
            if (first := next(fits, None)) is None:
                return None
            start = self._run_to(first + 1, cap)
        return self._before_holes(start)

    def _covered(self, start: int) -> int:
        """Bytes from ``start`` on that are not in holes."""
        return (
            self._prefix[-1]
            - self._prefix[start]
            - sum(self._prefix[hole.stop] - self._prefix[hole.start] for hole in self.holes if hole.start >= start)
        )

    def _run_to(self, stop: int, cap: int) -> int:
        """The first block of the longest run that ends before ``stop``, within ``cap`` bytes and between holes."""
        barrier = max((hole.stop for hole in self.holes if hole.stop <= stop), default=0)
        return max(barrier, bisect_left(self._prefix, self._prefix[stop] - cap))

    def _run_from(self, start: int, cap: int) -> int:
        """The end of the longest run from ``start`` on."""
        barrier = min((hole.start for hole in self.holes if hole.start >= start), default=len(self.sizes))
        end = bisect_left(self._prefix, self._prefix[start] + cap + 1) - 1
        return min(barrier, end)

    def _hole_from(self, at: int) -> Hole | None:
        return next((hole for hole in self.holes if hole.start == at), None)

    def _past_holes(self, at: int) -> int:
        while (hole := self._hole_from(at)) is not None:
            at = hole.stop
        return at

    def _before_holes(self, at: int) -> int:
        while (hole := next((h for h in self.holes if h.stop == at), None)) is not None:
            at = hole.start
        return at


def _less(counts: _Counts, kind: int) -> _Counts:
    return (*counts[:kind], counts[kind] - 1, *counts[kind + 1 :])
