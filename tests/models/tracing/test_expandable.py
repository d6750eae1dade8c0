"""What torch's allocator holds where its segments grow."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devctl.models.tracing.expandable import ExpandableAllocator, least_pages
from devctl.models.tracing.segments import NoRoomError, meet, most_allocated
from tests.marks import examples

MIB = 2**20


def held(*requests, limit=None):
    allocator = ExpandableAllocator(limit)
    meet(allocator, requests)
    return allocator


def test_small_storages_have_pages_of_2_mib_and_large_ones_of_20():
    assert held((1, 512)).reserved == 2 * MIB
    assert held((1, MIB), (2, MIB), (3, 1)).reserved == 4 * MIB
    assert held((1, MIB + 1)).reserved == 20 * MIB
    assert held((1, 30 * MIB), (2, 10 * MIB)).reserved == 40 * MIB
    assert held((1, 30 * MIB), (2, 10 * MIB + 512)).reserved == 60 * MIB


def test_a_free_block_at_the_end_grows():
    assert held((1, 30 * MIB), (2, 5 * MIB), (2, 0), (3, 100 * MIB)).reserved == 140 * MIB


def test_a_gap_that_is_too_small_stays_until_memory_runs_out():
    requests = ((1, 40 * MIB), (2, 40 * MIB), (1, 0), (3, 60 * MIB))
    assert held(*requests).reserved == 140 * MIB
    assert held(*requests, limit=100 * MIB).reserved == 100 * MIB
    with pytest.raises(NoRoomError):
        held(*requests, limit=99 * MIB)


def test_only_pages_that_are_free_as_a_whole_are_given_back():
    requests = ((1, 15 * MIB), (2, 40 * MIB), (3, 25 * MIB), (2, 0), (4, 41 * MIB))
    # the gap from 15 to 55 MiB has one page of its own, from 20 to 40
    assert held(*requests).reserved == 140 * MIB
    assert held(*requests, limit=121 * MIB).reserved == 120 * MIB
    with pytest.raises(NoRoomError):
        held(*requests, limit=100 * MIB)


def test_pages_that_were_given_back_are_put_where_they_serve():
    allocator = held((1, 40 * MIB), (2, 40 * MIB), (1, 0), (3, 60 * MIB), limit=100 * MIB)
    allocator.free(2)
    allocator.free(3)
    allocator.allocate(4, 100 * MIB)
    assert allocator.reserved == 100 * MIB


def test_of_blocks_that_fit_one_that_can_not_grow_goes_before_the_last():
    # 40 MiB are free in the middle and 30 at the end: what is asked for goes into the middle, and the end stays
    allocator = held((1, 40 * MIB), (2, 20 * MIB), (3, 30 * MIB), (4, 10 * MIB), (1, 0), (3, 0), (5, 25 * MIB))
    allocator.allocate(6, 30 * MIB)
    assert allocator.reserved == 100 * MIB


REQUESTS = st.lists(
    st.tuples(st.integers(0, 11), st.one_of(st.integers(1, 3 * MIB), st.integers(MIB, 90 * MIB))), max_size=40
)


def alternating(pairs):
    """Storages that are made, and let go of when their number comes again."""
    alive, found = set(), []
    for name, nbytes in pairs:
        found.append((name, 0 if name in alive else nbytes))
        alive ^= {name}
    return found


@given(pairs=REQUESTS)
@settings(max_examples=examples(60))
def test_what_is_needed_holds_what_is_alive_and_is_enough(pairs):
    requests = alternating(pairs)
    alive = most_allocated(requests)
    needed = least_pages(requests, alive)
    assert alive <= needed
    if requests:
        assert held(*requests, limit=needed).reserved <= needed


@given(pairs=REQUESTS)
@settings(max_examples=examples(60))
def test_when_all_is_let_go_of_all_pages_can_be_given_back(pairs):
    requests = alternating(pairs)
    allocator = held(*requests)
    for name in {name for name, _ in requests}:
        allocator.free(name)
    for segment in allocator._segments.values():
        segment.give_back()
    assert allocator.reserved == 0
