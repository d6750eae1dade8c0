"""What plan documents and maps say to engines, through the command line."""

import json
from importlib.resources import files

import jsonschema
import pytest

from devctl.errors import UsageError
from devctl.export.read import exportable
from devctl.planning.exporting import as_exportable
from tests.conftest import CONFIGS
from tests.marks import one_in

LLAMA = CONFIGS / "llama-3.1-8b"
SCHEMA = json.loads((files("devctl.export") / "export.schema.json").read_text(encoding="utf-8"))


@pytest.fixture
def planned(devctl, tmp_path):
    """A file with a plan document: ``planned("--devices", "24GiB")``."""

    def make(*options, model=LLAMA):
        file = tmp_path / "plan.json"
        done = devctl("plan", model, *options, "--report", file)
        assert done.code == 0, done.err
        return file

    return make


def exported(devctl, file, engine, *more):
    done = devctl("export", file, *more, "--to", engine, "--json")
    assert done.code == 0, done.err
    document = json.loads(done.out)
    jsonschema.validate(document, SCHEMA)
    return document["commands"], document["notes"]


def test_a_plan_of_two_gpus_is_said_with_its_layers_and_its_work(devctl, planned):
    file = planned("--devices", "24GiB,12GiB", "--context-length", 8192, "--batch-size", 2)
    counts = {}
    for name, device in json.loads(file.read_text())["device_map"].items():
        if name.startswith("model.layers."):
            counts[device] = counts.get(device, 0) + 1
    ((command,), _) = exported(devctl, file, "vllm")
    assert command["environment"]["VLLM_PP_LAYER_PARTITION"] == ",".join(map(str, counts.values()))
    words = command["words"]
    assert words[words.index("--max-model-len") + 1] == "8192"
    state = max(row["state"] for row in json.loads(file.read_text())["devices"])
    pages = 2 * (8192 // 16 + 1) + 1
    assert int(words[words.index("--kv-cache-memory-bytes") + 1]) == state // (2 * 8192) * 16 * pages
    done = devctl("export", file, "--to", "vllm")
    assert done.out == command["line"] + "\n"
    assert command["host"] is None


@pytest.mark.parametrize("number", ["10000", "999999999", "9" * 5000])
def test_a_layer_that_no_model_has_is_refused_at_once(number):
    with pytest.raises(UsageError, match="no model has 10,000 layers"):
        exportable({"model.layers.0": 0, f"model.layers.{number}": 0}, "map.json", "m")


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({"batch_size": 0}, '"batch_size" is 0, and a run has one sequence at least'),
        ({"context_length": 10**30}, "larger than anything of a machine"),
    ],
)
def test_a_plan_of_a_run_that_can_not_be_is_refused(own, said):
    document = {"kind": "devctl.plan", "schema": 1, "model": {"name": "m"}, "device_map": {"": 0}, "workload": own}
    with pytest.raises(UsageError, match=said):
        exportable(document, "plan.json")


def test_a_map_of_other_layers_than_the_model_has_is_refused(devctl, tmp_path):
    (tmp_path / "map.json").write_text(json.dumps({"model.layers.0": 0, "model.layers.1": 1}))
    done = devctl("export", tmp_path / "map.json", CONFIGS / "tiny-llama", "--to", "vllm")
    assert (done.code, done.out) == (3, "")
    assert "the map is of 2 layers, and" in done.err
    assert "tiny-llama has 8" in done.err


@pytest.mark.parametrize(
    ("own", "tokens", "alike"),
    [
        ({"sliding_window": 512}, 2048, False),
        ({"sliding_window": 512}, 512, True),
        ({"sliding_window": 512, "use_sliding_window": False}, 2048, True),
        ({"sliding_window": 512, "layer_types": ["full_attention"] * 2}, 2048, True),
        ({"sliding_window": None}, 2048, True),
        ({"text_config": {"sliding_window": 512}}, 2048, False),
    ],
)
def test_windows_of_all_layers_are_seen_in_the_config(tmp_path, own, tokens, alike):
    """vLLM wants room for all tokens of a step beside the window: less would not start."""
    (tmp_path / "config.json").write_text(json.dumps({"num_hidden_layers": 2, **own}))
    document = {
        "kind": "devctl.plan",
        "schema": 1,
        "model": {"name": str(tmp_path)},
        "device_map": {"": 0},
        "workload": {"context_length": tokens, "blocks": [{"name": f"model.layers.{at}", "state": 5} for at in (0, 1)]},
    }
    assert as_exportable(document, "plan.json").kept_alike is alike


