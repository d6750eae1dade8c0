"""A GGUF file as MODEL, as a user meets it."""

import json
import shlex
from importlib.resources import files as files_of

import gguf
import jsonschema
import pytest

from devctl.export.llama_cpp import device_of
from tests import gguf_files as files
from tests.conftest import CONFIGS


@pytest.fixture
def llama(tmp_path):
    return files.write(tmp_path / "llama.gguf")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "parts").mkdir()
    files.write(tmp_path / "parts" / "m.gguf", split=10)
    return tmp_path / "parts"


SMALL = ("--max-memory", "0=900KiB,1=900KiB,cpu=1GiB")


def test_what_is_printed_is_the_plan_document(devctl, llama):
    """A map from blk.0 to a device is one that nothing loads."""
    done = devctl("plan", llama, "--devices", "2xRTX4090", "--context-length", "4k")
    assert done.code == 0
    plan = json.loads(done.out)
    assert plan["kind"] == "devctl.plan"
    size = sum(tensor.n_bytes for tensor in gguf.GGUFReader(llama).tensors)
    assert plan["model"] == {
        "name": str(llama),
        "revision": None,
        "class": "llama",
        "dtype": "gguf",
        "quantisation": "Q4_K_M",
        "bytes": size,
        "adapters": [],
    }
    assert plan["versions"].keys() == {"devctl", "llama.cpp"}
    assert plan["strategy"] == "layers"
    assert plan["device_map"]["token_embd"] == "cpu"
    assert plan["device_map"]["blk.0"] == 0
    assert plan["device_map"]["output"] == plan["device_map"]["blk.3"] == 1
    of_layer = 2 * 64 * 2 * 4096
    assert plan["workload"]["blocks"] == [
        {"name": f"blk.{number}", "state": of_layer, "prefill": 0, "decode": 0} for number in range(4)
    ]
    assert sum(use["state"] for use in plan["devices"]) == 4 * of_layer
    # what rotates positions is on every GPU with layers
    assert sum(use["used"] for use in plan["devices"]) == size + 64


def test_the_summary_says_what_is_not_counted(devctl, llama):
    done = devctl("plan", llama, "--devices", "24GiB", "--context-length", "4k", "--batch-size", "2")
    assert "llama 1.63 MiB in gguf and Q4_K_M, placed by layers" in done.err
    assert "holds for: llama.cpp's weights and KV cache; its compute buffers are not known" in done.err
    assert "llama.cpp's compute buffers are not known: 1.00 GiB of each GPU is kept for them" in done.err
    assert f"llama-fit-params --model {llama} --ctx-size 8192" in " ".join(done.err.split())


def test_the_line_for_llama_cpp_puts_every_layer_where_the_plan_does(devctl, llama):
    options = (*SMALL, "--context-length", "256", "--overhead", "0B")
    plan = json.loads(devctl("plan", llama, *options, "--json").out)
    done = devctl("plan", llama, *options, "--to", "llama.cpp")
    words = shlex.split(done.out)
    assert words[:3] == ["llama-server", "--model", str(llama)]
    given = {words[at]: words[at + 1] for at in range(1, len(words), 2)}
    split = tuple(map(int, given["--tensor-split"].split(",")))
    places = [device_of(layer, 4, int(given["--gpu-layers"]), split) for layer in range(5)]
    of_plan = [plan["device_map"][name] for name in ("blk.0", "blk.1", "blk.2", "blk.3", "output")]
    assert ["cpu" if place is None else place for place in places] == of_plan
    assert of_plan[0] == "cpu"
    assert given["--ctx-size"] == "256"


def test_without_a_gpu_llama_cpp_runs_it_on_the_cpu(devctl, llama):
    done = devctl("plan", llama, "--max-memory", "cpu=1GiB", "--to", "llama.cpp")
    assert (done.code, done.out) == (0, f"llama-server --model {llama} --gpu-layers 0 --fit off\n")


def test_one_gpu_of_several_is_the_only_one_that_llama_cpp_takes(devctl, llama):
    done = devctl("plan", llama, "--max-memory", "0=1KiB,1=24GiB,cpu=1GiB", "--to", "llama.cpp")
    assert done.out == (
        f"CUDA_VISIBLE_DEVICES=1 llama-server --model {llama} --gpu-layers 5 --split-mode none --fit off\n"
    )


def test_parts_are_named_by_the_first(devctl, folder):
    first = folder / "m-00001-of-00004.gguf"
    done = devctl(
        "plan", folder, "--devices", "24GiB", "--context-length", "1k", "--kv-dtype", "int8", "--to", "llama.cpp"
    )
    assert done.out == (
        f"llama-server --model {first} --gpu-layers 5 --split-mode none --ctx-size 1024 --parallel 1 "
        "--cache-type-k q8_0 --cache-type-v q8_0 --fit off\n"
    )


