"""``devctl plan`` as a user runs it."""

import json
import stat

import pytest

from devctl.devices import Device
from devctl.inventory.document import to_document
from devctl.inventory.records import Accelerator, Host, Inventory
from tests.conftest import CONFIGS
from tests.inventory import boxes
from tests.marks import one_in

GIB = 2**30
LLAMA = CONFIGS / "llama-3.1-8b"


def test_the_map_alone_is_on_stdout(devctl):
    done = devctl("plan", LLAMA, "--max-memory", "0=10GiB,1=10GiB,cpu=30GiB")
    assert done.code == 0
    device_map = json.loads(done.out)
    assert next(iter(device_map)) == "model.embed_tokens"
    assert set(device_map.values()) == {0, 1}


def test_the_summary_is_on_stderr(devctl):
    limits = ["--max-memory", "0=5GiB", "--max-memory", "1=5GiB,cpu=4GiB"]
    lines = devctl("plan", LLAMA, *limits, "--strategy", "sequential").err.splitlines()
    assert lines[0].startswith("2.84 GiB on cpu, 3.42 GiB on disk, 1.")
    assert lines[1] == "LlamaForCausalLM 15.0 GiB in bfloat16, placed by sequential, weights alone"
    assert [line.split()[0] for line in lines[2:6]] == ["cuda:0", "cuda:1", "cpu", "disk"]
    # embeddings of 0.98 GiB and 7 layers of 0.41 GiB; as much is kept for the largest layer to come, the head's 0.98
    assert lines[2].endswith("3.82 GiB of 5.00 GiB  model.embed_tokens, model.layers.0-6")


@pytest.mark.parametrize("strategy", ["auto", "balanced", "balanced_low_0", "sequential"])
def test_strategies(devctl, strategy):
    done = devctl("plan", LLAMA, "--strategy", strategy, "--max-memory", "0=20GiB,1=20GiB")
    assert done.code == 0
    assert f"placed by {strategy}" in done.err


def test_quantised_while_loading(devctl, tmp_path):
    report = tmp_path / "plan.json"
    done = devctl("plan", LLAMA, "--quantize", "nf4", "--max-memory", "0=4GiB,cpu=9GiB", "--report", report)
    assert done.code == 0
    lines = done.err.splitlines()
    assert lines[1] == "LlamaForCausalLM 5.61 GiB in bfloat16 and nf4, placed by auto, weights alone"
    assert "note: transformers plans with 90% of every budget for nf4 weights" in lines
    assert "note: transformers refuses to load nf4 weights with a part on cpu" in lines
    assert json.loads(report.read_text())["model"]["quantisation"] == "nf4"
    fits = devctl("plan", LLAMA, "--quantize", "nf4", "--max-memory", "0=8GiB")
    assert json.loads(fits.out) == {"": 0}
    assert "refuses" not in fits.err


def test_a_quantised_checkpoint(devctl, tmp_path):
    config = json.loads((LLAMA / "config.json").read_text())
    settings = {"quant_method": "awq", "bits": 4, "group_size": 128}
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    done = devctl("plan", tmp_path, "--max-memory", "0=8GiB")
    assert done.err.splitlines()[1].startswith("LlamaForCausalLM 5.33 GiB in bfloat16 and awq, placed by auto")
    refused = devctl("plan", tmp_path, "--quantize", "nf4", "--max-memory", "0=8GiB")
    assert (refused.code, refused.out) == (2, "")
    assert refused.err == f"devctl: {tmp_path} is quantised already (awq): leave out --quantize\n"


def test_a_config_file_is_enough(devctl):
    by_file = devctl("plan", LLAMA / "config.json", "--max-memory", "0=9GiB,cpu=30GiB")
    by_folder = devctl("plan", LLAMA, "--max-memory", "0=9GiB,cpu=30GiB")
    assert by_file.out == by_folder.out


def test_this_machine_is_the_default(devctl, minilm):
    done = devctl("plan", minilm)
    assert done.code == 0
    assert set(json.loads(done.out).values()) <= {0, "cpu"}


def box(tmp_path, *free):
    """What `list --json` says on a machine with GPUs that have ``free`` bytes."""
    gpus = tuple(
        Accelerator(device=Device.gpu(i), index=i, name="X", uuid=None, memory_total=size, memory_free=size)
        for i, size in enumerate(free)
    )
    host = Host(cpu="X", cores_physical=1, cores_logical=1, ram_total=GIB, ram_available=10 * GIB)
    path = tmp_path / "box.json"
    path.write_text(json.dumps(to_document(Inventory(accelerators=gpus, host=host, disks=()))))
    return path


