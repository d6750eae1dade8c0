"""What loading took, for people."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from devctl.cli.show.plan import headline, plain_lines
from devctl.cli.show.streams import clean, in_lines, room_of, size, to_text
from devctl.models.decoding import words
from devctl.units import format_bytes

if TYPE_CHECKING:
    from rich.table import Table

    from devctl.loading.measure import DeviceBytes, LoadReport
    from devctl.loading.run.generating import Generated
    from devctl.loading.run.timing import Spread

_MOST_MISPLACED = 5


def load_report(report: LoadReport) -> str:
    """The verdict, the model and what it was run on, what loading took, what ran, and every proof's outcome."""
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
    width = room_of(sys.stdout)
    first, *rest = in_lines(clean(_model_line(report)), width)
    title = Text(first)
    title.stylize("bold", 0, len(clean(report.model_class)))
    head = [*headline(verdict_line(report), width, "bold green" if report.ok else "bold red"), title, *map(Text, rest)]
    notes = plain_lines((f"note: {note}" for note in report.notes), width)
    return to_text(Group(*head, facts, _bytes(report), *notes), sys.stdout)


def verdict_line(report: LoadReport) -> str:
    """Whether it loaded and ran where the map says, and the peak that was measured beside the predicted one."""
    weights = ", with random weights" if report.load_format == "dummy" else ""
    head = f"loaded and ran where the map says{_like_the_cpu(report)}{weights}" if report.ok else failure(report)
    return f"{head}; {_beside_predicted(report.devices)}"


def failure(report: LoadReport) -> str:
    """How a loaded model does not run as the map says: the first proof that fails, and the first wrong block."""
    wrong = next(proof for proof in report.proofs if not proof.passed)
    where = f", first in {wrong.block}" if wrong.block else ""
    return f"does not run as the map says: the proof of its {wrong.name} fails{where}"


def _like_the_cpu(report: LoadReport) -> str:
    """That it computes what the CPU does, where it was compared."""
    if report.verification is None:
        return ""
    left = len(report.verification.not_compared)
    return " and as the CPU does" + (f", but for {left} block{'s' * (left > 1)} not compared" if left else "")


def _beside_predicted(devices: Sequence[DeviceBytes]) -> str:
    """What was measured beside what was predicted: the peaks, or, where none was measured, the weights."""
    counted = [device for device in devices if device.peak]
    foretold = [device for device in counted if device.predicted_peak]
    if len(foretold) > 1 and len(foretold) == len(counted):
        shares = sorted((device.peak or 0) / (device.predicted_peak or 1) for device in foretold)
        least, most = f"{shares[0]:.1%}", f"{shares[-1]:.1%}"
        between = most if least == most else f"{least} to {most}"
        return f"the peaks of {len(foretold)} devices were {between} of the predicted"
    if counted:
        said = (
            f"{format_bytes(device.peak or 0)} on {device.device}, "
            + ("not predicted" if device.predicted_peak is None else f"{format_bytes(device.predicted_peak)} predicted")
            for device in counted
        )
        return f"peak {'; '.join(said)}"
    measured, predicted = sum(device.measured for device in devices), sum(device.predicted for device in devices)
    beside = "as predicted" if measured == predicted else f"{format_bytes(predicted)} predicted"
    return f"peak not measured, {format_bytes(measured)} of weights, {beside}"


def _model_line(report: LoadReport) -> str:
    """The model, by what it was placed, and what it was run on."""
    placed = f"placed by {report.strategy}" if report.strategy else "given map"
    text = next((i.shape[1] for i in report.smoke.inputs if i.name == "input_ids" and len(i.shape) > 1), None)
    made = report.smoke.generated
    more = f" + {made.tokens:,}" if made is not None else ""
    batch = f"{report.smoke.batch_size:,}"
    ran = f"a batch of {batch}" if text is None else f"{text:,}{more} tokens × {batch}"
    return f"{report.model_class} {format_bytes(report.loaded_bytes)} in {report.dtype}, {placed}, {ran}"


def _figures(report: LoadReport) -> Iterator[tuple[str, str]]:
    smoke = report.smoke
    rate = f", {format_bytes(int(report.loaded_bytes / report.load_seconds))}/s" if report.load_seconds else ""
    weights = "random weights" if report.load_format == "dummy" else "weights"
    yield "load", f"{seconds(report.load_seconds)}: {format_bytes(report.loaded_bytes)} of {weights}{rate}"
    shapes = ", ".join(f"{i.name} {'×'.join(map(str, i.shape))}" for i in smoke.inputs)
    how = (", padded" if smoke.padded else "") + ("" if report.attention is None else f", attention {report.attention}")
    yield "forward", f"{_time(smoke.forward_seconds)}: {smoke.source} {shapes}{how}"
    if smoke.generated is not None:
        told = [words(tuple(report.generation.items()))] if report.generation else []
        if report.prefill_chunk is not None:
            told.append(f"the prompt in chunks of {report.prefill_chunk}")
        yield "generate", ", ".join([*told, _generated(smoke.generated)])
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
