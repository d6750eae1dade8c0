"""The evidence as a page of Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from tests.boards.records import SECTIONS, TARGETS, Evidence, Row, Status, Value, Verdict

_UNITS = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))


def page(evidence: Evidence) -> str:
    """What was found in all and section by section; what was missed in full, and why the rest was not run."""
    return "\n".join(_lines(evidence)) + "\n"


def _lines(evidence: Evidence) -> Iterator[str]:
    yield f"# devctl on {_text(evidence.box.name)}"
    yield ""
    if evidence.box.simulated:
        yield "**Simulated: no board was there. This page shows the instrument, and proves nothing about a board.**"
        yield ""
    yield f"Begun on {evidence.begun}, by `python -m tests.boards`, with random weights."
    yield ""
    yield from _table(
        ("board", "memory", "compute capability"),
        ((board.name, size(board.memory), board.compute_capability or "–") for board in evidence.box.boards),
    )
    yield from _table(("what", "version"), sorted(evidence.box.versions.items()))
    by_section = {
        title: rows
        for section, title in SECTIONS.items()
        if (rows := [row for step in evidence.steps if step.section == section for row in step.rows])
    }
    yield from _in_all(evidence, by_section)
    for title, rows in by_section.items():
        yield from _section(title, rows)
    yield from _not_run(evidence)


WRONG = (Verdict.MISSED, Verdict.FAILED)
JUDGED = (Verdict.MET, *WRONG)
_MOST_NAMED = 6


def _in_all(evidence: Evidence, by_section: Mapping[str, Sequence[Row]]) -> Iterator[str]:
    """What was met and what was missed, by how much and of what."""
    counts = evidence.counts
    judged = sum(counts[verdict] for verdict in JUDGED)
    done = sum(step.status is Status.DONE for step in evidence.steps)
    yield "## In all"
    yield ""
    yield (
        f"Of {judged:,} claims that have a target, {counts[Verdict.MET]:,} were met and {counts[Verdict.MISSED]:,} "
        f"missed; {counts[Verdict.FAILED]:,} could not be tried to their end, and {counts[Verdict.SKIPPED]:,} were "
        f"skipped. {counts[Verdict.TOLD]:,} figures without a target are told. {done} of {len(evidence.steps)} steps "
        "ran to their end."
    )
    yield ""
    yield from _table(("part", *JUDGED), ((title, *_counts(rows)) for title, rows in by_section.items()))
    wrong = [line for title, rows in by_section.items() for line in _missed(title, rows)]
    if wrong:
        yield "Missed or failed, by claim:"
        yield ""
        yield from _table(("part", "claim", *JUDGED, *_ERRORS, "missed or failed by"), wrong)
    yield "An error is by how much what was predicted is above what was measured; with a minus, below it."
    yield ""
    yield from _table(("target", "it is met where"), TARGETS.items())


_ERRORS = ("error from", "to")


def _missed(title: str, rows: Sequence[Row]) -> Iterator[tuple[str, ...]]:
    """A line for each claim of a section that was missed or failed: how often, by how much, and by what."""
    for claim in dict.fromkeys(row.claim for row in rows if row.verdict in WRONG):
        of_it = [row for row in rows if row.claim == claim]
        names = [*dict.fromkeys(row.subject.partition(",")[0] for row in of_it if row.verdict in WRONG)]
        more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
        yield title, claim, *_counts(of_it), *_errors(of_it), ", ".join(names[:_MOST_NAMED]) + more


def _counts(rows: Sequence[Row], verdicts: Iterable[Verdict] = JUDGED) -> tuple[str, ...]:
    return tuple(f"{sum(row.verdict is verdict for row in rows):,}" for verdict in verdicts)


def _errors(rows: Sequence[Row]) -> tuple[str, str]:
    """The lowest and the highest; empty where no row has one."""
    errors = [row.error for row in rows if row.error is not None]
    return (f"{min(errors):+.1%}", f"{max(errors):+.1%}") if errors else ("", "")


def _section(title: str, rows: Sequence[Row]) -> Iterator[str]:
    yield f"## {title}"
    yield ""
    claims = {claim: [row for row in rows if row.claim == claim] for claim in dict.fromkeys(r.claim for r in rows)}
    tried = {claim: of_it for claim, of_it in claims.items() if any(row.verdict is not Verdict.TOLD for row in of_it)}
    if tried:
        verdicts = (*JUDGED, Verdict.SKIPPED)
        lines = ((claim, *_counts(of_it, verdicts), *_errors(of_it)) for claim, of_it in tried.items())
        yield from _table(("claim", *verdicts, *_ERRORS), lines)
    compared = {c: of_it for c, of_it in claims.items() if c not in tried and any(r.error is not None for r in of_it)}
    if compared:
        lines = ((claim, f"{len(of_it):,}", *_errors(of_it)) for claim, of_it in compared.items())
        yield from _table(("told beside a prediction, without a target", "rows", *_ERRORS), lines)
    wrong = [row for row in rows if row.verdict in WRONG]
    if wrong:
        yield "Missed or failed:"
        yield ""
        yield from _table(_HEAD, map(_cells, wrong))
    else:
        yield "Nothing was missed."
        yield ""
    yield f"<details><summary>all {len(rows)} rows</summary>"
    yield ""
    yield from _table(_HEAD, map(_cells, rows))
    yield "</details>"
    yield ""


_HEAD = ("of", "claim", "verdict", "predicted", "measured", "predicted - measured", "error", "target", "why")


def _cells(row: Row) -> tuple[str, ...]:
    error = "" if row.error is None else f"{row.error:+.1%}"
    return (row.subject, row.claim, str(row.verdict), *_figures(row), apart(row), error, row.target or "", row.why)


def _figures(row: Row) -> tuple[str, str]:
    """What was predicted and what was measured: bytes of both in one unit, that of the larger."""
    both = [each for each in (row.predicted, row.measured) if isinstance(each, int) and row.unit == "B"]
    if len(both) < 2:
        return value(row.predicted, row.unit), value(row.measured, row.unit)
    largest = max(map(abs, both))
    predicted, measured = (size(each, like=largest) for each in both)
    return predicted, measured


def apart(row: Row) -> str:
    """By how much what was predicted is above what was measured, with its sign; empty where nothing is, or both are."""
    if row.error is None or not isinstance(row.predicted, int | float) or not isinstance(row.measured, int | float):
        return ""
    difference = row.predicted - row.measured
    return f"{'+' if difference > 0 else ''}{value(difference, row.unit)}" if difference else ""


def _not_run(evidence: Evidence) -> Iterator[str]:
    yield "## What was not run, and why"
    yield ""
    left = [step for step in evidence.steps if step.status is not Status.DONE]
    if not left:
        yield "Every step ran to its end."
        return
    yield from _table(
        ("step", "what", "why"), ((step.name, step.what, step.why or _WHY.get(step.status, "")) for step in left)
    )


_WHY = {
    Status.WAITING: "there was no time for it yet: run `python -m tests.boards` again",
    Status.CUT: "the time was over while it ran: run `python -m tests.boards` again, and it goes on",
    Status.RUNNING: "it is running",
}


def value(given: Value, unit: str | None) -> str:
    """A figure with its unit, as a person reads it; empty for none."""
    if given is None:
        return ""
    if isinstance(given, bool):
        return "yes" if given else "no"
    if isinstance(given, str):
        return given
    if unit == "B":
        return size(int(given))
    if unit == "B/s":
        return f"{given / 1e9:.3g} GB/s"
    shown = f"{given:,}" if isinstance(given, int) else f"{given:.4g}"
    return f"{shown} {unit}" if unit else shown


def size(nbytes: int, *, like: int | None = None) -> str:
    """Bytes in a unit in which they have few digits, or others that are ``like`` so many."""
    for factor, unit in _UNITS:
        if abs(nbytes if like is None else like) >= factor:
            return f"{nbytes / factor:,.2f} {unit}"
    return f"{nbytes:,} B"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    names = tuple(head)
    yield f"| {' | '.join(names)} |"
    yield f"|{'|'.join(['---'] * len(names))}|"
    for row in rows:
        yield f"| {' | '.join(_text(cell) for cell in row)} |"
    yield ""


def _text(cell: str) -> str:
    """What can stand in a table: text that is not ours makes no columns, no marks and no tags."""
    plain = " ".join(str(cell).split())
    return plain.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("`", "'").replace("*", "\\*")
