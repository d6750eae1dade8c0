"""Adapters on the command line: planned beside a model, or in a model's place, and what is no adapter."""

import json
import os
import shutil

import pytest

import devctl as library
from devctl.errors import RefusedError, UsageError
from tests import adapters
from tests.hub import COMMIT, point_at, serve
from tests.marks import one_in

BOX = ("--devices", "1GiB,cpu=1GiB")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return adapters.make("plain", tmp_path_factory.mktemp("adapters"))


@pytest.fixture
def own(made, tmp_path):
    """A copy of the adapter, to be spoilt."""
    return shutil.copytree(made.adapter, tmp_path / "own")


def test_an_adapter_is_counted_and_named_in_the_plan(devctl, made):
    alone = json.loads(devctl("plan", made.base, *BOX, "--json").out)
    result = devctl("plan", made.base, "--adapter", made.adapter, *BOX, "--json")
    document = json.loads(result.out)
    assert result.code == 0
    assert alone["model"]["adapters"] == []
    assert document["model"]["adapters"] == [{"name": str(made.adapter), "revision": None, "bytes": 3584}]
    assert document["model"]["bytes"] - alone["model"]["bytes"] == 3584
    assert document["devices"][0]["used"] - alone["devices"][0]["used"] == 3584
    assert f"with the adapter {made.adapter}: 3.50 KiB, as PEFT loads it" in document["notes"]
    assert document["device_map"] == alone["device_map"]


def test_each_adapter_that_is_given_counts(devctl, made):
    result = devctl("plan", made.base, "--adapter", made.adapter, "--adapter", made.adapter, *BOX, "--json")
    assert [each["bytes"] for each in json.loads(result.out)["model"]["adapters"]] == [3584, 3584]


def test_what_fits_alone_does_not_with_an_adapter(devctl, made):
    alone = json.loads(devctl("plan", made.base, *BOX, "--json").out)["model"]["bytes"]
    room = ("--devices", "1GiB", "--max-memory", f"0={alone + 100}B", "--strategy", "optimal", "--no-offload")
    assert devctl("plan", made.base, *room).code == 0
    assert devctl("plan", made.base, "--adapter", made.adapter, *room).code == 3


def test_strategies_are_compared_and_tables_made_with_it(devctl, made):
    for box, question in (("1GiB,cpu=1GiB", "--compare"), ("10KiB", "--what-if")):
        done = devctl("plan", made.base, "--adapter", made.adapter, "--devices", box, question)
        assert done.code == 0, done.err


@pytest.mark.slow
def test_capacities_are_found_with_it(made):
    found = library.capacity(made.base, "1GiB", context_length=32, adapters=[made.adapter])
    assert found.model.adapters[0].nbytes == 3584


def test_a_plan_with_layers_off_the_accelerators_says_how_PEFT_keeps_to_it(devctl, made):
    result = devctl("plan", made.base, "--adapter", made.adapter, "--devices", "30KiB,cpu=1GiB")
    assert result.code == 0
    assert "give PeftModel.from_pretrained this map, too" in result.err.replace("\n", " ")


def test_an_adapter_in_a_models_place_is_planned_with_its_base(devctl, made):
    result = devctl("plan", made.adapter, *BOX, "--json")
    assert result.code == 0
    assert f"{made.adapter} is an adapter: its base {made.base} is planned with it" in result.err
    document = json.loads(result.out)
    assert document["model"]["name"] == str(made.base)
    assert [each["bytes"] for each in document["model"]["adapters"]] == [3584]
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert json.loads(devctl("plan", made.adapter / name, *BOX, "--json").out) == document


def test_an_adapter_beside_a_config_is_one_all_the_same(devctl, made, own):
    shutil.copy(made.base / "config.json", own)
    result = devctl("plan", own, *BOX, "--json")
    assert [each["bytes"] for each in json.loads(result.out)["model"]["adapters"]] == [3584]


