"""The evidence as a page of Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tests.boards.records import SECTIONS, TARGETS, Evidence, Row, Status, Tried, Value, Verdict

_UNITS = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))


def page(evidence: Evidence) -> str:
    """What was found, section by section; what was missed in full, and why the rest was not run."""
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
    counts = evidence.counts
    yield "## In all"
    yield ""
    yield from _table(tuple(counts), [tuple(str(count) for count in counts.values())])
    yield "A figure is met where it meets its target; one without a target is told."
    yield ""
    yield from _table(("target", "what it means"), TARGETS.items())
    for section, title in SECTIONS.items():
        steps = [step for step in evidence.steps if step.section == section]
        if any(step.rows for step in steps):
            yield from _section(title, steps)
    yield from _not_run(evidence)


def _section(title: str, steps: list[Tried]) -> Iterator[str]:
    rows = [row for step in steps for row in step.rows]
    yield f"## {title}"
    yield ""
    yield from _table(
        ("claim", "met", "missed", "told", "skipped", "failed", "least error", "most error"),
        (
            _summary(claim, [row for row in rows if row.claim == claim])
            for claim in dict.fromkeys(r.claim for r in rows)
        ),
    )
    wrong = [row for row in rows if row.verdict in (Verdict.MISSED, Verdict.FAILED)]
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


def _summary(claim: str, rows: list[Row]) -> tuple[str, ...]:
    errors = [row.error for row in rows if row.error is not None]
    ends = (f"{min(errors):+.1%}", f"{max(errors):+.1%}") if errors else ("", "")
    counts = (str(sum(row.verdict is verdict for row in rows)) for verdict in Verdict)
    return (claim, *counts, *ends)


_HEAD = ("of", "claim", "verdict", "predicted", "measured", "error", "target", "why")


def _cells(row: Row) -> tuple[str, ...]:
    figures = (value(row.predicted, row.unit), value(row.measured, row.unit))
    error = "" if row.error is None else f"{row.error:+.1%}"
    return (row.subject, row.claim, str(row.verdict), *figures, error, row.target or "", row.why)


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


def size(nbytes: int) -> str:
    """Bytes in a unit in which they have few digits."""
    for factor, unit in _UNITS:
        if abs(nbytes) >= factor:
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
