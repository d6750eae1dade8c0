"""Ranks that load what the plan says, and do what one process does."""

import json
from importlib.resources import files

import jsonschema
import pytest

from tests.distributed import plans


def test_two_ranks_hold_what_the_plan_says_and_make_what_one_process_makes(launch, llama):
    plan = plans.document(llama, (1, 3), "ab")
    first, second = launch(llama, plan, "--max-new-tokens", "6")
    assert (first.code, second.code) == (0, 0), first.err + second.err
    report = first.report
    jsonschema.validate(report, json.loads((files("devctl.distributed") / "schema.json").read_text(encoding="utf-8")))
    assert second.out == ""
    assert report["reference"] == "equal"
    assert report["ok"] is True
    rows = report["ranks"]
    assert [(row["rank"], row["host"], row["stage"], row["layers"]) for row in rows] == [
        (0, "a", 0, [0, 1]),
        (1, "b", 1, [1, 4]),
    ]
    assert [row["measured"] for row in rows] == [stage["used"] for stage in plan["stages"]]
    assert rows[0]["ids"] == rows[1]["ids"]
    assert len(rows[0]["ids"][0]) == 6


@pytest.mark.slow
@pytest.mark.parametrize("cuts", [(2, 2), (3, 1), (1, 2, 1), (1, 1, 2), (1, 1, 1, 1)])
@pytest.mark.parametrize("tied", [False, True])
def test_any_cut_makes_what_one_process_makes(launch, tmp_path, cuts, tied):
    model = plans.save(tmp_path / "model", tie_word_embeddings=tied)
    plan = plans.document(model, cuts, "aabb"[: len(cuts)])
    ranks = launch(model, plan)
    assert [rank.code for rank in ranks] == [0] * len(cuts), [rank.err for rank in ranks]
    report = ranks[0].report
    assert report["reference"] == "equal"
    assert [row["measured"] for row in report["ranks"]] == [stage["used"] for stage in plan["stages"]]


def test_texts_of_one_length_are_run_at_once(launch, llama):
    plan = plans.document(llama, (2, 2), "ab")
    ranks = launch(llama, plan, "--batch-size", "2", "--no-padding")
    assert [rank.code for rank in ranks] == [0, 0], ranks[0].err
    assert len(ranks[0].report["ranks"][1]["ids"]) == 2


def test_a_plan_that_counts_other_bytes_is_found_out(launch, llama):
    plan = plans.document(llama, (2, 2), "ab")
    plan["stages"][1]["used"] -= 64
    ranks = launch(llama, plan)
    assert [rank.code for rank in ranks] == [5, 5]
    for rank in ranks:
        assert "rank 1 on b" in rank.err
        assert f"the plan says {plan['stages'][1]['used']:,} B" in rank.err


def test_ranks_that_share_all_layers_hold_what_the_plan_says_and_make_what_one_process_makes(launch, llama):
    plan = plans.shared(llama, 2)
    ranks = launch(llama, plan)
    assert [rank.code for rank in ranks] == [0, 0], [rank.err for rank in ranks]
    report = ranks[0].report
    assert report["reference"] == "equal"
    assert report["tensor_parallel"] == 2
    assert [row["measured"] for row in report["ranks"]] == plan["tensor_parallel"]["bytes_per_rank"]
    assert [row["layers"] for row in report["ranks"]] == [[0, 4], [0, 4]]


@pytest.mark.slow
def test_ranks_that_share_a_tied_head_are_exact(launch, tmp_path):
    model = plans.save(tmp_path / "model", tie_word_embeddings=True)
    ranks = launch(model, plans.shared(model, 2), "--batch-size", "2", "--no-padding")
    assert [rank.code for rank in ranks] == [0, 0], [rank.err for rank in ranks]
    assert ranks[0].report["reference"] == "equal"


