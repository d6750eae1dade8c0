"""How the edge is looked for, and what is said of it."""

import pytest

from devctl.placement.plan import MostTokens
from tests.boards.asking import Ask
from tests.boards.cards import NoSegmentsError
from tests.boards.pretended import PretendedCard
from tests.boards.records import Verdict
from tests.boards.steps import edge
from tests.boards.steps.edge import STEPS, answer, bisect, rows


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


def test_each_way_to_allocate_is_held_against_its_own_answer():
    most = MostTokens(this_map=27_325, optimal=27_325, by_default=23_400)
    assert [answer(most, expandable=expandable) for expandable in (False, True)] == [23_400, 27_325]
    assert answer(MostTokens(this_map=5, optimal=5), expandable=False) is None


def test_each_model_is_tried_by_default_and_with_expandable_segments_in_cells_of_their_own(tmp_path):
    ask = Ask(cards=(PretendedCard(0),), folder=tmp_path, checkout=tmp_path)
    for step in STEPS:
        name = step.name.removeprefix("edge/")
        cells = list(step.cells(ask))
        assert [cell.subject for cell in cells] == [f"{name}, by default", f"{name}, expandable segments"]
        assert [cell.work.keywords["expandable"] for cell in cells] == [False, True]


def test_without_expandable_segments_their_answer_is_not_tried(monkeypatch, tmp_path):
    def none(self, *, expandable):
        raise NoSegmentsError("none here")

    monkeypatch.setattr(PretendedCard, "segments", none)
    monkeypatch.setattr(edge, "open_subject", lambda *_: None)
    ask = Ask(cards=(PretendedCard(0),), folder=tmp_path, checkout=tmp_path)
    (row,) = edge.edge(ask, "llama", None, expandable=True)
    assert (row.verdict, row.why) == (Verdict.SKIPPED, "none here")
