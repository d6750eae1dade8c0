"""What loading took, for people."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from devctl.cli.show.streams import size, to_text
from devctl.models.decoding import words
from devctl.units import format_bytes

if TYPE_CHECKING:
    from rich.table import Table

    from devctl.loading.measure import DeviceBytes, LoadReport
    from devctl.loading.run.generating import Generated
    from devctl.loading.run.timing import Spread

_MOST_MISPLACED = 5


def load_report(report: LoadReport) -> str:
    """What loading took, what ran, and every proof's outcome."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    facts = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    facts.add_column(no_wrap=True)
    facts.add_column(overflow="fold")
    for name, said in _figures(report):
        facts.add_row(name, said)
    for proof in report.proofs:
        verdict = ("pass", "green") if proof.passed else ("FAIL", "bold red")
        facts.add_row(str(proof.name), Text.assemble(verdict, f" {proof.said}"))
        if proof.name == "tensors":
            for wrong in report.misplaced[:_MOST_MISPLACED]:
                facts.add_row("", f"{wrong.name} is on {wrong.actual or 'no device'}, the map says {wrong.expected}")
    attends = "" if report.attention is None else f", attention {report.attention}"
    title = Text.assemble(
        (report.model_class, "bold"), f" in {report.dtype}, {report.strategy or 'given map'}", attends
    )
    return to_text(Group(title, facts, _bytes(report), *(Text(f"note: {n}") for n in report.notes)), sys.stdout)


def _figures(report: LoadReport) -> Iterator[tuple[str, str]]:
    smoke = report.smoke
    rate = f", {format_bytes(int(report.loaded_bytes / report.load_seconds))}/s" if report.load_seconds else ""
    weights = "random weights" if report.load_format == "dummy" else "weights"
    yield "load", f"{seconds(report.load_seconds)}: {format_bytes(report.loaded_bytes)} of {weights}{rate}"
    shapes = ", ".join(f"{i.name} {'×'.join(map(str, i.shape))}" for i in smoke.inputs)
    yield "forward", f"{_time(smoke.forward_seconds)}: {smoke.source} {shapes}{', padded' if smoke.padded else ''}"
    if smoke.generated is not None:
        how = [words(tuple(report.generation.items()))] if report.generation else []
        if report.prefill_chunk is not None:
            how.append(f"the prompt in chunks of {report.prefill_chunk}")
        yield "generate", ", ".join([*how, _generated(smoke.generated)])
    if report.host_peak is not None:
        yield "memory", f"{format_bytes(report.host_peak)} host peak, of the whole process"


def _generated(made: Generated) -> str:
    parts = [f"{made.tokens} tokens"]
    if made.first_token_seconds is not None:
        parts.append(f"the first after {_time(made.first_token_seconds, say_runs=False)}")
    if (rate := made.decode_tokens_per_second) is not None:
        between = f" ({rate.least:.3g}–{rate.most:.3g})" if rate.runs > 1 else ""
        parts.append(f"then {rate.median:.3g} tokens/s{between}")
    said = "" if made.text is None else f": {made.text!r}"
    return f"{_time(made.seconds)}: {', '.join(parts)}{said}"


def _bytes(report: LoadReport) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("DEVICE", no_wrap=True)
    counts = any(device.reserved is not None for device in report.devices)
    names = ("PREDICTED", "MEASURED", "PEAK PREDICTED", "PEAK MEASURED", "OFF BY", *(["RESERVED"] if counts else []))
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for device in report.devices:
        weights = format_bytes(device.predicted), format_bytes(device.measured)
        peaks = size(device.predicted_peak), size(device.peak), _off_by(device)
        table.add_row(str(device.device), *weights, *peaks, *([size(device.reserved)] if counts else []))
    return table


def _off_by(device: DeviceBytes) -> str:
    """By how much the predicted peak is above the measured one."""
    if device.predicted_peak is None or not device.peak:
        return ""
    return f"{(device.predicted_peak / device.peak - 1) * 100:+.1f}%"


def _time(spread: Spread, *, say_runs: bool = True) -> str:
    if spread.runs == 1:
        return seconds(spread.median)
    runs = f", {spread.runs} runs" if say_runs else ""
    return f"{seconds(spread.median)} ({seconds(spread.least)}–{seconds(spread.most)}{runs})"


def seconds(value: float) -> str:
    """A duration with three significant digits."""
    return f"{value * 1000:.3g} ms" if value < 1 else f"{value:.3g} s"
