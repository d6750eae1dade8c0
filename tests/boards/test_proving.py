"""Where a strategy is run as the plan says that it fits."""

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest

from devctl.devices import Device
from devctl.placement.device_map import FrozenMap
from devctl.placement.placement import DeviceUse, Placement
from tests.boards.asking import Ask
from tests.boards.cards import NoSegmentsError
from tests.boards.measuring import Job
from tests.boards.pretended import PretendedCard
from tests.boards.proving import Halfway
from tests.boards.records import MIB, Verdict

GPU = Device.gpu(0)


@dataclass
class Planned(Halfway):
    """A box whose plans have so much in gaps, and where what is run is kept."""

    gaps: int = 0
    total: int = 90
    grows: bool = True
    ran: list = field(default_factory=list)

    def fullest(self, *, counted):
        return (120 if counted else 80) * MIB

    def placed(self, strategy, limit, *, counted):
        use = DeviceUse(
            device=GPU, budget=limit, modules=(), used=self.total * MIB, unallocated=self.gaps * MIB if counted else 0
        )
        return Placement(strategy=strategy, device_map=FrozenMap.of({"": GPU}), devices=(use,), crossings=0)

    def runs(self, placement, limit, *, expandable):
        if expandable and not self.grows:
            raise NoSegmentsError("none here")
        self.ran.append(expandable)
        return len(self.ran) > 1


def rows(**facts):
    """What is told, and with which segments each was run."""
    ask = Ask(cards=(), folder=Path(), checkout=Path())
    made = Planned(ask, SimpleNamespace(), (PretendedCard(0),), Job(context=9), None, **facts)
    return list(made.rows("llama")), made.ran


@pytest.mark.parametrize(
    ("gaps", "says"), [(10, "that it fits by default"), (11, "that it fits only with expandable segments")]
)
def test_what_is_planned_is_run_as_the_plan_says(gaps, says):
    (first, auto, optimal), ran = rows(gaps=gaps)
    assert ran == [True, gaps > 10, gaps > 10]
    assert first.why == "with 100 MiB a card, with expandable segments"
    for row in (auto, optimal):
        assert row.measured is True
        assert row.why == f"with 100 MiB a card, 0 MiB offloaded; the plan says {says}, and so it was run"


def test_without_expandable_segments_a_plan_that_needs_them_is_not_run():
    (first, *others), ran = rows(gaps=11, grows=False)
    assert ran == [False]
    assert first.why == "with 100 MiB a card, by default"
    for row in others:
        assert row.verdict is Verdict.SKIPPED
        assert row.why.endswith("the plan says that it fits only with expandable segments, and none here")


def test_a_plan_that_does_not_fit_is_no_promise_to_run():
    (_, auto, optimal), ran = rows(total=101)
    assert ran == [True]
    assert {row.measured for row in (auto, optimal)} == {False}
    assert auto.why == "with 100 MiB a card, 0 MiB offloaded; the plan says that it does not fit"
