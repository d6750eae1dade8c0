"""Where a run of many slices is, in a folder of its own: a file of states, and a journal a step."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from devctl.writing import write_whole
from tests.boards import journal
from tests.boards.records import FINISHED, Box, Evidence, Row, Status, Step, Tried, Verdict

_FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class At:
    """Where a step is; ``seconds`` that it took so far."""

    status: Status = Status.WAITING
    seconds: float = 0.0
    why: str = ""


@dataclass(slots=True)
class State:
    """Where all steps are.

    Attributes:
        folder: of the file and the journals.
        begun: the day on which the first slice began.
        steps: by name; one that is not there waits.
    """

    folder: Path
    begun: str
    steps: dict[str, At] = field(default_factory=dict)

    def of(self, step: Step) -> At:
        """Where ``step`` is."""
        return self.steps.get(step.name, At())

    def journal(self, step: Step) -> Path:
        """The file that ``step`` writes."""
        return self.folder / f"{step.name.replace('/', '-')}.jsonl"

    def put(self, step: Step, status: Status, *, seconds: float = 0.0, why: str = "") -> None:
        """Tell where ``step`` is now, after so many more seconds, and keep it."""
        self.steps[step.name] = At(status=status, seconds=self.of(step).seconds + seconds, why=why)
        self._write()

    def forget(self, step: Step) -> None:
        """Let ``step`` wait as if it had never run."""
        self.steps.pop(step.name, None)
        self.journal(step).unlink(missing_ok=True)
        self._write()

    def _write(self) -> None:
        steps = {name: asdict(at) for name, at in self.steps.items()}
        write_whole(self.folder / "state.json", json.dumps({"format": _FORMAT, "begun": self.begun, "steps": steps}))


def folder_of(root: Path, box: Box, devctl: str) -> Path:
    """Where the state of ``box`` is kept: another board, driver, package or devctl is another run."""
    known = json.dumps([[asdict(board) for board in box.boards], dict(sorted(box.versions.items())), devctl])
    return root / hashlib.sha256(known.encode()).hexdigest()[:12]


def open_state(folder: Path, today: str, steps: Iterable[Step]) -> State:
    """What is kept in ``folder``, or a new one. A step that was running when its runner was ended is at its end.

    A file that can't be read is as if it were not there; the journals beside it still count.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = State(folder, today)
    try:
        data = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        if data["format"] == _FORMAT:
            kept = {name: At(**{**at, "status": Status(at["status"])}) for name, at in data["steps"].items()}
            found = State(folder, str(data["begun"]), kept)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    for step in steps:
        if found.of(step).status is Status.RUNNING:
            blame(found, step, "the machine, or the process that started it, ended while this was tried")
            found.put(step, Status.ENDED, why="it was running when everything ended; --again tries it once more")
    return found


def blame(state: State, step: Step, why: str) -> str | None:
    """Write that the cell of ``step`` that is open ended badly, so that it is not tried again; its subject."""
    path = state.journal(step)
    subject = journal.read(path).open
    if subject is not None:
        journal.add(path, Row(subject=subject, claim="runs", verdict=Verdict.FAILED, why=why))
        journal.end(path, subject)
    return subject


def gather(box: Box, state: State, steps: Iterable[Step]) -> Evidence:
    """All that was found so far."""
    return Evidence(box=box, begun=state.begun, steps=tuple(_tried(state, step) for step in steps))


def _tried(state: State, step: Step) -> Tried:
    at = state.of(step)
    return Tried(
        name=step.name,
        section=step.section,
        what=step.what,
        status=at.status,
        estimate=step.seconds,
        seconds=round(at.seconds, 1) if at.seconds else None,
        rows=journal.read(state.journal(step)).rows,
        why=at.why,
    )


def left(state: State, steps: Iterable[Step]) -> tuple[Step, ...]:
    """The steps that are not finished."""
    return tuple(step for step in steps if state.of(step).status not in FINISHED)


def counted(evidence: Evidence) -> Mapping[Status, int]:
    """Steps by where they are."""
    found: dict[Status, int] = {}
    for step in evidence.steps:
        found[step.status] = found.get(step.status, 0) + 1
    return found
