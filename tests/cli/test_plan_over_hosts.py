"""`devctl plan` over several hosts: stages, what is refused, and how the plan is run."""

import json
from dataclasses import replace

import pytest

import devctl as library
from devctl.devices import Device
from devctl.errors import RefusedError
from devctl.inventory.document import to_document
from devctl.inventory.hypothetical import parse_devices
from devctl.placement.document import map_of
from devctl.placement.parallel.records import parse_stages
from tests.cli.test_documents import COMPARISON, PLAN, WHAT_IF, holds
from tests.conftest import CONFIGS
from tests.marks import slow

TINY = CONFIGS / "tiny-llama"
LAYER, EMBEDDING, NORM, ROTARY = 1_451_008, 2_097_152, 512, 128
"""Bytes of the parts of that model: eight layers, an embedding and a head that are as large, a norm, and the
buffers of the rotary embedding."""


def box(folder, name, devices, **changes):
    """A machine as ``devctl list --json`` writes it, in a file."""
    path = folder / f"{name}.json"
    path.write_text(json.dumps(to_document(replace(parse_devices(devices), **changes))))
    return path


def planned(done):
    assert done.code == 0, done.err
    return holds(done.out, PLAN)


def test_a_plan_of_two_machines_is_a_document_of_stages(devctl, tmp_path):
    machines = ["--machine", box(tmp_path, "a", "2x8MiB"), "--machine", box(tmp_path, "b", "8MiB")]
    done = devctl("plan", TINY, *machines)
    document = planned(done)
    stages = parse_stages(document, "x").stages
    assert [(s.host, s.devices, s.layers) for s in stages] == [
        ("a", ("cuda:0",), (0, 2)),
        ("a", ("cuda:1",), (2, 6)),
        ("b", ("cuda:0",), (6, 8)),
    ]
    assert [s.used for s in stages] == [
        2 * LAYER + EMBEDDING + ROTARY,
        4 * LAYER + ROTARY,
        2 * LAYER + EMBEDDING + NORM + ROTARY,
    ]
    assert document["layers_in"] == "model.layers"
    assert document["device_map"] == {
        "model.embed_tokens": "a/cuda:0",
        **{f"model.layers.{at}": f"a/cuda:{0 if at < 2 else 1}" for at in range(6)},
        **{f"model.layers.{at}": "b/cuda:0" for at in (6, 7)},
        "model.norm": "b/cuda:0",
        "model.rotary_emb": "a/cuda:0",
        "lm_head": "b/cuda:0",
    }
    assert [(row["device"], row["used"]) for row in document["devices"]] == [
        (f"{s.host}/{s.devices[0]}", s.used) for s in stages
    ]
    assert (document["strategy"], document["offloaded"], document["crossings"]) == ("stages", 0, 2)
    assert document["engine"] == "transformers' pipeline parallelism"
    assert "in 3 stages over 2 hosts" in done.err
    assert devctl("plan", TINY, *machines, "--json").out == done.out


def test_devices_name_hosts(devctl):
    document = planned(devctl("plan", TINY, "--devices", "a:8MiB; b:2x8MiB"))
    assert [stage["host"] for stage in document["stages"]] == ["a", "b", "b"]


def test_one_machine_is_planned_as_ever(devctl, tmp_path):
    done = devctl("plan", TINY, "--machine", box(tmp_path, "a", "2x12MiB,cpu=1GiB"))
    assert set(json.loads(done.out).values()) <= {0, 1, "cpu"}


def test_a_workload_counts_on_every_stage(devctl):
    options = ["--context-length", "64", "--batch-size", "2", "--overhead", "1MiB"]
    done = devctl("plan", TINY, "--devices", "a:64MiB;b:64MiB", *options)
    document = planned(done)
    first, last = document["stages"]
    # 64 tokens of 2 sequences, keys and values of 2 heads of 64, in two bytes, of 4 layers
    assert first["state"] == last["state"] == 64 * 2 * 2 * 128 * 2 * 4
    assert first["overhead"] == last["overhead"] == 2**20
    assert document["workload"]["padded"] is False
    assert "a batch over hosts is unpadded: all of its sequences are as long" in document["notes"]
    assert "run: a batch of 2, unpadded" in done.err
    logits = 2 * 4096 * 2
    assert min(first["activations"], last["activations"]) > logits


