"""The whole logic of steps on simulated devices: what is right is met, and what is wrong is found out."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests import small_models
from tests.boards.asking import Ask
from tests.boards.pretended import PretendedCard
from tests.boards.steps import several


def told(*cases):
    """What came of each case: its rows, as values."""
    command = [sys.executable, "-m", "tests.boards.on_simulated", *cases]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def wrong(rows):
    return [(row["subject"], row["claim"]) for row in rows if row["verdict"] in ("missed", "failed")]


def claims(rows):
    return {row["claim"] for row in rows}


BYTES = {
    *("fits or not", "weights", "state", "peak", "peak beside weights"),
    *("process", "process, with what is reserved for no tensor", "reserved for no tensor"),
}
PROOFS = {"tensors where the map says", "ties", "blocks as on the CPU", "outputs as on the CPU", "tokens as on the CPU"}


@pytest.mark.slow
def test_predicted_bytes_are_met_and_a_plan_that_is_wrong_is_found_out():
    found = told("peaks llama", "eager", "wrong plan", "no room", "no weights")
    assert wrong(found["peaks llama"]) == wrong(found["eager"]) == []
    assert claims(found["peaks llama"]) == claims(found["eager"]) == BYTES
    assert all(row["predicted"] == row["measured"] for row in found["peaks llama"] if row["claim"] == "weights")
    assert wrong(found["wrong plan"]) == [
        ("weights", "weights"),
        ("state", "state"),
        ("peak", "peak"),
        ("process", "process"),
    ]
    # a no is right where memory runs out, a yes is wrong; what is refused within the target and runs is let pass
    assert wrong(found["no room"]) == [("planned for more than there is", "fits or not")]
    assert [row["why"].split(";")[0] for row in found["no room"] if row["claim"] == "fits or not"] == [
        "out of memory",
        "out of memory",
        "the plan says no, and it ran: 123 of 122 MiB",
    ]
    assert wrong(found["no weights"]) == [("no weights", "fits or not")]
    assert claims(found["no weights"]) > BYTES, "the next cell loads them after all"


@pytest.mark.slow
def test_what_is_raised_in_a_cell_is_a_row_and_the_next_is_tried():
    rows = told("raising")["raising"]
    assert wrong(rows) == [("fails", "runs"), ("out of memory", "runs")]
    by_subject = {row["subject"]: row["why"] for row in rows}
    assert by_subject["fails"] == "RuntimeError: CUDA error: an illegal memory access was encountered"
    assert by_subject["out of memory"].startswith("OutOfMemoryError: CUDA out of memory. Tried to allocate 4.00 MiB")
    assert "llama, eager" in by_subject


@pytest.mark.slow
def test_the_edge_is_found_where_it_is_planned():
    rows = told("edge")["edge"]
    assert wrong(rows) == []
    assert [row["claim"] for row in rows] == ["the longest context runs", "3% more does not", "the edge"] * 2
    assert [row["subject"].rpartition("MiB, ")[2] for row in rows[::3]] == ["by default", "expandable segments"]
    for row in rows[2::3]:
        assert row["predicted"] > 300
        assert abs(row["error"]) < 0.01


@pytest.mark.slow
def test_maps_are_proved_and_auto_runs_out_where_the_plan_holds():
    found = told("placement llama", "runs out on one", "overhead")
    assert [wrong(rows) for rows in found.values()] == [[], [], []]
    assert claims(found["placement llama"]) == PROOFS | {f"weights on {each}" for each in ("cuda", "cpu", "disk")}
    assert [row["claim"] for row in found["runs out on one"]] == [
        "auto by weights runs out",
        "auto by workload runs",
        "optimal by workload runs",
    ]
    constant = found["overhead"][-1]
    assert (constant["predicted"], constant["measured"]) == (100 << 20, 100 << 20)
    assert constant["why"] == 'for the table: "None": 112 * 2**20,  # simulated, 100'


@pytest.mark.slow
def test_other_kinds_of_models_and_two_devices_hold_too():
    others = (
        "peaks mixtral",
        "peaks t5",
        "peaks bert",
        "peaks llava",
        "placement mixtral",
        "placement t5",
        "runs out on two",
        "on two",
    )
    found = told(*others)
    assert {case: wrong(rows) for case, rows in found.items() if wrong(rows)} == {}
    assert "state beside a cache" in claims(found["peaks t5"])
    assert "state beside a cache" in claims(found["peaks llava"])
    assert "state" not in claims(found["peaks bert"])
    assert {row["why"] for row in found["on two"] if row["claim"] == "weights on cuda"} == {"cuda:0", "cuda:1"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tp", "pp"])
def test_ranks_on_the_cpu_are_started_and_held_against_one_process(kind, tmp_path):
    ask = Ask(cards=(PretendedCard(0),), folder=tmp_path, checkout=Path.cwd())
    rows = list(several.ranks(ask, kind, lambda: small_models.of_class("LlamaForCausalLM"), boards="2x8GiB"))
    assert [(row.claim, str(row.verdict)) for row in rows] == [
        ("plan's exit code", "met"),
        ("load's exit code", "met"),
        ("backend", "met"),
        ("tokens and logits as in one process", "met"),
    ]
