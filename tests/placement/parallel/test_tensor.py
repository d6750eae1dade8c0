"""The part of a model that each rank has, beside what transformers' own sharding leaves it."""

import json

import pytest
import torch
import transformers

from devctl.models.files.resolve import resolve
from devctl.models.sharding import CUTS, Cut, Parts, Sharding, cut_of, cut_shape, generic, parse_sharding, share
from devctl.models.skeleton import read_skeleton
from devctl.models.tree import Module, ModuleTree, Tensor, TensorKind
from devctl.placement.parallel.tensor import Ranks, rank_tree, rank_trees, style_bytes
from tests.conftest import CONFIGS
from tests.marks import one_in, slow
from tests.sharded import EXPERTS, SHARDED, local_bytes

GIB = 2**30


@pytest.fixture(scope="module")
def tree_of(tmp_path_factory):
    """The tree of a small model, as it is read from its config: ``tree_of("llama")``."""
    folder, found = tmp_path_factory.mktemp("configs"), {}

    def read(name):
        if name not in found:
            _, config = SHARDED[name]()
            config.architectures = [SHARDED[name]()[0].__name__]
            config.dtype = "float32"
            config.save_pretrained(folder / name)
            found[name] = read_skeleton(resolve(str(folder / name))).tree
        return found[name]

    return read


def predicted(tree, ranks, rank):
    """Bytes of each tensor as the model is built, without what loading widens."""
    index = rank_tree(tree, ranks, rank).index
    tied = dict(tree.ties)
    return {t.name: index.nbytes[t.name] for t in index.tensors if t.name not in tied}


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("name", one_in(3, SHARDED))
def test_every_tensor_of_every_rank_is_as_transformers_shards_it(name, ranks, tree_of):
    for rank in range(ranks):
        model_class, config = SHARDED[name]()
        assert predicted(tree_of(name), Ranks(size=ranks), rank) == local_bytes(
            model_class, config, ranks=ranks, rank=rank
        )


@pytest.mark.parametrize("name", one_in(3, EXPERTS))
def test_so_it_is_where_experts_are_shared_out(name, tree_of):
    for rank in range(2):
        model_class, config = SHARDED[name]()
        assert predicted(tree_of(name), Ranks(size=2, experts=2), rank) == local_bytes(
            model_class, config, ranks=2, rank=rank, experts=True
        )


@pytest.mark.parametrize("ranks", [3, 7])
def test_where_sizes_do_not_divide_the_last_ranks_have_what_is_left(ranks, tree_of):
    """Parts have to divide, for the forward's sake; what is cut does not."""
    for name in ("phi3", "deepseek-v3", "llama-tied"):
        trees = rank_trees(tree_of(name), Ranks(size=ranks))
        for rank in range(ranks):
            model_class, config = SHARDED[name]()
            real = local_bytes(model_class, config, ranks=ranks, rank=rank)
            assert predicted(tree_of(name), Ranks(size=ranks), rank) == real
            assert trees[rank].index.held[""] == sum(real.values())


@pytest.mark.parametrize(
    ("name", "experts", "gib"),
    [
        ("gpt-oss-120b", True, 29.725),
        *slow(
            ("llama-3.1-8b", False, 1.870),
            ("llama-3.1-70b", False, 16.430),
            ("mixtral-8x7b", False, 10.876),
            ("gpt-oss-120b", False, 216.667),
            ("deepseek-v3", False, 175.012),
        ),
    ],
)
def test_of_real_models_eight_ranks_have_what_transformers_leaves_them(name, experts, gib):
    skeleton = read_skeleton(resolve(str(CONFIGS / name)))
    ranks = Ranks(size=8, experts=8 if experts else 1)
    for rank in (0, 7):
        real = local_bytes(
            skeleton.model_class, skeleton.config, ranks=8, rank=rank, experts=experts, dtype=torch.bfloat16
        )
        assert predicted(skeleton.tree, ranks, rank) == real
        assert sum(real.values()) / GIB == pytest.approx(gib, abs=0.001)


def test_every_style_of_the_installed_transformers_is_known():
    from transformers.distributed import expert_parallel  # noqa: F401 - which registers styles of its own
    from transformers.distributed.parallel_utils import ALL_PARALLEL_STYLES

    assert set(ALL_PARALLEL_STYLES) == set(CUTS), transformers.__version__


def test_ranks_that_have_as_much_are_one_value(tree_of):
    trees = rank_trees(tree_of("llama"), Ranks(size=4))
    assert trees[0] is trees[1]
    assert trees[0] is not trees[3], "129 rows of the vocabulary are 33, 33, 33 and 30"
    assert trees[0].index.held[""] > trees[3].index.held[""]


