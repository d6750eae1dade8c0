"""What torch's caching allocator of an accelerator reserves for storages that are born and die.

The rules are those of ``CUDACachingAllocator.cpp`` with its default settings, whose sizes are in
``c10/core/AllocatorConfig.h``; XPU's allocator has the same. A request is rounded up to 512 bytes. One of at most 1 MiB
is cut from a segment of 2 MiB, a larger one of less than 10 MiB from one of 20 MiB, and any other has a segment of its
own, rounded up to 2 MiB. The smallest free block that is large enough is used first, and split where 512 bytes (among
small ones) or more than 1 MiB is left. Neighbours that are free become one. Segments that are free as a whole go back
to the driver when memory runs out, and only then. What it counts as allocated are blocks, with what was not split off.

Fed with every request that models made on an H100 (torch 2.11), it reserves what was reserved there, to the byte.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

ROUND = 512
SMALL, _SMALL_SEGMENT = 1 << 20, 2 << 20
_LARGE, _LARGE_SEGMENT = 10 << 20, 20 << 20
_ROUND_SEGMENT = 2 << 20


Request = tuple[int, int]
"""A storage and the bytes that it is to be given; 0 takes back what it has."""


def segment_size(size: int, *, is_small: bool) -> int:
    """Bytes of the segment from which ``size`` bytes are cut, where no free block has them."""
    if is_small:
        return _SMALL_SEGMENT
    return _LARGE_SEGMENT if size < _LARGE else -(-size // _ROUND_SEGMENT) * _ROUND_SEGMENT


class NoRoomError(Exception):
    """A request does not fit within the limit, whatever is given back."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """Segments in which weights are, which stay as long as they do.

    Attributes:
        nbytes: bytes of the weights.
        given: bytes of the blocks that they have.
        reserved: bytes of the segments.
        holes: bytes of the free blocks among them, whether each is for small requests, and whether it is a segment that
            is free as a whole.
    """

    nbytes: int = 0
    given: int = 0
    reserved: int = 0
    holes: tuple[tuple[int, bool, bool], ...] = ()


NOTHING = Loaded()


def load(weights: Sequence[int], *, at_once: int = 0) -> Loaded:
    """What is left of a device's segments when weights were put there one after another, of so many bytes each.

    Args:
        at_once: bytes that transformers asks for and gives back first, so that there is one segment for all.
    """
    allocator = CachingAllocator()
    if at_once:
        allocator.allocate(-1, at_once)
        allocator.free(-1)
    for name, nbytes in enumerate(weights):
        if nbytes:
            allocator.allocate(name, nbytes)
    return Loaded(sum(weights), allocator.given, allocator.reserved, allocator.holes())


def least_reserved(requests: Sequence[Request], loaded: Loaded = NOTHING) -> int:
    """The fewest bytes within which all ``requests`` are met one after another, or up to 2 MiB or 0.2 % more.

    With more at hand the allocator may well reserve more, as it gives nothing back until it has to.
    """
    return least_within(requests, most_reserved(requests, loaded=loaded), loaded)


def least_within(requests: Sequence[Request], high: int, loaded: Loaded) -> int:
    """The same, where ``high`` bytes are enough."""
    low = max(loaded.reserved, loaded.given + most_allocated(requests))
    return fewest(low, high, lambda limit: replay(requests, limit, loaded).most_reserved)


def fewest(low: int, high: int, needed: Callable[[int], int]) -> int:
    """The fewest bytes that are enough, or up to 2 MiB or 0.2 % more; ``high`` bytes are, and fewer than ``low`` not.

    Args:
        needed: how much of a limit is needed; raises `NoRoomError` where the limit is too low.
    """
    while high - low > max(_ROUND_SEGMENT, high // 500):
        limit = (low + high) // 2
        try:
            high = needed(limit)
        except NoRoomError:
            low = limit
    return high


def most_reserved(requests: Sequence[Request], limit: int | None = None, loaded: Loaded = NOTHING) -> int:
    """The most bytes that are reserved at one time while the ``requests`` are met.

    Raises:
        NoRoomError: they can't be met within ``limit`` bytes.
    """
    return replay(requests, limit, loaded).most_reserved


def most_given(requests: Sequence[Request], loaded: Loaded = NOTHING) -> int:
    """The most bytes of blocks that are given out at one time: torch's ``max_memory_allocated``."""
    return replay(requests, None, loaded).most_given


def replay(requests: Sequence[Request], limit: int | None = None, loaded: Loaded = NOTHING) -> CachingAllocator:
    """The allocator after it met the ``requests``.

    Raises:
        NoRoomError: they can't be met within ``limit`` bytes.
    """
    allocator = CachingAllocator(limit, loaded)
    meet(allocator, requests)
    return allocator


class Allocator(Protocol):
    """Gives out memory, and takes it back."""

    def allocate(self, name: int, nbytes: int) -> None:
        """Give ``nbytes`` to the storage ``name``."""

    def free(self, name: int) -> None:
        """Take back what it has."""


