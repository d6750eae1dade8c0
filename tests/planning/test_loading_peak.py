"""What is held while a model is loaded, where a user meets it: refusals, checks, and what a load needs and predicts."""

import json

import pytest
import torch
import transformers

import devctl
from devctl.devices import Device
from devctl.loading.measure import device_bytes
from devctl.loading.proofs.places import Places
from devctl.loading.weights.ram import LIBRARIES, host_need
from devctl.planning.checking import needs_of
from devctl.planning.map_file import read_map_file
from devctl.planning.model import open_skeleton
from devctl.planning.request import ModelRequest
from devctl.units import format_bytes
from tests.marks import one_in

CPU, GPU = Device.cpu(), Device.gpu(0)
PARTS = 2 * 8 * 64 * 256 * 2
"""Bytes of the gates and ups of a layer's experts."""


@pytest.fixture
def moe(tmp_path):
    config = transformers.MixtralConfig(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=8,
    )
    transformers.MixtralForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path)
    return tmp_path


def planned(moe, **most):
    return devctl.plan(str(moe), context_length=16, overhead=0, offload=False, **most)


def test_a_plan_that_fits_says_what_loading_takes(moe):
    found = planned(moe, max_memory={0: "100MiB"})
    (entry, *_) = found.to_document()["devices"]
    assert entry["loading"] == entry["used"] + PARTS > entry["used"] + entry["state"] + entry["activations"]


def test_what_is_advised_where_it_does_not_fit_is_enough(moe):
    document = planned(moe, max_memory={0: "100MiB"}).to_document()
    loading = document["devices"][0]["loading"]
    assert planned(moe, max_memory={0: f"{loading}B"}).fits
    refused = planned(moe, max_memory={0: f"{loading - 1}B"})
    assert not refused.fits
    assert refused.refusal is not None
    assert not any(f"would do with {format_bytes(loading - PARTS)}" in line for line in refused.refusal.findings)


def test_the_ram_of_a_load_counts_the_parts(moe):
    source, skeleton = open_skeleton(ModelRequest(model=str(moe)), random_weights=False)
    need = host_need(source, skeleton, {"": CPU}, random_weights=False, forward=7)
    assert need.loading == PARTS
    assert need.anonymous == need.made + LIBRARIES + PARTS, "before the forward"
    assert host_need(source, skeleton, {"": GPU}, random_weights=False, forward=0).loading == 0


def test_the_ram_of_a_load_counts_what_changes_its_dtype_on_the_way_to_a_gpu(moe):
    from transformers.core_model_loading import GLOBAL_WORKERS

    source, skeleton = open_skeleton(ModelRequest(model=str(moe), dtype="float32"), random_weights=False)
    need = host_need(source, skeleton, {"": GPU}, random_weights=False, forward=0)
    assert 0 < need.loading <= GLOBAL_WORKERS * 64 * 256 * 4, "one expert each, not the layer"
    assert host_need(source, skeleton, {"": CPU}, random_weights=False, forward=0).loading == 2 * PARTS


def test_the_peak_that_a_load_predicts_of_a_gpu_is_that_of_loading_where_it_is_more(moe):
    _, skeleton = open_skeleton(ModelRequest(model=str(moe)), random_weights=False)
    places = Places(measured=(), misplaced=(), count=0)
    for device, more in ((GPU, PARTS), (CPU, 5)):
        (found,) = device_bytes(skeleton.tree, {"": device}, device, places, beside={device: 5})
        assert found.predicted_peak == found.predicted + more


@pytest.mark.parametrize("with_report", one_in(2, [False, True]))
def test_a_check_asks_for_what_loading_takes(moe, with_report, tmp_path):
    found = planned(moe, max_memory={0: "100MiB"})
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(found.to_document() if with_report else found.to_hf()))
    loading = found.to_document()["devices"][0]["loading"]
    for model in (ModelRequest(model=str(moe)), None) if with_report else (ModelRequest(model=str(moe)),):
        needs = needs_of(read_map_file(path), model)
        assert needs.bytes[GPU] == loading
        assert not any("hold" in problem for problem in needs.problems)


def test_a_document_whose_budget_is_less_than_loading_takes_contradicts_itself(moe, tmp_path):
    document = planned(moe, max_memory={0: "100MiB"}).to_document()
    document["devices"][0]["budget"] = document["devices"][0]["loading"] - 1
    (tmp_path / "plan.json").write_text(json.dumps(document))
    (problem,) = needs_of(read_map_file(tmp_path / "plan.json"), None).problems
    assert problem.startswith("cuda:0 is said to need")