def test_an_adapter_in_a_models_own_folder_counts_as_transformers_loads_it_too(devctl, made, own):
    for name in ("config.json", "model.safetensors"):
        shutil.copy(made.base / name, own)
    adapters.rewrite(own, base_model_name_or_path="/nowhere")  # which is not looked for then
    result = devctl("plan", own, *BOX, "--json")
    assert [each["bytes"] for each in json.loads(result.out)["model"]["adapters"]] == [3584]
    assert "has an adapter in it, which transformers loads, too, where PEFT is installed" in result.err
    adapters.rewrite(own, peft_type="IA3")
    result = devctl("plan", own, *BOX, "--json")
    assert json.loads(result.out)["model"]["adapters"] == []
    assert "has an adapter in it, which is not counted" in result.err


@pytest.mark.parametrize("method", ["int8", "nf4", "fp8", "torchao-int4"])
def test_an_adapter_holds_as_much_beside_quantised_weights(devctl, made, method):
    alone, whole = (
        json.loads(devctl("plan", made.base, *BOX, "--quantize", method, *more, "--json").out)
        for more in ((), ("--adapter", made.adapter))
    )
    assert whole["model"]["bytes"] - alone["model"]["bytes"] == 3584
    assert "what an adapter computes beside quantised weights is counted as beside plain ones" in whole["notes"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"base_model_name_or_path": "/nowhere/base"},
            "is an adapter of /nowhere/base, not a model: /nowhere/base: no",
        ),
        (
            {"base_model_name_or_path": "org/base"},
            "is an adapter of org/base, not a model: org/base",
        ),
        ({"base_model_name_or_path": None}, "is an adapter that does not say of which model"),
        ({"base_model_name_or_path": ["a"]}, "is an adapter that does not say of which model"),
        ({"base_model_name_or_path": "x" * 10**6}, "is an adapter that does not say of which model"),
    ],
)
def test_an_adapter_whose_base_is_not_at_hand_names_it_and_the_command(devctl, own, changes, said):
    adapters.rewrite(own, **changes)
    result = devctl("plan", own, *BOX)
    assert (result.code, result.out) == (4, "")
    assert said in result.err
    assert f"--adapter {own}" in result.err
    assert len(result.err.splitlines()) == 2


def test_the_command_that_is_named_can_be_typed_whatever_the_adapter_says(devctl, own):
    adapters.rewrite(own, base_model_name_or_path="a; rm -rf ~")
    assert "`devctl plan 'a; rm -rf ~' --adapter" in devctl("plan", own, *BOX).err


def test_code_of_a_base_that_nobody_typed_is_not_run(devctl, made):
    result = devctl("plan", made.adapter, *BOX, "--trust-remote-code")
    assert (result.code, result.out) == (4, "")
    assert f"devctl plan {made.base} --adapter {made.adapter}" in result.err


def test_a_base_is_no_adapter_itself(devctl, own, made):
    adapters.rewrite(own, base_model_name_or_path=str(made.adapter))
    result = devctl("plan", own, *BOX)
    assert result.code == 4
    assert f"{made.adapter} is an adapter of {made.base}, not a model" in result.err


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"peft_type": "IA3"}, "is an adapter of PEFT's IA3, which is not counted: LoRA is"),
        ({"peft_type": "PROMPT_TUNING"}, "PROMPT_TUNING, which is not counted"),
        ({"peft_type": None}, "of unknown method, which is not counted"),
        ({"peft_type": 3}, "the peft_type of its adapter_config.json is 3, and no text"),
        ({"r": 10**9}, "the r of its adapter_config.json is 1000000000, and no rank"),
        ({"r": "8"}, 'the r of its adapter_config.json is "8", and no rank'),
        ({"r": True}, "is true, and no rank"),
        ({"r": 64}, "its file has rank 4, its config 64"),
        ({"rank_pattern": {"q_proj": 0}}, "and no rank"),
        ({"rank_pattern": [1]}, "is [1], and no object"),
        ({"target_modules": {"q_proj": 1}}, "and no list of names"),
        ({"target_modules": ["q_proj", "v_proj", "k_proj"]}, "its config names model.layers.0.self_attn.k_proj, and"),
        ({"modules_to_save": "lm_head"}, "and no list of names"),
        ({"modules_to_save": ["lm_head"]}, "its lm_head.weight is to be a copy, and the adapter's file has none"),
        ({"modules_to_save": ["nothing"]}, "it has no module nothing, of which the adapter has a copy"),
        ({"modules_to_save": ["m"] * 10**5}, "has 100,000 names"),
        ({"use_dora": "yes"}, "and no true or false"),
        ({"use_dora": True}, "its file has no magnitude, as its config says"),
        ({"lora_bias": True}, "its file has no bias, as its config says"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "is a LoRA with layer_replication, which is not counted"),
        ({"use_qalora": True}, "is a LoRA with use_qalora, which is not counted"),
    ],
)
def test_an_adapters_config_that_can_not_be_meant_ends_in_a_line(devctl, own, made, changes, said):
    adapters.rewrite(own, **changes)
    result = devctl("plan", made.base, "--adapter", own, *BOX)
    assert (result.code, result.out) == (4, "")
    assert said in result.err
    assert len(result.err.splitlines()) <= 2


