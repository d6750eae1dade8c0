"""Words that users have for things, and what they hear where one is wrong."""

import json
import os
import subprocess
import sys

import pytest

from devctl.errors import did_you_mean, first_line
from devctl.inventory.hypothetical import parse_devices
from devctl.models.quantised.quantise import Quantize
from devctl.planning.request import Dtype, KvDtype, ModelRequest, not_one
from tests.conftest import CONFIGS
from tests.marks import one_in, slow

TINY = CONFIGS / "tiny-llama"


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("bf16", "bfloat16"),
        ("BF16", "bfloat16"),
        ("fp16", "float16"),
        ("half", "float16"),
        ("fp32", "float32"),
        ("torch.bfloat16", "bfloat16"),
        ("Float64", "float64"),
        ("auto", "auto"),
    ],
)
def test_a_dtype_has_many_names(word, meant):
    assert Dtype(word) == ModelRequest(model="m", dtype=word).dtype == meant


def test_keys_and_values_have_them_too():
    assert KvDtype("FP8") == "float8_e4m3fn"
    assert KvDtype("bf16") == "bfloat16"


@pytest.mark.parametrize("word", ["int4", "INT4", "4bit"])
def test_four_bits_may_be_three_things(word):
    for kind in (Dtype, Quantize):
        assert "nf4, torchao-int4 or quanto-int4" in not_one(kind, word)


def test_every_way_of_four_bits_is_named_there():
    assert {str(each) for each in Quantize if "int4" in each or each == "nf4"} == {"nf4", "torchao-int4", "quanto-int4"}


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("H100x2", "2xH100"),
        ("H100 x 2", "2xH100"),
        ("h100X2,cpu=64GiB", "2xH100,cpu=64GiB"),
        ("MI300Xx8", "8xMI300X"),
        ("24GiBx2", "2x24GiB"),
        ("RTX 4090×2", "2xRTX 4090"),
        ("RTX4090", "1xRTX4090"),
    ],
)
def test_a_count_may_be_before_or_behind_a_board(text, same):
    assert parse_devices(text) == parse_devices(same)


@pytest.mark.parametrize("text", ["GTX1080", "GTX 1080", "RTX 9999", "nothingx2"])
def test_an_x_within_a_name_is_no_count(text):
    with pytest.raises(ValueError, match=r"nothing is known|no board known here"):
        parse_devices(text)


