"""What is said of a job that ran, from figures like those of a board."""

from dataclasses import replace

import pytest

from devctl.devices import Device
from devctl.models.footprint import Footprint, Workload
from devctl.placement.placement import DeviceUse
from tests.boards.measuring import Measured, Predicted, judged, process_bytes
from tests.boards.records import MIB, Verdict

USE = DeviceUse(
    device=Device.gpu(0),
    budget=None,
    modules=(),
    used=118 * MIB,
    state=8 * MIB,
    activations=50 * MIB,
    unallocated=12 * MIB,
)
PREDICTED = Predicted(
    weights=118 * MIB,
    state=8 * MIB,
    peak=176 * MIB,
    whole=(176 + 720) * MIB,
    process=(176 + 720 + 12) * MIB,
    unallocated=12 * MIB,
    fits=True,
)
MEASURED = Measured(
    state=8 * MIB,
    base=32 * MIB,
    peak=177 * MIB,
    reserved=(32 + 177 + 28) * MIB,
    process=(686 + 32 + 177 + 28) * MIB,
    kept=28 * MIB,
    was_short=False,
    how="the driver's figure of this process",
)
"""Of a llama that ran on an H100, to some MiB."""

FOOTPRINT = Footprint(workload=Workload(context_length=8), blocks=(), given_back=3 * MIB, pages=5 * MIB)


def told(predicted=PREDICTED, measured=MEASURED):
    rows = judged("llama", predicted, measured, predicted.weights, room=80 << 30)
    return {row.claim: row for row in rows}


def test_the_bytes_of_a_process_count_gaps_by_default_alone():
    assert process_bytes(USE, FOOTPRINT) == 191 * MIB
    assert process_bytes(USE, FOOTPRINT, expandable=True) == 181 * MIB


def test_a_process_is_judged_by_what_it_needs():
    row = told()["process"]
    assert (row.verdict, row.predicted, row.measured) == (Verdict.MET, 896 * MIB, 895 * MIB)
    assert row.why == (
        "the driver's figure of this process, less 28 MiB that the allocator reserved and gave to no tensor"
    )


@pytest.mark.parametrize("kept", [301, 2000])
def test_what_the_allocator_keeps_while_there_is_room_is_no_fault_of_a_plan(kept):
    more = replace(MEASURED, kept=kept * MIB, process=(895 + kept) * MIB, reserved=(209 + kept) * MIB)
    rows = told(measured=more)
    assert rows["process"].verdict is Verdict.MET
    whole = rows["process, with what is reserved for no tensor"]
    assert (whole.verdict, whole.predicted, whole.measured) == (Verdict.TOLD, 908 * MIB, (895 + kept) * MIB)
    assert "memory was not short: predicted is the least that is reserved when it is" in whole.why


@pytest.mark.parametrize("apart", [-301, 301])
def test_a_process_that_needs_more_or_less_than_planned_is_found_out_whatever_is_kept(apart):
    other = replace(MEASURED, process=(896 + 28 + apart) * MIB)
    assert told(measured=other)["process"].verdict is Verdict.MISSED
    hidden = replace(MEASURED, process=(896 + apart) * MIB, kept=0)
    assert told(measured=hidden)["process"].verdict is Verdict.MISSED


def test_what_is_reserved_for_no_tensor_has_an_error_where_both_figures_are_of_one_thing():
    row = told()["reserved for no tensor"]
    assert (row.predicted, row.measured, row.error) == (12 * MIB, 28 * MIB, None)
    assert row.why == (
        "11.8% of what was reserved; memory was not short: predicted is the least that is reserved when it is"
    )
    short = told(measured=replace(MEASURED, was_short=True))["reserved for no tensor"]
    assert short.error == pytest.approx(12 / 28 - 1)
    assert short.why.endswith("memory was short: predicted is the least that is reserved then")


def test_a_plan_that_needs_expandable_segments_is_told_so_and_counts_no_gaps():
    expandable = replace(PREDICTED, expandable=True, process=PREDICTED.whole)
    rows = told(predicted=expandable)
    assert rows["fits or not"].why == "it ran, with expandable segments, as the plan says"
    assert rows["reserved for no tensor"].predicted == 0
    (row,) = judged("llama", expandable, None, 0, room=900 * MIB)
    assert (row.verdict, row.why) == (
        Verdict.MISSED,
        "out of memory; the plan needs 896 MiB of 900 MiB, with expandable segments",
    )


def test_without_the_drivers_figure_the_process_is_not_judged():
    rows = told(measured=replace(MEASURED, process=None, how="the driver tells neither"))
    assert rows["process"].verdict is Verdict.SKIPPED
    assert "process, with what is reserved for no tensor" not in rows