QUERY = "base_model.model.model.layers.0.self_attn.q_proj"


def of(shape, start=0, dtype="F32", size=None):
    count = 4
    for length in shape:
        count *= length
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, start + (count if size is None else size)]}


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({}, "has no tensor in its adapter_model.safetensors"),
        ({f"{QUERY}.lora_A.weight": of([4, 32])}, "its file has no lora_B.weight"),
        (
            {f"{QUERY}.lora_A.weight": of([4, 32]), f"{QUERY}.lora_B.weight": of([32, 8], 512)},
            "its file has ranks 4 and 8",
        ),
        (
            {f"{QUERY}.lora_A.weight": of([4, 64]), f"{QUERY}.lora_B.weight": of([64, 4], 1024)},
            "is 32x32 there, and the adapter is for 64x64",
        ),
        ({f"{QUERY}.lora_A.weight": of([4, 32], size=16)}, "is corrupt"),
        ({f"{QUERY}.lora_A.weight": of([2**40, 2**40], size=16)}, "is corrupt"),
        ({f"{QUERY}.lora_A.weight": of([4], dtype="F" + "9" * 5000, size=16)}, "its header is broken"),
        ({f"{QUERY}.lora_Z.weight": of([4, 32])}, "has a lora_Z.weight, which is not counted"),
        ({"base_model.model.layers.9.lora_A.weight": of([4, 32])}, "does not fit LlamaForCausalLM: it has no layers.9"),
        (
            {
                f"{QUERY}.lora_A.weight": of([4, 32]),
                f"{QUERY}.lora_B.weight": of([32, 4], 512),
                f"{QUERY}.lora_magnitude_vector": of([99], 1024),
            },
            "its file has a lora_magnitude_vector of 99",
        ),
        (
            {"base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta": of([200, 32])},
            "model.embed_tokens is 128x32 there, its rows 200x32",
        ),
        ({"base_model.model.lm_head.weight": of([200, 32])}, "lm_head.weight is 128x32 there, and 200x32 in the"),
        ({"lora_unet_down.lora_up.weight": of([4, 32])}, "is it an adapter of another library?"),
    ],
)
def test_an_adapters_file_that_does_not_fit_ends_in_a_line(devctl, own, made, entries, said):
    adapters.write_safetensors(own / "adapter_model.safetensors", entries)
    adapters.rewrite(own, target_modules=".*q_proj")
    result = devctl("plan", made.base, "--adapter", own, *BOX)
    assert (result.code, result.out) == (4, "")
    assert said in result.err
    assert len(result.err.splitlines()) <= 2


def test_a_pattern_that_takes_for_ever_to_match_is_not_matched(devctl, own, made):
    adapters.rewrite(own, target_modules="(([a-z._0-9]+)+)+!", rank_pattern={"(([a-z._0-9]+)+)+!": 4})
    assert devctl("plan", made.base, "--adapter", own, *BOX, "--context-length", 16, "--no-cache").code == 0


