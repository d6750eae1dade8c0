"""What a step writes down as it goes, a line of JSON at a time, so that a process that ends takes nothing with it."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.boards.records import Row, parse_row


@dataclass(frozen=True, slots=True, kw_only=True)
class Journal:
    """What was written so far.

    Attributes:
        rows: in order; those of a cell that was begun anew count once, as it was tried last.
        ended: the cells that ended.
        open: the cell that was begun last and did not end; None where all did.
        cuts: how often each cell was cut off by the end of a slice.
        is_done: the step came to its end.
    """

    rows: tuple[Row, ...] = ()
    ended: frozenset[str] = frozenset()
    open: str | None = None
    cuts: dict[str, int] = field(default_factory=dict)
    is_done: bool = False


def append(path: Path, entry: dict[str, Any]) -> None:
    """Write a line that is on the disk when this returns."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")
        file.flush()
        os.fsync(file.fileno())


def begin(path: Path, subject: str) -> None:
    """A cell begins."""
    append(path, {"begin": subject})


def add(path: Path, row: Row) -> None:
    """The cell that was begun last found a row."""
    append(path, {"row": asdict(row)})


def end(path: Path, subject: str) -> None:
    """A cell ends."""
    append(path, {"end": subject})


def read(path: Path) -> Journal:
    """What is in the file; nothing of it is there where the file is not. A line that was cut off is left out."""
    if not path.exists():
        return Journal()
    found: dict[str | None, list[Row]] = {}
    ended: set[str] = set()
    cuts: dict[str, int] = {}
    at: str | None = None
    is_done = False
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
            row = parse_row(entry["row"]) if "row" in entry else None
        except (ValueError, TypeError):
            continue
        if "begin" in entry:
            at = entry["begin"]
            found[at] = []  # what an earlier try found is found again
        elif row is not None:
            found.setdefault(at, []).append(row)
        elif "end" in entry:
            ended.add(entry["end"])
            at = None
        elif "cut" in entry:
            cuts[entry["cut"]] = cuts.get(entry["cut"], 0) + 1
        elif "done" in entry:
            is_done = True
    rows = tuple(row for each in found.values() for row in each)
    return Journal(rows=rows, ended=frozenset(ended), open=at, cuts=cuts, is_done=is_done)
