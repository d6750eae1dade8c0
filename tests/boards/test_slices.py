"""Which steps run in a slice, and what becomes of those whose process crashes, hangs or is cut off."""

import dataclasses

import pytest

from tests.boards import journal
from tests.boards.asking import BROKEN, try_all
from tests.boards.pretended import PretendedCard
from tests.boards.records import Board, Box, Cell, Needs, Status, Step, Verdict, failed, holds
from tests.boards.slices import Exit, Slice, in_order, run_slice, unmet
from tests.boards.state import folder_of, gather, left, open_state

BOX = Box(boards=(Board(name="NVIDIA L4", memory=22 << 30, compute_capability="8.9"),), versions={"torch": "2.9"})


class World:
    """A clock that only a process moves on, and processes that do what a test says."""

    def __init__(self):
        self.now = 0.0
        self.ran = []
        self.said = []
        self.does = {}

    def clock(self):
        return self.now

    def launch(self, step, path, seconds):
        self.ran.append(step.name)
        return self.does.get(step.name, self.succeeds)(step, path, seconds)

    def succeeds(self, step, path, seconds):
        self.now += step.seconds
        for subject in ("first", "second"):
            if subject not in journal.read(path).ended:
                journal.begin(path, subject)
                journal.add(path, holds(subject, "runs", True))
                journal.end(path, subject)
        journal.append(path, {"done": True})
        return Exit(code=0)

    def dies_in_first(self, step, path, seconds):
        if "first" in journal.read(path).ended:
            return self.succeeds(step, path, seconds)
        self.now += 5
        journal.begin(path, "first")
        return Exit(code=-11, said="Fatal Python error: Segmentation fault")

    def dies_at_once(self, step, path, seconds):
        self.now += 5
        return Exit(code=1, said="ImportError: libcuda.so.1")

    def hangs(self, step, path, seconds):
        self.now += seconds
        if journal.read(path).open != "second":
            journal.begin(path, "first")
            journal.end(path, "first")
            journal.begin(path, "second")
        return Exit(code=None)

    def slice(self, minutes=8):
        return Slice(ends=self.now + 60 * minutes, clock=self.clock, launch=self.launch, say=self.said.append)


def step(name, *, seconds=60, rank=5, **needs):
    return Step(name=name, what="something", seconds=seconds, rank=rank, cells=iter, needs=Needs(**needs))


@pytest.fixture
def world():
    return World()


@pytest.fixture
def state(tmp_path):
    return open_state(tmp_path / "state", "2026-11-26", ())


def test_what_tells_most_runs_first():
    steps = (step("peaks/late", rank=9), step("inventory/early", rank=1), step("peaks/early", rank=1))
    assert [each.name for each in in_order(steps)] == ["inventory/early", "peaks/early", "peaks/late"]


def test_a_slice_runs_what_goes_into_it_and_the_next_one_the_rest(world, state):
    steps = (step("peaks/a", seconds=300), step("peaks/b", seconds=300), step("peaks/c", seconds=100))
    run_slice(steps, state, BOX, world.slice())
    assert world.ran == ["peaks/a", "peaks/c"], "b waits, and what is shorter is tried"
    assert [each.name for each in left(state, steps)] == ["peaks/b"]
    run_slice(steps, state, BOX, world.slice())
    assert world.ran == ["peaks/a", "peaks/c", "peaks/b"]
    assert left(state, steps) == ()
    run_slice(steps, state, BOX, world.slice())
    assert len(world.ran) == 3, "what is done is not done again"


def test_a_step_that_is_longer_than_a_slice_is_begun_all_the_same(world, state):
    run_slice((step("peaks/long", seconds=600),), state, BOX, world.slice(minutes=2))
    assert world.ran == ["peaks/long"]


def test_a_process_that_crashes_is_a_row_and_its_other_cells_are_tried(world, state):
    steps = (step("peaks/a"), step("peaks/b"))
    world.does["peaks/a"] = world.dies_in_first
    run_slice(steps, state, BOX, world.slice())
    first, second = gather(BOX, state, steps).steps
    assert [(row.subject, row.verdict) for row in first.rows] == [("first", Verdict.FAILED), ("second", Verdict.MET)]
    assert first.rows[0].why == "its process was ended by signal 11: Fatal Python error: Segmentation fault"
    assert (first.status, second.status) == (Status.DONE, Status.DONE)