def test_a_tied_embedding_is_held_twice(devctl, tmp_path):
    path = files.write(tmp_path / "m.gguf", given=files.tensors(files.LLAMA, tied=True))
    done = devctl("plan", path, "--devices", "24GiB,cpu=1GiB", "--json")
    plan = json.loads(done.out)
    embedding = next(t.n_bytes for t in gguf.GGUFReader(path).tensors if t.name == "token_embd.weight")
    assert sum(use["used"] for use in plan["devices"]) == plan["model"]["bytes"] + embedding
    assert "the embedding is the output, too" in done.err
    on_cpu = json.loads(devctl("plan", path, "--max-memory", "cpu=1GiB").out)
    assert sum(use["used"] for use in on_cpu["devices"]) == on_cpu["model"]["bytes"]


def test_the_longest_context_is_the_longest_that_fits(devctl, llama):
    options = ("--max-memory", "0=2MiB,1=2MiB,cpu=1GiB", "--overhead", "0B")
    found = json.loads(devctl("plan", llama, *options, "--max-context").out)["max_context"]
    assert 256 <= found["this_map"] <= found["optimal"] < 4096
    assert devctl("plan", llama, *options, "--context-length", found["optimal"], "--no-offload").code == 0
    # a part in a thousand is looked for, and a cache has whole cells
    more = found["optimal"] + 256 + found["optimal"] // 1000
    assert devctl("plan", llama, *options, "--context-length", more, "--no-offload").code == 3


def test_what_does_not_fit_is_told_with_what_would(devctl, llama):
    done = devctl("plan", llama, "--devices", "4MiB", "--context-length", "4k", "--overhead", "0B")
    assert (done.code, done.out) == (3, "")
    assert "it does not fit" in done.err
    assert "cuda:0 is given 5.57 MiB, 1.57 MiB more than the 4.00 MiB that it may hold" in done.err
    assert "--kv-dtype int8 fits" in done.err
    least = int(done.err.partition("--context-length ")[2].partition(" ")[0])
    for options in (["--context-length", least], ["--context-length", "4k", "--kv-dtype", "int8"]):
        assert devctl("plan", llama, "--devices", "4MiB", "--overhead", "0B", *options).code == 0


def test_layers_on_the_cpu_are_refused_where_they_may_not_be(devctl, llama):
    done = devctl("plan", llama, *SMALL, "--context-length", "4k", "--overhead", "0B", "--no-offload")
    assert done.code == 3
    assert "it does not fit: 4 of 4 layers would be left on the CPU" in done.err


def test_a_cache_of_unknown_rules_is_refused_and_the_weights_are_not(devctl, tmp_path):
    path = files.write(tmp_path / "m.gguf", "rwkv7")
    done = devctl("plan", path, "--devices", "24GiB", "--context-length", "4k")
    assert (done.code, done.out) == (4, "")
    assert "can't be counted: how llama.cpp's rwkv7 keeps its state is not known here" in done.err
    assert "--context-length" in done.err.splitlines()[1]
    assert devctl("plan", path, "--devices", "24GiB", "--max-context").code == 4
    assert devctl("plan", path, "--devices", "24GiB").code == 0


def test_a_cache_type_that_llama_cpp_lacks_is_refused(devctl, llama):
    done = devctl("plan", llama, "--devices", "24GiB", "--context-length", "4k", "--kv-dtype", "fp8")
    assert done.code == 2
    assert "llama.cpp has no such cache type" in done.err


@pytest.mark.parametrize(
    "option",
    [
        ["--compare"],
        ["--what-if"],
        ["--fits-on", "all"],
        ["--strategy", "optimal"],
        ["--objective", "latency"],
        ["--tp", "2"],
        ["--map", "cpu"],
        ["--target-context", "4k"],
        ["--explain"],
        ["--quantize", "nf4"],
        ["--dtype", "bf16"],
        ["--no-disk"],
        ["--no-cache"],
        ["--trust-remote-code"],
        ["--attn-implementation", "eager", "--context-length", "1k"],
        ["--new-tokens", "3", "--context-length", "1k"],
        ["--no-padding", "--context-length", "1k", "--batch-size", "2"],
    ],
    ids=lambda option: option[0],
)
def test_what_changes_nothing_is_refused_in_a_line(devctl, llama, option):
    done = devctl("plan", llama, *option)
    assert (done.code, done.out) == (2, "")
    first, second = done.err.splitlines()
    assert first == (
        f"devctl: a GGUF file is planned for llama.cpp, as it is and in whole layers: leave out {option[0]}"
    )
    assert "--to llama.cpp" in second


