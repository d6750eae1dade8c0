"""``devctl load`` as a user runs it."""

import io
import json

import pytest

from devctl.devices import Device
from devctl.inventory.records import Accelerator, Host, Inventory
from tests.conftest import CONFIGS
from tests.marks import one_in

GIB = 2**30


def write_map(path, device_map):
    path.write_text(device_map if isinstance(device_map, str) else json.dumps(device_map))
    return path


MINILM_MAP = {"embeddings": "cpu", "pooler": "disk"} | {
    f"encoder.layer.{i}": "disk" if i % 2 else "cpu" for i in range(6)
}


def test_list_plan_load_on_a_real_model(devctl, minilm, tmp_path):
    """The main job, split over cpu and disk by an explicit map."""
    assert json.loads(devctl("list", "--json").out)["host"]["ram_available"] > 0
    planned = devctl("plan", minilm, "--max-memory", "cpu=60MiB")
    assert planned.code == 0
    assert set(json.loads(planned.out).values()) == {"cpu", "disk"}
    for text in (planned.out, json.dumps(MINILM_MAP)):
        done = devctl("load", minilm, "--map", write_map(tmp_path / "map.json", text), "--json")
        assert done.code == 0, done.err
        report = json.loads(done.out)
        assert report["ok"] is True
        assert report["misplaced"] == []
        assert report["smoke"]["source"] == "tokenizer"
        devices = {device["device"]: device for device in report["devices"]}
        assert devices.keys() == {"cpu", "disk"}
        assert all(device["predicted"] == device["measured"] for device in devices.values())
        assert sum(device["measured"] for device in devices.values()) == report["loaded_bytes"] == 90861056


def test_the_report_for_people(devctl, checkpoint):
    done = devctl("load", checkpoint("llama"), "--map", "cpu", "--max-new-tokens", "3")
    assert done.code == 0
    lines = [line.split() for line in done.out.splitlines()]
    verdict, model = done.out.splitlines()[:2]
    assert verdict == "loaded and ran where the map says; peak 239 KiB on cpu, 239 KiB predicted"
    assert model == ("LlamaForCausalLM 209 KiB in float32, given map, 16 + 3 tokens × 1")
    facts = {line[0]: line[1:] for line in lines}
    assert facts["tensors"][0] == facts["outputs"][0] == "pass"
    assert facts["forward"][-2:] == ["attention", "sdpa"]
    assert facts["generate"][2:4] == ["3", "tokens,"]
    assert facts["cpu"] == ["209", "KiB", "209", "KiB", *("239", "KiB") * 2, "+0.0%"]


@pytest.mark.parametrize(
    "strategy",
    [
        "auto",
        "balanced_low_0",
        pytest.param("balanced", marks=pytest.mark.slow),
        pytest.param("sequential", marks=pytest.mark.slow),
    ],
)
def test_a_strategy_instead_of_a_map(devctl, checkpoint, strategy):
    done = devctl("load", checkpoint("llama"), "--strategy", strategy, "--max-memory", "cpu=90KB", "--json")
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert report["strategy"] == strategy
    assert {device["device"] for device in report["devices"]} == {"cpu", "disk"}


def test_a_map_from_standard_input(devctl, checkpoint, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO('{"": "cpu"}'))
    assert devctl("load", checkpoint("vit"), "--map", "-").code == 0


def test_a_plan_document_is_a_map(devctl, checkpoint, tmp_path):
    report = tmp_path / "plan.json"
    assert devctl("plan", checkpoint("llama"), "--max-memory", "cpu=90KB", "--report", report).code == 0
    assert devctl("load", checkpoint("llama"), "--map", report).code == 0