def test_what_stages_take_is_what_one_device_does_but_for_what_each_has(devctl):
    options = ["--context-length", "64", "--overhead", "0B"]
    whole = json.loads(devctl("plan", TINY, "--devices", "64MiB", *options, "--json").out)["devices"][0]
    one = planned(devctl("plan", TINY, "--devices", "a:64MiB", *options))["stages"][0]
    hidden = 63 * 256 * 2
    assert (one["used"], one["state"]) == (whole["used"], whole["state"])
    assert whole["activations"] <= one["activations"] <= whole["activations"] + hidden
    two = planned(devctl("plan", TINY, "--devices", "a:64MiB;b:64MiB", *options))["stages"]
    assert sum(stage["state"] for stage in two) == whole["state"]
    assert sum(stage["used"] for stage in two) == whole["used"] + ROTARY


def test_communicators_count_where_there_are_several_boards(devctl):
    options = ["--context-length", "64"]
    one, two = (planned(devctl("plan", TINY, "--devices", d, *options)) for d in ("a:H100", "a:2xH100"))
    assert one["stages"][0]["overhead"] == 720 * 2**20
    assert [stage["overhead"] for stage in two["stages"]] == [(720 + 816) * 2**20] * 2
    note = "816 MiB on each board are counted for communicators; --overhead says better"
    assert note in two["notes"] and note not in one["notes"]
    assert not any("measured only on H100s" in each for each in two["notes"])
    other = planned(devctl("plan", TINY, "--devices", "a:H100;b:L40S", *options))
    assert any("measured only on H100s" in each for each in other["notes"])


def test_what_does_not_fit_is_refused_with_what_would(devctl):
    done = devctl("plan", TINY, "--devices", "a:4MiB;b:4MiB")
    assert (done.code, done.out) == (3, "")
    assert "it does not fit" in done.err
    assert "a/cuda:0 is given 7.54 MiB, 3.54 MiB more than the 4.00 MiB that it may hold" in done.err
    assert "5 boards like the largest, of 4.00 MiB, would hold it" in done.err
    assert "--quantize int8 fits" not in done.err
    assert devctl("plan", TINY, "--devices", "a:5x4MiB").code == 0
    assert devctl("plan", TINY, "--devices", "a:4x4MiB").code == 3


def test_more_boards_than_layers_are_refused(devctl):
    done = devctl("plan", TINY, "--devices", "a:8x1GiB;b:1GiB")
    assert (done.code, done.out) == (3, "")
    assert "9 accelerators are more than the 8 layers of LlamaForCausalLM" in done.err
    assert "8 serve" in done.err and "leave out 1" in done.err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--strategy", "optimal"], "leave out --strategy"),
        (["--objective", "latency"], "leave out --objective"),
        (["--map", "x"], "leave out --map"),
        (["--no-offload"], "leave out --no-offload"),
        (["--max-memory", "0=1GiB"], "names none of the hosts, which are a, b"),
        (["--max-memory", "a:0=1GiB,1=1GiB"], "'1=1GiB' names none of the hosts"),
        (["--max-memory", "c:0=1GiB"], "'c:0=1GiB' names none of the hosts"),
        (["--max-memory", "cuda:0=1GiB"], "'cuda:0=1GiB' names none of the hosts"),
        (["--max-memory", "a:9=1GiB"], "a: --max-memory: cuda:9 is not among the devices given"),
        (["--max-memory", "a:cpu=1GiB"], "over hosts nothing is on the CPU or a disk"),
        (["--max-memory", "a:0=80G"], "a: --max-memory: "),
        (["--max-memory", "a:"], "a: --max-memory: "),
        (["--reserve", "c:1GiB"], "'c:1GiB' names none of the hosts"),
        (["--reserve", "cpu=1GiB"], "over hosts nothing is on the CPU or a disk"),
        (["--reserve", "a:9=1MiB"], "a: --reserve: cuda:9 is not among the devices"),
        (["--visible", "0"], "leave out --visible"),
        (["--context-length", "64", "--batch-size", "2", "--no-padding"], "leave out --no-padding"),
        (["--fits-on", "H100"], "leave out"),
        (["--machine", "x"], "leave out --machine"),
    ],
)
def test_options_that_mean_nothing_over_hosts_are_refused(devctl, options, said):
    done = devctl("plan", TINY, "--devices", "a:1GiB;b:1GiB", *options)
    assert (done.code, done.out) == (2, "")
    assert said in done.err


