"""In which order blocks that are packed together follow each other: with few moves between devices."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from devctl.placement.optimal.bounded import TooMuchWorkError, Work
from devctl.placement.optimal.packing import Packing


def moves(devices: Sequence[int]) -> int:
    """How often execution goes from one device to another."""
    return sum(1 for here, there in pairwise(devices) if here != there)


def arrange(kind_of: Sequence[int], packing: Packing) -> list[int]:
    """A device for each block, as many of each kind as ``packing`` says: runs are kept long, one block after another.

    The CPU's number follows those of the devices, and the disk's the CPU's.
    """
    left = [list(counts) for counts in (*packing.counts, packing.on_cpu)]
    number = [kind_of.count(kind) for kind in range(len(packing.on_cpu))]
    left.append([n - sum(counts[kind] for counts in left) for kind, n in enumerate(number)])
    found: list[int] = []
    for place, kind in enumerate(kind_of):
        if not found or not left[found[-1]][kind]:
            can = [device for device, counts in enumerate(left) if counts[kind]]
            device = max(can, key=lambda d: (_run(kind_of, place, left[d]), -d))
        else:
            device = found[-1]
        left[device][kind] -= 1
        found.append(device)
    return found


def _run(kind_of: Sequence[int], start: int, counts: Sequence[int]) -> int:
    """How many blocks from ``start`` on could be taken from ``counts``."""
    left = list(counts)
    for place in range(start, len(kind_of)):
        left[kind_of[place]] -= 1
        if left[kind_of[place]] < 0:
            return place - start
    return len(kind_of) - start


@dataclass(slots=True)
class FewestMoves:
    """Looks for the placement with the fewest moves, and of those the one whose devices' numbers come first.

    Args:
        held, moved: bytes of each block on an accelerator, and elsewhere.
        limits: bytes that each accelerator may hold.
        on_cpu, on_disk: bytes that have to be there, neither more nor less.
        largest_moved: no block with more bytes may be there.
        needs_first: the first accelerator has to hold something.
    """

    held: Sequence[int]
    moved: Sequence[int]
    limits: Sequence[int]
    on_cpu: int
    on_disk: int
    largest_moved: int
    needs_first: bool
    work: Work
    _failed: set[tuple[int, ...]] = field(default_factory=set)
    _rest: list[int] = field(init=False)

    def __post_init__(self) -> None:
        rest = [0]
        for size in reversed(self.moved):
            rest.append(rest[-1] + size)
        self._rest = rest[::-1]

    def find(self, known: Sequence[int]) -> tuple[list[int], int]:
        """The best placement, and a number of moves that none is below.

        Args:
            known: a placement that holds, which is the answer where the search ends before it is sure.
        """
        allowed = min(self._least(), moves(known))
        try:
            while (found := self._place(allowed)) is None:
                allowed += 1
        except TooMuchWorkError:
            return list(known), allowed
        return found, allowed

    def _least(self) -> int:
        """As many moves as the fewest devices that can hold the model need."""
        kept = self._rest[0] - self.on_cpu - self.on_disk
        devices, room = 0, 0
        for limit in sorted(self.limits, reverse=True):
            if room >= kept:
                break
            devices, room = devices + 1, room + limit
        return max(0, devices + (self.on_cpu > 0) + (self.on_disk > 0) - 1)

    def _place(self, allowed: int) -> list[int] | None:
        """The first placement with no more moves than ``allowed``."""
        self._failed.clear()
        state = [*self.limits, self.on_cpu, self.on_disk]
        found: list[int] = []
        stack = [0]  # for each block, the device to try next
        left = allowed
        while stack:
            place, device = len(found), stack[-1]
            if place == len(self.held):
                if not any(state[-2:]) and (not self.needs_first or 0 in found):
                    return found
                stack.pop()
                left = self._back(found, state, left)
                continue
            if device == 0 and not self._has_hope(place, found, state, left):
                stack.pop()
                left = self._back(found, state, left)
                continue
            if device == len(state):
                self._failed.add(self._key(place, found, state, left))
                stack.pop()
                left = self._back(found, state, left)
                continue
            stack[-1] += 1
            self.work.take(1)
            move = bool(found) and found[-1] != device
            if self._can(place, device, state) and move <= left:
                state[device] -= self._size(place, device)
                left -= move
                found.append(device)
                stack.append(0)
        return None

    def _back(self, found: list[int], state: list[int], left: int) -> int:
        """Take the last block away again; the moves that are left then."""
        if not found:
            return left
        device = found.pop()
        state[device] += self._size(len(found), device)
        return left + bool(found and found[-1] != device)

    def _size(self, place: int, device: int) -> int:
        return self.held[place] if device < len(self.limits) else self.moved[place]

    def _can(self, place: int, device: int, state: Sequence[int]) -> bool:
        off = device >= len(self.limits)
        return self._size(place, device) <= state[device] and not (off and self.moved[place] > self.largest_moved)

    def _has_hope(self, place: int, found: Sequence[int], state: Sequence[int], left: int) -> bool:
        to_keep = self._rest[place] - state[-2] - state[-1]
        last = found[-1] if found else -1
        ahead = sum(1 for device in (-2, -1) if state[device] and last != len(state) + device)  # runs yet to come
        if to_keep < 0 or ahead > left:
            return False
        room = 0 if not 0 <= last < len(self.limits) else state[last]
        others = sorted((s for d, s in enumerate(state[:-2]) if d != last), reverse=True)
        runs = left - ahead + (not found)
        return to_keep <= room + sum(others[:runs]) and self._key(place, found, state, left) not in self._failed

    def _key(self, place: int, found: Sequence[int], state: Sequence[int], left: int) -> tuple[int, ...]:
        empty = self.needs_first and state[0] == self.limits[0]
        return (place, found[-1] if found else -1, left, empty, *state)
