"""How the edge is looked for, and what is said of it."""

import pytest

from tests.boards.records import Verdict
from tests.boards.steps.edge import bisect, rows


def edge_at(most, planned):
    """What is found where ``most`` tokens run, and how often it was tried."""
    known = {}

    def runs(tokens):
        assert tokens not in known, "nothing is tried twice"
        known[tokens] = tokens <= most
        return known[tokens]

    runs(planned)
    runs(int(planned * 1.03) + 1)
    return bisect(runs, planned, known), len(known)


@pytest.mark.parametrize("most", [5_000, 8_000, 9_990, 10_000, 10_100, 10_300, 10_301, 13_000, 40_000])
def test_the_edge_is_found_to_a_part_in_five_hundred(most):
    found, tries = edge_at(most, 10_000)
    assert found is not None
    assert most - 20 <= found <= most
    assert tries <= 20


def test_an_edge_far_below_the_plan_is_none():
    assert edge_at(1_000, 10_000)[0] is None


def test_what_always_runs_ends_at_what_the_model_is_made_for():
    assert edge_at(10**9, 10_000)[0] < 131_072


def verdicts(*args, **kwargs):
    return [row.verdict for row in rows("x", *args, **kwargs)]


def test_an_answer_that_runs_and_is_just_short_of_the_edge_is_met():
    assert verdicts(9_800, 10_000, exact=True, more=False) == [Verdict.MET] * 3


def test_an_answer_that_does_not_run_or_is_far_short_is_missed():
    assert verdicts(10_100, 10_000, exact=False, more=False) == [Verdict.MISSED, Verdict.MET, Verdict.MISSED]
    assert verdicts(9_000, 10_000, exact=True, more=True) == [Verdict.MET, Verdict.MISSED, Verdict.MISSED]
    assert verdicts(9_000, None, exact=False, more=False)[-1] is Verdict.FAILED
