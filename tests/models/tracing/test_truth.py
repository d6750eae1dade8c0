"""Rows of the table of what held-out architectures really hold; all of them: ``python -m tests.benchmarks.truth``."""

import pytest

from tests.benchmarks.truth import ROWS, Found, compare

FAST = (
    "CohereForCausalLM plain",
    "MixtralForCausalLM bf16 experts",
    "SiglipVisionModel image",
    "Dinov2Model image",
    "Lfm2ForCausalLM 16k",
)


@pytest.mark.parametrize("row", [row for row in ROWS if row.name in FAST], ids=lambda row: row.name)
def test_what_is_predicted_is_what_storages_hold(row):
    assert compare(row).holds


@pytest.mark.slow
@pytest.mark.parametrize("row", [row for row in ROWS if row.name not in FAST], ids=lambda row: row.name)
def test_what_is_predicted_is_what_storages_hold_in_every_row(row):
    assert compare(row).holds


@pytest.mark.parametrize(
    ("predicted", "notes", "holds"),
    [(99, (), True), (97, (), False), (109, (), True), (111, (), False), (150, ("… is a bound",), True)],
)
def test_a_row_holds_within_its_bounds(predicted, notes, holds):
    assert Found(predicted=predicted, storages=100, pages=None, notes=notes).holds is holds