def test_several_hosts_and_other_engines_are_refused(devctl, llama):
    done = devctl("plan", llama, "--devices", "a:24GiB;b:24GiB")
    assert done.code == 2
    assert "is a GGUF file, which is planned for llama.cpp" in done.err
    done = devctl("plan", llama, "--devices", "24GiB", "--to", "vllm")
    assert (done.code, done.out) == (3, "")
    assert "vllm is not what a GGUF file is planned for" in done.err


def test_load_and_check_say_what_it_is_and_what_works(devctl, llama, folder):
    done = devctl("load", llama)
    assert done.code == 4
    assert f"{llama} is a GGUF file, which llama.cpp runs" in done.err
    assert f"`devctl plan {llama} --to llama.cpp`" in done.err
    assert "is a folder of GGUF files" in devctl("load", folder).err
    for options in ([], ["--map", "cpu"]):
        done = devctl("check", llama, *options)
        assert done.code == 2


def test_its_plan_is_checked_against_a_machine_and_loaded_by_nothing(devctl, llama, tmp_path, checkpoint):
    plan = tmp_path / "plan.json"
    assert devctl("plan", llama, "--max-memory", "cpu=64MiB", "--context-length", "1k", "--report", plan).code == 0
    jsonschema.validate(
        json.loads(plan.read_text()), json.loads((files_of("devctl.placement") / "schema.json").read_text())
    )
    assert devctl("check", "--map", plan).code == 0
    done = devctl("check", "--map", plan, llama)
    assert done.code == 2
    assert "what it needs is in its plan" in done.err
    for command in (["load", checkpoint("llama"), "--map", plan], ["plan", checkpoint("llama"), "--map", plan]):
        done = devctl(*command)
        assert done.code == 3
        assert "is a plan of a GGUF file, whose layers no device_map of transformers names" in done.err
    assert devctl("export", plan, "--to", "llama.cpp").code == 0
    assert devctl("export", plan, "--to", "sglang").code == 3


@pytest.mark.parametrize("where", [("devices", 0, "state"), ("devices", 0, "used")])
def test_a_plan_that_contradicts_itself_is_told(devctl, llama, tmp_path, where):
    plan = json.loads(devctl("plan", llama, "--max-memory", "cpu=64MiB", "--context-length", "1k").out)
    plan[where[0]][where[1]][where[2]] -= 1024
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    assert devctl("check", "--map", tmp_path / "plan.json").code == 3


def test_several_models_in_a_folder_are_named(devctl, tmp_path):
    for name in ("m-Q4_K_M", "m-Q8_0"):
        files.write(tmp_path / f"{name}.gguf")
    done = devctl("plan", tmp_path)
    assert (done.code, done.out) == (2, "")
    assert "holds 2 models: m-Q4_K_M.gguf, m-Q8_0.gguf" in done.err


def test_a_projector_beside_it_is_told(devctl, tmp_path):
    files.write(tmp_path / "m.gguf")
    files.write(tmp_path / "mmproj.gguf", "clip")
    done = devctl("plan", tmp_path, "--devices", "24GiB")
    assert done.code == 0
    assert "mmproj.gguf, 1.63 MiB, is not counted: llama-server takes it with --mmproj" in done.err


def test_pictures_show_the_layers(devctl, llama, tmp_path):
    assert devctl("plan", llama, *SMALL, "--svg", tmp_path / "a.svg", "--html", tmp_path / "a.html").code == 0
    assert "blk.2" in (tmp_path / "a.html").read_text()
    assert (tmp_path / "a.svg").read_text().startswith("<svg")


def test_memory_that_a_gpu_shares_has_the_embedding_too(devctl, llama):
    done = devctl("plan", llama, "--devices", "GB10", "--json")
    plan = json.loads(done.out)
    assert "are in the RAM that the GPU shares" in " ".join(done.err.split())
    gpu, cpu = plan["devices"]
    (board,) = [
        use["budget"]
        for use in json.loads(devctl("plan", CONFIGS / "tiny-llama", "--devices", "GB10", "--json").out)["devices"][:1]
    ]
    assert (gpu["device"], cpu["device"], cpu["budget"]) == ("cuda:0", "cpu", None)
    assert gpu["budget"] == board - cpu["used"]


@pytest.mark.parametrize("name", ["x.gguf", "a/x.gguf", "a/b/c/x.gguf", "x"])
def test_a_plan_that_somebody_changed_is_exported_or_refused(devctl, llama, tmp_path, name):
    plan = json.loads(devctl("plan", llama, "--devices", "24GiB", "--context-length", "1k").out)
    plan["model"] |= {"name": name, "revision": "abc"}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    done = devctl("export", tmp_path / "plan.json", "--to", "llama.cpp")
    assert done.code == 0
    assert ("--hf-repo a/b --hf-file c/x.gguf" if name.count("/") > 1 else "--model ") in done.out
