"""Which layers a model has, and what is around them."""

from devctl.placement.parallel.layers import Layers, layers_of
from tests.placement.parallel.models import decoder
from tests.trees import tree


def test_a_decoder_has_its_embedding_before_its_layers_and_norm_and_head_behind():
    found = layers_of(decoder([5, 5, 5], embed=3, norm=1, head=3, rotary=1))
    assert found == Layers(
        container="model.layers",
        names=("model.layers.0", "model.layers.1", "model.layers.2"),
        first=("model.embed_tokens",),
        last=("model.norm", "lm_head"),
        everywhere=("model.rotary_emb",),
    )
    assert found.odd == ()


def test_a_norm_that_is_defined_before_the_layers_runs_behind_them():
    parts = {"wte": {"w": 4}, "final_layer_norm": {"w": 1}, "h": {"0:Block": {"w": 2}, "1:Block": {"w": 2}}}
    found = layers_of(tree({"transformer": parts, "lm_head": {"w": 4}}, no_split=["Block"]))
    assert (found.first, found.last) == (("transformer.wte",), ("transformer.final_layer_norm", "lm_head"))
    assert found.odd == (
        "transformer.h",
        "transformer.final_layer_norm",
        "transformer.wte",
        "no transformer.embed_tokens",
        "no transformer.norm",
    )


def test_a_model_without_a_head_or_with_other_weights_is_odd():
    plain = {"embed_tokens": {"w": 1}, "layers": {"0:Block": {"w": 2}}, "norm": {"w": 1}}
    assert layers_of(tree({"model": plain}, no_split=["Block"])).odd == ("no lm_head",)
    assert layers_of(tree({"model": {**plain, "adapter": {"w": 1}}, "lm_head": {"w": 1}}, no_split=["Block"])).odd == (
        "model.adapter",
    )


def test_a_norm_without_weights_is_no_odd_one():
    parts = {"embed_tokens": {"w": 1}, "layers": {"0:Block": {"w": 2}}, "norm": {}}
    found = layers_of(tree({"model": parts, "lm_head": {"w": 1}}, no_split=["Block"]))
    assert (found.everywhere, found.odd) == (("model.norm",), ())


def test_lists_within_layers_and_lists_of_leaves_are_no_layers():
    layer = {"experts:ModuleList": {"0": {"w": 1}, "1": {"w": 1}}}
    parts = {"projections": {"0": {"w": 1}}, "layers": {"0:Block": layer, "1:Block": layer}}
    assert layers_of(tree(parts, no_split=["Block"])).container == "layers"
    assert layers_of(tree(parts)).container == "layers"


def test_layers_in_two_lists_are_told():
    two = {"encoder": {"block": {"0:Block": {"w": 1}}}, "decoder": {"block": {"0:Block": {"w": 1}}}}
    assert layers_of(tree(two, no_split=["Block"])) == (
        "the layers of Model are in 2 lists: encoder.block, decoder.block"
    )


def test_a_tower_whose_class_names_no_blocks_is_a_list_too():
    tower = {"encoder": {"layers": {"0": {"mlp": {"w": 1}}, "1": {"mlp": {"w": 1}}}}}
    both = {"model": {"vision": tower, "text": {"layers": {"0:Block": {"w": 1}}}}}
    assert layers_of(tree(both, no_split=["Block"])) == (
        "the layers of Model are in 2 lists: model.vision.encoder.layers, model.text.layers"
    )


def test_a_model_without_a_list_is_told():
    assert layers_of(tree({"a": {"w": 1}})) == "Model has no list of layers"
