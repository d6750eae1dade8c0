"""`devctl plan` with KV cache and activations."""

import json
import re

import pytest

from devctl.planning.capacity import largest
from tests.conftest import CONFIGS
from tests.marks import one_in, slow
from tests.test_architecture import HEAVY, modules_after

LLAMA = CONFIGS / "llama-3.1-8b"  # 128 KiB of keys and values a token, in 32 layers
GIB = 2**30


def plan(devctl, *args, code=0):
    done = devctl("plan", LLAMA, *args, "--json")
    assert done.code == code, done.err
    return json.loads(done.out) if done.out else None, done.err


def test_the_cache_is_counted_where_the_layers_are(devctl):
    document, err = plan(devctl, "--devices", "2x24GiB", "--context-length", 32768, "--batch-size", 2, "--no-padding")
    gpus = document["devices"][:2]
    assert sum(use["state"] for use in gpus) == 2 * 32768 * 131072
    assert [use["overhead"] for use in gpus] == [720 * 2**20] * 2
    assert all(use["used"] + use["state"] + use["activations"] + use["overhead"] <= use["budget"] for use in gpus)
    assert document["workload"]["context_length"] == 32768
    assert document["workload"]["batch_size"] == 2
    blocks = {block["name"]: block for block in document["workload"]["blocks"]}
    assert blocks["model.layers.7"]["state"] == 2 * 32768 * 131072 // 32
    assert "▓ KV cache" in err


@pytest.mark.parametrize(
    ("board", "least", "most"),
    one_in(
        5,
        [  # MiB that public logs have beside what PyTorch holds
            ("T4", 123, 139),
            ("RTX 3090", 317, 333),
            ("A100 80GB", 501, 517),
            ("L40S", 522, 538),
            ("H200", 718, 734),  # as an H100 was measured, with a newer driver than those of the logs
            ("B200", 712, 728),
            ("RTX 5090", 712, 728),  # of which there is none: the most
            ("MI300X", 712, 728),
            ("B60", 712, 728),
            ("48GiB", 712, 728),
            ("M4 Max 64GB", 0, 0),
        ],
    ),
)
def test_the_libraries_of_a_board_take_what_they_take_on_its_architecture(devctl, board, least, most):
    document, _ = plan(devctl, "--devices", f"{board}", "--context-length", 512, "--quantize", "nf4")
    assert least <= document["devices"][0]["overhead"] / 2**20 <= most


def test_a_kept_footprint_needs_no_torch(devctl):
    command = ["plan", str(LLAMA), "--devices", "2x24GiB", "--context-length", "4096"]
    first = devctl(*command)
    found, out = modules_after(*command)
    assert out == first.out
    assert set(json.loads(out).values()) == {0, 1}
    assert found.isdisjoint(HEAVY)


