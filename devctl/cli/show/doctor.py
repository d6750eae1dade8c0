"""What `devctl doctor` found, for people."""

import sys
import textwrap
from collections.abc import Iterator

from devctl.cli.show.streams import answer_style, clean
from devctl.planning.doctor import Examination, Finding, Level

_STYLES = {Level.OK: "\x1b[32m", Level.NOTE: "\x1b[33m", Level.BROKEN: "\x1b[1;31m"}
_PLAIN = "\x1b[0m"
_LEVEL = max(map(len, Level)) + 2
_NARROWEST = 40


def lines(found: Examination) -> str:
    """A line a finding, with the next step behind an arrow; folded where a terminal looks, one line each elsewhere."""
    width, styled = answer_style(sys.stdout)
    return "".join(f"{line}\n" for finding in found.findings for line in _lines(finding, width, styled=styled))


def _lines(finding: Finding, width: int | None, *, styled: bool) -> Iterator[str]:
    text = clean(f"{finding.subject}: {finding.text}")
    step = "" if finding.next_step is None else clean(finding.next_step)
    if width is None:
        whole = [f"{text} → {step}" if step else text]
    else:
        room = max(width, _NARROWEST) - _LEVEL
        whole = [*_folded(text, room, ""), *(_folded(step, room, "→ ") if step else ())]
    level = f"{finding.level:{_LEVEL}}"
    if styled:
        level = f"{_STYLES[finding.level]}{level}{_PLAIN}"
    yield level + whole[0]
    yield from (" " * _LEVEL + line for line in whole[1:])


def _folded(text: str, room: int, first: str) -> list[str]:
    return textwrap.wrap(
        text, room, initial_indent=first, subsequent_indent=" " * len(first), break_on_hyphens=False
    ) or [first]
