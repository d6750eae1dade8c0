"""The catalogue of boards as a table."""

import sys

from devctl.cli.show.inventory import columns
from devctl.cli.show.streams import answer_style
from devctl.inventory.catalogue import Board, boards
from devctl.units import format_bytes, format_rate

_HEADER = ("NAME", "USABLE", "BANDWIDTH", "LINK", "SOURCE")


def boards_table() -> str:
    """A row for each board that ``--devices`` knows by name; ``~`` is before memory that is estimated.

    SOURCE is of bandwidth and link, and after the semicolon of the memory.
    """
    width, styled = answer_style(sys.stdout)
    rows = [_row(board) for board in boards()]
    return columns(_HEADER, rows, left=len(_HEADER), wrap=len(_HEADER) - 1, width=width, styled=styled)


def _row(board: Board) -> list[str]:
    return [
        board.name,
        ("~" if board.estimated else "") + format_bytes(board.memory_usable),
        format_rate(board.bandwidth),
        board.link.name if board.link else "the host's RAM",
        f"{board.source}; {board.memory_source}",
    ]
