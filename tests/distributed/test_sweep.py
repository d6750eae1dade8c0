"""The table of architectures, and the sweep that it is of."""

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from devctl.models.over_ranks import Outcome, objection, table

RELEASE = "5.23.0"


def test_every_row_says_what_came_out_and_why_if_it_is_not_exact():
    for rows in table().values():
        for name, ways in rows.items():
            assert set(ways) == {"stages", "shared"}
            for row in ways.values():
                assert row["outcome"] in set(Outcome), name
                assert ("why" in row) == (row["outcome"] != Outcome.EXACT), name


def test_many_architectures_are_exact_and_those_that_are_silently_wrong_are_known():
    rows = table()[RELEASE]
    for way in ("stages", "shared"):
        assert sum(row[way]["outcome"] == Outcome.EXACT for row in rows.values()) >= 25
    for name in (
        "GraniteForCausalLM",
        "GraniteMoeForCausalLM",
        "GraniteSWAForCausalLM",
        "Lfm2ForCausalLM",
        "PhiForCausalLM",
    ):
        assert rows[name]["stages"]["outcome"] != Outcome.EXACT, name


def test_only_what_was_exact_with_this_release_is_run():
    assert objection("LlamaForCausalLM", RELEASE) is None
    assert "makes other tokens in stages" in objection("GraniteForCausalLM", RELEASE)
    assert objection("GraniteForCausalLM", RELEASE, shared=True) is None
    assert "does not run on ranks that share its layers" in objection("Lfm2ForCausalLM", RELEASE, shared=True)
    assert "was not tried in stages" in objection("NobodysForCausalLM", RELEASE)
    assert "transformers 4.0.0 was not tried, only 5.23.0" in objection("LlamaForCausalLM", "4.0.0")


def test_the_table_is_of_the_release_that_the_tests_run_with():
    assert importlib.metadata.version("transformers") in table()


@pytest.mark.slow
def test_the_sweep_finds_what_the_table_says(tmp_path):
    """Some of each outcome; ``python -m tests.distributed.sweep`` tries all."""
    rows = table()[importlib.metadata.version("transformers")]
    names = []
    for outcome in Outcome:
        of_it = [name for name, row in rows.items() if row["stages"]["outcome"] == outcome]
        names += of_it[:: 8 if outcome == Outcome.EXACT else 4]
    kept = tmp_path / "over_ranks.json"
    kept.write_text('{"transformers": {}}')
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "TORCH_CPP_LOG_LEVEL": "FATAL"}
    command = [sys.executable, "-m", "tests.distributed.sweep", "--table", str(kept), *names]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=590, check=False)
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(kept.read_text())["transformers"].values()
    for name in names:
        for way in ("stages", "shared"):
            assert found[name][way]["outcome"] == rows[name][way]["outcome"], (name, way)