@pytest.mark.parametrize(
    ("devices", "said"),
    [
        ("a:1GiB;1GiB", "'1GiB' is not HOST:DEVICES"),
        ("a:1GiB;b:", "'b:' is not HOST:DEVICES"),
        ("a:1GiB;", "'' is not HOST:DEVICES"),
        ("a:1GiB;a:1GiB", "two hosts are called a"),
        ("-o:1GiB;b:1GiB", "'-o' is no name of a host"),
        ("a/b:1GiB;b:1GiB", "'a/b' is no name of a host"),
        ("a:1GiB;b:nothing", "--devices: of host b: 'nothing' is no board known here"),
    ],
)
def test_hosts_that_are_none_are_refused(devctl, devices, said):
    done = devctl("plan", TINY, "--devices", devices)
    assert (done.code, done.out) == (2, "")
    assert said in done.err


@pytest.mark.parametrize(
    ("devices", "said"),
    [
        ("a:cpu=1GiB;b:cpu=1GiB", "there is no accelerator for a stage"),
        ("a:H100;b:MI300X", "a has accelerators of nvidia and b of amd: no process group is of both"),
    ],
)
def test_hosts_that_have_no_stages_together_are_refused(devctl, devices, said):
    done = devctl("plan", TINY, "--devices", devices)
    assert (done.code, done.out) == (3, "")
    assert said in done.err


def test_a_host_without_accelerators_takes_no_part(devctl):
    document = planned(devctl("plan", TINY, "--devices", "a:1GiB;b:cpu=1GiB;c:1GiB"))
    assert [stage["host"] for stage in document["stages"]] == ["a", "c"]
    assert "b has no accelerator with free memory, and takes no part" in document["notes"]


def test_a_board_without_a_stage_is_said(devctl):
    document = planned(devctl("plan", TINY, "--devices", "a:64MiB;b:2MiB;c:64MiB"))
    assert [stage["host"] for stage in document["stages"]] == ["a", "c"]
    assert [(row["device"], row["used"]) for row in document["devices"]][2:] == [("b/cuda:0", 0)]
    assert "without a stage, which would leave no more room on the fullest: b/cuda:0" in document["notes"]


def test_one_machine_twice_is_refused(devctl, tmp_path):
    there = parse_devices("1GiB")
    gpu = replace(there.accelerators[0], uuid="GPU-1")
    machines = [box(tmp_path, name, "1GiB", accelerators=(gpu,)) for name in ("a", "b")]
    done = devctl("plan", TINY, "--machine", machines[0], "--machine", machines[1])
    assert (done.code, done.out) == (2, "")
    assert "a and b are one machine: GPU-1 is in both" in done.err


def test_files_of_one_name_are_refused(devctl, tmp_path):
    (tmp_path / "x").mkdir()
    done = devctl("plan", TINY, "--machine", box(tmp_path, "a", "1GiB"), "--machine", box(tmp_path / "x", "a", "1GiB"))
    assert done.code == 2
    assert "two hosts are called a" in done.err and "named after its file" in done.err


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("t5-11b", "is an encoder and a decoder: stages are of one list of layers"),
        ("whisper-large-v3", "is an encoder and a decoder: stages are of one list of layers"),
        ("bert-large", "BertForMaskedLM writes no text: only decoders go in stages"),
    ],
)
def test_models_without_one_list_of_layers_are_refused(devctl, config, said):
    done = devctl("plan", CONFIGS / config, "--devices", "a:H100;b:H100")
    assert (done.code, done.out) == (3, "")
    assert said in done.err


def gpt2(folder, **more):
    """A config of a decoder with other names."""
    config = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_layer": 4, "n_embd": 32, "n_head": 4}
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 256, "dtype": "float32", **more}))
    return folder


