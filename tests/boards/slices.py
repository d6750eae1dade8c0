"""A slice: as many steps as go into some minutes, each in a process that may crash or hang, and ends no other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

from tests.boards import journal
from tests.boards.asking import BROKEN
from tests.boards.records import FINISHED, Box, Row, Status, Step, Verdict
from tests.boards.state import State, blame

MARGIN = 10
"""Seconds of a slice that are kept for writing the evidence."""

SHORTEST = 15
"""Seconds with which no step is begun: torch is hardly imported by then."""

_CRASHES = 4
"""So many processes of one step may end badly; each next one leaves out the cell in which the last one ended."""

_CUTS = 2
"""So often a cell may be cut off by the end of a slice before it is taken to be too long for one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    """How a process ended.

    Attributes:
        code: of its exit; a signal's number with a minus; None where it was ended for taking too long.
        said: the end of what it wrote to stderr.
    """

    code: int | None
    said: str = ""


class Launch(Protocol):
    """Runs a step in a process that writes ``journal``, for so many seconds at most."""

    def __call__(self, step: Step, journal: Path, seconds: float) -> Exit: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """The time that there is.

    Attributes:
        ends: what ``clock`` tells when all has to be over.
        say: shows a line.
    """

    ends: float
    clock: Callable[[], float]
    launch: Launch
    say: Callable[[str], None]

    @property
    def left(self) -> float:
        """Seconds until then."""
        return self.ends - self.clock()


def unmet(step: Step, box: Box, *, disk: int | None = None) -> str:
    """What ``step`` needs and this box has not; empty where it has all.

    Args:
        disk: bytes that are free for temporary files; None where that is not known.
    """
    needs = step.needs
    there = len(box.boards)
    if needs.boards > there:
        return f"it needs {needs.boards} boards, and there {'is' if there == 1 else 'are'} {there}"
    if needs.memory and box.boards and box.boards[0].memory < needs.memory:
        return f"it needs a board of {needs.memory / 2**30:.0f} GiB"
    if disk is not None and disk < needs.disk:
        return f"it needs {needs.disk / 2**30:.0f} GiB for temporary files"
    if needs.package is not None and find_spec(needs.package) is None:
        return f"it needs the package {needs.package.replace('_', '-')}, which is not installed"
    return ""


def in_order(steps: Iterable[Step]) -> tuple[Step, ...]:
    """Those that tell most first; of equals, as they are listed."""
    return tuple(sorted(steps, key=lambda step: step.rank))


def run_slice(steps: Sequence[Step], state: State, box: Box, time: Slice, *, disk: int | None = None) -> None:
    """Try what goes into the slice.

    A step that was cut off comes first, so that it ends some day; then what tells most. One that is longer than what
    is left waits, and shorter ones are tried; where nothing ran yet it is begun all the same, and goes on in the next
    slice with the cell that it was cut off in.
    """
    ran = False
    for step in sorted(in_order(steps), key=lambda step: state.of(step).status is not Status.CUT):
        before = state.of(step)
        if before.status in FINISHED and before.status is not Status.SKIPPED:
            continue
        if why := unmet(step, box, disk=disk):
            if why == before.why:
                continue
            state.put(step, Status.SKIPPED, why=why)
            time.say(f"{step.name}: skipped: {why}")
            continue
        if time.left < SHORTEST or (ran and step.seconds > time.left):
            continue
        time.say(f"{step.name}: {step.what} (about {step.seconds} s)")
        status = run_step(step, state, time)
        found = journal.read(state.journal(step)).rows
        met, missed = (sum(row.verdict is each for row in found) for each in (Verdict.MET, Verdict.MISSED))
        time.say(f"{step.name}: {status}, {met} met, {missed} missed, {len(found) - met - missed} others")
        ran = True


def run_step(step: Step, state: State, time: Slice) -> Status:
    """Try one step until it is done, the slice is over, or its process ended badly too often; where it is then."""
    path = state.journal(step)
    start = time.clock()

    def put(status: Status, why: str = "") -> Status:
        state.put(step, status, seconds=time.clock() - start, why=why)
        return status

    state.put(step, Status.RUNNING)
    try:
        for _ in range(_CRASHES):
            seconds = min(step.limit, time.left)
            if seconds < SHORTEST and time.clock() > start:
                return put(Status.CUT)
            exit = time.launch(step, path, seconds)
            found = journal.read(path)
            if found.is_done:
                return put(Status.DONE)
            if exit.code is None and seconds < step.limit:
                if found.open is None or found.cuts.get(found.open, 0) + 1 < _CUTS:
                    if found.open is not None:
                        journal.append(path, {"cut": found.open})
                    return put(Status.CUT)
                blame(state, step, f"it did not end in {_CUTS} slices")
                return put(Status.CUT)
            if exit.code == BROKEN and found.open is None:
                continue  # it told what broke its board, and another process may go on
            why = _why(exit, seconds)
            if blame(state, step, why) is None:
                # it ended before or between cells: the next try would, too
                journal.add(path, Row(subject=step.name, claim="runs", verdict=Verdict.FAILED, why=why))
                return put(Status.ENDED, why)
    except KeyboardInterrupt:
        put(Status.CUT, "interrupted")
        raise
    return put(Status.ENDED, f"{_CRASHES} processes ended badly")


def _why(exit: Exit, seconds: float) -> str:
    if exit.code is None:
        return f"it did not end in {seconds:.0f} s, and was ended"
    said = f": {exit.said}" if exit.said else ""
    if exit.code < 0:
        return f"its process was ended by signal {-exit.code}{said}"
    return f"its process ended with exit code {exit.code}{said}"
