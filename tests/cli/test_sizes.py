"""Sizes, counts and dtypes as options take them."""

import json

import pytest

import devctl as package
from devctl.errors import UsageError
from devctl.inventory.requirements import Requirements
from tests.conftest import CONFIGS

TINY = CONFIGS / "tiny-llama"


@pytest.mark.parametrize("size", ["64gb", "80G", "80", "0.1"])
@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "--ram", "{}"],
        ["check", "--gpu-memory", "{}"],
        ["check", "--total-gpu-memory", "{}"],
        ["check", "--disk", "/={}"],
        ["plan", TINY, "--max-memory", "0={}"],
        ["plan", TINY, "--devices", "cpu={}"],
        ["plan", TINY, "--devices", "{}"],
        ["plan", TINY, "--devices", "1GiB", "--reserve", "{}"],
        ["plan", TINY, "--devices", "1GiB", "--context-length", "8", "--overhead", "{}"],
        ["plan", TINY, "--devices", "1GiB", "--objective", "latency", "--speed", "0={}"],
        ["load", TINY, "--load-format", "dummy", "--max-memory", "cpu={}"],
    ],
)
def test_no_option_guesses_what_a_size_means(devctl, arguments, size):
    done = devctl(*(str(each).format(size) for each in arguments))
    assert (done.code, done.out) == (2, "")
    assert repr(size) in done.err


def test_a_share_is_no_size(devctl):
    done = devctl("check", "--ram", "10%")
    assert done.code == 2
    assert done.err == "devctl: --ram: '10%' is not a size, but a share; write it like 10GiB, 512MiB or 7.5GB\n"


def test_tokens_and_dtypes_by_their_short_names(devctl):
    done = devctl("plan", TINY, "--devices", "1GiB,cpu=1GiB", "--context-length", "1k", "--dtype", "fp16",
                  "--kv-dtype", "bf16", "--json")  # fmt: skip
    assert done.code == 0, done.err
    document = json.loads(done.out)
    assert document["model"]["dtype"] == "float16"
    assert (document["workload"]["context_length"], document["workload"]["kv_dtype"]) == (1024, "bfloat16")


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--dtype", "bf17", "'bf17' is not one of auto, float32"),
        ("--dtype", "fp8", "'fp8' is no dtype that weights are built in"),
        ("--kv-dtype", "auto", "'auto' is not one of"),
        ("--context-length", "0", "0: it is at least 1"),
        ("--context-length", "4 k", "is not a count of tokens"),
        ("--new-tokens", "-1", "is not a count of tokens"),
        ("--target-context", "1", "1: it is at least 2"),
    ],
)
def test_wrong_counts_and_dtypes(devctl, option, value, words):
    done = devctl("plan", TINY, "--devices", "1GiB", option, value)
    assert (done.code, done.out) == (2, "")
    assert words in done.err


def test_integers_are_bytes_in_the_library():
    found = package.plan(str(TINY), max_memory={0: 2**30, "cpu": "1GiB"}, context_length=8, overhead=2**20)
    assert dict(found.budgets.devices) == dict.fromkeys(dict(found.budgets.devices), 2**30)
    assert found.runtime.overhead[next(iter(found.runtime.overhead))] == 2**20
    with pytest.raises(UsageError, match=r"^max_memory: '80' has no unit"):
        package.plan(str(TINY), max_memory={0: "80"})
    with pytest.raises(UsageError, match=r"^reserve: '0.1' has no unit"):
        package.plan(str(TINY), "1GiB", reserve=0.1)


@pytest.mark.parametrize("size", ["80", "64gb", -1, 0.5, True])
def test_requirements_of_the_library_have_the_same_grammar(size):
    with pytest.raises(UsageError, match="--ram"):
        Requirements(ram=size)


def test_a_tolerance_that_may_be_a_percentage_or_a_factor_is_refused(devctl, tmp_path):
    done = devctl("load", TINY, "--baseline", tmp_path / "old.json", "--tolerance", "10")
    assert done.code == 2
    assert "--tolerance '10' may be 10% or 1000%" in done.err