@pytest.mark.slow
def test_ranks_that_share_layers_are_held_against_the_plan(launch, llama):
    plan = plans.shared(llama, 2)
    plan["stages"][0]["used"] -= 16
    plan["tensor_parallel"]["bytes_per_rank"] = [plan["stages"][0]["used"]] * 2
    ranks = launch(llama, plan)
    assert [rank.code for rank in ranks] == [5, 5]
    assert all("rank 1 on a: it holds" in rank.err for rank in ranks)


def test_heads_that_ranks_can_not_share_are_refused_before_they_are_loaded(launch, llama):
    plan = plans.shared(llama, 4)  # and the model has two heads of keys and values
    ranks = launch(llama, plan)
    assert [rank.code for rank in ranks] == [3] * 4
    assert all("its num_key_value_heads are 2, which 4 ranks can't share (2 could)" in rank.err for rank in ranks)


def test_experts_that_are_spread_over_ranks_are_refused(launch, llama):
    plan = plans.shared(llama, 2)
    plan["tensor_parallel"]["expert_parallel"] = 2
    ranks = launch(llama, plan)
    assert [rank.code for rank in ranks] == [3, 3]
    assert "expert parallel" in ranks[0].err


@pytest.mark.parametrize("said", [[1, 2], ["a", "b"], [5], None])
def test_bytes_of_other_ranks_are_wrong_usage(launch, llama, said):
    plan = plans.shared(llama, 2)
    if said is None:
        plan["stages"][0]["used"] += 1
    else:
        plan["tensor_parallel"]["bytes_per_rank"] = said
    ranks = launch(llama, plan)
    assert [rank.code for rank in ranks] == [2, 2], ranks
    assert "bytes_per_rank" in ranks[1].err


def test_an_architecture_that_is_silently_wrong_is_refused_on_every_host(launch, tmp_path):
    model = plans.save(tmp_path / "model", "GraniteForCausalLM")
    ranks = launch(model, plans.document(model, (2, 2), "ab"))
    assert [rank.code for rank in ranks] == [3, 3]
    for rank in ranks:
        assert "GraniteForCausalLM makes other tokens in stages" in rank.err


@pytest.mark.slow
def test_a_generation_config_that_asks_for_a_static_cache_is_refused(launch, tmp_path):
    model = plans.save(tmp_path / "model")
    (model / "generation_config.json").write_text('{"cache_implementation": "static", "do_sample": true}')
    plan = plans.document(model, (2, 2), "ab")
    ranks = launch(model, plan)
    assert [rank.code for rank in ranks] == [3, 3]
    assert all("a cache of kind 'static'" in rank.err for rank in ranks)
    (model / "generation_config.json").write_text('{"do_sample": true, "temperature": 0.7}')
    assert [rank.code for rank in launch(model, plan, "--decode", "config")] == [3, 3]
    assert [rank.code for rank in launch(model, plan)] == [0, 0]  # greedily, whatever the file says


@pytest.mark.slow
def test_a_quantised_checkpoint_is_refused(launch, tmp_path):
    model = plans.save(tmp_path / "model")
    plan = plans.document(model, (2, 2), "ab")
    config = json.loads((model / "config.json").read_text())
    settings = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
    (model / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
    ranks = launch(model, plan)
    assert [rank.code for rank in ranks] == [3, 3], ranks
    assert all("quantised" in rank.err for rank in ranks)


@pytest.mark.slow
def test_an_encoder_with_a_decoder_is_refused(launch, checkpoint, llama):
    plan = plans.document(llama, (2, 2), "ab")
    plan["model"] = {}
    ranks = launch(checkpoint("t5"), plan)
    assert [rank.code for rank in ranks] == [3, 3], ranks
    assert all("has an encoder and a decoder" in rank.err for rank in ranks)


def test_a_plan_of_another_dtype_is_refused(launch, llama):
    plan = plans.document(llama, (2, 2), "ab")
    ranks = launch(llama, plan, "--dtype", "bfloat16")
    assert [rank.code for rank in ranks] == [3, 3]
    assert all("the plan is of dtype float32, and it is bfloat16 here" in rank.err for rank in ranks)