def test_files_that_are_cut_off_missing_or_pickles_end_in_a_line(devctl, own, made):
    weights, config = own / "adapter_model.safetensors", own / "adapter_config.json"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-8])
    assert "is cut off" in devctl("plan", made.base, "--adapter", own, *BOX).err
    weights.write_bytes(whole[:5])
    assert "is cut off" in devctl("plan", made.base, "--adapter", own, *BOX).err
    weights.unlink()
    assert "has no adapter_model.safetensors" in devctl("plan", made.base, "--adapter", own, *BOX).err
    (own / "adapter_model.bin").write_bytes(b"\x80\x04never opened")
    result = devctl("plan", made.base, "--adapter", own, *BOX)
    assert "a pickle, which is not opened" in result.err
    config.write_text("[1]")
    assert "it is a JSON list, not an object" in devctl("plan", made.base, "--adapter", own, *BOX).err
    config.write_text('{"peft_type": "LORA"')
    result = devctl("plan", made.base, "--adapter", own, *BOX)
    assert (result.code, result.out) == (4, "")
    assert "is no adapter's config" in result.err
    assert "is broken" in devctl("plan", own, *BOX).err


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="it has no pipes")
def test_a_pipe_in_place_of_a_config_is_not_waited_for(devctl, own, made):
    (own / "adapter_config.json").unlink()
    os.mkfifo(own / "adapter_config.json")
    assert devctl("plan", made.base, "--adapter", own, *BOX).code == 4


def test_what_is_no_adapter_is_said_to_be_none(devctl, made, tmp_path):
    for name, said in (
        (made.base, "is no adapter: it has no adapter_config.json"),
        (tmp_path / "nothing", "no such folder"),
        ("~nobody-of-that-name/x", "cannot look at"),
        ("org/name", "is not in the cache"),
    ):
        result = devctl("plan", made.base, "--adapter", name, *BOX)
        assert result.code == 4
        assert said in result.err


def test_an_adapter_for_another_class_names_it(devctl, made, tmp_path):
    bert = adapters.make("a bias of the model", tmp_path)
    result = devctl("plan", made.base, "--adapter", bert.adapter, *BOX)
    assert result.code == 4
    assert "--model-class AutoModelForSequenceClassification" in result.err


def test_a_load_refuses_a_plan_with_an_adapter(devctl, made, tmp_path):
    report = tmp_path / "plan.json"
    devctl("plan", made.base, "--adapter", made.adapter, "--devices", "cpu=1GiB", "--report", report)
    result = devctl("load", made.base, "--map", report)
    assert (result.code, result.out) == (3, "")
    assert f"counts the adapter {made.adapter}, and a load loads only the model" in result.err
    planned = library.plan(made.base, "cpu=1GiB", adapters=[made.adapter])
    with pytest.raises(RefusedError, match="counts the adapter"):
        library.load(made.base, planned)
    assert devctl("load", made.adapter).code == 4
    result = devctl("load", made.base, "--adapter", made.adapter)
    assert (result.code, result.out) == (2, "")
    assert "a load loads only the model, and proves nothing of an adapter" in result.err
    assert "--adapter" not in devctl("load", "--help").out


def test_engines_refuse_a_plan_with_an_adapter(devctl, made, tmp_path):
    report = tmp_path / "plan.json"
    devctl("plan", made.base, "--adapter", made.adapter, "--devices", "1GiB", "--report", report)
    result = devctl("export", report, "--to", "vllm")
    assert (result.code, result.out) == (3, "")
    assert "it counts an adapter" in result.err