def test_dummy_weights_need_only_a_config(devctl):
    tiny = CONFIGS / "tiny-llama"
    done = devctl("load", tiny, "--load-format", "dummy", "--max-memory", "cpu=2MB", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["load_format"] == "dummy"


def test_a_prompt(devctl, minilm):
    done = devctl("load", minilm, "--map", "cpu", "--prompt", "a b c d e", "--json")
    inputs = {i["name"]: i["shape"] for i in json.loads(done.out)["smoke"]["inputs"]}
    assert inputs["input_ids"] == [1, 7]


@pytest.mark.parametrize(
    ("device_map", "code", "said"),
    one_in(
        3,
        [
            ("", 2, "it is empty"),
            ("{}", 2, "no device map"),
            ('{"a": "tpu"}', 2, "puts 'a' on \"tpu\", which is no device"),
            ({"model": "cpu"}, 3, "no device for 1 tensors: lm_head.weight"),
            ({"": "cpu", "model.layers.9": "cpu"}, 3, "'model.layers.9' is no module or tensor of LlamaForCausalLM"),
            ({"": 63}, 3, "cuda:63 is not on this machine"),
            ({"model": "cpu", "lm_head": "xpu:7"}, 3, "xpu:7 is not on this machine"),
        ],
    ),
)
def test_maps_that_do_not_hold(devctl, checkpoint, tmp_path, device_map, code, said):
    done = devctl("load", checkpoint("llama"), "--map", write_map(tmp_path / "map.json", device_map))
    assert done.code == code
    assert done.out == ""
    assert said in done.err


def test_a_map_that_powershell_wrote(devctl, checkpoint, tmp_path):
    (tmp_path / "map.json").write_bytes(b"\xef\xbb\xbf" + b'{"": "cpu"}')
    assert devctl("load", checkpoint("vit"), "--map", tmp_path / "map.json").code == 0


def test_a_plan_of_another_schema(devctl, checkpoint, tmp_path):
    text = '{"kind": "devctl.plan", "schema": 99, "device_map": {"": "cpu"}}'
    done = devctl("load", checkpoint("vit"), "--map", write_map(tmp_path / "map.json", text))
    assert done.code == 2
    assert "a plan of schema 99" in done.err


def test_more_than_there_is_memory_for(devctl, monkeypatch, tmp_path):
    from devctl.cli import load as load_command

    gpu = Accelerator(device=Device.gpu(0), index=0, name="X", uuid=None, memory_total=GIB, memory_free=GIB)
    small = Host(cpu="X", cores_physical=1, cores_logical=1, ram_total=GIB, ram_available=GIB)
    inventory = Inventory(accelerators=(gpu,), host=small, disks=())
    monkeypatch.setattr(load_command, "take_inventory", lambda: inventory)
    model = CONFIGS / "llama-3.1-8b"
    for device in ("cuda:0", "cpu"):
        done = devctl("load", model, "--load-format", "dummy", "--map", device)
        assert done.code == 3
        assert f"{device} would hold 15.0 GiB, and has 1.00 GiB free" in done.err
    # the weights of a checkpoint are mapped from its files, and need not all be in RAM at once
    done = devctl("load", model, "--map", "cpu")
    assert done.code == 4
    assert "has no weights to load" in done.err


def test_room_for_the_weights_alone(devctl, monkeypatch):
    from devctl.cli import load as load_command

    free = 15 * GIB
    gpu = Accelerator(device=Device.gpu(0), index=0, name="X", uuid=None, memory_total=free, memory_free=free)
    host = Host(cpu="X", cores_physical=1, cores_logical=1, ram_total=GIB, ram_available=GIB)
    monkeypatch.setattr(load_command, "take_inventory", lambda: Inventory(accelerators=(gpu,), host=host, disks=()))
    run = ["load", CONFIGS / "llama-3.1-8b", "--load-format", "dummy", "--map", "cuda:0"]
    for context, warned in ((16, False), (4000, True)):
        done = devctl(*run, "--context-length", context)
        assert done.code == 3
        assert "torch" in done.err  # which has no such device here
        assert ("devctl: cuda:0 should hold 16.4 GiB" in done.err and "has 15.0 GiB free" in done.err) == warned


def test_numbers_mean_the_accelerators_that_are_here(devctl, monkeypatch, checkpoint):
    from devctl.cli import load as load_command

    xpu = Accelerator(device=Device.from_str("xpu:0"), index=0, name="X", uuid=None, memory_total=GIB, memory_free=GIB)
    host = Host(cpu="X", cores_physical=1, cores_logical=1, ram_total=GIB, ram_available=GIB)
    inventory = Inventory(accelerators=(xpu,), host=host, disks=())
    monkeypatch.setattr(load_command, "take_inventory", lambda: inventory)
    for how in (["--map", "0"], ["--max-memory", "0=1GiB"], ["--map", "xpu:0"]):
        done = devctl("load", checkpoint("llama"), *how)
        assert done.code == 3
        assert "can't use xpu:0" in done.err, done.err


@pytest.mark.parametrize(
    ("argument", "code", "said"),
    one_in(
        3,
        [
            ("cuda:63", 3, "cuda:63 is not on this machine"),
            ("63", 3, "cuda:63 is not on this machine"),
            ("absent.json", 2, "cannot read the map absent.json: No such file"),
            ("disk", 2, "neither a file nor a device that computes"),
            ("auto", 2, "use --strategy auto"),
            ("cuda:x", 2, "cannot read the map cuda:x"),
        ],
    ),
)
def test_bare_devices(devctl, checkpoint, argument, code, said):
    done = devctl("load", checkpoint("llama"), "--map", argument)
    assert done.code == code
    assert said in done.err


def test_a_bare_cuda_is_the_local_rank(devctl, checkpoint, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "61")
    assert "cuda:61 is not on this machine" in devctl("load", checkpoint("llama"), "--map", "cuda").err


def test_a_map_and_a_strategy_exclude_each_other(devctl, checkpoint):
    for extra in (["--strategy", "auto"], ["--max-memory", "cpu=1GiB"]):
        done = devctl("load", checkpoint("llama"), "--map", "cpu", *extra)
        assert done.code == 2
        assert "--map says where everything goes" in done.err


def test_a_config_without_weights(devctl):
    done = devctl("load", CONFIGS / "llama-3.1-8b" / "config.json", "--max-memory", "cpu=30GiB")
    assert done.code == 4
    assert "--load-format dummy" in done.err


def test_a_map_when_standard_input_is_closed(devctl, checkpoint, monkeypatch):
    monkeypatch.setattr("sys.stdin", None)
    done = devctl("load", checkpoint("vit"), "--map", "-")
    assert done.code == 2
    assert "standard input is closed" in done.err


def test_outputs_that_are_not_finite(devctl, checkpoint, tmp_path):
    from safetensors.torch import load_file, save_file

    for path in checkpoint("llama").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    weights["model.norm.weight"][:] = float("inf")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    done = devctl("load", tmp_path, "--map", "cpu", "--max-new-tokens", "0")
    assert done.code == 5
    assert "FAIL NaN or infinite: logits" in done.out
    assert "does not run as the map says" in done.err


def test_a_prompt_without_a_tokenizer(devctl, checkpoint):
    done = devctl("load", checkpoint("llama"), "--map", "cpu", "--prompt", "hi")
    assert done.code == 2
    assert "--prompt needs the model's tokenizer" in done.err
