"""`devctl plan` where it matters what fits: refusals with ways out, comparisons, maps that people wrote."""

import json
import re

import pytest

from tests.conftest import CONFIGS
from tests.marks import slow

LLAMA = CONFIGS / "llama-3.1-8b"  # 15.0 GiB in bfloat16
L70 = CONFIGS / "llama-3.1-70b"  # 131 GiB


def test_optimal_keeps_what_auto_spills(devctl):
    limits = ["--devices", "141GiB,24GiB,cpu=64GiB,disk"]
    auto = devctl("plan", L70, *limits)
    assert "note: 41.8 GiB are offloaded that need not be: --strategy optimal keeps them" in auto.err
    best = devctl("plan", L70, *limits, "--strategy", "optimal")
    assert set(json.loads(best.out).values()) == {0, 1}
    assert "note: transformers' own plan, auto, would offload 41.8 GiB more" in best.err


def test_no_offload_is_refused_with_ways_out(devctl):
    done = devctl("plan", L70, "--devices", "2x24GiB,cpu=200GiB,disk", "--no-offload")
    assert (done.code, done.out) == (3, "")
    lines = done.err.splitlines()
    assert lines[0] == "devctl: it does not fit: 86.4 GiB would be left on cpu"
    assert (
        lines[1]
        == "  - each of the 2 GPUs would have to hold 65.8 GiB, 41.8 GiB more than it may, by --strategy optimal"
    )
    assert lines[2] == "  - 4 more GPUs of 24.0 GiB would hold the rest, by --strategy optimal"
    assert lines[3].startswith("  - --quantize nf4 fits: ")


def test_the_ways_out_are_true(devctl):
    assert devctl("plan", L70, "--devices", "6x24GiB,cpu=200GiB", "--strategy", "optimal", "--no-offload").code == 0
    assert devctl("plan", L70, "--devices", "5x24GiB,cpu=200GiB", "--strategy", "optimal", "--no-offload").code == 3
    assert devctl("plan", L70, "--devices", "2x65.75GiB", "--strategy", "optimal", "--no-offload").code == 0
    assert devctl("plan", L70, "--devices", "2x65.6GiB", "--strategy", "optimal", "--no-offload").code == 3


def test_no_offload_with_another_strategy(devctl):
    done = devctl("plan", L70, "--devices", "141GiB,24GiB,cpu=64GiB", "--no-offload")
    assert done.code == 3
    assert done.err.splitlines()[1:] == ["  - --strategy optimal fits"]


def test_what_fits_is_not_refused(devctl):
    done = devctl("plan", LLAMA, "--devices", "2x24GiB,cpu=64GiB", "--no-offload", "--no-disk")
    assert done.code == 0


def test_no_disk_asks_the_cpu_too(devctl):
    done = devctl("plan", L70, "--max-memory", "0=24GiB,cpu=20GiB", "--no-disk")
    assert done.code == 3
    assert "would be left on disk" in done.err
    assert "  - cpu would have to hold 109 GiB, 88.4 GiB more than it may" in done.err.splitlines()


def test_a_disk_that_is_not_among_the_devices_holds_nothing(devctl):
    done = devctl("plan", LLAMA, "--devices", "8GiB")
    assert done.code == 3
    assert done.err.splitlines()[-1] == "  or add disk to --devices"
    assert devctl("plan", LLAMA, "--devices", "8GiB,disk").code == 0


def test_a_model_in_float32_can_be_halved(devctl):
    done = devctl("plan", CONFIGS / "tiny-llama", "--dtype", "float32", "--devices", "16MiB", "--no-offload")
    assert done.code == 3
    assert any(line.startswith("  - --dtype bfloat16 fits: 15.1 MiB instead of ") for line in done.err.splitlines())