def test_a_process_that_breaks_its_board_tells_why_and_another_goes_on(world, state):
    one = step("peaks/one")

    def breaks(step, path, seconds):
        if "first" in journal.read(path).ended:
            return world.succeeds(step, path, seconds)
        journal.begin(path, "first")
        journal.add(path, failed("first", "runs", "CUDA error: an illegal memory access"))
        journal.end(path, "first")
        return Exit(code=BROKEN)

    world.does["peaks/one"] = breaks
    run_slice((one,), state, BOX, world.slice())
    (tried,) = gather(BOX, state, (one,)).steps
    assert tried.status is Status.DONE
    assert [(row.subject, row.verdict) for row in tried.rows] == [("first", Verdict.FAILED), ("second", Verdict.MET)]


def test_a_process_that_can_not_begin_is_a_row_and_is_not_tried_again(world, state):
    steps = (step("peaks/a"), step("peaks/b"))
    world.does["peaks/a"] = world.dies_at_once
    for _ in range(2):
        run_slice(steps, state, BOX, world.slice())
    assert world.ran == ["peaks/a", "peaks/b"]
    first, _ = gather(BOX, state, steps).steps
    assert first.status is Status.ENDED
    assert [(row.subject, row.why) for row in first.rows] == [
        ("peaks/a", "its process ended with exit code 1: ImportError: libcuda.so.1")
    ]
    state.forget(steps[0])
    run_slice(steps, state, BOX, world.slice())
    assert world.ran == ["peaks/a", "peaks/b", "peaks/a"]


def test_what_the_end_of_a_slice_cuts_off_goes_on_first_in_the_next(world, state):
    slow, other = step("peaks/slow", seconds=400, rank=9), step("peaks/other", rank=1)
    world.does["peaks/slow"] = world.hangs
    run_slice((slow, other), state, BOX, world.slice())
    assert world.ran == ["peaks/other", "peaks/slow"]
    assert world.now <= 480, "the slice ended in time"
    assert state.of(slow).status is Status.CUT
    world.does.clear()
    run_slice((slow, other), state, BOX, world.slice())
    assert world.ran[2:] == ["peaks/slow"]
    rows = gather(BOX, state, (slow,)).steps[0].rows
    assert [(row.subject, row.verdict) for row in rows] == [("second", Verdict.MET)]


def test_a_cell_that_no_slice_is_long_enough_for_is_a_row(world, state):
    slow = step("peaks/slow", seconds=400)
    world.does["peaks/slow"] = world.hangs
    for _ in range(2):
        run_slice((slow,), state, BOX, world.slice())
    (row,) = gather(BOX, state, (slow,)).steps[0].rows
    assert (row.subject, row.verdict, row.why) == ("second", Verdict.FAILED, "it did not end in 2 slices")
    world.does.clear()
    run_slice((slow,), state, BOX, world.slice())
    assert state.of(slow).status is Status.DONE


def test_a_process_that_hangs_is_ended_at_its_own_limit(world, state):
    quick = step("peaks/quick", seconds=10)
    world.does["peaks/quick"] = world.hangs
    run_slice((quick,), state, BOX, world.slice(minutes=60))
    rows = gather(BOX, state, (quick,)).steps[0].rows
    assert [row.why for row in rows] == ["it did not end in 120 s, and was ended"]
    assert world.now == 4 * quick.limit
    assert state.of(quick).status is Status.ENDED


def test_a_runner_that_was_killed_leaves_a_row_and_a_step_that_is_not_tried_again(world, tmp_path):
    bad, good = step("peaks/bad"), step("peaks/good")
    state = open_state(tmp_path, "2026-11-26", (bad, good))

    def everything_ends(step, path, seconds):
        journal.begin(path, "first")
        raise SystemExit

    world.does["peaks/bad"] = everything_ends
    with pytest.raises(SystemExit):
        run_slice((bad, good), state, BOX, world.slice())
    world.does.clear()
    again = open_state(tmp_path, "2026-11-27", (bad, good))
    assert again.begun == "2026-11-26"
    run_slice((bad, good), again, BOX, world.slice())
    assert world.ran == ["peaks/bad", "peaks/good"]
    (row,) = gather(BOX, again, (bad, good)).steps[0].rows
    assert (row.subject, row.verdict) == ("first", Verdict.FAILED)
    assert "ended while this was tried" in row.why


