"""What loading took, for people."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from devctl.cli.render import to_text
from devctl.units import format_bytes

if TYPE_CHECKING:
    from devctl.loading.measure import LoadReport

_MOST_MISPLACED = 5


def load_report(report: LoadReport) -> str:
    """What loading took, what ran, and every proof's outcome."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    def verdict(good: bool) -> tuple[str, str]:
        return ("pass", "green") if good else ("FAIL", "bold red")

    smoke = report.smoke
    facts = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    facts.add_column(no_wrap=True)
    facts.add_column(overflow="fold")
    rate = f", {format_bytes(int(report.loaded_bytes / report.load_seconds))}/s" if report.load_seconds else ""
    weights = "random weights" if report.load_format == "dummy" else "weights"
    facts.add_row("load", f"{seconds(report.load_seconds)}: {format_bytes(report.loaded_bytes)} of {weights}{rate}")
    shapes = ", ".join(f"{i.name} {'×'.join(map(str, i.shape))}" for i in smoke.inputs)
    facts.add_row("forward", f"{seconds(smoke.forward_seconds)}: {smoke.source} {shapes}")
    if smoke.generated is not None:
        made = smoke.generated
        said = "" if made.text is None else f": {made.text!r}"
        facts.add_row(
            "generate",
            f"{seconds(made.seconds)}: {made.tokens} tokens, {made.tokens_per_second:.3g} tokens/s{said}",
        )
    facts.add_row(
        "tensors",
        Text.assemble(verdict(not report.misplaced), f" {report.tensors} looked up, {len(report.misplaced)} misplaced"),
    )
    for wrong in report.misplaced[:_MOST_MISPLACED]:
        facts.add_row("", f"{wrong.name} is on {wrong.actual or 'no device'}, the map says {wrong.expected}")
    not_finite = ", ".join(smoke.nonfinite)
    facts.add_row(
        "outputs",
        Text.assemble(verdict(not smoke.nonfinite), f" NaN or infinite: {not_finite}" if not_finite else " all finite"),
    )

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("DEVICE", no_wrap=True)
    table.add_column("PREDICTED", justify="right", no_wrap=True)
    table.add_column("MEASURED", justify="right", no_wrap=True)
    for device in report.devices:
        table.add_row(str(device.device), format_bytes(device.predicted), format_bytes(device.measured))
    title = Text.assemble((report.model_class, "bold"), f" in {report.dtype}, ", report.strategy or "given map")
    return to_text(Group(title, facts, table, *(Text(f"note: {note}") for note in report.notes)), sys.stdout)


def seconds(value: float) -> str:
    """A duration with three significant digits."""
    return f"{value * 1000:.3g} ms" if value < 1 else f"{value:.3g} s"