def test_what_transformers_does_not_run_in_stages_is_said(devctl, tmp_path):
    document = planned(devctl("plan", gpt2(tmp_path), "--devices", "a:1GiB;b:1GiB"))
    assert document["layers_in"] == "transformer.h"
    assert document["device_map"]["transformer.ln_f"] == "b/cuda:0"
    assert any("does not run this model" in note and "transformer.ln_f" in note for note in document["notes"])
    assert document["engine"] == "stages of whole layers"
    quantised = planned(devctl("plan", TINY, "--devices", "a:H100;b:H100", "--quantize", "nf4"))
    assert "transformers' pipeline parallelism is not known to run nf4 weights" in quantised["notes"]
    metal = planned(devctl("plan", TINY, "--devices", "a:M3 Max 64GB;b:M3 Max 64GB"))
    assert [stage["devices"] for stage in metal["stages"]] == [["mps"], ["mps"]]
    assert "transformers' pipeline parallelism is not known to run on mps" in metal["notes"]


def test_a_tied_embedding_is_on_both_ends(devctl, tmp_path):
    document = planned(devctl("plan", gpt2(tmp_path), "--devices", "a:1GiB;b:1GiB"))
    embedding = 256 * 32 * 4
    assert sum(stage["used"] for stage in document["stages"]) == document["model"]["bytes"] + embedding


def test_compare_shows_even_cuts_beside_ours(devctl):
    options = ["--devices", "a:24MiB;b:2x8MiB", "--compare"]
    document = holds(devctl("plan", TINY, *options, "--json").out, COMPARISON)
    ours, transformers, vllm = document["plans"]
    assert [each["strategy"] for each in document["plans"]] == ["stages", "transformers", "vllm"]
    assert document["take"] == "stages" and "% as vLLM cuts" in document["why"]
    assert ours["fullest"] < vllm["fullest"] < transformers["fullest"]
    held = [{row["device"]: row["used"] for row in each["devices"]} for each in (transformers, vllm)]
    assert held[0] == {
        "a/cuda:0": 2 * LAYER + EMBEDDING + ROTARY,
        "b/cuda:0": 2 * LAYER + ROTARY,
        "b/cuda:1": 4 * LAYER + EMBEDDING + NORM + ROTARY,
    }
    assert held[1] == {
        "a/cuda:0": 3 * LAYER + EMBEDDING + ROTARY,
        "b/cuda:0": 3 * LAYER + ROTARY,
        "b/cuda:1": 2 * LAYER + EMBEDDING + NORM + ROTARY,
    }
    assert "transformers" in devctl("plan", TINY, *options).out