def test_ctrl_c_cuts_a_step_off_and_the_next_slice_goes_on(world, state):
    one = step("peaks/one")

    def interrupted(step, path, seconds):
        raise KeyboardInterrupt

    world.does["peaks/one"] = interrupted
    with pytest.raises(KeyboardInterrupt):
        run_slice((one,), state, BOX, world.slice())
    assert state.of(one).status is Status.CUT


def test_a_state_file_that_is_broken_loses_no_row(world, state):
    one = step("peaks/one")
    run_slice((one,), state, BOX, world.slice())
    (state.folder / "state.json").write_text("{")
    with state.journal(one).open("a") as file:
        file.write('{"row": {"subj')  # cut off by a full disk
    again = open_state(state.folder, "2026-11-27", (one,))
    assert len(gather(BOX, again, (one,)).steps[0].rows) == 2


@pytest.mark.parametrize(
    ("needs", "why"),
    [
        ({}, ""),
        ({"boards": 2}, "it needs 2 boards, and there is 1"),
        ({"memory": 40 << 30}, "it needs a board of 40 GiB"),
        ({"disk": 4 << 30}, "it needs 4 GiB for temporary files"),
        ({"package": "no_such_package"}, "it needs the package no-such-package, which is not installed"),
    ],
)
def test_what_a_box_lacks_is_told(needs, why):
    assert unmet(step("peaks/a", **needs), BOX, disk=2 << 30) == why


def test_a_step_that_can_not_be_tried_says_why(world, state):
    pair = step("placement/pairs", boards=2)
    run_slice((pair,), state, BOX, world.slice())
    assert world.ran == []
    (tried,) = gather(BOX, state, (pair,)).steps
    assert (tried.status, tried.why) == (Status.SKIPPED, "it needs 2 boards, and there is 1")


def test_a_step_that_lacked_something_is_tried_once_it_is_there(world, state):
    one = step("placement/one", disk=4 << 30)
    for _ in range(2):
        run_slice((one,), state, BOX, world.slice(), disk=1 << 30)
    assert len(world.said) == 1, "it is said once"
    run_slice((one,), state, BOX, world.slice(), disk=5 << 30)
    assert state.of(one).status is Status.DONE


def test_another_driver_is_another_run(tmp_path):
    newer = dataclasses.replace(BOX, versions={"torch": "2.10"})
    folders = {folder_of(tmp_path, BOX, "1"), folder_of(tmp_path, newer, "1"), folder_of(tmp_path, BOX, "2")}
    assert len(folders) == 3
    assert folder_of(tmp_path, BOX, "1") in folders


class Broken(PretendedCard):
    def wait(self):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def empty(self):
        raise AssertionError("it waits first")


def test_a_card_that_answers_no_more_ends_the_process_after_its_row(tmp_path):
    path = tmp_path / "journal"

    def fail():
        yield holds("first", "before", True)
        raise ValueError("what was wrong\nand more of it")

    cells = [Cell(subject="first", work=fail), Cell(subject="second", work=list)]
    with pytest.raises(SystemExit) as stop:
        try_all(cells, path, [Broken(0)])
    assert stop.value.code == BROKEN
    found = journal.read(path)
    assert [(row.claim, row.why) for row in found.rows] == [("before", ""), ("runs", "ValueError: what was wrong")]
    assert (found.open, found.ended, found.is_done) == (None, {"first"}, False)


def test_what_goes_wrong_between_cells_is_a_row_too(tmp_path):
    path = tmp_path / "journal"

    def cells():
        yield Cell(subject="first", work=list)
        raise OSError("no list came")

    try_all(cells(), path, [])
    found = journal.read(path)
    assert [(row.subject, row.why) for row in found.rows] == [("what would have followed", "OSError: no list came")]
    assert found.is_done