@pytest.mark.parametrize(
    ("name", "box", "tokens"),
    [("tiny-llama", "2x6MiB,cpu=64MiB", 256), *slow(("gemma-2-27b", "2x24GiB,cpu=64GiB", 8192))],
)
def test_what_auto_spills_over_is_held_when_it_is_counted(devctl, tmp_path, name, box, tokens):
    """Of weights, auto puts as many on the GPUs as they hold; with a cache beside them they need more than there is."""
    question = ["plan", CONFIGS / name, "--devices", box]
    work = ["--context-length", tokens, "--new-tokens", tokens // 8, "--overhead", "0B"]
    weights = json.loads(devctl(*question, "--json").out)
    (tmp_path / "map.json").write_text(json.dumps(weights["device_map"]))
    judged = devctl(*question, *work, "--map", tmp_path / "map.json")
    assert judged.code == 3
    assert re.search(r"more than the (6.00 MiB|24.0 GiB) that it may hold", judged.err)
    counted = json.loads(devctl(*question, *work, "--strategy", "optimal", "--json").out)
    for use in counted["devices"]:
        if use["budget"]:
            assert use["used"] + use["state"] + use["activations"] + use["overhead"] <= use["budget"]


@pytest.mark.parametrize("strategy", one_in(4, ["auto", "balanced", "balanced_low_0", "sequential", "optimal"]))
def test_every_strategy_counts(devctl, strategy):
    work = ["--context-length", 32768, "--strategy", strategy]
    document, _ = plan(devctl, "--devices", "2x16GiB,cpu=64GiB", *work)
    for use in document["devices"][:2]:
        assert use["used"] + use["state"] + use["activations"] + use["overhead"] <= use["budget"]


def test_without_a_workload_the_room_is_told(devctl):
    lines = set()
    for option in ("--no-cache", "--json", "--json"):  # a first plan, one that keeps the model, one from what is kept
        _, err = plan(devctl, "--devices", "2x24GiB", option)
        lines.add(err.splitlines()[0])
    assert lines == {"fits, 33.0 GiB left, about 62,000 tokens when cuda:0 is full"}
    _, err = plan(devctl, "--devices", "8x80GiB")
    assert "enough for the 131,072 tokens that the model is made for" in err


WEIGHTS = (CONFIGS / "tiny-llama", "--devices", "2x740MiB")  # of which libraries take 720
BEFORE = {
    "nothing": (),
    "the same": (WEIGHTS,),
    "a workload": ((*WEIGHTS, "--context-length", "64"),),
    "the longest context": ((*WEIGHTS, "--max-context"),),
    "a table": ((*WEIGHTS, "--what-if"),),
    "quantised": ((*WEIGHTS, "--quantize", "int8"),),
    "on the CPU": ((*WEIGHTS[:1], "--devices", "cpu=1GiB"),),
    "on hosts": ((*WEIGHTS[:1], "--devices", "a:1GiB;b:1GiB"),),
}


@pytest.mark.parametrize("asked", [WEIGHTS, (*WEIGHTS, "--quantize", "int8")], ids=["plain", "quantised"])
@pytest.mark.parametrize("before", ["nothing", *slow(*(name for name in BEFORE if name != "nothing"))])
def test_the_room_is_told_in_the_same_words_whatever_is_kept(devctl, tmp_path, monkeypatch, before, asked):
    fresh = devctl("plan", *asked, "--no-cache").err.splitlines()[0]
    monkeypatch.setenv("DEVCTL_CACHE_DIR", str(tmp_path / "cache"))
    for question in BEFORE[before]:
        assert devctl("plan", *question).code == 0
    told = [devctl("plan", *asked).err.splitlines()[0] for _ in range(2)]
    assert told == [fresh, fresh]
    assert ", about " in fresh


def test_nor_does_it_matter_that_what_is_kept_of_it_went(devctl, tmp_path, monkeypatch):
    monkeypatch.setenv("DEVCTL_CACHE_DIR", str(tmp_path / "cache"))
    first = devctl("plan", *WEIGHTS).err
    for entry in (tmp_path / "cache").iterdir():
        if '"root"' not in entry.read_text():  # all but the tree
            entry.unlink()
    assert devctl("plan", *WEIGHTS).err == first


@pytest.mark.parametrize(
    ("model", "workload"),
    [
        ("tiny-llama", ()),
        *slow(
            ("tiny-llama", ("--context-length", "64")),
            ("whisper-large-v3", ()),
            ("whisper-large-v3", ("--context-length", "64")),
        ),
    ],
)
def test_a_plan_of_weights_imports_no_torch_once_the_model_is_kept(devctl, tmp_path, monkeypatch, model, workload):
    """Of one whose text can't be looked at soon, that is kept, too."""
    monkeypatch.setenv("DEVCTL_CACHE_DIR", str(tmp_path / "cache"))
    arguments = ("plan", str(CONFIGS / model), "--devices", "24GiB")
    assert devctl(*arguments, *workload).code == 0
    assert modules_after(*arguments)[0].isdisjoint(HEAVY)


def test_the_room_of_a_model_without_text(devctl):
    done = devctl("plan", CONFIGS / "whisper-large-v3", "--devices", "24GiB")
    assert done.err.splitlines()[0] == "fits, 21.1 GiB left"


@pytest.mark.slow
def test_the_room_beside_what_is_offloaded(devctl):
    """Of what is offloaded, the largest module is on the GPU while it is used: here 1 GiB of logits' weights."""
    # what was kept of a plan before, by whichever test, may tell less of the room
    box = ["--no-cache", "--devices", "RTX 3060,cpu=64GiB", "--max-memory", "0=12GiB"]
    assert plan(devctl, *box)[1].splitlines()[0].endswith(" on cpu, 1.27 GiB left, too little to run a text")
    _, err = plan(devctl, *box, "--strategy", "optimal")
    assert err.splitlines()[0].endswith(
        ", 300 MiB left, too little to run a text"
    )  # nothing is left for what does not run
    box[-1] = "0=17GiB"
    _, err = plan(devctl, *box, "--strategy", "optimal")
    tokens = int(err.splitlines()[0].split("about ")[1].split(" tokens")[0].replace(",", ""))
    document, err = plan(devctl, *box, "--strategy", "optimal", "--max-context")
    assert document["max_context"]["by_default"] == pytest.approx(tokens, rel=0.1)
    assert document["max_context"]["optimal"] >= document["max_context"]["this_map"]


@pytest.mark.slow
def test_target_context_where_the_weights_alone_are_offloaded(devctl, thin):
    done = devctl("plan", thin("llama-3.1-8b", 4), "--devices", "3.5GiB,cpu=64GiB", "--target-context", 384)
    assert done.code == 0, done.err
    err = done.err
    assert "sequences fit at once, of 384 tokens" in err or "1 sequence fits at once" in err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "layers", "box"),
    [("llama-3.1-70b", 4, "2x8GiB"), ("gpt-oss-120b", 4, "2x20GiB"), ("gemma-2-27b", 6, "2x8GiB")],
)
def test_the_room_is_about_the_most_tokens_by_default(devctl, thin, name, layers, box):
    """Scores that grow with the square of the text are told from what grows with its length."""
    # a model that is kept from before, whose text is not, is not built anew for it
    model = thin(name, layers)
    told = devctl("plan", model, "--devices", box, "--no-cache").err.split(", about ")[1].split(" tokens")[0]
    most = json.loads(devctl("plan", model, "--devices", box, "--max-context", "--json").out)["max_context"]
    assert int(told.replace(",", "")) == pytest.approx(most["by_default"], rel=0.05)