def test_reserve(devctl):
    done = devctl("plan", LLAMA, "--devices", "2x10GiB", "--reserve", "2GiB", "--strategy", "optimal")
    assert "of 8.00 GiB" in done.err
    assert "note: kept free: 2.00 GiB of cuda:0, 2.00 GiB of cuda:1" in done.err
    done = devctl("plan", LLAMA, "--devices", "2x10GiB,cpu=10GiB", "--reserve", "10%,cpu=5GiB")
    assert "of 9.00 GiB" in done.err
    assert "of 5.00 GiB" in done.err


@pytest.mark.parametrize("reserve", ["", "x", "10%%", "-5%", "120%", "7=1GiB", "0=1GiB,0=2GiB", "1GiB,2GiB", "nan%"])
def test_reserves_that_make_no_sense(devctl, reserve):
    done = devctl("plan", LLAMA, "--devices", "2x10GiB", "--reserve", reserve)
    assert done.code == 2
    assert done.err.startswith("devctl: --reserve: ")


def test_compare(devctl):
    done = devctl("plan", L70, "--devices", "141GiB,24GiB,cpu=200GiB", "--compare")
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[0] == "take optimal: 41.8 GiB less offloaded than with auto"
    assert lines[2].split() == ["auto", "balanced", "balanced_low_0", "sequential", "optimal"]
    rows = {line.split()[0]: line.split("  ")[1:] for line in lines[3:]}
    assert list(rows) == ["cuda:0", "cuda:1", "cpu", "offloaded", "fullest", "crossings"]
    assert max(len(line) for line in lines) <= 80


def test_compare_leaves_the_default_only_for_something_better(devctl):
    done = devctl("plan", L70, "--devices", "2x80GiB,cpu=200GiB", "--compare")
    assert done.out.splitlines()[0] == "take auto: no other is better, and it is transformers' default"
    done = devctl("plan", CONFIGS / "mixtral-8x7b", "--devices", "8x40GiB", "--compare")
    assert done.out.splitlines()[0].startswith("take optimal: the fullest device is 3")


def test_compare_as_json(devctl):
    done = devctl("plan", LLAMA, "--devices", "2x24GiB", "--compare", "--json")
    document = json.loads(done.out)
    assert [each["strategy"] for each in document["plans"]][-1] == "optimal"
    assert document["take"] in {"auto", "optimal"}


def test_the_plan_document_instead_of_the_map(devctl, tmp_path):
    report = tmp_path / "plan.json"
    done = devctl("plan", LLAMA, "--devices", "2x24GiB", "--json", "--report", report)
    assert json.loads(done.out)["kind"] == "devctl.plan"
    assert report.read_text() == done.out


def test_a_map_is_judged_with_all_findings(devctl, tmp_path):
    given = {f"model.layers.{i}": 0 for i in range(31)} | {"model.embed_tokens": 0, "model.norm": 5, "modl.x": 0}
    given |= {"model.layers.31.mlp": 1, "model.layers.31.self_attn": 0, "model.rotary_emb": 0, "lm_head": 0}
    (tmp_path / "map.json").write_text(json.dumps(given))
    done = devctl("plan", LLAMA, "--map", tmp_path / "map.json", "--devices", "8GiB,8GiB")
    assert (done.code, done.out) == (3, "")
    findings = [line.removeprefix("  - ") for line in done.err.splitlines() if line.startswith("  - ")]
    assert findings == [
        "'modl.x' is no module or tensor of LlamaForCausalLM",
        "cuda:5 is not on this machine (it has cuda:0, cuda:1, disk): needed for model.norm",
        "no device for 2 tensors: "
        "model.layers.31.input_layernorm.weight, model.layers.31.post_attention_layernorm.weight",
        "model.layers.31, a LlamaDecoderLayer, must not be split, and is on cuda:0, cuda:1",
        "cuda:0 is given 14.6 GiB, 6.63 GiB more than the 8.00 GiB that it may hold",
    ]


