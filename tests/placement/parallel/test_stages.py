"""The best cut into stages, held against all cuts in all orders."""

from fractions import Fraction
from itertools import combinations, permutations, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devctl.placement.parallel.costs import Costs, Handed
from devctl.placement.parallel.layers import layers_of
from devctl.placement.parallel.records import parse_stages
from devctl.placement.parallel.stages import (
    Board,
    cut_by,
    even_by_transformers,
    even_by_vllm,
    find_stages,
    groups_of,
    to_stages,
)
from tests.marks import examples
from tests.placement.parallel.models import decoder, footprint


def host(name, *budgets, overhead=0):
    return tuple(
        Board(host=name, devices=(f"cuda:{at}",), budget=budget, overhead=overhead) for at, budget in enumerate(budgets)
    )


def costs(*sizes, **around):
    tree = decoder(sizes, **around)
    return Costs(tree, layers_of(tree))


def shown(found):
    return [(f"{board.host}/{board.devices[0]}", first, end) for board, first, end in found.cut]


def fullest(of, cut):
    return max(Fraction(of.load(a, b, board.overhead).most, board.budget) for board, a, b in cut)


def test_equal_layers_go_to_equal_boards_evenly():
    found = find_stages(costs(*[10] * 8), [host("a", 100, 100), host("b", 100, 100)])
    assert shown(found) == [("a/cuda:0", 0, 2), ("a/cuda:1", 2, 4), ("b/cuda:0", 4, 6), ("b/cuda:1", 6, 8)]
    assert found.fullest == Fraction(1, 5)


def test_a_large_head_leaves_the_last_stage_fewer_layers():
    found = find_stages(costs(*[10] * 5, head=10), [host("a", 100, 100)])
    assert shown(found) == [("a/cuda:0", 0, 3), ("a/cuda:1", 3, 5)]


def test_a_larger_board_takes_more_layers():
    found = find_stages(costs(*[10] * 6), [host("a", 40), host("b", 80)])
    assert shown(found) == [("a/cuda:0", 0, 2), ("b/cuda:0", 2, 6)]


def test_every_board_is_used_where_that_costs_no_room():
    found = find_stages(costs(*[10] * 8), [host("a", 100, 100, 100, 100, 100)])
    assert sorted(end - first for _, first, end in found.cut) == [1, 1, 2, 2, 2]


def test_a_board_that_would_be_the_fullest_with_one_layer_is_left_out():
    found = find_stages(costs(10, 10), [host("a", 100), host("b", 11), host("c", 100)])
    assert shown(found) == [("a/cuda:0", 0, 1), ("c/cuda:0", 1, 2)]
    assert found.fullest == Fraction(1, 10)


def test_hosts_and_their_boards_change_places_where_that_leaves_more_room():
    # the large head is for the largest board, and a host's boards stay together
    hosts = [host("a", 100, 60), host("b", 60, 60)]
    found = find_stages(costs(*[10] * 6, head=30), hosts)
    assert shown(found)[-1][0] == "a/cuda:0"
    assert [board.host for board, _, _ in found.cut] == ["b", "b", "a", "a"]
    assert find_stages(costs(*[10] * 6, head=30), hosts, ordered=True).fullest > found.fullest


def test_the_given_order_is_kept_where_no_other_is_better():
    found = find_stages(costs(*[10] * 4), [host("b", 40), host("a", 20), host("c", 20)])
    assert [board.host for board, _, _ in found.cut] == ["b", "a", "c"]


def test_what_does_not_fit_is_cut_the_best_way_all_the_same():
    found = find_stages(costs(*[10] * 4), [host("a", 10, 10)])
    assert (found.fullest, len(found.cut)) == (2, 2)


def test_libraries_of_a_device_take_their_part():
    found = find_stages(costs(*[10] * 3), [host("a", 50, overhead=15), host("b", 50)])
    assert shown(found) == [("a/cuda:0", 0, 1), ("b/cuda:0", 1, 3)]


SIZES = st.lists(st.integers(1, 12), min_size=2, max_size=8)
BUDGETS = st.integers(5, 40)


def every_cut(of, hosts):
    """Every cut over some boards, those of each host one after another."""
    for order in permutations(hosts):
        for boards in product(*(permutations(each) for each in order)):
            line = [board for each in boards for board in each]
            for count in range(1, min(len(line), of.count) + 1):
                for used in combinations(line, count):
                    for ends in combinations(range(1, of.count), count - 1):
                        yield list(zip(used, [0, *ends], [*ends, of.count], strict=True))


