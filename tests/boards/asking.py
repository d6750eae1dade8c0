"""What a step is given, and how its cells are tried."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from devctl.errors import DevctlError, first_line
from tests.boards import journal
from tests.boards.cards import Card
from tests.boards.records import Cell, Row, failed


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What a step may use.

    Attributes:
        cards: the accelerators, by torch's number.
        folder: for temporary files; emptied afterwards.
        checkout: where the repository is.
    """

    cards: Sequence[Card]
    folder: Path
    checkout: Path

    @property
    def card(self) -> Card:
        """The first one."""
        return self.cards[0]


MOST = 300
"""Letters of what an exception says that are told."""

BROKEN = 75
"""The exit code of a process whose accelerator answers no more, as after an illegal access: another may go on."""


def try_all(cells: Iterable[Cell], path: Path, cards: Sequence[Card]) -> None:
    """Try the cells that the journal at ``path`` does not have yet, and write what they find.

    Whatever is raised in one is a row, and the next is tried; in another process where a card is broken by it.
    """
    known = journal.read(path).ended
    for cell in _each(cells):
        if cell.subject in known:
            continue
        journal.begin(path, cell.subject)
        try:
            for row in cell.work():
                journal.add(path, row)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is told, and others are tried
            journal.add(path, failed(cell.subject, "runs", told_of(error)))
            let_go(error)
        journal.end(path, cell.subject)
        gc.collect()
        if not all(map(_answers, cards)):
            raise SystemExit(BROKEN)
    journal.append(path, {"done": True})


def _each(cells: Iterable[Cell]) -> Iterator[Cell]:
    """The cells; what goes wrong in finding the next one is raised in a cell of its own, the last."""
    following = iter(cells)
    while True:
        try:
            cell = next(following)
        except StopIteration:
            return
        except Exception as error:  # noqa: BLE001 - it is raised again where all others are told
            yield Cell(subject="what would have followed", work=partial(_raise, error))
            return
        yield cell


def _raise(error: Exception) -> Iterator[Row]:
    yield from ()  # a generator, as the work of every cell
    raise error


def _answers(card: Card) -> bool:
    """Whether a card does what it is asked; what its allocator keeps is given back."""
    try:
        card.wait()
        card.empty()
    except RuntimeError:
        return False
    return True


def told_of(error: BaseException) -> str:
    """An exception in a line: its class, and what it says."""
    if isinstance(error, DevctlError):
        findings = "; ".join(getattr(error, "findings", ()))
        return " ".join(part for part in (error.message, findings and f"({findings})") if part)
    text = first_line(error)
    return f"{type(error).__name__}: {text[:MOST]}{'…' if len(text) > MOST else ''}"


def let_go(error: BaseException) -> None:
    """Let go of the tensors that the frames of ``error`` hold."""
    from devctl.loading.run.out_of_memory import release

    try:
        release(error)
    except RuntimeError:  # a context that a kernel broke: the next cell tells it
        gc.collect()