def test_what_styles_do_adds_up_to_the_model_and_to_a_rank(tree_of):
    for name in SHARDED:
        tree, ranks = tree_of(name), Ranks(size=2)
        found = style_bytes(tree, ranks)
        assert sum(each.nbytes for each in found) == tree.index.held[""]
        assert sum(each.on_each for each in found) == rank_tree(tree, ranks, 0).index.held[""]
        assert [each.is_cut for each in found] == sorted((each.is_cut for each in found), reverse=True)
    replicated = [each for each in style_bytes(tree_of("gpt-oss"), Ranks(size=2)) if not each.is_cut]
    assert [each.style for each in replicated] == [None]
    assert "model.layers.*.mlp.experts.gate_up_proj" in replicated[0].rules


def test_a_share_is_rounded_up_until_nothing_is_left():
    assert [share(129, 2, rank) for rank in range(2)] == [65, 64]
    assert [share(9, 4, rank) for rank in range(4)] == [3, 3, 3, 0]
    assert [share(2, 4, rank) for rank in range(4)] == [1, 1, 0, 0]


def test_a_shape_is_cut_where_its_style_says():
    assert cut_shape((10, 6), Cut.ROWS, 4, 0) == (3, 6)
    assert cut_shape((10,), Cut.ROWS, 4, 3) == (1,)
    assert cut_shape((3, 10, 6), Cut.ROWS, 2, 1) == (3, 5, 6)
    assert cut_shape((10, 6), Cut.COLUMNS, 4, 3) == (10, 0)
    assert cut_shape((10, 6), Cut.PACKED_ROWS, 4, 0) == (4, 6), "two halves of five, each two of the first rank"
    assert cut_shape((10, 6), Cut.PACKED_ROWS, 4, 2) == (2, 6)
    assert cut_shape((10,), Cut.PACKED_ROWS, 4, 0) == (3,), "a bias is not known to be packed"
    assert cut_shape((10,), Cut.PACKED_COLUMNS, 4, 0) == (10,)
    assert cut_shape((), Cut.ROWS, 4, 0) == ()


def test_a_bias_that_is_added_to_a_sum_is_whole():
    assert cut_of("rowwise", "bias") is Cut.WHOLE
    assert cut_of("rowwise", "weight") is Cut.COLUMNS
    assert cut_of("colwise", "bias") is Cut.ROWS
    assert cut_of(None, "weight") is Cut.WHOLE
    with pytest.raises(KeyError):
        cut_of("diagonal", "weight")


def test_numbers_between_dots_are_any():
    assert generic("model.layers.12.mlp.experts.3.w1") == "model.layers.*.mlp.experts.*.w1"
    assert generic("layers.0.1.weight") == "layers.*.*.weight"


def test_a_sharding_is_the_same_once_it_was_kept(tree_of):
    for name in SHARDED:
        sharding = tree_of(name).sharding
        assert parse_sharding(json.loads(json.dumps(sharding.to_json()))) == sharding
    for broken in ({}, {"tensor": 1}, [], None):
        with pytest.raises((ValueError, KeyError, TypeError)):
            parse_sharding(broken)


def test_heads_are_those_of_the_projections_that_are_cut(tree_of):
    both = (Parts(what="attention heads", count=8), Parts(what="key/value heads", count=4))
    for name in ("llama", "qwen3", "mixtral", "gemma2", "gemma3", "glm4-moe"):
        assert tree_of(name).sharding.heads == both
    for name in ("phi3", "olmo2", "gpt-oss", "deepseek-v3"):
        assert tree_of(name).sharding.heads == (), "their ranks have all heads"


def test_what_is_held_wider_and_while_loading_is_cut_as_its_tensor_is():
    weight = Tensor(
        name="up.weight",
        kind=TensorKind.PARAMETER,
        nbytes=60,
        held=120,
        loading=30,
        shape=(10, 3),
        dtype="bfloat16",
    )
    buffer = Tensor(name="up.scale", kind=TensorKind.BUFFER, nbytes=40, shape=(10,), dtype="float32")
    up = Module(name="up", class_name="Linear", parameters=(weight,), buffers=(buffer,))
    tree = ModuleTree(
        root=Module(name="", class_name="M", children=(up,)),
        class_name="M",
        dtype="bfloat16",
        sharding=Sharding(tensor=(("up.weight", "colwise"), ("up.scale", "colwise"))),
    )
    last = rank_tree(tree, Ranks(size=4), 3).index
    assert [(t.shape, t.nbytes, t.held, t.loading) for t in last.tensors] == [
        ((1, 3), 6, 12, 3),
        ((10,), 40, None, 0),
    ]
    assert last.held[""] == 12 + 40
