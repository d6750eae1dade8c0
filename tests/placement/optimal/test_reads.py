"""What a token reads of a model."""

import pytest

import devctl
from devctl.models.tree import Module, ModuleTree, Tensor, TensorKind
from devctl.placement.optimal.reads import reads
from devctl.planning.building import experts_per_token
from tests.conftest import CONFIGS


def weight(name, *shape):
    size = 1
    for each in shape:
        size *= each
    return Tensor(name=name, kind=TensorKind.PARAMETER, nbytes=size, shape=shape, dtype="int8")


def linear(name, *shape, class_name="Linear"):
    return Module(name=name, class_name=class_name, parameters=(weight(f"{name}.weight", *shape),))


def tree(*children, ties=()):
    return ModuleTree(root=Module(name="", class_name="M", children=children), class_name="M", dtype="int8", ties=ties)


STACKED = Module(
    name="experts",
    class_name="SomeExperts",
    parameters=(weight("experts.up", 4, 10, 10), weight("experts.up_bias", 4, 10), weight("experts.scale", 7)),
)
LISTED = Module(
    name="experts",
    class_name="ModuleList",
    children=tuple(linear(f"experts.{n}", 10, 10) for n in range(4)),
)


def read(model, per_token=1, **rest):
    return reads(model, per_token, **rest).of(model, "")


def test_a_plain_model_is_read_whole():
    model = tree(linear("a", 10, 10))
    found = reads(model, None)
    assert (found.saved, found.experts, found.unknown) == ({}, None, False)
    assert reads(model, 2).unknown
    assert found.of(model, "") == 100


@pytest.mark.parametrize(("experts", "whole", "of_one"), [(STACKED, 447, 117), (LISTED, 400, 100)])
def test_of_experts_those_that_a_token_is_sent_to_are_read(experts, whole, of_one):
    model = tree(linear("a", 10, 10), experts)
    assert read(model, 1) == 100 + of_one
    assert read(model, 4) == 100 + whole
    found = reads(model, 2)
    assert (found.experts, found.unknown) == ((2, 4), False)


@pytest.mark.parametrize("per_token", [None, 5])
def test_where_it_is_not_known_how_many_all_are_read_and_it_is_said(per_token):
    model = tree(STACKED)
    found = reads(model, per_token)
    assert (found.of(model, ""), found.experts, found.unknown) == (447, None, True)


def test_shared_experts_and_dense_layers_are_read_whole():
    shared = Module(name="shared_experts", class_name="MLP", children=(linear("shared_experts.up", 10, 10),))
    assert read(tree(shared, linear("mlp", 10, 10))) == 200


def test_of_an_embedding_a_row_is_read_unless_the_logits_are_made_with_it():
    embedding, head = linear("embed", 50, 2, class_name="Embedding"), linear("head", 50, 2)
    assert read(tree(embedding, head)) == 2 + 100
    assert read(tree(embedding, head, ties=(("head.weight", "embed.weight"),))) == 100


def test_what_has_run_before_the_first_token_is_not_read():
    encoder = Module(name="encoder", class_name="E", children=(linear("encoder.a", 10, 10),))
    model = tree(encoder, linear("decoder", 10, 10), linear("visual", 10, 10))
    assert read(model, has_encoder=True) == 100
    assert read(model) == 200


@pytest.mark.parametrize(
    ("name", "billions"),
    [  # parameters that are read a token, without the embedding's, as the models' makers have them
        ("deepseek-v3", 36.6),
        ("mixtral-8x7b", 12.7),
        ("gpt-oss-120b", 5.1),
        ("llama-3.1-8b", 7.5),
    ],
)
def test_so_many_parameters_are_read(name, billions):
    model = devctl.open_model(CONFIGS / name)
    found = reads(model.tree, model.experts_per_token)
    assert found.of(model.tree, "") / 2e9 == pytest.approx(billions, rel=0.02)


@pytest.mark.parametrize(
    ("config", "count"),
    [
        ({}, None),
        ({"num_experts_per_tok": 8, "num_experts": 256}, 8),
        ({"num_experts_per_tok": 4, "experts_per_token": 4}, 4),
        ({"text_config": {"num_experts_per_tok": 2}, "vision_config": {}}, 2),
        ({"ffn_config": {"moe_top_k": 4}}, 4),
        ({"moe_topk": [8, 8]}, 8),
        ({"moe_topk": [8, 2]}, None),
        ({"thinker": {"num_experts_per_tok": 8}, "talker": {"num_experts_per_tok": 6}}, None),
        ({"num_experts_per_tok": True}, None),
        ({"num_experts_per_tok": "8"}, None),
        ({"num_experts_per_tok": 0}, None),
    ],
)
def test_configs_have_several_names_for_it(config, count):
    assert experts_per_token(config) == count
