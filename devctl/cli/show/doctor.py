"""What `devctl doctor` found, for people."""

import sys
from collections.abc import Iterator

from devctl.cli.show.streams import is_terminal, to_text
from devctl.planning.doctor import Examination, Finding, Level

_STYLES = {Level.OK: "green", Level.NOTE: "yellow", Level.BROKEN: "bold red"}


def lines(found: Examination) -> str:
    """A line a finding, with the next step behind an arrow; where a terminal looks, folded and with it beneath."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, min_width=max(map(len, Level)))
    table.add_column(overflow="fold")
    beneath = is_terminal(sys.stdout)
    for finding in found.findings:
        for number, text in enumerate(_lines(finding, beneath=beneath)):
            level = Text("" if number else str(finding.level), style=_STYLES[finding.level])
            table.add_row(level, Text(text))
    return to_text(table, sys.stdout)


def _lines(finding: Finding, *, beneath: bool) -> Iterator[str]:
    text = f"{finding.subject}: {finding.text}"
    if finding.next_step is None:
        yield text
    elif beneath:
        yield from (text, f"→ {finding.next_step}")
    else:
        yield f"{text} → {finding.next_step}"
