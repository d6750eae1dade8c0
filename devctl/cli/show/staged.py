"""What a run over several ranks found, for people."""

from __future__ import annotations

import sys
from typing import Any

from devctl.cli.show.plan import headline, plain_lines
from devctl.cli.show.streams import room_of, size, to_text
from devctl.units import format_bytes


def staged_report(report: dict[str, Any]) -> str:
    """The verdict, the model, a row a rank, predicted beside measured, and what the reference says."""
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
    outcomes = {"equal": ("pass", "green"), "not_run": ("not proven", "bold red")}
    verdict = outcomes.get(report["reference"], ("FAIL", "bold red"))
    facts.add_row("reference", Text.assemble(verdict, f" {report['reference_said']}"))
    if report["weights"] is not None:
        facts.add_row("weights", f"{report['weights']} files are the same on all hosts that read them")
    ran = f"{report['prompt']:,} + {made:,} tokens × {report['batch_size']:,}"
    title = Text.assemble(
        (report["model_class"], "bold"), f" in {report['dtype']}, {_ranks(report)} over {report['backend']}, {ran}"
    )
    width = room_of(sys.stdout)
    head = headline(verdict_line(report), width, "bold green" if report["ok"] else "bold red")
    notes = plain_lines((f"note: {note}" for note in report["notes"]), width)
    return to_text(Group(*head, title, facts, table, *notes), sys.stdout)


def verdict_line(report: dict[str, Any]) -> str:
    """Whether it loaded and ran as the plan says, and the bytes that were measured beside those that were predicted."""
    rows = report["ranks"]
    elsewhere = any(row["device"] != row["planned"] for row in rows)
    if report["ok"]:
        on = " on other devices than planned" if elsewhere else ""
        head = f"loaded and ran in {len(rows)} ranks{on}, with the tokens of one process"
    elif report["reference"] == "not_run":
        head = "loaded and ran, and nothing proves that it ran right"
    else:
        head = "does not run as the plan says"
    used, measured = (sum(row[name] for row in rows) for name in ("used", "measured"))
    beside = "as predicted" if used == measured else f"{format_bytes(used)} predicted"
    return f"{head}; {format_bytes(measured)} of weights, {beside}"


def _ranks(report: dict[str, Any]) -> str:
    shared = " that share it" if report["tensor_parallel"] > 1 else ""
    return f"{len(report['ranks'])} ranks{shared}"