def test_none_of_a_board_is_refused():
    with pytest.raises(ValueError, match="'H100x0' is none; leave it out"):
        parse_devices("H100x0")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["pln"], "No such command 'pln'; did you mean plan?"),
        (["PLAN"], "No such command 'PLAN'; did you mean plan?"),
        (["plan", TINY, "--stragety", "auto"], "No such option: --stragety; did you mean --strategy?"),
        (["plan", TINY, "--contxt-length", "4k"], "; did you mean --context-length?"),
        (["check", "--gpu", "2"], "No such option: --gpu; did you mean --gpus?"),
        (["--verison"], "No such option: --verison; did you mean --version?"),
        (["version"], "No such command 'version'; did you mean --version?"),
        (["-V"], "No such option: -V; did you mean --version?"),
        (["help"], "No such command 'help'; did you mean --help?"),
        (["--list"], "No such option: --list; did you mean list?"),
        (["--json", "list"], "--json stands in front of the command; write it behind, like `devctl list --json`"),
        (["plan", TINY, "--max-model-len", "8k"], "No such option: --max-model-len; did you mean --context-length?"),
        (["plan", TINY, "--gpus", "2xH100"], "No such option: --gpus; did you mean --devices?"),
        (["load", TINY, "--device", "cpu"], "No such option: --device; did you mean --map?"),
        (["plan", TINY, "--json=yes"], "--json takes no value"),
        (["export", "plan.json"], "--to ENGINE is missing: vllm, sglang or llama.cpp"),
        (["load", TINY, "--load-format", "'x'"], "--load-format: \"'x'\" is not one of auto, dummy"),
        (["plan", TINY, "--strategy", "optimum"], "; did you mean optimal?"),
        (["plan", TINY, "--strategy", "Balanced"], "; did you mean balanced?"),
        (["plan", TINY, "--objective", "latncy"], "; did you mean latency?"),
        (["plan", TINY, "--dtype", "bflot16"], "; did you mean bfloat16"),
        (["plan", TINY, "--quantize", "nf-4"], "; did you mean nf4?"),
        (["list", "--only", "gpus"], "; did you mean gpu?"),
        (["load", TINY, "--launch", "prnt"], "; did you mean print?"),
        (["plan", TINY, "--devices", "2xH10"], "did you mean H100 SXM?"),
        (["plan", TINY, "--fits-on", "H100x2"], "'H100x2' is 2 of H100: leave out how many"),
        (["plan", TINY, "--devices", "H100", "--context-length", "64", "--decode", "gredy"], "; did you mean greedy?"),
        (["plan", TINY, "--model-class", "LlamaForCausalML"], "; did you mean LlamaForCausalLM or "),
        (
            ["plan", TINY, "--devices", "H100", "--context-length", "64", "--attn-implementation", "sdap"],
            "you mean sdpa?",
        ),
        (["plan", TINY, "--batch-size", "x"], "'x' is no whole number"),
        (["plan", TINY, "--batch-size", "0"], "--batch-size 0: it is at least 1"),
        (["plan", TINY, "more", "words"], "too many arguments: more words"),
        (["plan", TINY, "--dtype"], "--dtype needs a value behind it"),
        (["plan", TINY, "--context-length", "32kk"], "write it like 4096 or 32k"),
        (["plan", TINY, "--prefill-chunk-size", "0"], "0: it is at least 1"),
    ],
    ids=lambda value: " ".join(map(str, value[-2:])) if isinstance(value, list) else "",
)
def test_a_wrong_word_is_told_with_what_was_meant(devctl, wrong, said):
    done = devctl(*wrong)
    assert (done.code, done.out) == (2, "")
    assert said in done.err
    assert len(done.err.splitlines()) == 2


def test_nothing_is_guessed_where_nothing_is_near():
    assert did_you_mean("banana", ["plan", "load"]) == ""
    assert did_you_mean("", ["plan"]) == ""
    assert did_you_mean("plan", []) == ""
    assert did_you_mean("int3", ["int8", "int2"]) == "", "another number is another thing"
    assert did_you_mean("float3", ["float16", "float32"]) == "; did you mean float32?"
    assert len(did_you_mean("x" * 10**6, ["plan"])) < 100


def test_an_engine_is_guessed_too(devctl, tmp_path):
    assert devctl("plan", TINY, "--devices", "2xH100", "--json", "-o", tmp_path / "plan.json").code == 0
    assert "; did you mean vllm?" in devctl("export", tmp_path / "plan.json", "--to", "vlm").err


def test_chunks_of_a_prompt_are_counted_as_any_tokens(devctl):
    asked = ["plan", TINY, "--devices", "1GiB", "--context-length", "1k", "--json", "--prefill-chunk-size"]
    assert devctl(*asked, "1k").out == devctl(*asked, "1024").out


PIPED = (
    ["plan", TINY, "--map", "-"],
    ["plan", TINY, "--machine", "-"],
    ["load", TINY, "--map", "-"],
    ["load", TINY, "--baseline", "-"],
    ["check", "--map", "-"],
    ["export", "-", "--to", "vllm"],
)


