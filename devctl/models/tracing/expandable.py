"""What torch's caching allocator holds with ``expandable_segments:True``.

By ``CUDACachingAllocator.cpp``: storages of at most 1 MiB are cut from one segment whose pages are of 2 MiB, larger
ones from another whose pages are of 20 MiB. A segment has addresses without end, and pages only where something was
put. Of the free blocks the smallest that is large enough is used, and one that could grow rather not; where there is
none, pages are added at the lowest addresses that have room. When memory runs out, pages that are free as a whole are
given back, and only then. So a gap costs no more than its ends on pages.

Under a limit, three small models on an H100 (torch 2.11) ran texts as long as these rules say, to 1 %.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence

from devctl.models.tracing.segments import ROUND, SMALL, NoRoomError, Request, fewest, meet, segment_size

_SMALL_PAGE, LARGE_PAGE = 2 << 20, 20 << 20
_ENDLESS = 1 << 60


class _Block:
    """A part of a segment, between two others in the order of addresses."""

    __slots__ = ("after", "at", "before", "is_free", "is_mapped", "nbytes")

    def __init__(self, at: int, nbytes: int, *, is_free: bool, is_mapped: bool) -> None:
        self.at, self.nbytes, self.is_free, self.is_mapped = at, nbytes, is_free, is_mapped
        self.before: _Block | None = None
        self.after: _Block | None = None

    @property
    def may_grow_to(self) -> int:
        """Its bytes, with those of addresses behind it that have no pages."""
        after = self.after
        return self.nbytes + (after.nbytes if after is not None and not after.is_mapped else 0)


class _Segment:
    """Addresses, some of which have pages.

    Attributes:
        mapped: bytes of its pages.
    """

    def __init__(self, page: int) -> None:
        self.mapped = 0
        self._page = page
        self._first = _Block(0, _ENDLESS, is_free=True, is_mapped=False)
        self._free: list[tuple[int, int]] = []
        self._at: dict[int, _Block] = {}

    def take(self, size: int) -> _Block | None:
        """The free block that is used for ``size`` bytes, or None where none has them."""
        place = bisect_left(self._free, (size, 0))
        if place == len(self._free):
            return None
        found = self._at[self._free[place][1]]
        while place + 1 < len(self._free):
            place += 1
            other = self._at[self._free[place][1]]
            if other.may_grow_to >= found.may_grow_to:
                break
            found = other
        return self._cut(found, size)

    def grow(self, size: int, room: int) -> _Block | None:
        """A block of ``size`` bytes for which pages are added; None where that takes more than ``room`` bytes."""
        block: _Block | None = self._first
        while block is not None:
            start = block
            if not block.is_mapped:
                before = block.before
                if before is not None and before.is_mapped and before.is_free:
                    start = before
                if _has(start, size):
                    return self._mapped(start, size, room)
            block = block.after
        return None

    def free(self, block: _Block) -> None:
        """Take a block back."""
        block.is_free = True
        self._put(self._merged(block))

    def give_back(self) -> None:
        """Give back the pages that are free as a whole."""
        for _, at in list(self._free):
            block = self._at[at]
            begin, end = -(-block.at // self._page) * self._page, (block.at + block.nbytes) // self._page * self._page
            if end <= begin:
                continue
            self._drop(block)
            if rest := block.at + block.nbytes - end:
                self._put(self._split(block, block.nbytes - rest))
            if begin > block.at:
                inner = self._split(block, begin - block.at)
                self._put(block)
                block = inner
            block.is_mapped = False
            self.mapped -= block.nbytes
            self._merged(block)

    def _mapped(self, block: _Block, size: int, room: int) -> _Block | None:
        """``block`` with as many pages behind or under it as make it ``size`` bytes, cut to these."""
        while not block.is_mapped or block.nbytes < size:
            unmapped = block.after if block.is_mapped else block
            assert unmapped is not None and not unmapped.is_mapped
            missing = min(unmapped.nbytes, size - (block.nbytes if block.is_mapped else 0))
            pages = -(-missing // self._page) * self._page
            if pages > room:
                return None
            room -= pages
            if unmapped.nbytes > pages:
                self._split(unmapped, pages)
            unmapped.is_mapped = True
            self.mapped += pages
            for beside in (unmapped.before, unmapped.after):
                if beside is not None and beside.is_free and beside.is_mapped and beside.at in self._at:
                    self._drop(beside)
            block = self._merged(unmapped)
            self._put(block)
        return self._cut(block, size)

    def _cut(self, block: _Block, size: int) -> _Block:
        """The first ``size`` bytes of a free block, given out."""
        self._drop(block)
        if block.nbytes - size >= ROUND:
            self._put(self._split(block, size))
        block.is_free = False
        return block

    def _split(self, block: _Block, nbytes: int) -> _Block:
        """Cut a block after ``nbytes``; the rest."""
        rest = _Block(block.at + nbytes, block.nbytes - nbytes, is_free=block.is_free, is_mapped=block.is_mapped)
        rest.before, rest.after = block, block.after
        if block.after is not None:
            block.after.before = rest
        block.nbytes, block.after = nbytes, rest
        return rest

    def _merged(self, block: _Block) -> _Block:
        """A free block with its neighbours that are like it."""
        after = block.after
        if after is not None and after.is_free and after.is_mapped is block.is_mapped:
            self._drop(after)
            self._join(block, after)
        before = block.before
        if before is not None and before.is_free and before.is_mapped is block.is_mapped:
            self._drop(before)
            self._join(before, block)
            block = before
        return block

    def _join(self, left: _Block, right: _Block) -> None:
        left.nbytes += right.nbytes
        left.after = right.after
        if right.after is not None:
            right.after.before = left

    def _put(self, block: _Block) -> None:
        self._at[block.at] = block
        insort(self._free, (block.nbytes, block.at))

    def _drop(self, block: _Block) -> None:
        if self._at.pop(block.at, None) is not None:
            del self._free[bisect_left(self._free, (block.nbytes, block.at))]


def _has(block: _Block, size: int) -> bool:
    """Whether from a block on there are ``size`` bytes that are free, with pages or without."""
    found, at = 0, block
    while at.is_free:
        found += at.nbytes
        if found >= size or at.after is None:
            break
        at = at.after
    return found >= size


class ExpandableAllocator:
    """Gives out memory as torch does in segments that grow, within ``limit`` bytes; None is without an end.

    The limit is held against as ``set_per_process_memory_fraction`` is: a request that needs new pages counts as a
    whole, as if none of its bytes were there. Where the board itself is full, a little more may go.

    Attributes:
        most_asked: the most bytes that a limit has to be for nothing to be given back so far.
    """

    def __init__(self, limit: int | None = None) -> None:
        self.most_asked = 0
        self._limit = _ENDLESS if limit is None else limit
        self._segments = {True: _Segment(_SMALL_PAGE), False: _Segment(LARGE_PAGE)}
        self._given: dict[int, tuple[bool, _Block]] = {}

    @property
    def reserved(self) -> int:
        """Bytes of the pages that it has."""
        return sum(segment.mapped for segment in self._segments.values())

    def allocate(self, name: int, nbytes: int) -> None:
        """Give ``nbytes`` to the storage ``name``.

        Raises:
            NoRoomError: there is no room, and none after all that is free was given back.
        """
        size = -(-nbytes // ROUND) * ROUND
        is_small = size <= SMALL
        segment = self._segments[is_small]
        block = segment.take(size) or self._grown(segment, size, is_small=is_small)
        if block is None:
            for each in self._segments.values():
                each.give_back()
            block = self._grown(segment, size, is_small=is_small)
        if block is None:
            raise NoRoomError
        self._given[name] = is_small, block

    def free(self, name: int) -> None:
        """Take back what the storage ``name`` has; one that was given nothing gives nothing back."""
        if (found := self._given.pop(name, None)) is not None:
            is_small, block = found
            self._segments[is_small].free(block)

    def _grown(self, segment: _Segment, size: int, *, is_small: bool) -> _Block | None:
        asked = self.reserved + segment_size(size, is_small=is_small)
        if asked > self._limit:
            return None
        block = segment.grow(size, self._limit - self.reserved)
        self.most_asked = max(self.most_asked, asked, self.reserved)
        return block


def least_pages(requests: Sequence[Request], allocated: int) -> int:
    """The fewest bytes within which all ``requests`` are met, or up to 2 MiB or 0.2 % more.

    Args:
        allocated: the most of them that is alive at once.
    """

    def needed(limit: int) -> int:
        meet(ExpandableAllocator(limit), requests)
        return limit

    free = ExpandableAllocator()
    meet(free, requests)
    return fewest(allocated, free.most_asked, needed)
