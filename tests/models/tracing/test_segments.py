"""What torch's caching allocator reserves: its sizes as torch's header has them, its rules by sums."""

import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from devctl.models.tracing import segments
from devctl.models.tracing.segments import (
    CachingAllocator,
    NoRoomError,
    Request,
    least_reserved,
    most_allocated,
    most_reserved,
)

MIB = 1 << 20


def test_the_sizes_are_those_of_the_installed_torch() -> None:
    header = Path(torch.__file__).parent / "include" / "c10" / "core" / "AllocatorConfig.h"
    if not header.exists():
        pytest.skip("this torch came without its headers, or with older ones")
    told = dict(re.findall(r"constexpr size_t (\w+) = (\d+);", header.read_text()))
    large = re.search(r"large_segment_size_\{(\d+)\}", header.read_text())
    assert {
        "kSmallBuffer": segments._SMALL_SEGMENT,
        "kMinBlockSize": segments.ROUND,
        "kSmallSize": segments.SMALL,
        "kMinLargeAlloc": segments._LARGE,
        "kRoundLarge": segments._ROUND_SEGMENT,
    }.items() <= {name: int(size) for name, size in told.items()}.items()
    assert large is None or int(large[1]) == segments._LARGE_SEGMENT


@pytest.mark.parametrize(
    ("nbytes", "reserved"),
    [
        (1, 2 * MIB),
        (MIB, 2 * MIB),
        (MIB + 1, 20 * MIB),
        (10 * MIB - 512, 20 * MIB),
        (10 * MIB, 10 * MIB),
        (10 * MIB + 1, 12 * MIB),
        (101 * MIB, 102 * MIB),
    ],
)
def test_a_storage_is_cut_from_a_segment_by_its_size(nbytes: int, reserved: int) -> None:
    assert most_reserved([(0, nbytes)]) == reserved


def test_small_ones_share_a_segment_to_the_last_512_bytes() -> None:
    assert most_reserved([(n, 512) for n in range(4096)]) == 2 * MIB
    assert most_reserved([(n, 512) for n in range(4097)]) == 4 * MIB


def test_a_large_block_keeps_what_is_left_of_it_up_to_a_mebibyte() -> None:
    # a hole of 21 MiB has room for 20, and what is left of it is too little to be split off
    hole = [(0, 22 * MIB), (0, 0), (1, 21 * MIB)]
    assert most_reserved([*hole, (2, MIB + 512)]) == 22 * MIB + 20 * MIB
    # of 30 MiB, 8 are split off and used
    assert most_reserved([(0, 30 * MIB), (0, 0), (1, 22 * MIB), (2, 8 * MIB)]) == 30 * MIB


def test_the_smallest_hole_that_is_large_enough_is_used() -> None:
    allocator = CachingAllocator()
    for name, nbytes in ((0, 60 * MIB), (1, 40 * MIB)):
        allocator.allocate(name, nbytes)
    allocator.free(0)
    allocator.free(1)
    allocator.allocate(2, 30 * MIB)
    allocator.allocate(3, 60 * MIB)
    assert allocator.reserved == 100 * MIB


def test_neighbours_that_are_free_are_one() -> None:
    whole = [(0, 40 * MIB), (0, 0), (1, 10 * MIB), (2, 10 * MIB), (3, 20 * MIB)]
    assert most_reserved([*whole, (1, 0), (2, 0), (4, 20 * MIB)]) == 40 * MIB
    assert most_reserved([*whole, (1, 0), (3, 0), (4, 30 * MIB)]) == 40 * MIB + 30 * MIB


def test_what_is_long_lived_in_a_hole_keeps_a_large_one_from_it() -> None:
    # a layer's scores, then its cache in their place: the next layer's scores do not fit there any more
    layers = [request for n in range(3) for request in ((n, 100 * MIB), (n, 0), (10 + n, 12 * MIB))]
    assert most_allocated(layers) == 124 * MIB
    assert most_reserved(layers) == 200 * MIB
    assert least_reserved(layers) == 200 * MIB


def test_what_is_free_as_a_whole_is_given_back_when_memory_runs_out() -> None:
    growing = [(0, 50 * MIB), (0, 0), (1, 60 * MIB), (1, 0), (2, 70 * MIB)]
    assert most_reserved(growing) == 180 * MIB
    assert least_reserved(growing) == 70 * MIB
    with pytest.raises(NoRoomError):
        most_reserved(growing, 69 * MIB)


def test_nothing_takes_nothing() -> None:
    assert least_reserved([]) == most_allocated([]) == 0
    assert most_reserved([(0, 0)]) == 0


