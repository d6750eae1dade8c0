"""`devctl plan` where torch's allocator of a GPU has room for tensors, and not for the gaps between them."""

import json

import pytest

from tests.conftest import CONFIGS
from tests.marks import slow

TINY = CONFIGS / "tiny-llama"
SEGMENTS = "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True"
BOX = ["--overhead", "0B", "--batch-size", "4"]


def plan(devctl, box, *args):
    batch = [] if "--batch-size" in args else BOX[2:]
    done = devctl("plan", TINY, "--devices", box, *BOX[:2], *batch, *args, "--json")
    assert done.code == 0, done.err
    return json.loads(done.out), done.err


def test_gaps_are_told_beside_the_total_and_are_no_part_of_it(devctl):
    document, said = plan(devctl, "1GiB", "--context-length", "1000")
    (gpu,) = (use for use in document["devices"] if use["device"] == "cuda:0")
    assert gpu["unallocated"] > 0
    assert SEGMENTS not in said
    tight = gpu["used"] + gpu["state"] + gpu["activations"]
    document, said = plan(devctl, f"{tight}B", "--context-length", "1000")
    assert said.startswith(f"fits only with {SEGMENTS}")
    assert any(
        note.startswith(f"what is on cuda:0 fits only with {SEGMENTS}; by default") for note in document["notes"]
    )
    roomy, said = plan(devctl, f"{tight + gpu['unallocated']}B", "--context-length", "1000")
    assert not any(SEGMENTS in note for note in roomy["notes"])


@pytest.mark.slow
def test_the_longest_context_says_how_much_of_it_rests_on_an_allocator_without_gaps(devctl):
    document, said = plan(devctl, "60MiB", "--max-context")
    said = " ".join(said.split())
    (note,) = (note for note in document["notes"] if "leaves gaps" in note)
    tokens = int(note.split("and ")[1].split()[0].replace(",", ""))
    most = document["max_context"]
    assert 100 < tokens == most["by_default"] < most["this_map"]
    assert (
        f"the most tokens for each of 4 sequences: {most['this_map']:,} on this map ({tokens:,} by default), " in said
    )
    document, _ = plan(devctl, "60MiB", "--context-length", str(tokens))
    assert not any(SEGMENTS in note for note in document["notes"])


@pytest.mark.parametrize("box", ["80GiB", *slow("cpu=60MiB")])
def test_where_gaps_take_no_tokens_the_longest_context_is_one(devctl, box):
    document, said = plan(devctl, box, "--max-context")
    most = document["max_context"]
    assert most["by_default"] == most["this_map"] > 0
    assert "by default" not in said


def test_on_the_cpu_there_is_no_such_allocator(devctl):
    document, _ = plan(devctl, "cpu=1GiB", "--context-length", "1000")
    assert all(use["unallocated"] == 0 for use in document["devices"])


def tight_box(devctl, tokens="1000", *args):
    """Bytes of a board with room for the tensors of so many tokens, and one too little for the gaps between them."""
    document, _ = plan(devctl, "1GiB", "--context-length", tokens, *args)
    (gpu,) = (use for use in document["devices"] if use["device"] == "cuda:0")
    return gpu["used"] + gpu["state"] + gpu["activations"] + gpu["unallocated"] - 1


def test_a_comparison_says_which_maps_hold_by_default(devctl):
    short = tight_box(devctl)
    for size, by_default in ((short, False), (short + 1, True)):
        done = devctl("plan", TINY, "--devices", f"{size}B", *BOX, "--context-length", "1000", "--compare")
        assert ("by default  " in done.out) is (SEGMENTS in done.out) is not by_default
        document, _ = plan(devctl, f"{size}B", "--context-length", "1000", "--compare")
        assert all(each["fits"] and each["fits_by_default"] is by_default for each in document["plans"])


def test_the_boards_that_hold_a_model_are_told_with_gaps_too(devctl):
    short = tight_box(devctl)
    ask = ["plan", TINY, "--fits-on", f"{short}B,1MiB,{short + 1}B", *BOX[2:], "--overhead", "0B", "--context-length"]
    found = json.loads(devctl(*ask, "1000", "--json").out)["boards"]
    counts = [(each["count"], each["count_by_default"]) for each in found]
    assert counts[0][0] == 1 < counts[0][1]
    assert counts[1:] == [(None, None), (1, 1)]
    text = devctl(*ask, "1000").out
    assert text.splitlines()[1].split() == ["BOARD", "LEAST", "BY", "DEFAULT", "EACH", "FULLEST"]
    assert SEGMENTS in text
    roomy = devctl("plan", TINY, "--fits-on", "80GiB", "--context-length", "1000").out
    assert "BY DEFAULT" not in roomy


def test_cells_of_a_table_that_hold_without_gaps_alone_have_a_mark(devctl):
    box = ["--devices", f"{tight_box(devctl, '2048', '--batch-size', '1')}B", "--overhead", "0B"]
    cases = json.loads(devctl("plan", TINY, *box, "--what-if", "--json").out)["cases"]
    marked = [case for case in cases if case["fits"] and not case["fits_by_default"]]
    assert (2048, 1) in [(case["context_length"], case["batch_size"]) for case in marked]
    assert any(case["fits_by_default"] for case in cases)
    assert all(case["fits"] for case in cases if case["fits_by_default"])
    text = devctl("plan", TINY, *box, "--what-if").out
    assert text.count("%*") == len(marked)
    assert f"*: only with {SEGMENTS}" in text.replace("\n", " ")
    roomy = devctl("plan", TINY, "--devices", "80GiB", "--overhead", "0B", "--what-if").out
    assert "*" not in roomy