def test_a_good_map_is_shown(devctl, tmp_path):
    made = devctl("plan", LLAMA, "--devices", "2x24GiB")
    (tmp_path / "map.json").write_text(made.out)
    done = devctl("plan", LLAMA, "--map", tmp_path / "map.json", "--devices", "2x24GiB")
    assert (done.code, done.out) == (0, made.out)
    assert "placed by the given map" in done.err


def test_ties_that_are_split_are_found(devctl, tmp_path):
    given = {"shared": 0, "encoder": 0, "decoder": 1, "lm_head": 1}
    (tmp_path / "map.json").write_text(json.dumps(given))
    done = devctl("plan", CONFIGS / "t5-11b", "--map", tmp_path / "map.json", "--devices", "2x40GiB")
    assert done.code == 3
    assert "decoder.embed_tokens.weight and shared.weight are one tensor, but on cuda:1 and cuda:0" in done.err


def test_latency_puts_the_layers_where_memory_is_fast(devctl):
    done = devctl("plan", LLAMA, "--devices", "RTX4090,H100", "--objective", "latency")
    assert json.loads(done.out) == {"": 1}
    assert "ms a token" in done.err
    even = devctl("plan", LLAMA, "--devices", "RTX4090,H100", "--strategy", "optimal")
    assert set(json.loads(even.out).values()) == {0, 1}


SHARING = ("M3 Max 64GB", "Jetson AGX Orin 64GB", "GB10", "Ryzen AI Max+ 395 64GB")
WORK = ["--context-length", "4096"]


@pytest.mark.parametrize(("box", "work"), [*((box, []) for box in SHARING), *slow(*((box, WORK) for box in SHARING))])
def test_ways_out_fit_a_machine_whose_gpu_shares_its_memory(devctl, box, work):
    done = devctl("plan", CONFIGS / "llama-3.1-70b", "--devices", box, "--no-offload", *work)
    assert done.code == 3
    assert "on a machine with more memory" in done.err
    assert "more GPU" not in done.err
    assert "cpu would have to hold" not in done.err


@pytest.mark.parametrize("work", [[], *slow(WORK)])
def test_so_large_as_is_said_gpus_hold_a_quantised_model(devctl, work):
    """transformers keeps a tenth of each budget free for a model in nf4."""
    question = ["plan", LLAMA, "--quantize", "nf4", "--strategy", "optimal", "--no-offload", *work]
    done = devctl(*question, "--devices", "2x2.5GiB")
    assert done.code == 3
    size = re.search(r"each of the 2 GPUs would (?:have to hold|do with) ([0-9.]+) GiB", done.err)[1]
    number = re.search(r"([0-9]+) more GPUs? of 2.50 GiB", done.err)[1]
    assert devctl(*question, "--devices", f"2x{size}GiB").code == 0
    assert devctl(*question, "--devices", f"{2 + int(number)}x2.5GiB").code == 0


def test_quantising_is_advised_on_apple_where_it_runs(devctl):
    mac = devctl("plan", LLAMA, "--devices", "M4 16GB", "--no-offload").err
    assert re.search(r"--quantize int8 fits: .* GiB instead of 15.0 GiB, where bitsandbytes runs on mps", mac)
    assert "bitsandbytes" not in devctl("plan", LLAMA, "--devices", "11GiB", "--no-offload").err


def test_quantising_is_no_advice_where_it_is_done(devctl):
    question = ["plan", CONFIGS / "tiny-llama", "--devices", "1MiB", "--overhead", "0B", "--target-context", "64"]
    assert "or --quantize, may help" in devctl(*question).err
    done = devctl(*question, "--quantize", "nf4")
    assert (done.code, "--quantize" in done.err) == (3, False)


def test_a_plan_says_what_it_holds_for(devctl):
    done = devctl("plan", LLAMA, "--devices", "24GiB", "--json")
    assert json.loads(done.out)["engine"] == "transformers' generate"
    assert "holds for: transformers' generate" in done.err.splitlines()
    bert = devctl("plan", CONFIGS / "bert-large", "--devices", "24GiB", "--json")
    assert json.loads(bert.out)["engine"] == "transformers' forward"


