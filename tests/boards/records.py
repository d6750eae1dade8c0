"""What is tried and what was found, as frozen values.

A `Step` is some minutes of work in a process of its own, and consists of cells, which are tried one after another and
each give rows. A `Row` is a claim of devctl's beside what the board showed. `Evidence` is all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.boards.asking import Ask

SCHEMA = 1
"""Version of the evidence's document; it grows when a key changes its meaning or goes."""

MIB = 2**20
NOT_SIMULATED = "a simulated device is one of its own process alone"
Value = int | float | str | bool | None


class Verdict(StrEnum):
    """What became of a claim."""

    MET = "met"
    MISSED = "missed"
    TOLD = "told"
    """A figure without a target."""
    SKIPPED = "skipped"
    FAILED = "failed"
    """It could not be tried to its end: neither met nor missed."""


class Status(StrEnum):
    """What became of a step."""

    WAITING = "waiting"
    RUNNING = "running"
    CUT = "cut"
    """The slice ended before it did: it is taken up again where it was."""
    DONE = "done"
    SKIPPED = "skipped"
    ENDED = "ended"
    """Its process ended, or hung: it is not tried again unless that is asked for."""


FINISHED = (Status.DONE, Status.SKIPPED, Status.ENDED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One claim.

    Attributes:
        subject: of what it is: the cell that it was found in.
        claim: what is claimed, in few words; rows of one claim are counted together.
        predicted, measured: None where there is no such figure.
        unit: of both; "B" for bytes.
        target: what the verdict goes by; None for a figure that has none.
        error: predicted / measured - 1, where both are numbers.
        why: what explains it, or why it was skipped.
    """

    subject: str
    claim: str
    verdict: Verdict
    predicted: Value = None
    measured: Value = None
    unit: str | None = None
    target: str | None = None
    error: float | None = None
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A part of a step that is tried by itself: what goes wrong in it is a row, and the next one is tried."""

    subject: str
    work: Callable[[], Iterable[Row]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What a step can't do without.

    Attributes:
        boards: that torch can use.
        memory: bytes in all of the first board.
        disk: bytes free for temporary files.
        package: a module that is imported.
    """

    boards: int = 1
    memory: int = 0
    disk: int = 0
    package: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Something to try, in a process of its own.

    Attributes:
        name: "section/what".
        what: what it tries, in one line.
        seconds: that it should take, on a board of a data centre.
        rank: steps with a lower one run first: those that tell most.
        cells: what it consists of; called in its own process.
    """

    name: str
    what: str
    seconds: int
    rank: int
    cells: Callable[[Ask], Iterator[Cell]]
    needs: Needs = Needs()

    @property
    def section(self) -> str:
        """Which part of the page it belongs to."""
        return self.name.partition("/")[0]

    @property
    def limit(self) -> int:
        """Seconds after which it hangs, as far as anybody can tell."""
        return max(120, 4 * self.seconds)


SECTIONS: Mapping[str, str] = {
    "inventory": "What is there",
    "overhead": "What a process takes before its first tensor",
    "peaks": "Weights, state and peaks",
    "edge": "The longest context that fits",
    "placement": "Where tensors are, and what they compute there",
    "speed": "Seconds",
    "real": "A real model",
}
"""Of the page, in its order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """One accelerator, without what tells it from another of its kind."""

    name: str
    memory: int
    compute_capability: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """What the claims are held against.

    Attributes:
        boards: that torch can use, in its order.
        versions: of driver, CUDA and packages, by name.
        simulated: nothing of it is real, and what is found proves the instrument alone.
        problem: why there is no board, where there is none.
    """

    boards: tuple[Board, ...]
    versions: Mapping[str, str]
    simulated: bool = False
    problem: str = ""

    @property
    def name(self) -> str:
        """Of the boards: "2x NVIDIA L4"."""
        counts: dict[str, int] = {}
        for board in self.boards:
            counts[board.name] = counts.get(board.name, 0) + 1
        return ", ".join(name if count == 1 else f"{count}x {name}" for name, count in counts.items())


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """What became of a step.

    Attributes:
        seconds: that it took, over all slices.
        why: why it did not run to its end, where it did not.
    """

    name: str
    section: str
    what: str
    status: Status
    estimate: int
    seconds: float | None
    rows: tuple[Row, ...]
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """All that was found on a box; ``begun`` is a day, "2026-11-26"."""

    box: Box
    begun: str
    steps: tuple[Tried, ...]

    @property
    def counts(self) -> dict[str, int]:
        """Rows by verdict."""
        found = dict.fromkeys((str(each) for each in Verdict), 0)
        for step in self.steps:
            for row in step.rows:
                found[str(row.verdict)] += 1
        return found

    def to_document(self) -> dict[str, Any]:
        """The evidence as JSON values; see ``schema.json``. Sizes are bytes."""
        return {
            "schema": SCHEMA,
            "kind": "devctl.boards",
            "begun": self.begun,
            "simulated": self.box.simulated,
            "boards": [asdict(board) for board in self.box.boards],
            "versions": dict(self.box.versions),
            "targets": dict(TARGETS),
            "counts": self.counts,
            "steps": [
                {**asdict(replace(step, rows=())), "rows": [asdict(row) for row in step.rows]} for step in self.steps
            ],
        }


OVER, UNDER = 0.05, 0.02
PROCESS = 300 * MIB
EDGE = 0.03
TARGETS: Mapping[str, str] = {
    "equal": "both figures are the same, or differ for a reason that is known and told",
    "peak": f"what is predicted is at most {OVER:.0%} over what is measured, and {UNDER:.0%} under it",
    "process": f"both are at most {PROCESS // MIB} MiB apart; what the allocator gave to no tensor is not counted",
    "enough": f"what is predicted is no less than is measured, and at most {PROCESS // MIB} MiB more",
    "edge": f"what is predicted runs, and {EDGE:.0%} more does not",
    "holds": "it is true",
}
"""What verdicts go by, by the name that rows call it."""


def _error(predicted: Value, measured: Value) -> float | None:
    known = all(isinstance(each, int | float) and not isinstance(each, bool) for each in (predicted, measured))
    return float(predicted) / float(measured) - 1 if known and measured else None


def _judged(is_met: bool) -> Verdict:
    return Verdict.MET if is_met else Verdict.MISSED


def equal(
    subject: str, claim: str, predicted: Value, measured: Value, *, unit: str | None = None, why: str = ""
) -> Row:
    """A claim that is met by the same figure alone; without a figure that was measured it is skipped."""
    if measured is None:
        return Row(
            subject=subject, claim=claim, verdict=Verdict.SKIPPED, predicted=predicted, why=why or "it is not told here"
        )
    return Row(
        subject=subject,
        claim=claim,
        verdict=_judged(predicted == measured),
        predicted=predicted,
        measured=measured,
        unit=unit,
        target="equal",
        # a number without a unit is one of a kind, like an exit code: it is right or wrong, and not by how much
        error=_error(predicted, measured) if unit else None,
        why=why,
    )


def explained(subject: str, claim: str, predicted: Value, measured: Value, why: str, *, unit: str | None = None) -> Row:
    """A claim whose figures differ, for a reason that is known: it is met."""
    return replace(equal(subject, claim, predicted, measured, unit=unit, why=why), verdict=Verdict.MET)


def near_peak(subject: str, claim: str, predicted: int, measured: int, why: str = "") -> Row:
    """Bytes that may be 5 % over what is measured, and 2 % under it."""
    # in whole numbers, so that what is just on the border is within it
    is_met = 98 * measured <= 100 * predicted <= 105 * measured
    return Row(
        subject=subject,
        claim=claim,
        verdict=_judged(is_met),
        predicted=predicted,
        measured=measured,
        unit="B",
        target="peak",
        error=_error(predicted, measured),
        why=why,
    )


def near_process(subject: str, claim: str, predicted: int, measured: int | None, why: str = "") -> Row:
    """Bytes of a whole process, which may be 300 MiB apart."""
    if measured is None:
        return replace(skipped(subject, claim, why or "the driver does not tell it"), predicted=predicted, unit="B")
    return Row(
        subject=subject,
        claim=claim,
        verdict=_judged(abs(predicted - measured) <= PROCESS),
        predicted=predicted,
        measured=measured,
        unit="B",
        target="process",
        error=_error(predicted, measured),
        why=why,
    )


def holds(subject: str, claim: str, is_met: bool, *, why: str = "", target: str = "holds") -> Row:
    """A claim that is true or not."""
    return Row(subject=subject, claim=claim, verdict=_judged(is_met), measured=is_met, target=target, why=why)


def told(
    subject: str, claim: str, measured: Value, *, unit: str | None = None, predicted: Value = None, why: str = ""
) -> Row:
    """A figure that has no target."""
    return Row(
        subject=subject,
        claim=claim,
        verdict=Verdict.TOLD,
        predicted=predicted,
        measured=measured,
        unit=unit,
        error=_error(predicted, measured),
        why=why,
    )


def skipped(subject: str, claim: str, why: str) -> Row:
    """A claim that was not tried."""
    return Row(subject=subject, claim=claim, verdict=Verdict.SKIPPED, why=why)


def failed(subject: str, claim: str, why: str) -> Row:
    """A claim that could not be tried to its end."""
    return Row(subject=subject, claim=claim, verdict=Verdict.FAILED, why=why)


def parse_evidence(document: Mapping[str, Any]) -> Evidence:
    """What ``to_document`` made.

    Raises:
        ValueError: it is no evidence.
    """
    try:
        return Evidence(
            box=Box(
                boards=tuple(Board(**board) for board in document["boards"]),
                versions=document["versions"],
                simulated=document["simulated"],
            ),
            begun=document["begun"],
            steps=tuple(
                Tried(**{**step, "status": Status(step["status"]), "rows": tuple(map(parse_row, step["rows"]))})
                for step in document["steps"]
            ),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"not evidence: {error}") from None


def parse_row(data: Mapping[str, Any]) -> Row:
    """What ``asdict`` made of a row.

    Raises:
        ValueError: it is none.
    """
    try:
        return Row(**{**data, "verdict": Verdict(data["verdict"])})
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a row: {error}") from None
