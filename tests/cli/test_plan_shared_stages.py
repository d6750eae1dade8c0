"""`devctl plan` over hosts with ``--tp``: a stage is several accelerators of a host, which share its layers."""

import json

import pytest

import devctl as library
from devctl.placement.parallel.records import parse_stages
from tests.cli.test_documents import COMPARISON, PLAN, holds
from tests.conftest import CONFIGS
from tests.marks import slow

LLAMA = CONFIGS / "llama-3.1-8b"
TWO = ["--devices", "a:4xH100;b:4xH100", "--tp", "4"]


def planned(done):
    assert done.code == 0, done.err
    return holds(done.out, PLAN)


def said(done):
    return " ".join(done.err.split())


def test_a_stage_is_a_group_of_a_host_and_says_what_each_of_its_ranks_holds(devctl):
    done = devctl("plan", LLAMA, *TWO)
    document = planned(done)
    stages = parse_stages(document, "x")
    assert [(s.host, s.devices) for s in stages.stages] == [
        (host, ("cuda:0", "cuda:1", "cuda:2", "cuda:3")) for host in "ab"
    ]
    assert stages.tensor_parallel == 4
    config = json.loads((LLAMA / "config.json").read_text())
    hidden, inner, vocabulary = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    keys = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    cut = 2 * (2 * hidden * hidden + 2 * hidden * keys + 3 * hidden * inner)
    layer = cut // 4 + 2 * 2 * hidden  # its two norms are whole on each rank
    embedding, norm = 2 * hidden * vocabulary // 4, 2 * hidden
    first, last = stages.stages
    rotary = first.used - (first.layers[1] * layer + embedding)
    assert 0 < rotary <= 8 * hidden // config["num_attention_heads"]
    assert last.used == (last.layers[1] - last.layers[0]) * layer + embedding + norm + rotary
    for stage, each in zip(stages.stages, document["stages"], strict=True):
        assert [rank["used"] for rank in each["ranks"]] == [stage.used] * 4
        assert [rank["rank"] for rank in each["ranks"]] == list(range(4 * stage.stage, 4 * stage.stage + 4))
        assert [rank["device"] for rank in each["ranks"]] == list(stage.devices)
    assert document["tensor_parallel"]["size"] == 4
    assert document["tensor_parallel"]["bytes_per_rank"] == [first.used] * 4 + [last.used] * 4
    assert document["device_map"]["model.layers.0"] == "a/cuda:0,a/cuda:1,a/cuda:2,a/cuda:3"
    assert document["device_map"]["lm_head"] == "b/cuda:0,b/cuda:1,b/cuda:2,b/cuda:3"
    assert [row["device"] for row in document["devices"]] == [f"{host}/cuda:{at}" for host in "ab" for at in range(4)]
    assert [row["used"] for row in document["devices"]] == document["tensor_parallel"]["bytes_per_rank"]
    assert (document["strategy"], document["crossings"]) == ("stages", 1)
    assert "in 2 stages over 2 hosts, each shared by 4 ranks" in said(done)
    assert done.err.count("a/cuda:0 to cuda:3") == 1, "equal ranks are one row"
    assert devctl("plan", LLAMA, *TWO, "--json").out == done.out


def test_every_rank_has_its_share_of_the_cache_and_its_communicators(devctl):
    whole = planned(devctl("plan", LLAMA, "--devices", "a:H100;b:H100", "--context-length", "8192"))
    document = planned(devctl("plan", LLAMA, *TWO, "--context-length", "8192"))
    layers = [stage["layers"][1] - stage["layers"][0] for stage in document["stages"]]
    gibibyte = sum(stage["state"] for stage in whole["stages"])
    assert gibibyte == 2**30
    assert [stage["state"] * 4 * 32 for stage in document["stages"]] == [gibibyte * count for count in layers]
    assert {row["overhead"] for row in document["devices"]} == {(720 + 1600) * 2**20}
    assert any("1.56 GiB of the overhead are for the communicators" in note for note in document["notes"])
    assert document["tensor_parallel"]["state_per_rank"] == [
        stage["state"] for stage in document["stages"] for _ in range(4)
    ]


@pytest.mark.parametrize("is_small", [True, *slow(False)], ids=["small", "whole"])
def test_latent_attention_keeps_the_cache_of_its_layers_on_every_rank(devctl, small, is_small):
    model = small("deepseek-v3") if is_small else CONFIGS / "deepseek-v3"
    shared, devices, ranks = ("a:2x1GiB;b:2x1GiB", "a:1GiB;b:1GiB", 2) if is_small else (*["a:8xB300;b:8xB300"] * 2, 8)
    work = ["--context-length", "64" if is_small else "4k", "--overhead", "0B"]
    document = planned(devctl("plan", model, *work, "--devices", shared, "--tp", ranks))
    assert "every rank keeps the whole KV cache, of its stage's layers: the plan does not cut it" in document["notes"]
    alone = planned(devctl("plan", model, *work, "--devices", devices))
    assert sum(s["state"] for s in document["stages"]) == sum(s["state"] for s in alone["stages"])


