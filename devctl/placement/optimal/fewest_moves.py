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


_Key = tuple[int, ...]
"""A block, the device before it, the moves left, whether the first device is empty though needed, and all room left."""


@dataclass(slots=True)
class FewestMoves:
    """Looks for the placement with the fewest moves, and of those the one whose devices' numbers come first.

    Args:
        held, moved: bytes of each block on an accelerator, and elsewhere.
        brought: bytes of each at once on the accelerator that runs it from elsewhere.
        limits: bytes that each accelerator may hold.
        on_cpu, on_disk: bytes that have to be there, neither more nor less.
        most_brought: no block of which more is brought may be there.
        needs_first: the first accelerator has to hold something.
    """

    held: Sequence[int]
    moved: Sequence[int]
    brought: Sequence[int]
    limits: Sequence[int]
    on_cpu: int
    on_disk: int
    most_brought: int
    needs_first: bool
    work: Work
    _failed: set[_Key] = field(default_factory=set)
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
        allowed = min(self.least(), moves(known))
        try:
            while (found := self._place(allowed)) is None:
                allowed += 1
        except TooMuchWorkError:
            return list(known), allowed
        return found, allowed

    def least(self) -> int:
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
        failed, count = self._failed, len(self.held)
        state = [*self.limits, self.on_cpu, self.on_disk]
        found: list[int] = []
        tries = [0]  # for each block, the device to try next
        keys: list[_Key] = []  # what each was tried in
        left, last = allowed, -1
        while tries:
            place, device, chosen = len(found), tries[-1], -1
            if device == 0:
                empty = self.needs_first and state[0] == self.limits[0]
                keys.append((place, last, left, empty, *state))
            if place == count:
                if not any(state[-2:]) and (not self.needs_first or 0 in found):
                    return found
            elif device or (self._has_room(place, last, state, left) and keys[-1] not in failed):
                chosen = self._next(place, device, state, last, free=left > 0 or not found)
                if chosen < 0:
                    failed.add(keys[-1])
            if chosen >= 0:
                tries[-1] = chosen + 1
                tries.append(0)
                state[chosen] -= self._sizes(chosen)[place]
                left -= bool(found) and chosen != last
                last = chosen
                found.append(chosen)
                continue
            tries.pop()
            keys.pop()
            if found:
                device = found.pop()
                state[device] += self._sizes(device)[len(found)]
                last = found[-1] if found else -1
                left += bool(found) and device != last
        return None

    def _sizes(self, device: int) -> Sequence[int]:
        return self.held if device < len(self.limits) else self.moved

    def _next(self, place: int, device: int, state: Sequence[int], last: int, *, free: bool) -> int:
        """The first device from ``device`` on that can have a block, or -1; a step for each that is looked at.

        Args:
            free: whether it may be another than the ``last``.
        """
        gpus, size, moved = len(self.limits), len(state), self.moved[place]
        end = size if self.brought[place] <= self.most_brought else gpus
        chosen = -1
        if free:
            held = self.held[place]
            chosen = next((d for d in range(device, gpus) if held <= state[d]), -1)
            if chosen < 0:
                chosen = next((d for d in range(max(device, gpus), end) if moved <= state[d]), -1)
        elif device <= last < end and (self.held[place] if last < gpus else moved) <= state[last]:
            chosen = last
        self.work.take(size - device if chosen < 0 else chosen + 1 - device)
        return chosen

    def _has_room(self, place: int, last: int, state: Sequence[int], left: int) -> bool:
        """Whether the blocks from ``place`` on could be placed if they were as fine as dust."""
        gpus = len(self.limits)
        to_keep = self._rest[place] - state[gpus] - state[gpus + 1]
        ahead = (state[gpus] > 0 and last != gpus) + (state[gpus + 1] > 0 and last != gpus + 1)  # runs yet to come
        if to_keep < 0 or ahead > left:
            return False
        others = [*state[:gpus]]
        room = 0
        if 0 <= last < gpus:
            room, others[last] = others[last], 0
        if to_keep <= room:
            return True
        others.sort(reverse=True)
        return to_keep <= room + sum(others[: left - ahead + (last < 0)])
