"""Ranks that load what the plan says, and do what one process does."""

import json
from importlib.resources import files

import jsonschema
import psutil
import pytest

from devctl.distributed import checks, worker
from devctl.distributed.checks import _usable_device
from devctl.distributed.seat import find_seat
from devctl.errors import RefusedError
from devctl.placement.parallel.records import parse_stages
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
@pytest.mark.parametrize(
    ("cuts", "tied"),
    [((2, 2), False), ((2, 2), True), ((3, 1), True), ((1, 2, 1), True), ((1, 1, 2), False), ((1, 1, 1, 1), True)],
)
def test_any_cut_makes_what_one_process_makes(launch, tmp_path, cuts, tied):
    model = plans.save(tmp_path / "model", tie_word_embeddings=tied)
    plan = plans.document(model, cuts, "aabb"[: len(cuts)])
    ranks = launch(model, plan)
    assert [rank.code for rank in ranks] == [0] * len(cuts), [rank.err for rank in ranks]
    report = ranks[0].report
    assert report["reference"] == "equal"
    assert [row["measured"] for row in report["ranks"]] == [stage["used"] for stage in plan["stages"]]


@pytest.mark.slow
def test_texts_of_one_length_are_run_at_once(launch, llama):
    plan = plans.document(llama, (2, 2), "ab")
    ranks = launch(llama, plan, "--batch-size", "2", "--no-padding")
    assert [rank.code for rank in ranks] == [0, 0], ranks[0].err
    assert len(ranks[0].report["ranks"][1]["ids"]) == 2


@pytest.mark.slow
def test_a_plan_that_counts_other_bytes_is_found_out(launch, llama):
    plan = plans.document(llama, (2, 2), "ab")
    plan["stages"][1]["used"] -= 64
    del plan["stages"][1]["ranks"]
    ranks = launch(llama, plan)
    assert [rank.code for rank in ranks] == [5, 5]
    for rank in ranks:
        assert rank.err.startswith("devctl: not what the plan says: rank 1 on b: it holds ")
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
    del plan["stages"][0]["ranks"]
    plan["tensor_parallel"]["bytes_per_rank"] = [plan["stages"][0]["used"]] * 2
    ranks = launch(llama, plan)
    assert [rank.code for rank in ranks] == [5, 5]
    assert all("rank 1 on a: it holds" in rank.err for rank in ranks)


@pytest.mark.slow
def test_heads_that_ranks_can_not_share_are_refused_before_they_are_loaded(launch, llama):
    plan = plans.shared(llama, 4)  # and the model has two heads of keys and values
    ranks = launch(llama, plan)
    assert [rank.code for rank in ranks] == [3] * 4
    assert all("its num_key_value_heads are 2, which 4 ranks can't share (2 could)" in rank.err for rank in ranks)


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


@pytest.mark.slow
def test_a_plan_of_another_dtype_is_refused(launch, llama):
    plan = plans.document(llama, (2, 2), "ab")
    ranks = launch(llama, plan, "--dtype", "bfloat16")
    assert [rank.code for rank in ranks] == [3, 3]
    assert all("the plan is of dtype float32, and it is bfloat16 here" in rank.err for rank in ranks)


def board(folder, monkeypatch):
    file = folder / "nvidiactl"
    file.touch()
    monkeypatch.setattr(checks, "_BOARDS", (file,))


def test_a_machine_whose_boards_torch_can_not_use_runs_no_rank_on_its_cpu(llama, tmp_path, monkeypatch):
    launcher = {"GROUP_RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
    seat = find_seat(parse_stages(plans.document(llama, (2, 2), "ab"), "it"), launcher)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    monkeypatch.setattr(checks, "_BOARDS", (tmp_path / "none",))
    assert _usable_device(seat) == "cpu"
    board(tmp_path, monkeypatch)
    with pytest.raises(RefusedError, match="accelerators that torch can't use"):
        _usable_device(seat)
    monkeypatch.setattr("torch.accelerator.is_available", lambda: True)
    with pytest.raises(RefusedError, match="does not hold for this installation"):
        _usable_device(seat)


@pytest.mark.parametrize(
    ("free", "said"),
    [
        ((5, 10), "cuda:0 would hold .*, and has 5 B free"),
        (
            RuntimeError("CUDA error: CUDA-capable device(s) is/are busy or unavailable\nmore"),
            "cuda:0 can't be used now",
        ),
        (RuntimeError("CUDA error: out of memory"), "cuda:0 can't be used now: CUDA error: out of memory"),
    ],
)
def test_a_board_that_has_no_room_for_a_rank_is_refused(llama, monkeypatch, free, said):
    def told(device):
        assert str(device) == "cuda:0"
        if isinstance(free, Exception):
            raise free
        return free

    monkeypatch.setattr("torch.cuda.mem_get_info", told)
    launcher = {"GROUP_RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
    seat = find_seat(parse_stages(plans.document(llama, (2, 2), "ab"), "it"), launcher)
    with pytest.raises(RefusedError, match=said) as refused:
        checks._require_room(None, seat, "cuda:0")
    assert "\n" not in refused.value.message


def test_interfaces_lead_to_the_other_hosts(llama, monkeypatch):

    class At:
        def __init__(self, address):
            self.address = address

    class Here:
        address = "127.0.1.1"  # where Debian has a host's own name lead

    launcher = {"GROUP_RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
    seat = find_seat(parse_stages(plans.document(llama, (2, 2), "ab"), "it"), launcher)
    found = {"lo": [At("127.0.0.1")], "eth0": [At("10.0.0.1")], "wlan0": [At("fe80::1%wlan0")]}
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: found)
    monkeypatch.setattr(worker, "address_towards", lambda address, _: {"10.0.0.2": "10.0.0.1"}[address])
    assert worker._interface(seat, Here, ["127.0.1.1", "10.0.0.2"]) == "eth0"
    assert worker._interface(seat, Here, ["127.0.1.1", "127.0.0.1"]) == "lo"
    Here.address = "fe80::1"
    assert worker._interface(seat, Here, ["", ""]) == "wlan0"
    Here.address = "10.9.9.9"
    assert worker._interface(seat, Here, ["", ""]) is None
