"""Values to what people and programs read: rich or JSON, stdout or stderr.

stdout is the answer and is written once, whole; stderr is the conversation.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from devctl.errors import DevctlError, OutputError, RefusedError
from devctl.units import format_bytes

if TYPE_CHECKING:
    from rich.console import RenderableType

SCHEMA = 1
"""Version of the JSON documents; it grows when a key changes its meaning or goes."""

UNKNOWN = "–"

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
    import tempfile

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


def to_json(kind: str, value: Any) -> str:
    """A frozen record as one JSON document, with the schema's version and its kind first."""
    from devctl.inventory.document import to_json_values

    return dumps({"schema": SCHEMA, "kind": kind, **to_json_values(value)})


def dumps(value: Any) -> str:
    """JSON as all commands write it."""
    import json  # 5 ms that tables do not need

    return json.dumps(value, indent=2) + "\n"


def size(value: int | None) -> str:
    """A size for people; an unknown one is a dash."""
    return UNKNOWN if value is None else format_bytes(value)