SIZES = st.one_of(st.integers(1, 3000), st.integers(MIB // 2, 3 * MIB), st.integers(8 * MIB, 60 * MIB))


@st.composite
def asked(draw: st.DrawFn) -> list[Request]:
    """Births and deaths in an order that can be."""
    alive: list[int] = []
    found: list[Request] = []
    for number in range(draw(st.integers(1, 40))):
        found.append((number, draw(SIZES)))
        alive.append(number)
        while alive and draw(st.booleans()):
            found.append((alive.pop(draw(st.integers(0, len(alive) - 1))), 0))
    return found


class Plain:
    """The same rules once more, a list of parts a segment: slow, and short enough to be read."""

    def __init__(self, limit: int | None) -> None:
        self.segments: list[list[list[int]]] = []
        """Of each, its parts: bytes, and who has them (-1 for nobody)."""
        self.limit, self.most = limit, 0

    @property
    def reserved(self) -> int:
        return sum(size for parts in self.segments for size, _ in parts)

    def allocate(self, name: int, nbytes: int) -> None:
        size = (nbytes + 511) // 512 * 512
        small = size <= MIB
        free = [
            (part[0], number, place)
            for number, parts in enumerate(self.segments)
            if (sum(size for size, _ in parts) == 2 * MIB) == small
            for place, part in enumerate(parts)
            if part[1] < 0 and part[0] >= size
        ]
        if not free:
            whole = 2 * MIB if small else 20 * MIB if size < 10 * MIB else (size + 2 * MIB - 1) // (2 * MIB) * 2 * MIB
            if self.limit is not None and self.reserved + whole > self.limit:
                self.segments = [parts for parts in self.segments if len(parts) > 1 or parts[0][1] >= 0]
                if self.reserved + whole > self.limit:
                    raise NoRoomError
            self.segments.append([[whole, -1]])
            free = [(whole, len(self.segments) - 1, 0)]
            self.most = max(self.most, self.reserved)
        _, number, place = min(free)
        part = self.segments[number][place]
        rest = part[0] - size
        part[1] = name
        if rest >= 512 if small else rest > MIB:
            part[0] = size
            self.segments[number].insert(place + 1, [rest, -1])

    def free(self, name: int) -> None:
        for number, parts in enumerate(self.segments):
            merged: list[list[int]] = []
            for size, who in ([size, -1 if who == name else who] for size, who in parts):
                if merged and who < 0 and merged[-1][1] < 0:
                    merged[-1][0] += size
                else:
                    merged.append([size, who])
            self.segments[number] = merged


@given(asked(), st.one_of(st.none(), st.integers(0, 200 * MIB)))
def test_it_reserves_what_the_rules_say(requests: list[Request], limit: int | None) -> None:
    plain = Plain(limit)
    try:
        for name, nbytes in requests:
            if nbytes:
                plain.allocate(name, nbytes)
            else:
                plain.free(name)
    except NoRoomError:
        with pytest.raises(NoRoomError):
            most_reserved(requests, limit)
    else:
        assert most_reserved(requests, limit) == plain.most


@given(asked())
def test_the_least_is_enough_and_no_less_than_what_is_alive(requests: list[Request]) -> None:
    least = least_reserved(requests)
    assert most_allocated(requests) <= least <= most_reserved(requests)
    assert most_reserved(requests, least) <= least


def test_weights_leave_a_hole_as_large_as_the_small_ones_that_have_segments_of_their_own() -> None:
    found = segments.load([30 * MIB, MIB, MIB], at_once=32 * MIB)
    assert (found.nbytes, found.given, found.reserved) == (32 * MIB, 32 * MIB, 34 * MIB)
    assert found.holes == ((2 * MIB, False, False),)
    # what fits into the hole needs no segment, and the hole's segment never goes back
    assert most_reserved([(0, 2 * MIB)], loaded=found) == 34 * MIB
    assert most_reserved([(0, 3 * MIB)], loaded=found) == 54 * MIB
    with pytest.raises(NoRoomError):
        most_reserved([(0, 3 * MIB)], 53 * MIB, found)
    assert least_reserved([(0, 40 * MIB), (0, 0), (1, 41 * MIB)], found) == 34 * MIB + 42 * MIB


def test_a_segment_that_weights_left_free_as_a_whole_goes_back_when_memory_is_short() -> None:
    found = segments.load([MIB, MIB], at_once=20 * MIB)
    assert found.holes == ((20 * MIB, False, True),)
    assert most_reserved([(0, 30 * MIB)], loaded=found) == 52 * MIB
    assert most_reserved([(0, 30 * MIB)], 32 * MIB, found) == 32 * MIB