def test_layers_that_keep_windows_are_seen_in_a_plan():
    document = {
        "kind": "devctl.plan",
        "schema": 1,
        "model": {"name": "m"},
        "device_map": {"": 0},
        "workload": {"context_length": 8, "blocks": [{"name": f"model.layers.{at}", "state": 5} for at in range(3)]},
    }
    assert exportable(document, "plan.json").kept_alike
    blocks = document["workload"]["blocks"]
    for other, alike in ({"name": "lm_head", "state": 0}, True), ({"name": "model.layers.3", "state": 9}, False):
        blocks.append(other)
        assert exportable(document, "plan.json").kept_alike is alike


def test_a_plan_of_one_gpu(devctl, planned):
    ((command,), _) = exported(devctl, planned("--devices", "24GiB", "--context-length", 4096), "llama.cpp")
    assert command["words"][:5] == ["llama-server", "--model", "llama-3.1-8b.gguf", "--gpu-layers", "33"]
    ((command,), notes) = exported(devctl, planned("--devices", "24GiB"), "vllm")
    assert "VLLM_PP_LAYER_PARTITION" not in command["environment"]
    assert any("counts no workload" in note for note in notes)


def test_what_is_on_the_cpu_is_as_many_bytes(devctl, planned):
    file = planned("--devices", "12GiB,cpu=64GiB")
    ((command,), notes) = exported(devctl, file, "vllm")
    (cpu,) = [row["used"] for row in json.loads(file.read_text())["devices"] if row["device"] == "cpu"]
    told = float(command["words"][command["words"].index("--cpu-offload-gb") + 1])
    assert cpu <= told * 2**30 <= cpu + 2**30 / 50
    assert any("not the plan's modules" in note for note in notes)
    done = devctl("export", file, "--to", "llama.cpp")
    assert done.code == 3
    assert "llama.cpp leaves the first layers on the CPU" in done.err


def test_a_map_says_its_layers_alone(devctl, tmp_path):
    (tmp_path / "map.json").write_text(
        json.dumps({"model.embed_tokens": 0, "model.layers.0": 0, "model.layers.1": 1, "model.norm": 1, "lm_head": 1})
    )
    ((command,), _) = exported(devctl, tmp_path / "map.json", "sglang", "org/model")
    assert command["environment"] == {"SGLANG_PP_LAYER_PARTITION": "1,1"}
    assert command["words"] == ["python", "-m", "sglang.launch_server", "--model-path", "org/model", "--pp-size", "2"]
    done = devctl("export", tmp_path / "map.json", "--to", "vllm")
    assert done.code == 2
    assert "names no model" in done.err


@pytest.mark.parametrize(
    ("device_map", "why"),
    [
        ({"h.0": 0, "h.1": 1, "h.2": 0}, "layers go back to cuda:0"),
        ({"h.0": 0, "h.1.attn": 0, "h.1.mlp": 1, "h.2": 1}, "h.1 is split over cuda:0 and cuda:1"),
        ({"h.0": 0, "h.1": 0, "head": 1}, "cuda:1 has no layer, only other parts"),
        ({"h.0": 0, "h.2": 0}, "h.1 has no device in the map"),
        ({"h.0": 0, "h.1": "disk"}, "left on disk"),
        ({"h.0": "cpu", "h.1": "cpu"}, "nothing is on an accelerator"),
        ({"": "cpu"}, "nothing is on an accelerator"),
        ({"model": 0, "head": 1}, "does not say which layers"),
    ],
)
@pytest.mark.parametrize("engine", ["vllm", "sglang", "llama.cpp"])
def test_a_map_that_no_engine_can_run_is_refused_with_its_reason(devctl, tmp_path, device_map, why, engine):
    (tmp_path / "map.json").write_text(json.dumps(device_map))
    done = devctl("export", tmp_path / "map.json", "org/model", "--to", engine)
    assert (done.code, done.out) == (3, "")
    assert done.err.startswith(f"devctl: {engine} can't run this plan as it is\n  - ")
    assert why in done.err