def meet(allocator: Allocator, requests: Iterable[Request]) -> None:
    """Let ``allocator`` meet all ``requests``, one after another.

    Raises:
        NoRoomError: it can't.
    """
    for name, nbytes in requests:
        if nbytes:
            allocator.allocate(name, nbytes)
        else:
            allocator.free(name)


def most_allocated(requests: Sequence[Request]) -> int:
    """The most bytes that were asked for and not taken back yet."""
    alive: dict[int, int] = {}
    now = most = 0
    for name, nbytes in requests:
        now += nbytes - alive.pop(name, 0)
        if nbytes:
            alive[name] = nbytes
        most = max(most, now)
    return most


@dataclass(slots=True, eq=False)
class _Block:
    """A part of a segment.

    Attributes:
        at: its address, which no other block has.
        before: the block on its left in the same segment.
        after: that on its right.
    """

    at: int
    nbytes: int
    is_small: bool
    is_free: bool = False
    before: _Block | None = None
    after: _Block | None = None

    @property
    def key(self) -> tuple[int, int]:
        return self.nbytes, self.at

    @property
    def is_whole(self) -> bool:
        """Whether it is all of its segment."""
        return self.before is None and self.after is None


class CachingAllocator:
    """Gives out memory as torch does, within ``limit`` bytes; None is without an end.

    Attributes:
        reserved: bytes of the segments that it has.
        most_reserved: the most of them so far.
        given: bytes of the blocks that storages have.
        most_given: the most of them so far.
    """

    def __init__(self, limit: int | None = None, loaded: Loaded = NOTHING) -> None:
        self.reserved = self.most_reserved = loaded.reserved
        self.given = self.most_given = loaded.given
        self._limit = limit
        self._address = 0
        self._given: dict[int, _Block] = {}
        self._free: dict[bool, list[tuple[int, int]]] = {True: [], False: []}
        self._at: dict[int, _Block] = {}
        for nbytes, is_small, is_whole in loaded.holes:
            hole = _Block(self._address, nbytes, is_small)
            self._address += nbytes
            if not is_whole:  # beside it is a weight, which stays, and so does the segment
                hole.after = _Block(self._address, 0, is_small, before=hole)
            self._put(hole)

    def holes(self) -> tuple[tuple[int, bool, bool], ...]:
        """The free blocks, as `Loaded` has them."""
        blocks = (self._at[at] for free in self._free.values() for _, at in free)
        return tuple((block.nbytes, block.is_small, block.is_whole) for block in blocks)

    def allocate(self, name: int, nbytes: int) -> None:
        """Give ``nbytes`` to the storage ``name``.

        Raises:
            NoRoomError: there is no room, and none after all that is free was given back.
        """
        size = -(-nbytes // ROUND) * ROUND
        is_small = size <= SMALL
        block = self._best(size, is_small) or self._segment(size, is_small)
        rest = block.nbytes - size
        if rest >= ROUND if is_small else rest > SMALL:
            after = _Block(block.at + size, rest, is_small, before=block, after=block.after)
            if block.after is not None:
                block.after.before = after
            block.nbytes, block.after = size, after
            self._put(after)
        self._given[name] = block
        self.given += block.nbytes
        self.most_given = max(self.most_given, self.given)

    def free(self, name: int) -> None:
        """Take back what the storage ``name`` has; one that was given nothing gives nothing back."""
        block = self._given.pop(name, None)
        if block is None:
            return
        self.given -= block.nbytes
        left, right = block.before, block.after
        if right is not None and right.is_free:
            self._take(right)
            block.nbytes += right.nbytes
            block.after = right.after
            if right.after is not None:
                right.after.before = block
        if left is not None and left.is_free:
            self._take(left)
            left.nbytes += block.nbytes
            left.after = block.after
            if block.after is not None:
                block.after.before = left
            block = left
        self._put(block)

    def _best(self, size: int, is_small: bool) -> _Block | None:
        free = self._free[is_small]
        place = bisect_left(free, (size, 0))
        if place == len(free):
            return None
        block = self._at[free[place][1]]
        self._take(block)
        return block

    def _segment(self, size: int, is_small: bool) -> _Block:
        whole = segment_size(size, is_small=is_small)
        if self._limit is not None and self.reserved + whole > self._limit:
            self._give_back()
            if self.reserved + whole > self._limit:
                raise NoRoomError
        self.reserved += whole
        self.most_reserved = max(self.most_reserved, self.reserved)
        block = _Block(self._address, whole, is_small)
        self._address += whole
        return block

    def _give_back(self) -> None:
        """Give back the segments that are free as a whole."""
        for free in self._free.values():
            for key in list(free):
                block = self._at[key[1]]
                if block.is_whole:
                    self._take(block)
                    self.reserved -= block.nbytes

    def _put(self, block: _Block) -> None:
        block.is_free = True
        self._at[block.at] = block
        insort(self._free[block.is_small], block.key)

    def _take(self, block: _Block) -> None:
        block.is_free = False
        free = self._free[block.is_small]
        del free[bisect_left(free, block.key)]
        del self._at[block.at]