@pytest.mark.slow
def test_max_context(devctl, thin, tmp_path):
    question = ["plan", thin("llama-3.1-8b", 2), "--devices", "2x4GiB"]
    done = devctl(*question, "--max-context")
    (line,) = [line for line in done.err.splitlines() if "the most tokens" in line]
    assert line == done.err.splitlines()[0]
    here = int(line.split("the most tokens: ")[1].split()[0].replace(",", ""))
    document = json.loads(devctl(*question, "--max-context", "--json").out)
    assert document["max_context"]["this_map"] == here
    (tmp_path / "map.json").write_text(done.out)
    fits = [*question, "--map", tmp_path / "map.json", "--context-length"]
    assert devctl(*fits, here).code == 0
    assert devctl(*fits, int(here * 1.01)).code == 3


@pytest.mark.slow
def test_target_context(devctl, thin):
    model = thin("llama-3.1-8b", 2)
    done = devctl("plan", model, "--devices", "2x8GiB", "--target-context", 4096, "--json")
    batch = json.loads(done.out)["workload"]["batch_size"]
    assert done.err.splitlines()[0].endswith(f"; {batch} sequences fit at once, of 4,096 tokens")
    more = ["--context-length", 4096, "--batch-size", batch + 1, "--strategy", "optimal", "--no-offload"]
    assert devctl("plan", model, "--devices", "2x8GiB", *more).code == 3
    done = devctl("plan", model, "--devices", "6GiB", "--target-context", 131072, "--json")
    assert "; not one sequence of 131,072 tokens fits: planned for " in done.err.splitlines()[0]
    assert json.loads(done.out)["workload"]["batch_size"] == 1
    done = devctl("plan", LLAMA, "--devices", "8GiB", "--target-context", 1024)
    assert done.code == 3
    assert done.err.startswith("devctl: not one sequence fits, of 1,024 tokens or fewer\n  - ")
    assert "cuda:0 would do with 15." in done.err
    done = devctl("plan", thin("gpt-oss-120b", 2), "--devices", "10GiB,cpu=1GiB", "--target-context", 131072)
    assert done.code == 3