def test_the_device_that_has_too_little_room_is_named(devctl, tmp_path):
    (tmp_path / "map.json").write_text('{"model": 0, "lm_head": 1}')
    box = ["--devices", "14.3GiB,40GiB", "--map", tmp_path / "map.json"]
    done = devctl("plan", LLAMA, *box, "--no-cache")
    line = done.err.splitlines()[0]
    assert line.startswith("the weights fit, ")
    assert line.endswith(", too little to run a text on cuda:0")


def test_a_predicted_time_says_what_it_rests_on(devctl):
    done = devctl("plan", CONFIGS / "mixtral-8x7b", "--devices", "H200", "--objective", "latency", "--json")
    notes = " ".join(json.loads(done.out)["notes"])
    assert "23.7 GiB of 87.0 GiB are read a token, cuda:0 at 4.80 TB/s (H200)" in notes
    assert "KV cache, kernels and waiting are not counted" in notes
    assert "2 of 8 experts of a layer are read for one sequence; several read more of them" in notes
    assert "no placement is below" not in notes
    said = devctl("plan", LLAMA, "--devices", "2xH200", "--objective", "latency", "--speed", "0=1TB")
    assert "cuda:1 at 4.80 TB/s (H200)" in said.err
    assert "experts" not in said.err


def test_speeds_are_asked_for_where_they_are_not_known(devctl):
    done = devctl("plan", LLAMA, "--devices", "24GiB,8GiB", "--objective", "latency")
    assert done.code == 2
    assert done.err.splitlines()[1] == "  give it with --speed 0=900GB, in bytes a second"
    speeds = ["--speed", "0=500GB/s,1=1TB"]
    done = devctl("plan", LLAMA, "--devices", "24GiB,8GiB", "--objective", "latency", *speeds)
    assert done.code == 0
    assert json.loads(done.out)["model.embed_tokens"] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--objective", "latency", "--strategy", "auto"],
            "--objective and --target-context are for --strategy optimal",
        ),
        (["--speed", "0=1TB"], "--speed is for --objective latency"),
        (["--objective", "latency", "--speed", "0=0B"], "--speed: '0' has the speed 0"),
        (["--objective", "latency", "--speed", "0"], "--speed: '0' is not DEVICE=SIZE, as in 0=2TB, link=25GB or disk"),
        (["--map", "0", "--strategy", "auto"], "--map says where everything goes"),
        (["--compare", "--strategy", "auto"], "--compare shows every strategy"),
    ],
)
def test_options_that_exclude_each_other(devctl, options, message):
    done = devctl("plan", LLAMA, "--devices", "2xH100", *options)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"devctl: {message}")


def test_what_leaves_bytes_on_a_disk_that_is_not_there_fits_nowhere(devctl, tmp_path):
    """--devices names all that there is."""
    config = json.loads((CONFIGS / "tiny-llama" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 64}))
    table, with_disk = (
        json.loads(devctl("plan", tmp_path, "--devices", box, "--overhead", "0B", "--what-if", "--json").out)["cases"]
        for box in ("12MiB", "12MiB,disk")
    )
    assert not any(case["fits"] for case in table)
    assert any(case["fits"] for case in with_disk)
    box = ["--devices", "12GiB"]
    compared = json.loads(devctl("plan", LLAMA, *box, "--compare", "--json").out)
    assert not any(plan["fits"] for plan in compared["plans"])
    assert compared["why"].endswith("but it leaves bytes on disk, and there is none: none of them fits")
    assert "fits" in devctl("plan", LLAMA, *box, "--compare").out
    some = json.loads(devctl("plan", LLAMA, "--devices", "8GiB,8.5GiB", "--compare", "--json").out)
    assert [plan["fits"] for plan in some["plans"] if plan["strategy"] == some["take"]] == [True]