@pytest.mark.parametrize(
    ("change", "why"),
    one_in(
        4,
        [
            ({"schema": 2}, "of schema 2"),
            ({"device_map": {}}, "no device map"),
            ({"devices": 7}, '"devices" is no list'),
            ({"devices": [{}]}, "names no device"),
            ({"devices": [{"device": "cuda:0", "used": -1}]}, "no number"),
            ({"devices": [{"device": "toaster", "used": 1}]}, "no device"),
            ({"model": []}, "names no model"),
            ({"model": {"name": "-x"}}, "no command takes"),
            ({"model": {"name": "a\nb"}}, "no command takes"),
            ({"model": {"name": "a", "revision": "--x"}}, "no name"),
            ({"model": 7}, '"model" is no object'),
            ({"workload": {"context_length": "long"}}, "no number"),
            ({"workload": {"blocks": 7}}, "no list of names"),
            ({"workload": {"context_length": 10**400}}, 'context_length" is larger than anything'),
            ({"notes": 7}, '"notes" is 7, not a list'),
            ({"layers_in": "model.layers", "stages": []}, "there is no stage"),
            ({"stages": "none"}, "can't be read"),
        ],
    ),
)
def test_a_document_that_is_none_is_wrong_usage_in_one_line(devctl, planned, tmp_path, change, why):
    document = json.loads(planned("--devices", "24GiB").read_text())
    (tmp_path / "bad.json").write_text(json.dumps(document | change))
    done = devctl("export", tmp_path / "bad.json", "--to", "vllm")
    assert (done.code, done.out) == (2, ""), done.err
    assert why in done.err
    assert done.err.count("\n") <= 2


def test_stages_over_hosts(devctl, planned, tmp_path):
    document = json.loads(planned("--devices", "24GiB").read_text())
    row = {"used": 1, "state": 2, "activations": 3, "overhead": 4, "budget": 99}
    document |= {
        "layers_in": "model.layers",
        "stages": [
            {"stage": 0, "host": "a", "devices": ["cuda:0"], "layers": [0, 12], **row},
            {"stage": 1, "host": "b", "devices": ["cuda:3"], "layers": [12, 32], **row},
        ],
    }
    (tmp_path / "stages.json").write_text(json.dumps(document))
    first, second = exported(devctl, tmp_path / "stages.json", "vllm")[0]
    assert (first["host"], second["host"]) == ("a", "b")
    assert first["environment"] == {"VLLM_PP_LAYER_PARTITION": "12,20"}
    assert second["environment"] == {"VLLM_PP_LAYER_PARTITION": "12,20", "CUDA_VISIBLE_DEVICES": "3"}
    document["stages"][0]["host"] = "-oProxyCommand=x"
    (tmp_path / "stages.json").write_text(json.dumps(document))
    done = devctl("export", tmp_path / "stages.json", "--to", "vllm")
    assert (done.code, "no host's name" in done.err) == (2, True)


def test_another_model_than_the_plans_is_wrong_usage(devctl, planned):
    done = devctl("export", planned("--devices", "24GiB"), "org/other", "--to", "vllm")
    assert (done.code, "leave MODEL out" in done.err) == (2, True)


@pytest.mark.parametrize(
    "options", [["--devices", "2x24GiB", "--context-length", 4096], ["--devices", "2x24GiB", "--tp", 2]], ids=str
)
def test_plan_says_it_in_one_go(devctl, planned, options):
    file = planned(*options)
    for engine in ("vllm", "sglang"):
        done = devctl("plan", LLAMA, *options, "--to", engine)
        assert (done.code, done.out) == (0, devctl("export", file, "--to", engine).out)
        assert "LlamaForCausalLM 15.0 GiB in bfloat16" in done.err
        document = json.loads(devctl("plan", LLAMA, *options, "--to", engine, "--json").out)
        jsonschema.validate(document, SCHEMA)


def test_what_the_engine_refuses_writes_nothing(devctl, tmp_path):
    options = ["--devices", "a:2x12GiB;b:24GiB", "--report", tmp_path / "plan.json"]
    done = devctl("plan", LLAMA, *options, "--to", "vllm")
    assert (done.code, done.out) == (3, "")
    assert "unequal ones: a 2, b 1" in done.err
    assert not (tmp_path / "plan.json").exists()
    done = devctl("plan", LLAMA, "--devices", "24GiB", "--to", "ollama")
    assert (done.code, done.out) == (2, "")
    assert devctl("plan", LLAMA, "--devices", "24GiB", "--compare", "--to", "vllm").code == 2
