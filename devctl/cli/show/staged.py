"""What a run over several ranks found, for people."""

from __future__ import annotations

import sys
from typing import Any

from devctl.cli.show.streams import size, to_text
from devctl.units import format_bytes


def staged_report(report: dict[str, Any]) -> str:
    """A row a rank, predicted beside measured, and what the reference says."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for name in ("RANK", "HOST", "DEVICE", "LAYERS"):
        table.add_column(name, no_wrap=True)
    for name in ("PREDICTED", "MEASURED", "LOAD", "RUN"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in report["ranks"]:
        first, end = row["layers"]
        device = row["device"] if row["device"] == row["planned"] else f"{row['device']} for {row['planned']}"
        table.add_row(
            str(row["rank"]),
            row["host"],
            device,
            f"{first}–{end - 1}",
            format_bytes(row["used"]),
            size(row["measured"]),
            f"{row['load_seconds']:.3g} s",
            f"{row['seconds']:.3g} s",
        )
    facts = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    facts.add_column(no_wrap=True)
    facts.add_column(overflow="fold")
    made = len(report["ranks"][0]["ids"][0])
    said = "" if report["text"] is None else f": {report['text']!r}"
    facts.add_row("generate", f"{made} tokens after {report['prompt']} ({report['inputs']}){said}")
    passed = report["reference"] == "equal"
    verdict = (
        ("pass", "green")
        if passed
        else ("not proven", "bold red")
        if report["reference"] == "not_run"
        else (
            "FAIL",
            "bold red",
        )
    )
    facts.add_row("reference", Text.assemble(verdict, f" {report['reference_said']}"))
    if report["weights"] is not None:
        facts.add_row("weights", f"{report['weights']} files are the same on all hosts that read them")
    title = Text.assemble(
        (report["model_class"], "bold"), f" in {report['dtype']}, {_ranks(report)} over {report['backend']}"
    )
    notes = [Text(f"note: {note}") for note in report["notes"]]
    return to_text(Group(title, facts, table, *notes), sys.stdout)


def _ranks(report: dict[str, Any]) -> str:
    shared = " that share it" if report["tensor_parallel"] > 1 else ""
    return f"{len(report['ranks'])} ranks{shared}"