@pytest.mark.parametrize(
    ("command", "text"),
    one_in(
        4,
        [*((command, "") for command in PIPED), (PIPED[0], " \n"), *slow(*((command, " \n") for command in PIPED[1:]))],
    ),
    ids=lambda value: " ".join(map(str, [value[0], *value[-2:]])) if isinstance(value, list) else repr(value),
)
def test_an_empty_pipe_is_called_one(command, text):
    done = subprocess.run(
        [sys.executable, "-m", "devctl", *map(str, command)], input=text, capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": str(CONFIGS.parents[1])},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert "standard input is empty" in done.stderr


def test_a_model_is_not_read_from_a_pipe(devctl, tmp_path):
    assert "not read from standard input" in devctl("plan", "-").err
    os.mkfifo(tmp_path / "pipe")
    done = devctl("plan", tmp_path / "pipe")
    assert done.code == 4
    assert "is a pipe, which a model is not read from" in done.err


@pytest.mark.slow
def test_warnings_of_libraries_are_not_part_of_the_conversation(tmp_path):
    config = json.loads((TINY / "config.json").read_text())
    odd = {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4, "unknown": 1}, "max_length": 20}
    (tmp_path / "config.json").write_text(json.dumps(config | odd))
    (tmp_path / "generation_config.json").write_text('{"temperature": 0.3, "do_sample": false, "unknown": 1}')
    (tmp_path / "sitecustomize.py").write_text(
        "import logging\n"
        "import devctl.planning.plan as plan\n"
        "inner = plan.make_plan\n"
        "def warned(*args, **more):\n"
        "    import transformers\n"
        "    transformers.logging.get_logger('transformers.x').warning('a warning of theirs')\n"
        "    logging.getLogger('accelerate.x').warning('a warning of theirs')\n"
        "    return inner(*args, **more)\n"
        "plan.make_plan = warned\n"
    )
    path = os.pathsep.join((str(tmp_path), str(CONFIGS.parents[1])))
    command = [sys.executable, "-m", "devctl", "plan", str(tmp_path), "--devices", "1GiB", "--context-length", "64"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": path})
    assert done.returncode == 0, done.stderr
    assert "of theirs" not in done.stderr
    assert "[transformers]" not in done.stderr


@pytest.mark.parametrize(
    ("twice", "said"),
    [
        (["plan", TINY, "--devices", "H100", "--devices", "L4"], "--devices is given twice, and only one is read"),
        (["plan", TINY, "-o", "a.json", "--output=b.json"], "--output is given twice, and only one is read"),
        (["check", "--ram", "1GiB", "--ram", "1GiB"], "--ram is given twice, and only one is read"),
        (["list", "--only", "cpu", "--only", "gpu"], "write it once: --only gpu|cpu|disk"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_an_option_of_which_one_would_be_lost_is_refused(devctl, twice, said):
    done = devctl(*twice)
    assert (done.code, done.out) == (2, "")
    assert said in done.err
    assert "write it once" in done.err


def test_what_may_stand_twice_may_and_help_is_given_whatever_stands_beside_it(devctl):
    twice = devctl("plan", TINY, "--max-memory", "0=1GiB", "--max-memory", "cpu=1GiB", "--json", "--json")
    assert [use["budget"] for use in json.loads(twice.out)["devices"]][:2] == [2**30, 2**30]
    assert devctl("plan", "--devices", "H100", "--devices", "L4", "--help").code == 0


def test_an_option_without_its_value_names_the_help_of_its_command(devctl):
    assert "see `devctl plan --help`" in devctl("plan", TINY, "--strategy").err


def test_no_number_of_an_operating_system_is_told():
    assert first_line(OSError(-2, "Name or service not known")) == "Name or service not known"
    assert first_line(RuntimeError("no: [Errno 5] Input/output error")) == "no: Input/output error"


@pytest.mark.parametrize("text", ["cuda:0", "xpu:12", "a:H100;cuda:1"])
def test_a_device_of_this_machine_is_no_hardware_that_is_elsewhere(devctl, text):
    done = devctl("plan", TINY, "--devices", text)
    assert (done.code, done.out) == (2, "")
    assert "is a device of this machine, and --devices says what is not here" in done.err
    assert "--visible" in done.err
