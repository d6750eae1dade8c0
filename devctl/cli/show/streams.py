"""Values to what people and programs read: rich or JSON, stdout or stderr.

stdout is the answer and is written once, whole; stderr is the conversation.
"""

from __future__ import annotations

import io
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from devctl.errors import DevctlError, OutputError, RefusedError
from devctl.units import format_bytes

if TYPE_CHECKING:
    from rich.console import RenderableType

UNKNOWN = "–"

_NARROWEST = 60
_PIPE_WIDTH = 10_000
"""Columns when nobody looks: nothing is wrapped or cut off."""


def answer(text: str) -> None:
    """Write the command's answer to stdout, whole.

    Raises:
        OutputError: it could not be written, for instance because the disk is full.
        BrokenPipeError: the reader has gone.
    """
    if sys.stdout is None:  # how Python shows one that was closed, as by `>&-`
        raise OutputError("cannot write to standard output: it is closed")
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        abandon(sys.stdout)
        raise OutputError(f"cannot write to standard output: {error.strerror}") from None


def abandon(stream: TextIO) -> None:
    """Let nothing more reach ``stream``, so that the interpreter's last flush has nothing to complain about."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, stream.fileno())
    os.close(devnull)


def say(text: str) -> None:
    """Part of the conversation: text to stderr. One that can't be written spoils no answer."""
    if sys.stderr is None:
        return
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except OSError:
        abandon(sys.stderr)


def message(text: str, hint: str = "") -> None:
    """One or two lines to stderr."""
    say(f"devctl: {text}\n" + (f"  {hint}\n" if hint else ""))


def error(error: DevctlError) -> None:
    """What went wrong, every finding, and the next step."""
    findings = error.findings if isinstance(error, RefusedError) else ()
    lines = [f"devctl: {error.message}", *(f"  - {finding}" for finding in findings)]
    say("".join(f"{line}\n" for line in (*lines, *([f"  {error.hint}"] if error.hint else []))))


def to_text(renderable: RenderableType, stream: TextIO | None) -> str:
    """``renderable`` as ``stream`` should show it: colours where a terminal looks, no wrapping where a pipe listens.

    Nothing is written yet.
    """
    from rich.console import Console

    terminal = is_terminal(stream)
    # the narrowest of terminals gets lines that it wraps itself, rather than columns with nothing left in them
    looked_at = terminal or os.environ.get("COLUMNS")
    width = max(shutil.get_terminal_size().columns, _NARROWEST) if looked_at else _PIPE_WIDTH
    text = io.StringIO()
    out = Console(file=text, force_terminal=terminal, width=width, highlight=False, emoji=False, markup=False)
    out.print(renderable)
    return "".join(line.rstrip() + "\n" for line in text.getvalue().splitlines())


def answer_style() -> tuple[int | None, bool]:
    """The columns that a table on stdout must keep to, None where nobody looks, and whether it may be styled."""
    terminal = is_terminal(sys.stdout)
    width = shutil.get_terminal_size().columns if terminal or os.environ.get("COLUMNS") else None
    return width, terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def is_terminal(stream: TextIO | None) -> bool:
    """Whether a person looks at ``stream``; at a closed one, None, nobody does."""
    return stream is not None and stream.isatty()


@contextmanager
def status(text: str) -> Iterator[None]:
    """Show on a terminal's stderr what is going on; nothing elsewhere."""
    if not is_terminal(sys.stderr):
        yield
        return
    from rich.console import Console

    with Console(stderr=True, highlight=False).status(text):
        yield


@contextmanager
def progress(text: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar of bytes on a terminal's stderr; the value is told how many more are done."""
    if not is_terminal(sys.stderr):
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Speed(ProgressColumn):
        """Bytes a second, in the units of the other columns; rich's own are decimal."""

        def render(self, task: Task) -> Text:
            return Text("" if task.speed is None else f"{format_bytes(int(task.speed))}/s")

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        Speed(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(text, total=total)
        yield lambda done: bar.advance(task, done)


def dumps(value: Any) -> str:
    """JSON as all commands write it."""
    import json  # 5 ms that tables do not need

    return json.dumps(value, indent=2) + "\n"


def size(value: int | None) -> str:
    """A size for people; an unknown one is a dash."""
    return UNKNOWN if value is None else format_bytes(value)