@pytest.mark.slow
def test_what_if(devctl, thin):
    question = ["plan", thin("llama-3.1-8b", 2), "--devices", "2x8GiB", "--what-if"]
    done = devctl(*question, "--json")
    cases = {(c["context_length"], c["batch_size"]): c["fits"] for c in json.loads(done.out)["cases"]}
    assert cases[1024, 1]
    assert not cases[131072, 1]
    for (context, batch), fits in cases.items():  # less always fits where more does
        assert not fits or cases.get((context // 2, batch), True)
        assert not fits or cases.get((context, batch // 2), True)
    table = devctl(*question).out.splitlines()
    assert table[1].split() == ["tokens", "\\", "batch", "1", "2", "4", "8", "16", "32", "64"]
    (longest,) = [line.split() for line in table if line.split()[0] == "131,072"]
    assert longest[:2] == ["131,072", "–"]


@pytest.mark.parametrize(
    ("name", "layers", "tokens", "box", "unit"),
    [
        ("tiny-llama", 2, 512, "2x5MiB,cpu=64MiB", "MiB"),
        *slow(("llama-3.1-8b", 32, 131072, "2x24GiB,cpu=64GiB", "GiB")),
    ],
)
def test_the_ways_out_count_it_too(devctl, thin, name, layers, tokens, box, unit):
    model = thin(name, layers)
    work = ["--context-length", tokens, "--overhead", "0B", "--no-offload", "--strategy", "optimal"]
    done = devctl("plan", model, "--devices", box, *work)
    assert done.code == 3
    (line,) = [line for line in done.err.splitlines() if "would do with" in line]
    needed = float(line.split("would do with ")[1].split(f" {unit}")[0])
    assert devctl("plan", model, "--devices", f"2x{needed + 0.05}{unit}", *work).code == 0
    assert devctl("plan", model, "--devices", f"2x{needed - 3}{unit}", *work).code == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--context-length", "8", "--new-tokens", "8"], "--new-tokens 8 leaves no prompt of --context-length 8"),
        (["--context-length", "8", "--explain"], "--explain is of weights and their room"),
        (["--context-length", "8", "--overhead", "x"], "--overhead: 'x' is not a size"),
        (["--target-context", "8", "--context-length", "9"], "--target-context looks for the batch or context"),
        (
            ["--target-context", "8", "--strategy", "auto"],
            "--objective and --target-context are for --strategy optimal",
        ),
        (["--what-if", "--svg", "x.svg"], "--what-if tries them all: leave out --svg"),
    ],
)
def test_what_makes_no_workload(devctl, options, message):
    done = devctl("plan", LLAMA, "--devices", "2x24GiB", *options)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"devctl: {message}")


@pytest.mark.parametrize("limit", [0, 1, 2, 5, 1023, 1024, 1025, 3000, 70_001, 10**6])
@pytest.mark.parametrize("power", [1, 2])
def test_the_largest_that_fits(limit, power):
    asked = []

    def left(number):
        asked.append(number)
        return limit**power - number**power

    found = largest(left, 200_000)
    assert found == min(limit, 200_000) if limit < 1000 or limit > 200_000 else limit * 0.998 <= found <= limit
    assert len(asked) <= 25