@pytest.mark.parametrize(
    ("devices", "options", "told"),
    [
        ("a:8xH100;b:6xH100", ["--tp", "4"], "--tp 4: b has 6 accelerators with free memory, of which groups of 4"),
        ("a:8xH100;b:6xH100", ["--tp", "4"], "--tp can be 2"),
        ("a:8xH100;b:8xH100", ["--tp", "3"], "32 attention heads can't be shared out evenly among 3 ranks"),
        ("a:8xH100;b:8xH100", ["--tp", "3"], "--tp can be 2, 4 or 8"),
        ("a:9xH100;b:9xH100", ["--tp", "3"], "leave out --tp: no number of ranks can share the model and divides"),
        ("a:H100;b:2xH100", ["--tp", "2"], "a has one accelerator with free memory, of which groups of 2 leave 1"),
        ("a:2xH100;b:2xH100", ["--tp", "2", "--ep", "2"], "no plan for expert parallelism of LlamaForCausalLM"),
        ("a:M3 Max 64GB;b:M3 Max 64GB", ["--tp", "2"], "does not run tensor parallelism on mps"),
        ("a:40xH100;b:40xH100", ["--tp", "2"], "40 groups of 2 accelerators are more than the 32 layers"),
        ("a:40xH100;b:40xH100", ["--tp", "2"], "leave out 16 accelerators, or give a larger --tp"),
    ],
)
def test_groups_that_can_not_be_are_refused_with_those_that_can(devctl, devices, options, told):
    done = devctl("plan", LLAMA, "--devices", devices, *options)
    assert (done.code, done.out) == (3, "")
    assert told in said(done)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--tp", "1"], "--tp 1: it is at least 2"),
        (["--tp", "4", "--ep", "2"], "give --ep 4"),
        (["--ep", "2"], "leave out --ep"),
        (["--tp", "2", "--quantize", "int8"], "leave out --quantize"),
    ],
)
def test_what_means_nothing_is_wrong_usage(devctl, options, told):
    done = devctl("plan", LLAMA, "--devices", "a:4xH100;b:4xH100", *options)
    assert (done.code, done.out) == (2, "")
    assert told in said(done)


def test_a_model_that_has_no_plan_is_refused(devctl, tmp_path):
    config = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_layer": 4, "n_embd": 32, "n_head": 4}
    (tmp_path / "config.json").write_text(json.dumps({**config, "vocab_size": 256, "dtype": "float32"}))
    done = devctl("plan", tmp_path, "--devices", "a:2x1GiB;b:2x1GiB", "--tp", "2")
    assert done.code == 3
    assert "has no plan for tensor parallelism of GPT2LMHeadModel" in said(done)
    assert "leave out --tp: its layers can be placed one after another" in said(done)


def test_of_unequal_accelerators_in_a_group_the_smallest_decides_and_it_is_said(devctl):
    options = ["--devices", "a:80GiB,40GiB;b:2x80GiB", "--tp", "2"]
    document = planned(devctl("plan", LLAMA, *options))
    assert (
        "a: cuda:0 to cuda:1 share a stage, and the smallest of them, of 40.0 GiB, decides what each is given of their "
        "80.0 GiB" in document["notes"]
    )
    first, last = document["stages"]
    assert [rank["budget"] for rank in first["ranks"]] == [80 * 2**30, 40 * 2**30]
    assert first["budget"] == 40 * 2**30
    assert first["layers"][1] - first["layers"][0] < last["layers"][1] - last["layers"][0]


@pytest.mark.parametrize("is_small", [True, *slow(False)], ids=["small", "whole"])
def test_experts_that_are_shared_out_are_counted_so(devctl, small, is_small):
    model = small("gpt-oss") if is_small else CONFIGS / "gpt-oss-120b"
    ranks, board = (2, "300KiB") if is_small else (8, "H100")
    options = ["--devices", f"a:{ranks}x{board};b:{ranks}x{board}", "--tp", ranks]
    alone = devctl("plan", model, *options)
    assert alone.code == 3
    assert f"--tp {ranks} --ep {ranks} fits" in said(alone)
    document = planned(devctl("plan", model, *options, "--ep", ranks))
    assert document["tensor_parallel"]["expert_parallel"] == ranks
    whole = planned(devctl("plan", model, "--devices", f"{ranks}xH100", "--tp", ranks, "--ep", ranks))
    used = sum(stage["used"] for stage in document["stages"])
    assert 0 <= used - whole["stages"][0]["used"] < 2**20, "the rotary embedding is on both"


def test_one_host_with_one_group_is_one_stage(devctl):
    document = planned(devctl("plan", LLAMA, "--devices", "a:2xH100", "--tp", "2"))
    plain = planned(devctl("plan", LLAMA, "--devices", "2xH100", "--tp", "2"))
    assert [stage["used"] for stage in document["stages"]] == [stage["used"] for stage in plain["stages"]]
    assert document["engine"] == plain["engine"] == "transformers' tensor parallelism"
    assert not any("transformers does not load" in note or "devctl load" in note for note in document["notes"])


