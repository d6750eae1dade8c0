"""Why a plan is as it is, for people."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, TextIO

from devctl.cli.show.plan import name_lines, ranges
from devctl.cli.show.streams import clean, in_lines, room_of, to_text
from devctl.units import format_bytes

if TYPE_CHECKING:
    from rich.console import RenderableType

    from devctl.placement.explain import Explanation


def explanation(why: Explanation, stream: TextIO | None) -> str:
    """What held for all of the model, then for each run of parts where it is, and what led it there."""
    from rich.console import Group
    from rich.text import Text

    width = room_of(stream)
    lines: list[RenderableType] = [Text("why:", style="bold"), *_items(why.rules, width)]
    for reason in why.reasons:
        where = Text.assemble((clean(str(reason.device)), "bold"), f"  {format_bytes(reason.nbytes)}  ")
        names = name_lines(ranges(reason.names), None if width is None else max(16, width - where.cell_len))
        lines.append(Text.assemble(where, names[0] if names else ""))
        lines += [Text(" " * where.cell_len + name) for name in names[1:]]
        lines += _items(reason.because, width, indent=2)
    return to_text(Group(*lines), stream)


def _items(texts: Iterable[str], width: int | None, indent: int = 0) -> Iterator[RenderableType]:
    """Sentences behind a dash, their further lines below their first."""
    from rich.text import Text

    for text in texts:
        first, *rest = in_lines(clean(text), None if width is None else width - indent - 2)
        yield Text(f"{' ' * indent}- {first}")
        yield from (Text(f"{' ' * indent}  {line}") for line in rest)