def test_another_machine(devctl, tmp_path):
    done = devctl("plan", LLAMA, "--machine", box(tmp_path, 12 * GIB, 12 * GIB))
    assert done.code == 0
    assert set(json.loads(done.out).values()) == {0, 1}
    assert "of 12.0 GiB" in done.err
    assert "cpu" in done.err
    assert "of 9.00 GiB" in done.err
    assert "note:" not in done.err
    given = devctl("plan", LLAMA, "--machine", tmp_path / "box.json", "--max-memory", "0=12GiB,2=12GiB")
    assert "the machine has no cuda:2" in given.err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "cannot read the machine"),
        ("", "it is empty"),
        ("[]", "describes no machine: not an inventory"),
        ('{"": 0}', "describes no machine: not an inventory"),
        ('{"kind": "devctl.inventory", "schema": 99}', "this devctl reads schema 1"),
        ('{"kind": "devctl.inventory", "schema": 1}', "describes no machine"),
        ("[" * 100_000, "describes no machine"),
    ],
)
def test_a_machine_that_is_none(devctl, tmp_path, text, said):
    path = tmp_path / "box.json"
    if text is not None:
        path.write_text(text)
    done = devctl("plan", LLAMA, "--machine", path)
    assert done.code == 2
    assert said in done.err
    assert "devctl list --json" in done.err


def test_a_machine_without_memory(devctl, tmp_path):
    document = json.loads(box(tmp_path).read_text())
    document["host"]["ram_available"] = None
    (tmp_path / "box.json").write_text(json.dumps(document))
    done = devctl("plan", LLAMA, "--machine", tmp_path / "box.json")
    assert done.code == 2
    assert "no device has a known amount of memory" in done.err


def test_dtype_and_class(devctl):
    done = devctl("plan", LLAMA, "--dtype", "float32", "--model-class", "AutoModel", "--max-memory", "cpu=100GiB")
    assert done.err.splitlines()[1].startswith("LlamaModel 28.0 GiB in float32")


@pytest.mark.parametrize(
    ("box", "environment", "said"),
    [
        (boxes.system(init=18), {}, "no NVIDIA GPU is counted: the NVIDIA driver's kernel module and library"),
        (boxes.one_lost(), {}, "nvidia 1 and nvidia 2 are left out: GPU is lost"),
        (boxes.eight(), {"CUDA_VISIBLE_DEVICES": "3,11"}, "and 4 more are hidden by CUDA_VISIBLE_DEVICES"),
        (boxes.eight(), {"CUDA_VISIBLE_DEVICES": "11"}, "CUDA_VISIBLE_DEVICES: its entry '11' names no GPU"),
    ],
)
def test_a_plan_says_why_a_gpu_is_missing(devctl, machine, short, monkeypatch, box, environment, said):
    machine(box)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    done = devctl("plan", short, "--json", "--max-context")
    assert (done.code, said in done.err) == (0, True), done.err
    assert any(said in note for note in json.loads(done.out)["notes"])
    for question in ("--compare", "--what-if"):
        done = devctl("plan", short, question, "--json")
        assert (done.code, said in done.err) == (0, True), done.err
        assert said not in done.out
    refused = devctl("plan", short, "--reserve", "100%", "--reserve", "cpu=100%", "--no-disk")
    assert (refused.code, said in refused.err) == (3, True), refused.err


def test_a_map_for_a_gpu_that_is_hidden_is_refused_with_the_reason(devctl, machine, monkeypatch, checkpoint):
    machine(boxes.eight())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    done = devctl("load", checkpoint("llama"), "--map", "cuda:0")
    assert done.code == 3
    assert "CUDA_VISIBLE_DEVICES: it is empty, which hides every GPU" in done.err


def test_no_gpu_to_be_fast_on_is_told_with_the_reason(devctl, machine, monkeypatch):
    machine(boxes.one_lost())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    done = devctl("plan", CONFIGS / "tiny-llama", "--objective", "latency")
    assert done.code == 2
    assert "there is none: nvidia 1 and nvidia 2 are left out: GPU is lost; nvidia 0" in done.err


def test_absent_gpus_are_noted(devctl):
    done = devctl("plan", LLAMA, "--max-memory", "62=20GiB,63=20GiB")
    assert "the machine has no cuda:62, cuda:63" in done.err


def test_the_report(devctl, tmp_path):
    path = tmp_path / "plan.json"
    done = devctl("plan", LLAMA, "--max-memory", "0=20GiB,cpu=30GiB", "--report", path)
    document = json.loads(path.read_text())
    assert document["kind"] == "devctl.plan"
    assert document["device_map"] == json.loads(done.out)
    assert document["model"]["class"] == "LlamaForCausalLM"
    assert document["model"]["bytes"] == sum(device["used"] for device in document["devices"])
    assert document["versions"].keys() == {"devctl", "transformers", "accelerate", "torch"}
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]
    assert stat.S_IMODE(path.stat().st_mode) & 0o600 == 0o600