def test_what_does_not_fit_says_which_other_groups_would(devctl):
    done = devctl("plan", CONFIGS / "llama-3.1-70b", "--devices", "a:4x20GiB;b:2x20GiB", "--tp", "2")
    assert (done.code, done.out) == (3, "")
    # one line a stage, and not one a rank
    assert sum("more than the" in line for line in done.err.splitlines()) <= 3
    assert "4 groups of 2 boards like the largest, of 20.0 GiB, would hold it" in said(done)


def test_compare_explain_and_pictures_are_of_groups(devctl, tmp_path):
    document = holds(devctl("plan", LLAMA, *TWO, "--compare", "--json").out, COMPARISON)
    assert [each["strategy"] for each in document["plans"]] == ["stages", "transformers", "vllm"]
    assert [len(each["devices"]) for each in document["plans"]] == [8, 8, 8]
    assert document["plans"][0]["fullest"] <= min(each["fullest"] for each in document["plans"])
    pictures = ["--svg", tmp_path / "x.svg", "--html", tmp_path / "x.html"]
    done = devctl("plan", LLAMA, *TWO, "--explain", *pictures)
    assert done.code == 0
    assert "4 ranks share each" in said(done)
    assert "a/cuda:0 to cuda:3 " in said(done)
    (stage, _) = json.loads(done.out)["stages"]
    assert f"{stage['used'] / stage['budget']:.1%} full" in said(done)
    for name in ("x.svg", "x.html"):
        drawn = (tmp_path / name).read_text()
        assert "b/cuda:3" in drawn
        assert "on a/cuda:0 to cuda:3" in drawn, "a layer is on all of its stage's"


def test_engines_are_told_both_sizes_and_the_partition(devctl, small, tmp_path):
    path = tmp_path / "plan.json"
    path.write_text(devctl("plan", LLAMA, *TWO, "--context-length", "8k").out)
    counts = [stage["layers"][1] - stage["layers"][0] for stage in json.loads(path.read_text())["stages"]]
    vllm = devctl("export", path, "--to", "vllm")
    assert vllm.code == 0
    assert vllm.out.count("--tensor-parallel-size 4") == vllm.out.count("--pipeline-parallel-size 2") == 2
    assert vllm.out.count(f"VLLM_PP_LAYER_PARTITION={counts[0]},{counts[1]}") == 2
    assert "CUDA_VISIBLE_DEVICES=0,1,2,3" in vllm.out or "CUDA_VISIBLE_DEVICES" not in vllm.out
    sglang = devctl("export", path, "--to", "sglang")
    assert sglang.code == 0
    assert sglang.out.count("--tp-size 4") == sglang.out.count("--pp-size 2") == 2
    assert devctl("export", path, "--to", "llama.cpp").code == 3
    experts = tmp_path / "experts.json"
    options = ["--devices", "a:2xH100;b:2xH100", "--tp", "2", "--ep", "2", "--report", experts]
    assert devctl("plan", small("gpt-oss"), *options).code == 0
    assert devctl("export", experts, "--to", "vllm").out.count("--enable-expert-parallel") == 2
    assert devctl("export", experts, "--to", "sglang").out.count("--ep-size 2") == 2


def test_no_command_of_one_process_loads_it_and_each_says_what_can(devctl, tmp_path):
    path = tmp_path / "plan.json"
    path.write_text(devctl("plan", LLAMA, *TWO).out)
    for command in (["load", LLAMA], ["check"], ["plan", LLAMA]):
        done = devctl(*command, "--map", path)
        assert (done.code, done.out) == (3, "")
        assert f"vLLM and SGLang can: `devctl export {path} --to vllm`" in said(done)
        assert "--launch print" not in said(done)


def test_the_library_plans_groups_over_hosts():
    plan = library.plan(LLAMA, "a:4xH100;b:4xH100", tp=4)
    assert plan.fits and not plan.is_shared_whole
    assert plan.stages.tensor_parallel == 4
    with pytest.raises(library.RefusedError, match="8 processes on 2 hosts"):
        plan.to_hf()
    with pytest.raises(library.RefusedError, match=r"groups of 4 leave 2 over"):
        library.plan(LLAMA, "a:8xH100;b:6xH100", tp=4)


def test_a_module_that_is_there_already_says_what_to_give_instead():
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=64
    )
    with pytest.raises(library.RefusedError) as caught:
        library.plan(LlamaForCausalLM(config), "a:2x1GiB;b:2x1GiB", tp=2)
    assert caught.value.hint == "give its folder or id"


@pytest.mark.slow
def test_the_longest_context_of_groups_fits_and_no_longer_one(devctl, thin):
    model = thin("llama-3.1-8b", 4)
    options = ["--devices", "a:2x2GiB;b:2x2GiB", "--tp", "2", "--overhead", "0B"]
    document = planned(devctl("plan", model, *options, "--max-context"))
    most = document["max_context"]["optimal"]
    assert 0 < document["max_context"]["this_map"] <= most
    assert devctl("plan", model, *options, "--context-length", most).code == 0
    assert devctl("plan", model, *options, "--context-length", most + max(2, most // 500)).code == 3
