"""Stages that ranks share: bytes of every rank beside transformers' own, and the best cut beside all cuts."""

from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devctl.models.files.resolve import resolve
from devctl.models.sharding import Sharding
from devctl.models.skeleton import read_skeleton
from devctl.placement.parallel.costs import Costs
from devctl.placement.parallel.layers import layers_of
from devctl.placement.parallel.records import parse_stages
from devctl.placement.parallel.stages import Board, cut_by, find_stages, groups_of, to_stages
from devctl.placement.parallel.tensor import Ranks, rank_tree, rank_trees
from tests.marks import examples, one_in
from tests.placement.parallel.models import decoder
from tests.placement.parallel.test_stages import every_cut, host
from tests.sharded import EXPERTS, SHARDED, local_bytes


@pytest.fixture(scope="module")
def tree_of(tmp_path_factory):
    """The tree of a small model of two layers, as it is read from its config: ``tree_of("llama")``."""
    folder = tmp_path_factory.mktemp("configs")

    def read(name):
        model_class, config = SHARDED[name]()
        config.architectures, config.dtype = [model_class.__name__], "float32"
        config.save_pretrained(folder / name)
        return read_skeleton(resolve(str(folder / name))).tree

    return read


def of_stage(layers, names, first, end):
    """Which of ``names`` a stage has: those of its layers and of what is around them."""
    here = [*layers.names[first:end], *layers.everywhere]
    here += layers.first if first == 0 else ()
    here += layers.last if end == len(layers.names) else ()
    return [name for name in names if any(name == part or name.startswith(f"{part}.") for part in here)]


@pytest.mark.parametrize(
    ("name", "experts"), one_in(5, [*((name, False) for name in SHARDED), *((name, True) for name in EXPERTS)])
)
def test_every_rank_of_every_stage_holds_what_transformers_sharding_leaves_of_its_layers(name, experts, tree_of):
    tree = tree_of(name)
    layers = layers_of(tree)
    assert len(layers.names) == 2
    parts = rank_trees(tree, Ranks(size=2, experts=2 if experts else 1))
    (group,) = groups_of(host("a", 10, 10), 2)
    boards = [replace(group, host="a"), replace(group, host="b")]
    stages = to_stages([Costs(part, layers) for part in parts], cut_by(boards, (1, 1)))
    held = [{t.name: part.index.held[t.name] for t in part.index.tensors} for part in parts]
    tied = dict(tree.ties)
    for rank in range(2):
        model_class, config = SHARDED[name]()
        real = local_bytes(model_class, config, ranks=2, rank=rank, experts=experts)
        # what is read in a wider dtype is held so
        real = {tensor: max(size, held[rank].get(tensor, 0)) for tensor, size in real.items()}
        for stage in stages.stages:
            own = of_stage(layers, real, *stage.layers)
            # a tied target is there as all of the module that it is tied to
            here = of_stage(layers, tied, *stage.layers)
            modules = [tied[target].rpartition(".")[0] for target in here]
            more = [each for each in real if each not in own and each.rpartition(".")[0] in modules]
            assert stage.uses[rank].used == sum(real[tensor] for tensor in (*own, *more))


def shared(tree, *names):
    """The same tree, with a plan that cuts these tensors by their rows."""
    return replace(tree, sharding=Sharding(tensor=tuple((name, "colwise") for name in names), release="x"))


def test_the_fullest_rank_decides_and_others_may_hold_less():
    tree = shared(decoder([10, 10, 10], embed=7), "model.layers.*.w", "model.embed_tokens.w")
    layers = layers_of(tree)
    each = [Costs(part, layers) for part in rank_trees(tree, Ranks(size=3))]
    cut = find_stages(each[0], [groups_of(host("a", *[20] * 6), 3)]).cut
    stages = to_stages(each, cut)
    assert [[use.used for use in stage.uses] for stage in stages.stages] == [[7, 7, 3], [8, 8, 4]]
    assert [stage.used for stage in stages.stages] == [7, 8]
    assert parse_stages(stages.to_document(), "x") == stages


def test_of_unequal_boards_the_smallest_decides_and_each_is_told_with_its_own_budget():
    tree = shared(decoder([10] * 6), "model.layers.*.w")
    layers = layers_of(tree)
    each = [Costs(part, layers) for part in rank_trees(tree, Ranks(size=2))]
    groups = [groups_of(host("a", 40, 20), 2), groups_of(host("b", 40, 40), 2)]
    found = find_stages(each[0], groups)
    assert [end - first for _, first, end in found.cut] == [2, 4]
    first = to_stages(each, found.cut).stages[0]
    assert [use.budget for use in first.uses] == [40, 20]
    assert (first.budget, first.used) == (20, 10)


SIZES = st.lists(st.integers(1, 24), min_size=2, max_size=6)


@settings(max_examples=examples(60))
@given(
    sizes=SIZES,
    around=st.tuples(*[st.integers(0, 15)] * 3),
    tied=st.booleans(),
    cuts=st.lists(st.sampled_from(["model.layers.*.w", "model.embed_tokens.w", "lm_head.w"]), unique=True),
    size=st.sampled_from([2, 3, 4]),
    overhead=st.integers(0, 3),
    data=st.data(),
)
def test_no_cut_over_groups_leaves_more_room_on_the_fullest_rank(sizes, around, tied, cuts, size, overhead, data):
    embed, norm, head = around
    tree = shared(decoder(sizes, embed=embed, norm=norm, head=embed if tied else head, tied=tied), *cuts)
    layers, ranks = layers_of(tree), Ranks(size=size)
    each = [Costs(rank_tree(tree, ranks, rank), layers) for rank in range(size)]
    shape = data.draw(st.sampled_from([(1,), (2,), (1, 1), (1, 2), (1, 1, 1)]))
    hosts = []
    for name, count in zip("abc", shape, strict=False):
        # boards of a group are equal, those of another are not
        budgets = data.draw(st.lists(st.integers(5, 40), min_size=count, max_size=count))
        boards = host(name, *(budget for budget in budgets for _ in range(size)), overhead=overhead)
        hosts.append(groups_of(boards, size))
    found = find_stages(each[0], hosts)

    def fullest(cut):
        return max(
            Fraction(of.load(first, end, board.overhead).most, board.budget) for board, first, end in cut for of in each
        )

    assert found.fullest == fullest(found.cut) == min(fullest(cut) for cut in every_cut(each[0], hosts))
    for board, _, _ in found.cut:
        assert isinstance(board, Board) and len(board.devices) == size
