"""The table of ``sweep.json``: what loads and runs with half of it on disk, and what does not, with the reason."""

import json

import pytest

from tests.loading.sweep import TABLE, rows, strategy_of
from tests.small_models import SWEPT


def test_the_table_is_of_these_models_and_most_of_it_is_good():
    table = json.loads(TABLE.read_text())
    assert [row["class"] for row in table] == list(SWEPT)
    good = [row for row in table if row.get(str(strategy_of(row["class"]))) == "equal"]
    assert len(good) >= 70
    assert all(row[f"on disk by {strategy_of(row['class'])}"] > 0.3 * row["bytes"] for row in good)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_what_comes_out_is_what_the_table_says():
    for row, kept in zip(rows(SWEPT), json.loads(TABLE.read_text()), strict=True):
        assert row == kept
