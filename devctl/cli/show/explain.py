"""Why a plan is as it is, for people."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from devctl.cli.show.plan import ranges
from devctl.cli.show.streams import to_text
from devctl.units import format_bytes

if TYPE_CHECKING:
    from rich.console import RenderableType

    from devctl.placement.explain import Explanation


def explanation(why: Explanation) -> str:
    """What held for all of the model, then for each run of parts where it is, and what led it there."""
    from rich.console import Group
    from rich.padding import Padding
    from rich.text import Text

    lines: list[RenderableType] = [Text("why:", style="bold"), *(_item(rule) for rule in why.rules)]
    for reason in why.reasons:
        lines.append(
            Text.assemble(
                (str(reason.device), "bold"), f"  {format_bytes(reason.nbytes)}  ", ", ".join(ranges(reason.names))
            )
        )
        lines += [Padding(_item(said), (0, 0, 0, 2)) for said in reason.because]
    return to_text(Group(*lines), sys.stderr)


def _item(text: str) -> RenderableType:
    """A sentence behind a dash, its further lines below its first."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 1, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("-", text)
    return table