@pytest.mark.slow
def test_the_longest_context_fits_and_no_longer_one(devctl):
    options = ["--devices", "a:12MiB;b:12MiB", "--overhead", "0B"]
    document = planned(devctl("plan", TINY, *options, "--max-context"))
    most = document["max_context"]["optimal"]
    assert 0 < document["max_context"]["this_map"] <= most
    assert devctl("plan", TINY, *options, "--context-length", most).code == 0
    assert devctl("plan", TINY, *options, "--context-length", most + max(2, most // 500)).code == 3
    assert any("in these stages" in note for note in document["notes"])


def test_explain_and_pictures_are_of_the_stages(devctl, tmp_path):
    pictures = ["--svg", tmp_path / "x.svg", "--html", tmp_path / "x.html", "--report", tmp_path / "x.json"]
    done = devctl("plan", TINY, "--devices", "a:8MiB;b:2x8MiB", "--explain", *pictures)
    assert done.code == 0
    assert json.loads((tmp_path / "x.json").read_text()) == json.loads(done.out)
    assert "no other cut leaves more room on the fullest stage" in done.err
    assert "this is the fullest stage" in done.err
    for name in ("x.svg", "x.html"):
        assert "b/cuda:1" in (tmp_path / name).read_text()


def test_what_is_kept_free_is_so_on_every_host(devctl):
    document = planned(devctl("plan", TINY, "--devices", "a:16MiB;b:16MiB", "--reserve", "4MiB"))
    assert [stage["budget"] for stage in document["stages"]] == [12 * 2**20] * 2


def budgets(document):
    return {f"{stage['host']}/{stage['devices'][0]}": stage["budget"] // 2**20 for stage in document["stages"]}


def test_what_is_kept_free_and_what_boards_may_hold_is_said_of_one_host(devctl, tmp_path):
    hosts = ["--devices", "a:2x16MiB;b:16MiB"]
    some = planned(devctl("plan", TINY, *hosts, "--reserve", "a:1MiB,b:0=2MiB"))
    assert budgets(some) == {"a/cuda:0": 15, "a/cuda:1": 15, "b/cuda:0": 14}
    # what is on every host is said together with what is on one
    both = planned(devctl("plan", TINY, *hosts, "--reserve", "1MiB,a:cuda:1=4MiB"))
    assert budgets(both) == {"a/cuda:0": 15, "a/cuda:1": 12, "b/cuda:0": 15}
    most = planned(devctl("plan", TINY, *hosts, "--max-memory", "a:1=8MiB", "--max-memory", "b:cuda:0=9MiB"))
    assert budgets(most) == {"a/cuda:0": 16, "a/cuda:1": 8, "b/cuda:0": 9}
    # of a machine that was listed, what is not named keeps what it has free
    machines = ["--machine", box(tmp_path, "x", "2x16MiB"), "--machine", box(tmp_path, "y", "16MiB")]
    listed = planned(devctl("plan", TINY, *machines, "--max-memory", "x:0=8MiB", "--reserve", "1MiB"))
    assert budgets(listed) == {"x/cuda:0": 7, "x/cuda:1": 15, "y/cuda:0": 15}
    without = planned(devctl("plan", TINY, *hosts, "--max-memory", "a:0=0B"))
    assert set(budgets(without)) == {"a/cuda:1", "b/cuda:0"}


@pytest.fixture
def staged(devctl, tmp_path):
    path = tmp_path / "stages.json"
    devctl("plan", TINY, "--devices", "a:1GiB;b:1GiB", "--report", path)
    return path


def test_a_load_by_one_of_several_hosts_says_what_each_runs(devctl, staged):
    done = devctl("load", TINY, "--map", staged)
    assert (done.code, done.out) == (3, "")
    assert f"{staged} is a plan for 2 hosts, and this is one: each is to run its line" in done.err
    lines = [line for line in done.err.splitlines() if line.startswith("  - torchrun --nnodes 2 --node-rank ")]
    printed = devctl("load", TINY, "--map", staged, "--launch", "print")
    assert printed.code == 0
    assert printed.out.splitlines() == [line.removeprefix("  - ") for line in lines]
    assert len(lines) == 2


@pytest.mark.parametrize("command", [["check"], ["check", TINY], ["plan", TINY]])
def test_one_machine_says_how_a_plan_over_hosts_is_run(devctl, staged, command):
    done = devctl(*command, "--map", staged)
    assert (done.code, done.out) == (3, "")
    assert "is a plan for 2 processes on 2 hosts (a, b), and this is one" in done.err
    assert f"devctl load MODEL --map {staged} --launch print" in done.err


def test_a_plain_map_may_have_a_module_called_stages():
    assert map_of({"stages": 0, "head": "cpu"}, "x") == {"stages": Device.gpu(0), "head": Device.cpu()}


def test_broken_stages_are_told_before(devctl, staged):
    document = json.loads(staged.read_text())
    document["stages"][0]["layers"] = [0, 9]
    staged.write_text(json.dumps(document))
    done = devctl("check", "--map", staged)
    assert done.code == 2
    assert "stage 1 has layers" in done.err


def test_the_library_plans_over_hosts(tmp_path):
    plan = library.plan(TINY, {"a": "2x8MiB", "b": box(tmp_path, "x", "8MiB")})
    assert plan.fits and plan.stages.hosts == ("a", "b")
    assert plan.to_document()["device_map"]["lm_head"] == "b/cuda:0"
    with pytest.raises(RefusedError, match=r"a plan for 3 processes on 2 hosts \(a, b\), and this is one"):
        plan.to_hf()
    assert library.plan(TINY, "a:2x8MiB;b:8MiB").stages.stages == plan.stages.stages
    found = library.compare(TINY, "a:2x8MiB;b:8MiB")
    assert [each.strategy for each in found.placements] == ["stages", "transformers", "vllm"]
    assert library.plan(TINY, "a:4MiB;b:4MiB").refusal is not None
    for use in (lambda: library.load(TINY, plan), lambda: library.check(device_map=plan)):
        with pytest.raises(RefusedError, match="and this is one"):
            use()
    with pytest.raises(RefusedError, match="is a map for several processes"):
        library.check(device_map=plan.to_document()["device_map"])
    with pytest.raises(RefusedError, match="8 serve"):
        library.plan(TINY, {"a": "9x1GiB"})
    with pytest.raises(library.UsageError, match="leave out strategy"):
        library.plan(TINY, "a:8MiB;b:8MiB", strategy="auto")
    with pytest.raises(library.UsageError, match="max_memory: '0=1GiB' names none of the hosts"):
        library.compare(TINY, "a:8MiB;b:8MiB", max_memory={0: "1GiB"})
    less = library.compare(TINY, "a:64MiB;b:64MiB", max_memory={"a:0": "16MiB"})
    assert [use.budget for use in less.chosen.devices] == [16 * 2**20, 64 * 2**20]


TOLD = ["--overhead", "0B"]


@pytest.mark.parametrize(
    ("devices", "more"),
    [("a:600KiB;b:600KiB", []), *slow(("a:2x1MiB;b:2x1MiB", ["--tp", "2"]))],
    ids=["alone", "groups"],
)
def test_as_many_sequences_as_fit_are_found_and_no_more(devctl, short, devices, more):
    options = ["--devices", devices, *more, *TOLD]
    document = planned(devctl("plan", short, *options, "--target-context", "128"))
    batch = document["workload"]["batch_size"]
    assert batch > 1
    assert document["workload"]["context_length"] == 128
    assert f"{batch} sequences fit at once, of 128 tokens" in document["notes"]
    asked = [*options, "--context-length", "128", "--batch-size"]
    assert json.loads(devctl("plan", short, *asked, batch).out)["stages"] == document["stages"]
    assert devctl("plan", short, *asked, batch + 1).code == 3


@pytest.mark.slow
def test_where_no_sequence_of_such_a_length_fits_the_longest_that_does_is_planned(devctl, short):
    options = ["--devices", "a:128KiB;b:128KiB", *TOLD]
    document = planned(devctl("plan", short, *options, "--target-context", "20"))
    tokens = document["workload"]["context_length"]
    assert 1 < tokens < 20
    assert f"not one sequence of 20 tokens fits: planned for {tokens}, the longest that does" in document["notes"]
    assert devctl("plan", short, *options, "--context-length", tokens + 1).code == 3
    done = devctl("plan", short, "--devices", "a:100KiB;b:100KiB", *TOLD, "--target-context", "20")
    assert (done.code, done.out) == (3, "")
    assert "not one sequence fits, of 20 tokens or fewer" in done.err
    assert "more hosts may help" in done.err


@pytest.mark.slow
def test_what_if_is_of_the_best_stages_for_each_case(devctl, short):
    options = ["--devices", "a:1MiB;b:1MiB", *TOLD]
    document = holds(devctl("plan", short, *options, "--what-if", "--json").out, WHAT_IF)
    fits = {(case["context_length"], case["batch_size"]): case["fits"] for case in document["cases"]}
    assert set(fits.values()) == {True, False}
    assert document["workload"]["padded"] is False
    shown = devctl("plan", short, *options, "--what-if")
    assert "in the best stages" in shown.out
    for (context, batch), is_yes in list(fits.items())[:3]:
        done = devctl("plan", short, *options, "--context-length", context, "--batch-size", batch)
        assert done.code == (0 if is_yes else 3)


def test_the_library_fills_a_context_over_hosts(short):
    plan = library.plan(short, {"a": "1MiB", "b": "1MiB"}, target_context=128, overhead=0)
    assert plan.fits and plan.runtime.footprint.workload.batch_size > 1