def test_a_report_follows_a_link(devctl, tmp_path):
    (tmp_path / "target").mkdir()
    (tmp_path / "link.json").symlink_to(tmp_path / "target" / "plan.json")
    for _ in range(2):  # a link to nothing, and one to a file
        assert devctl("plan", LLAMA, "--max-memory", "cpu=30GiB", "--report", tmp_path / "link.json").code == 0
        assert (tmp_path / "link.json").is_symlink()
        assert json.loads((tmp_path / "target" / "plan.json").read_text())["kind"] == "devctl.plan"


def test_a_report_into_a_pipe(devctl, tmp_path):
    import os
    import threading

    os.mkfifo(tmp_path / "pipe")
    read = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_text()))
    reader.start()
    assert devctl("plan", LLAMA, "--max-memory", "cpu=30GiB", "--report", tmp_path / "pipe").code == 0
    reader.join(timeout=10)
    assert json.loads(read[0])["kind"] == "devctl.plan"
    assert (tmp_path / "pipe").is_fifo()


def test_transformers_takes_the_map(devctl, checkpoint, tmp_path):
    import transformers

    folder = checkpoint("llama")
    (tmp_path / "map.json").write_text(devctl("plan", folder, "--max-memory", "cpu=90KB").out)
    device_map = json.loads((tmp_path / "map.json").read_text())
    assert set(device_map.values()) == {"cpu", "disk"}
    model = transformers.LlamaForCausalLM.from_pretrained(folder, device_map=device_map, offload_folder=tmp_path)
    assert model.hf_device_map == device_map


@pytest.mark.parametrize(
    ("args", "code", "said"),
    one_in(
        3,
        [
            (["--strategy", "nonsense"], 2, "'nonsense' is not one of auto, balanced, balanced_low_0, sequential"),
            (["--dtype", "int3"], 2, "'int3' is not one of"),
            (["--max-memory", "0=10Gi"], 2, "--max-memory: '10Gi' is not a size"),
            (["--max-memory", "gpu=10GiB"], 2, "--max-memory: 'gpu' is not a device"),
            (["--max-memory", ""], 2, "--max-memory: no DEVICE=SIZE"),
            (["--model-class", "Nonsense"], 2, "no model class 'Nonsense'"),
            (["--max-memory", "cpu=1e300GiB"], 2, "too large for a size"),
            (["--max-memory", "0=1GiB,xpu:0=1GiB"], 2, "cuda and xpu are both in it"),
            (["--revision", "main"], 2, "has no --revision"),
            (["--report", "/absent/plan.json"], 2, "cannot write /absent/plan.json: No such file or directory"),
            (["--report", "/"], 2, "cannot write /: Is a directory"),
            (["--report", ""], 2, "cannot write .: Is a directory"),
            (["--quantize", "int3"], 2, "'int3' is not one of"),
            (["--nonsense"], 2, "No such option: --nonsense"),
        ],
    ),
)
def test_wrong_options(devctl, args, code, said):
    done = devctl("plan", LLAMA, *args)
    assert done.code == code
    assert done.out == ""
    assert said in done.err
    assert len(done.err.splitlines()) <= 2


@pytest.mark.parametrize(
    ("files", "said"),
    one_in(
        2,
        [
            ({}, "has no config.json"),
            ({"config.json": ""}, "is empty"),
            ({"config.json": '{"model_type": "nonsense"}'}, "does not know the model type 'nonsense'"),
            ({"config.json": '{"model_type": "llama", "architectures": ["Nonsense"]}'}, "has no class 'Nonsense'"),
        ],
    ),
)
def test_models_that_can_not_be_read(devctl, tmp_path, files, said):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    done = devctl("plan", tmp_path)
    assert done.code == 4
    assert done.out == ""
    assert said in done.err
    assert len(done.err.splitlines()) <= 2


def test_no_model(devctl):
    done = devctl("plan")
    assert done.code == 2
    assert "MODEL is missing: a folder" in done.err


def test_explain_follows_the_summary(devctl):
    limits = ["--max-memory", "0=10GiB,1=10GiB,cpu=30GiB"]
    plain, told = devctl("plan", LLAMA, *limits), devctl("plan", LLAMA, *limits, "--explain")
    assert told.out == plain.out
    assert told.err.startswith(plain.err)
    said = told.err[len(plain.err) :].splitlines()
    assert said[0] == "why:"
    assert "- filled in this order, with no going back: cuda:0, cuda:1, cpu, disk" in said
    assert any(line.endswith("are needed → next device") for line in said)


def test_explain_wraps_where_a_terminal_looks(devctl, monkeypatch):
    args = ["plan", LLAMA, "--max-memory", "0=10GiB,1=10GiB", "--explain"]
    assert max(map(len, devctl(*args).err.splitlines())) > 80
    monkeypatch.setenv("COLUMNS", "80")
    assert max(map(len, devctl(*args).err.splitlines())) <= 80