@settings(max_examples=examples(60))
@given(sizes=SIZES, around=st.tuples(*[st.integers(0, 15)] * 3), tied=st.booleans(), data=st.data())
def test_no_cut_leaves_more_room(sizes, around, tied, data):
    embed, norm, head = around
    of = costs(*sizes, embed=embed, norm=norm, head=embed if tied else head, tied=tied)
    shape = data.draw(st.sampled_from([(3,), (1, 2), (2, 1), (1, 1, 1), (2,), (1, 1)]))
    hosts = [
        host("abc"[at], *data.draw(st.lists(BUDGETS, min_size=n, max_size=n)), overhead=data.draw(st.integers(0, 3)))
        for at, n in enumerate(shape)
    ]
    found = find_stages(of, hosts)
    assert found.fullest == fullest(of, found.cut) == min(fullest(of, cut) for cut in every_cut(of, hosts))


@settings(max_examples=examples(30))
@given(
    layers=st.lists(st.tuples(*[st.integers(0, 9)] * 4), min_size=2, max_size=6),
    handed=st.integers(0, 9),
    output=st.integers(0, 9),
    data=st.data(),
)
def test_no_cut_leaves_more_room_with_a_workload(layers, handed, output, data):
    tree = decoder([3] * len(layers), embed=2, head=2)
    of = Costs(tree, layers_of(tree), footprint=footprint(layers, output=output), handed=Handed(prefill=handed))
    hosts = [host("a", *data.draw(st.lists(BUDGETS, min_size=2, max_size=2))), host("b", data.draw(BUDGETS))]
    found = find_stages(of, hosts)
    assert found.fullest == min(fullest(of, cut) for cut in every_cut(of, hosts))


@settings(max_examples=examples(60))
@given(sizes=SIZES, budgets=st.lists(BUDGETS, min_size=1, max_size=8))
def test_stages_follow_each_other_and_have_a_layer_each(sizes, budgets):
    of = costs(*sizes, embed=3, head=5)
    hosts = [host("a", *budgets[:2]), *([host("b", *budgets[2:])] if budgets[2:] else [])]
    found = find_stages(of, hosts)
    stages = to_stages([of], found.cut)
    assert parse_stages(stages.to_document(), "x") == stages
    assert stages.stages[-1].layers[1] == len(sizes)
    assert sum(stage.used for stage in stages.stages) == sum(sizes) + 8


def test_many_layers_over_many_boards_are_cut():
    sizes = [1000 + at % 7 for at in range(1000)]
    boards = host("a", *(50_000 + 97 * at % 5000 for at in range(300)))
    of = costs(*sizes, embed=1000, head=1000)
    found = find_stages(of, [boards], ordered=True)
    assert len(found.cut) == 300
    ideal = Fraction(sum(sizes) + 2000, sum(board.budget for board in boards))
    assert ideal <= found.fullest < 2 * ideal


def test_of_many_hosts_the_order_is_as_given_and_said():
    hosts = [host(f"h{at}", 100 + at) for at in range(9)]
    found = find_stages(costs(*[10] * 20), hosts)
    assert found.notes == ("the order of 9 hosts is as given: it is searched among 8 at most",)
    assert [board.host for board, _, _ in found.cut] == [f"h{at}" for at in range(9)]


def test_of_many_unequal_boards_the_order_within_hosts_is_as_given_and_said():
    hosts = [host(f"h{n}", *(100 + 7 * n + at for at in range(8))) for n in range(8)]
    assert "too many orders" in find_stages(costs(*[10] * 70), hosts).notes[0]


@pytest.mark.parametrize(
    ("layers", "stages", "transformers", "vllm"),
    [
        (32, 3, (10, 10, 12), (11, 11, 10)),
        (80, 3, (26, 26, 28), (27, 27, 26)),
        (61, 4, (15, 15, 15, 16), (15, 15, 16, 15)),
        (8, 8, (1,) * 8, (1,) * 8),
        (9, 1, (9,), (9,)),
    ],
)
def test_even_cuts_are_those_of_the_engines(layers, stages, transformers, vllm):
    assert even_by_transformers(layers, stages) == transformers
    assert even_by_vllm(layers, stages) == vllm


def test_transformers_cuts_so():
    from transformers.distributed.pipeline_parallel import PipelineStage

    for layers, count in product((5, 32, 61), (1, 2, 3, 5)):
        stage = object.__new__(PipelineStage)
        stage.pp_size = count
        ranges = [stage.layer_range_for_rank(rank, layers) for rank in range(count)]
        assert tuple(end - first for first, end in ranges) == even_by_transformers(layers, count)


def test_a_cut_by_counts_and_groups_of_boards():
    boards = host("a", 10, 9, 8, 7, 6, overhead=1)
    assert [(first, end) for _, first, end in cut_by(boards[:3], (2, 1, 3))] == [(0, 2), (2, 3), (3, 6)]
    assert groups_of(boards, 2) == (
        Board(host="a", devices=("cuda:0", "cuda:1"), budget=9, overhead=1, uneven=(10, 9)),
        Board(host="a", devices=("cuda:2", "cuda:3"), budget=7, overhead=1, uneven=(8, 7)),
    )
    assert groups_of(boards, 1) == boards
