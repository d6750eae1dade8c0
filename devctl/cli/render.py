"""Values to what people and programs read: rich or JSON, stdout or stderr.

stdout is the answer and is written once, whole; stderr is the conversation.
"""

from __future__ import annotations

import dataclasses
import io
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from devctl.devices import Device, DeviceType
from devctl.errors import DevctlError, OutputError, RefusedError
from devctl.units import format_bytes

if TYPE_CHECKING:
    from rich.console import RenderableType

    from devctl.loading.measure import LoadReport
    from devctl.placement.document import PlannedModel
    from devctl.placement.placement import DeviceUse, Placement

SCHEMA = 1
"""Version of the JSON documents; it grows when a key changes its meaning or goes."""

UNKNOWN = "–"

_MOST_MISPLACED = 5
_PIPE_WIDTH = 10_000
"""Columns when nobody looks: nothing is wrapped or cut off."""


def answer(text: str) -> None:
    """Write the command's answer to stdout, whole.

    Raises:
        OutputError: it could not be written, for instance because the disk is full.
        BrokenPipeError: the reader has gone.
    """
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        abandon_stdout()
        raise OutputError(f"cannot write to standard output: {error.strerror}") from None


def abandon_stdout() -> None:
    """Let nothing more reach stdout, so that the interpreter's last flush has nothing to complain about."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, sys.stdout.fileno())
    os.close(devnull)


def write_file(path: Path, text: str) -> None:
    """Write a whole file, or leave what was there.

    Raises:
        OutputError: the folder is missing or not ours, or the disk is full.
    """
    try:
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            try:
                file.write(text)
                file.close()
                Path(file.name).chmod(0o666 & ~_umask())
                Path(file.name).replace(path)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def say(text: str) -> None:
    """Part of the conversation: text to stderr."""
    sys.stderr.write(text)
    sys.stderr.flush()


@contextmanager
def status(text: str) -> Iterator[None]:
    """Show on a terminal's stderr what is going on; nothing elsewhere."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True, highlight=False).status(text):
        yield


@contextmanager
def progress(text: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar of bytes on a terminal's stderr; the value is told how many more are done."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(text, total=total)
        yield lambda done: bar.advance(task, done)


def message(text: str, hint: str = "") -> None:
    """One or two lines to stderr."""
    sys.stderr.write(f"devctl: {text}\n" + (f"  {hint}\n" if hint else ""))


def error(error: DevctlError) -> None:
    """What went wrong, every finding, and the next step."""
    findings = error.findings if isinstance(error, RefusedError) else ()
    sys.stderr.write(f"devctl: {error.message}\n")
    sys.stderr.writelines(f"  - {finding}\n" for finding in findings)
    if error.hint:
        sys.stderr.write(f"  {error.hint}\n")


def to_text(renderable: RenderableType, stream: TextIO) -> str:
    """``renderable`` as ``stream`` should show it: colours where a terminal looks, no wrapping where a pipe listens.

    Nothing is written yet.
    """
    from rich.console import Console

    terminal = stream.isatty()
    text = io.StringIO()
    out = Console(
        file=text,
        force_terminal=terminal,
        width=None if terminal or os.environ.get("COLUMNS") else _PIPE_WIDTH,
        highlight=False,
        emoji=False,
        markup=False,
    )
    out.print(renderable)
    return "".join(line.rstrip() + "\n" for line in text.getvalue().splitlines())


def to_json(value: Any) -> str:
    """A frozen record as one JSON document, with the schema's version first."""
    return dumps({"schema": SCHEMA, **jsonable(value)})


def dumps(value: Any) -> str:
    """JSON as all commands write it."""
    import json  # 5 ms that tables do not need

    return json.dumps(value, indent=2) + "\n"


def jsonable(value: Any) -> Any:
    """Records as dicts, tuples as lists, devices and enums as their strings; the rest as it is."""
    if isinstance(value, Device):
        return str(value)
    if dataclasses.is_dataclass(value):
        return {f.name: jsonable(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return [jsonable(item) for item in value]
    if isinstance(value, dict):
        return {key: jsonable(item) for key, item in value.items()}
    return value.value if isinstance(value, Enum) else value


def size(value: int | None) -> str:
    """A size for people; an unknown one is a dash."""
    return UNKNOWN if value is None else format_bytes(value)


def plan_summary(model: PlannedModel, placement: Placement) -> str:
    """A bar per device, which layers are there, what is offloaded, and the notes."""
    from rich.console import Group
    from rich.padding import Padding
    from rich.text import Text

    lines: list[RenderableType] = [
        Text.assemble(
            (model.class_name, "bold"),
            f" {format_bytes(model.nbytes)} in {model.dtype}, ",
            f"placed by {placement.strategy}" if placement.strategy else "placed by the given map",
        ),
        device_table(placement.devices),
        Text(offload_line(placement)),
    ]
    lines += [Padding(Text(f"note: {note}"), (0, 0, 0, 0)) for note in placement.notes]
    return to_text(Group(*lines), sys.stderr)


def device_table(devices: Iterable[DeviceUse]) -> RenderableType:
    """A bar per device: bytes used of bytes given, and the modules there."""
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, width=16)
    table.add_column(no_wrap=True, justify="right")
    table.add_column(overflow="fold")
    for use in devices:
        if use.budget is None and not use.used:
            continue
        bar = "" if use.budget is None else ProgressBar(total=max(use.budget, 1), completed=use.used, width=16)
        given = "" if use.budget is None else f" of {format_bytes(use.budget)}"
        table.add_row(str(use.device), bar, format_bytes(use.used) + given, ", ".join(ranges(use.modules)))
    return table


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


def offload_line(placement: Placement) -> str:
    """What is not on the devices that compute."""
    from devctl.placement.budget import is_accelerator

    accelerated = any(use.used and is_accelerator(use.device) for use in placement.devices)
    off = [DeviceType.DISK, DeviceType.CPU] if accelerated else [DeviceType.DISK]
    parts = [f"{format_bytes(u.used)} on {u.device}" for u in placement.devices if u.device.type in off and u.used]
    return f"offloaded: {', '.join(parts)}" if parts else "offloaded: nothing"


def ranges(names: Iterable[str]) -> list[str]:
    """Names with runs of numbered siblings drawn together: layers.0, layers.1, layers.2 -> layers.0-2."""
    runs: list[tuple[str, int, int] | str] = []
    for name in names:
        stem, _, last = name.rpartition(".")
        if not last.isdecimal():
            runs.append(name or "(everything)")
            continue
        number, previous = int(last), runs[-1] if runs else ""
        if isinstance(previous, tuple) and previous[0] == stem and previous[2] == number - 1:
            runs[-1] = (stem, previous[1], number)
        else:
            runs.append((stem, number, number))
    return [
        run if isinstance(run, str) else f"{run[0]}.{run[1]}" + (f"-{run[2]}" if run[2] > run[1] else "")
        for run in runs
    ]