def test_a_plan_is_checked_with_its_adapter_and_not_without(devctl, made, tmp_path):
    report = tmp_path / "plan.json"
    devctl("plan", made.base, "--adapter", made.adapter, "--devices", "cpu=1GiB", "--report", report)
    assert devctl("check", "--map", report).code == 0
    assert devctl("check", "--map", report, made.base, "--adapter", made.adapter).code == 0
    result = devctl("check", "--map", report, made.base)
    assert result.code == 3
    assert f"it is a plan with {made.adapter}, and {made.base} is given with none" in result.err
    assert devctl("check", "--map", report, "--adapter", made.adapter).code == 2
    assert library.check(device_map=report, model=made.base, adapters=[made.adapter]).ok


@pytest.mark.parametrize("more", [("--tp", 2), ("--devices", "a:1GiB;b:1GiB"), ("--to", "vllm")])
def test_nor_is_an_adapter_in_a_models_place(devctl, made, more):
    box = () if "--devices" in more else ("--devices", "2x1GiB")
    result = devctl("plan", made.adapter, *box, *more)
    assert result.out == ""
    assert result.code == (3 if "--to" in more else 2)
    assert "adapter" in "".join(result.err.splitlines()[1:])


@pytest.mark.parametrize("more", [("--tp", 2), ("--to", "vllm"), ("--devices", "a:1GiB;b:1GiB")])
def test_what_loads_no_adapter_is_not_planned_with_one(devctl, made, more):
    box = () if "--devices" in more else ("--devices", "2x1GiB")
    result = devctl("plan", made.base, "--adapter", made.adapter, *box, *more)
    assert (result.code, result.out) == (2, "")
    assert "leave out --adapter" in result.err


def test_the_keyword_is_named_where_the_library_is_asked(made):
    with pytest.raises(UsageError, match="leave out adapters"):
        library.plan(made.base, "2x1GiB", tp=2, adapters=[made.adapter])


@pytest.fixture
def hub(made, tmp_path, monkeypatch):
    adapter = shutil.copytree(made.adapter, tmp_path / "adapter")
    adapters.rewrite(adapter, base_model_name_or_path="org/base")
    with serve() as hub:
        hub.repos |= {"org/base": made.base, "org/adapter": adapter}
        point_at(hub, tmp_path, monkeypatch)
        yield hub


def test_of_an_adapter_on_the_hub_the_header_alone_is_fetched(devctl, hub):
    result = devctl("plan", "org/base", "--adapter", "org/adapter", *BOX, "--json")
    assert result.code == 0, result.err
    assert json.loads(result.out)["model"]["adapters"] == [{"name": "org/adapter", "revision": COMMIT, "bytes": 3584}]
    asked = [path for path in hub.requests if "adapter_model.safetensors" in path]
    assert asked
    assert hub.ranges


def test_an_adapter_on_the_hub_is_planned_with_its_base(devctl, hub):
    result = devctl("plan", "org/adapter", *BOX, "--json")
    assert result.code == 0, result.err
    assert json.loads(result.out)["model"]["name"] == "org/base"
    assert "org/adapter is an adapter: its base org/base is planned with it" in result.err


@pytest.mark.parametrize("base", one_in(2, ["/etc", "~/base", "../base", "a/b/c"]))
def test_a_path_that_an_adapter_on_the_hub_names_is_not_followed(devctl, hub, base):
    adapters.rewrite(hub.repos["org/adapter"], base_model_name_or_path=base)
    result = devctl("plan", "org/adapter", *BOX)
    assert (result.code, result.out) == (4, "")
    assert f"org/adapter is an adapter of {base}, not a model" in result.err
    assert len(result.err.splitlines()) == 2


def test_an_id_without_an_adapter_is_said_to_be_none(devctl, hub):
    result = devctl("plan", "org/base", "--adapter", "org/base", *BOX)
    assert result.code == 4
    assert "org/base is no adapter of PEFT: it has no adapter_config.json" in result.err


def test_an_adapter_on_the_hub_without_safetensors_is_not_opened(devctl, hub):
    (hub.repos["org/adapter"] / "adapter_model.safetensors").unlink()
    result = devctl("plan", "org/base", "--adapter", "org/adapter", *BOX)
    assert (result.code, result.out) == (4, "")
    assert "org/adapter has no adapter_model.safetensors" in result.err
