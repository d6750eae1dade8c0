"""How a model would be shared by ranks, read from the model as it is built."""

import pytest
import torch
import transformers

from devctl.models.parallel_plan import read_sharding
from devctl.models.sharding import CUTS, Parts, generic
from tests.sharded import EXPERTS, SHARDED


def built(name, **own):
    model_class, config = SHARDED[name]()
    config = type(config)(**{**config.to_dict(), **own})
    with torch.device("meta"):
        return model_class(config)


def read(model, *, quantised=False):
    return read_sharding(model, quantised=quantised)


@pytest.mark.parametrize("name", SHARDED)
def test_a_rule_says_for_all_layers_what_transformers_resolves_for_each(name):
    from transformers.distributed import DistributedConfig

    model = built(name)
    sharding = read(model)
    assert sharding.release == f"transformers {transformers.__version__}"
    for experts in (False, True) if name in EXPERTS else (False,):
        tensor, dispatched, _ = model._resolve_parallel_plans(DistributedConfig(tp_size=2, ep_size=2 if experts else 1))
        resolved = {**tensor, **dispatched}
        named = [each for each, _ in (*model.named_modules(), *model.named_parameters())]
        assert {each: sharding.style_of(each, experts=experts) for each in named} == {
            each: resolved.get(each) for each in named
        }
        assert set(sharding.styles(experts=experts)) <= set(CUTS)


def test_a_model_without_experts_has_no_plan_for_them():
    assert read(built("llama")).experts == ()
    assert read(built("llama")).expert_counts == ()
    assert read(built("mixtral")).expert_counts == (4,)


def test_an_expert_is_cut_in_whole_blocks_of_16_bytes():
    assert read(built("mixtral", intermediate_size=96)).widths == (
        Parts(what="blocks of 4 in the inner size of an expert", count=24),
    )
    assert read(built("mixtral", intermediate_size=90)).widths == (), "which no process runs at all"
    half = built("mixtral", intermediate_size=96).to(torch.bfloat16)
    assert [each.count for each in read(half).widths] == [12]


def test_a_model_without_a_plan_has_none():
    with torch.device("meta"):
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=1))
    assert (read(model).tensor, read(model).refusal) == ((), None)


def test_quantised_weights_are_not_looked_at():
    assert "quantised" in read(built("llama"), quantised=True).refusal


def test_a_tied_head_that_is_cut_without_its_embedding_is_refused():
    """Tied, the head is the whole embedding, and its forward takes that for a part."""
    model = built("llama-tied")
    model._tp_plan = {"lm_head": "colwise_gather_output"}
    assert "lm_head.weight has colwise_gather_output" in read(model).refusal
    assert "model.embed_tokens.weight, which it is tied to, no style" in read(model).refusal


def test_a_style_of_linear_layers_is_refused_for_others():
    model = built("llama")
    model._tp_plan = {**model._tp_plan, "model.norm": "colwise"}
    assert "refuses colwise for model.norm, a LlamaRMSNorm: no out_features" in read(model).refusal


def test_an_embedding_with_a_norm_is_refused():
    """The norm would be of a part of a sum: torch fails in the forward."""
    model = built("llama")
    model.model.embed_tokens.norm = torch.nn.LayerNorm(64, device="meta")
    assert "model.embed_tokens, a Embedding, does more than look up rows" in read(model).refusal


def test_a_plan_that_transformers_does_not_take_is_refused():
    model = built("llama")
    model._tp_plan = {"lm_head": "diagonal"}
    assert "does not take its plan" in read(model).refusal
    assert "diagonal" in read(model).refusal


def test_a_release_that_shards_otherwise_is_told():
    class Older:
        tp_plan = None

    assert "shards models otherwise than 5.23" in read(Older()).refusal


def test_numbers_in_names_of_parameters_stay():
    assert generic("model.layers.3.w1") == "model.layers.*.w1"
