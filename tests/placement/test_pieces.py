"""The pieces of a placed model: all of it, in order, each where the map says."""

from hypothesis import given, settings
from hypothesis import strategies as st

from devctl.models.tree import is_under, names, tensors
from devctl.placement import Strategy, place
from devctl.placement.budget import from_max_memory, parse_max_memory
from devctl.placement.pieces import pieces_of
from tests.marks import examples
from tests.placement.greedy.test_greedy import LIMITS
from tests.trees import layers, random_trees, tree


def found(model, max_memory):
    placement = place(model, from_max_memory(parse_max_memory([max_memory])), Strategy.SEQUENTIAL)
    return [(piece.name, piece.nbytes, str(piece.device), piece.tied) for piece in pieces_of(model, placement)]


def test_blocks_leaves_and_tensors_beside_modules():
    model = tree({"x": 1, "a:Block": {"b": {"w": 2}, "c": {"w": 3}}, "act": {}, "d": {"w": 4}}, no_split=["Block"])
    assert found(model, "0=100B") == [("x", 1, "cuda:0", None), ("a", 5, "cuda:0", None), ("d", 4, "cuda:0", None)]


def test_a_tied_piece_says_what_it_is_tied_to():
    assert found(layers(10, embed=8, head=8, head_is_tied=True), "0=100B")[-1] == ("head", 0, "cuda:0", "embed.w")


def test_a_block_that_the_map_cuts_through():
    model = tree({"layers": {"0:Block": {"huge": 100, "w": 2}}}, no_split=["Block"], unplaced=["huge"])
    assert found(model, "0=20B,1=20B,cpu=200B") == [
        ("layers.0.huge", 100, "cpu", None),
        ("layers.0.w", 2, "cuda:0", None),
    ]


@settings(max_examples=examples(120), deadline=None)
@given(random_trees(), LIMITS, st.sampled_from(Strategy))
def test_pieces_add_up(model, limits, strategy):
    placement = place(model, limits, strategy)
    pieces = pieces_of(model, placement)
    for use in placement.devices:
        assert sum(piece.nbytes for piece in pieces if piece.device == use.device) == use.used
    for tensor in tensors(model.root):
        assert len([piece for piece in pieces if is_under(tensor.name, piece.name)]) == 1
    order = list(names(model.root))
    assert [piece.name for piece in pieces] == sorted((piece.name for piece in pieces), key=order.index)
