"""`devctl plan` where torch's allocator of a GPU has room for tensors, and not for the gaps between them."""

import json

import pytest

from tests.conftest import CONFIGS

TINY = CONFIGS / "tiny-llama"
SEGMENTS = "PYTORCH_ALLOC_CONF=expandable_segments:True"
BOX = ["--overhead", "0B", "--batch-size", "4"]


def plan(devctl, box, *args):
    done = devctl("plan", TINY, "--devices", box, *BOX, *args, "--json")
    assert done.code == 0, done.err
    return json.loads(done.out), done.err


def test_gaps_are_told_beside_the_total_and_are_no_part_of_it(devctl):
    document, said = plan(devctl, "1GiB", "--context-length", "1000")
    (gpu,) = (use for use in document["devices"] if use["device"] == "cuda:0")
    assert gpu["unallocated"] > 0
    assert SEGMENTS not in said
    tight = gpu["used"] + gpu["state"] + gpu["activations"]
    document, said = plan(devctl, f"{tight}B", "--context-length", "1000")
    assert said.startswith(f"fits with {SEGMENTS} alone")
    assert any(note.startswith(f"cuda:0: holds with {SEGMENTS} alone; by default") for note in document["notes"])
    roomy, said = plan(devctl, f"{tight + gpu['unallocated']}B", "--context-length", "1000")
    assert not any(SEGMENTS in note for note in roomy["notes"])


@pytest.mark.slow
def test_the_longest_context_says_how_much_of_it_rests_on_an_allocator_without_gaps(devctl):
    document, _ = plan(devctl, "60MiB", "--max-context")
    (note,) = (note for note in document["notes"] if "leaves gaps" in note)
    tokens = int(note.split("and ")[1].split()[0].replace(",", ""))
    assert 100 < tokens < document["max_context"]["this_map"]
    document, _ = plan(devctl, "60MiB", "--context-length", str(tokens))
    assert not any(SEGMENTS in note for note in document["notes"])


def test_on_the_cpu_there_is_no_such_allocator(devctl):
    document, _ = plan(devctl, "cpu=1GiB", "--context-length", "1000")
    assert all(use["unallocated"] == 0 for use in document["devices"])
