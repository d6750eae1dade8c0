"""Ranks that load what the plan says, and do what one process does."""

import json
from importlib.resources import files

import jsonschema
import pytest

from tests.distributed import plans


def test_two_ranks_hold_what_the_plan_says_and_make_what_one_process_makes(launch, llama):
    plan = plans.document(llama, (1, 3), "ab")
    first, second = launch(llama, plan, "--max-new-tokens", "6")
    assert (first.code, second.code) == (0, 0), first.err + second.err
    report = first.report
    jsonschema.validate(report, json.loads((files("devctl.distributed") / "schema.json").read_text(encoding="utf-8")))
    assert second.out == ""
    assert report["reference"] == "equal"
    assert report["ok"] is True
    rows = report["ranks"]
    assert [(row["rank"], row["host"], row["stage"], row["layers"]) for row in rows] == [
        (0, "a", 0, [0, 1]),
        (1, "b", 1, [1, 4]),
    ]
    assert [row["measured"] for row in rows] == [stage["used"] for stage in plan["stages"]]
    assert rows[0]["ids"] == rows[1]["ids"]
    assert len(rows[0]["ids"][0]) == 6


@pytest.mark.slow
@pytest.mark.parametrize("cuts", [(2, 2), (3, 1), (1, 2, 1), (1, 1, 2), (1, 1, 1, 1)])
@pytest.mark.parametrize("tied", [False, True])
def test_any_cut_makes_what_one_process_makes(launch, tmp_path, cuts, tied):
    model = plans.save(tmp_path / "model", tie_word_embeddings=tied)
    plan = plans.document(model, cuts, "aabb"[: len(cuts)])
    ranks = launch(model, plan)
    assert [rank.code for rank in ranks] == [0] * len(cuts), [rank.err for rank in ranks]
    report = ranks[0].report
    assert report["reference"] == "equal"
    assert [row["measured"] for row in report["ranks"]] == [stage["used"] for stage in plan["stages"]]


def test_texts_of_one_length_are_run_at_once(launch, llama):
    plan = plans.document(llama, (2, 2), "ab")
    ranks = launch(llama, plan, "--batch-size", "2", "--no-padding")
    assert [rank.code for rank in ranks] == [0, 0], ranks[0].err
    assert len(ranks[0].report["ranks"][1]["ids"]) == 2


def test_a_plan_that_counts_other_bytes_is_found_out(launch, llama):
    plan = plans.document(llama, (2, 2), "ab")
    plan["stages"][1]["used"] -= 64
    ranks = launch(llama, plan)
    assert [rank.code for rank in ranks] == [5, 5]
    for rank in ranks:
        assert "rank 1 on b" in rank.err
        assert f"the plan says {plan['stages'][1]['used']:,} B" in rank.err
