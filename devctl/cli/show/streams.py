"""Values to what people and programs read: rich or JSON, stdout or stderr.

stdout is the answer and is written once, whole; stderr is the conversation.

Names of boards, processes, tensors and files, what a config, a hub or a plan says: text that is not ours goes through
`clean` before it is part of a line. Tables, messages and what rich draws do so here; JSON escapes it by itself.
"""

from __future__ import annotations

import codecs
import io
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from devctl.errors import DevctlError, ModelError, OutputError, RefusedError
from devctl.units import format_bytes

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.status import Status

UNKNOWN = "–"

STDOUT = "-"
"""What an option calls standard output."""

_NARROWEST = 60
_USUAL_WIDTH = 80
_PIPE_WIDTH = 10_000
"""Columns when nobody looks: nothing is wrapped or cut off."""


_CONTROLS = {
    **{code: 0x2400 + code for code in range(0x20)},
    0x7F: 0x2421,
    **dict.fromkeys((*range(0x80, 0xA0), 0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A)), 0xFFFD),
}
"""What stands for a character that moves a cursor, begins a line, or turns the order of others around: its picture."""

_COMMAND = re.compile(r"::|##(?=\[|vso\[)")
"""How what a CI's log takes for a command begins: ``::error::``, ``##[error]``, ``##vso[task]``.

It would have to begin a line, but where a table is folded anything may.
"""

_LIKE_A_COMMAND = {"::": ":\ua789", "##": "#\uff03"}

_NOT_A_STYLE = re.compile(
    "\x1b(?!\\[[0-9;]*m)|[\x00-\x09\x0b-\x1a\x1c-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]"
)
_ANY_ESCAPE = re.compile("\x1b")


_WITHOUT = {"×": "x", "…": "~", "–": "-", "→": "->", "·": ".", "█": "#", "▓": "=", "▒": "+", "░": "-"}
"""What stands for a character of ours where a stream's encoding has none like it."""


def write_what_can_be_written() -> None:
    """Let stdout and stderr write "x" for "×" and the like, and "?" for what is not ours, where they can't as it is."""

    def instead(error: UnicodeError) -> tuple[str, int]:
        assert isinstance(error, UnicodeEncodeError), "asked where something is written"
        unknown = error.object[error.start : error.end]
        return "".join(_WITHOUT.get(character, "?") for character in unknown), error.end

    codecs.register_error("devctl", instead)
    for stream in (sys.stdout, sys.stderr):  # None where one was closed
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="devctl")


def clean(text: str) -> str:
    """``text`` that is not ours as a part of one line: as long as it was, with nothing that a terminal or log obeys."""
    if text.isascii() and text.isprintable() and "::" not in text and "##" not in text:
        return text
    return _COMMAND.sub(lambda found: _LIKE_A_COMMAND[found[0]], text.translate(_CONTROLS))


def _harmless(text: str, stream: TextIO | None) -> str:
    """Lines of ours, with nothing that is obeyed but a terminal's styles, should text have come past `clean`."""
    text = _NOT_A_STYLE.sub(lambda found: found[0].translate(_CONTROLS), text)
    return text if is_terminal(stream) else _ANY_ESCAPE.sub("\u241b", text)


def clean_logs() -> None:
    """Let what libraries log from now on pass `clean`: they quote configs and names of classes as they are.

    Their warnings are for who writes programs; of those that matter here a plan or load tells in its notes.
    """
    import logging

    if not os.environ.get("DEVCTL_DEBUG"):
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # read as it is imported
        if logging.lastResort is not None:  # what has no handler of its own, as accelerate and torch
            logging.lastResort.setLevel(logging.ERROR)

    class Record(logging.LogRecord):
        """One whose message is a part of one line."""

        def getMessage(self) -> str:
            return clean(super().getMessage())

    logging.setLogRecordFactory(Record)


def answer(text: str) -> None:
    """Write the command's answer to stdout, whole.

    Raises:
        OutputError: it could not be written, for instance because the disk is full.
        BrokenPipeError: the reader has gone.
    """
    if sys.stdout is None:  # how Python shows one that was closed, as by `>&-`
        raise OutputError("cannot write to standard output: it is closed")
    try:
        sys.stdout.write(_harmless(text, sys.stdout))
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        abandon(sys.stdout)
        raise OutputError(f"cannot write to standard output: {error.strerror}") from None


def deliver(text: str, path: Path | None) -> None:
    """The command's answer where it was asked for: in a file, whole or not at all; on stdout for "-" or None.

    Raises:
        UsageError, OutputError, BrokenPipeError: it could not be written.
    """
    if path is None or str(path) == STDOUT:
        answer(text)
        return
    from devctl.writing import write_whole  # which no answer on stdout needs

    write_whole(path, _harmless(text, None))


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
        sys.stderr.write(_harmless(text, sys.stderr))
        sys.stderr.flush()
    except OSError:
        abandon(sys.stderr)


def message(text: str, hint: str = "") -> None:
    """One or two lines to stderr."""
    say(f"devctl: {clean(text)}\n" + (f"  {clean(hint)}\n" if hint else ""))


def error(error: DevctlError) -> None:
    """What went wrong, every finding, and the next step."""
    findings = error.findings if isinstance(error, ModelError | RefusedError) else ()
    lines = [f"devctl: {clean(error.message)}", *(f"  - {clean(finding)}" for finding in findings)]
    say("".join(f"{line}\n" for line in (*lines, *([f"  {clean(error.hint)}"] if error.hint else []))))


def trace(error: BaseException) -> None:
    """The traceback of ``error``, for who looks for a bug: what it quotes of others is as harmless as in a message."""
    import traceback

    lines = "".join(traceback.format_exception(error)).split("\n")
    say("\n".join(map(clean, lines)))


def to_text(renderable: RenderableType, stream: TextIO | None) -> str:
    """``renderable`` as ``stream`` should show it: colours where a terminal looks, no wrapping where a pipe listens.

    Nothing is written yet.
    """
    from rich.console import Console

    terminal, renderable = is_terminal(stream), _cleaned(renderable)
    width = max(room_of(stream) or _PIPE_WIDTH, _least_width(renderable))
    text = io.StringIO()
    out = Console(file=text, force_terminal=terminal, width=width, highlight=False, emoji=False, markup=False)
    out.print(renderable, crop=False)
    return "".join(line.rstrip() + "\n" for line in text.getvalue().splitlines())


def _least_width(renderable: Any) -> int:
    """The columns below which rich would cut a figure of a table: "16.4 …" says less than a line that a terminal wraps.

    What a table may fold counts for nothing.
    """
    from rich.console import Group
    from rich.table import Table

    if isinstance(renderable, Group):
        return max(map(_least_width, renderable.renderables), default=0)
    if not isinstance(renderable, Table):
        return 0
    kept = [column for column in renderable.columns if column.no_wrap]
    widest = sum(max(cells(str(cell)) for cell in (column.header, *column._cells)) for column in kept)
    return widest + sum(renderable.padding[1::2]) * (len(renderable.columns) - 1)


def _cleaned(renderable: Any) -> Any:
    """``renderable`` with all text in it clean; what it is made of is changed in place."""
    from rich.console import Group
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    if isinstance(renderable, str):
        return clean(renderable)
    if isinstance(renderable, Text):
        renderable.plain = clean(renderable.plain)  # of the same length, so that each part keeps its style
    elif isinstance(renderable, Group):
        renderable.renderables[:] = [_cleaned(each) for each in renderable.renderables]
    elif isinstance(renderable, Padding):
        renderable.renderable = _cleaned(renderable.renderable)
    elif isinstance(renderable, Table):
        for column in renderable.columns:
            column.header = _cleaned(column.header)
            column._cells[:] = [_cleaned(cell) for cell in column._cells]
    return renderable


def width_of(stream: TextIO | None) -> int | None:
    """The columns of the terminal that ``stream`` goes to, or that COLUMNS says; None where nobody looks.

    Each stream has its own: stderr may be a terminal where stdout is a file.
    """
    said = os.environ.get("COLUMNS", "")
    if said.isdecimal() and len(said) < 6 and int(said):
        return int(said)
    if stream is None or not is_terminal(stream):
        return _USUAL_WIDTH if said else None
    try:
        return os.get_terminal_size(stream.fileno()).columns or _USUAL_WIDTH
    except (OSError, ValueError):
        return _USUAL_WIDTH


def room_of(stream: TextIO | None) -> int | None:
    """The columns that lines to ``stream`` may take, None where nobody looks.

    The narrowest of terminals gets lines that it wraps itself, rather than columns with nothing left in them.
    """
    width = width_of(stream)
    return None if width is None else max(width, _NARROWEST)


def cells(text: str) -> int:
    """The columns that ``text`` takes on a terminal."""
    # below the combining marks, and for the dashes, a character is a column wide
    if all(character < "\u0300" or "\u2010" <= character <= "\u2027" for character in text):
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def in_lines(text: str, width: int | None) -> list[str]:
    """``text`` in lines of at most ``width`` columns, broken at blanks; a longer name behind its dots and slashes.

    A number is not parted, 15-23 and 1.5 among them, unless no line holds it.
    """
    if width is None or cells(text) <= width:
        return [text]
    lines: list[str] = []
    line: str | None = None
    for word in _BLANK.split(text):
        longer = word if line is None else f"{line} {word}"
        if cells(longer) <= width:
            line = longer
            continue
        if line is not None and line.strip():
            lines.append(line.rstrip())
        *whole, line = _parted(word, width)
        lines += whole
    return [*lines, *([] if line is None else [line.rstrip()])]


_BLANK = re.compile("(?<!×) (?!×)")
"""A blank that a line may end at: "400 tokens × 1" keeps its factor."""
_JOINT = re.compile(r"(?<=[./])(?:(?<![0-9][./])|(?![0-9]))")
"""Behind a dot or a slash that is no part of a number."""


def _parted(word: str, width: int) -> list[str]:
    """A word in lines of at most ``width``."""
    lines: list[str] = []
    line = ""
    for part in _JOINT.split(word):
        if line and cells(line + part) > width:
            lines.append(line)
            line = ""
        line += part
        while cells(line) > width:
            cut = _cut(line, width)
            lines.append(line[:cut])
            line = line[cut:]
    return [*lines, line]


def _cut(name: str, width: int) -> int:
    """Where to part a name that nothing else parts: at its widest, but not within a number of it."""
    most = 1
    while most < len(name) and cells(name[: most + 1]) <= width:
        most += 1
    cut = most
    while cut > 1 and name[cut - 1 : cut + 1].strip("0123456789-.,") == "":
        cut -= 1
    return cut if cut > 1 else most


def answer_style(stream: TextIO | None) -> tuple[int | None, bool]:
    """The columns that a table must keep to, None where nobody looks, and whether it may be styled.

    Args:
        stream: where the table goes; None is a file, or nowhere.
    """
    terminal = is_terminal(stream)
    return width_of(stream), terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def can_show(stream: TextIO | None) -> bool:
    """Whether ``stream`` has the characters that bars are drawn with; a file of ours does."""
    try:
        "█▓▒░·".encode(getattr(stream, "encoding", None) or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def is_terminal(stream: TextIO | None) -> bool:
    """Whether a person looks at ``stream``; at a closed one, None, nobody does."""
    return stream is not None and stream.isatty()


_SHOWN: list[tuple[Status, str]] = []
"""What spins, and what it says, for each thing that is waited for within another."""


@contextmanager
def status(text: str) -> Iterator[None]:
    """Show on a terminal's stderr what is waited for; nothing elsewhere. Within another, it stands in its place."""
    if not is_terminal(sys.stderr):
        yield
        return
    from rich.console import Console

    if _SHOWN:
        shown, before = _SHOWN[-1]
        _SHOWN.append((shown, text))
        shown.update(clean(text))
        try:
            yield
        finally:
            _SHOWN.pop()
            shown.update(clean(before))
        return
    with Console(stderr=True, highlight=False, markup=False, emoji=False).status(clean(text)) as spinner:
        _SHOWN.append((spinner, text))
        try:
            yield
        finally:
            _SHOWN.pop()


@contextmanager
def progress(text: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar of bytes on a terminal's stderr; the value is told how many more are done."""
    # one that can't draw over a line would keep an empty one for each bar
    if not is_terminal(sys.stderr) or os.environ.get("TERM") == "dumb":
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
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(binary_units=True),
        Speed(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(clean(text), total=total)
        yield lambda done: bar.advance(task, done)


def dumps(value: Any) -> str:
    """JSON as all commands write it."""
    import json  # 5 ms that tables do not need

    return json.dumps(value, indent=2) + "\n"


def size(value: int | None) -> str:
    """A size for people; an unknown one is a dash."""
    return UNKNOWN if value is None else format_bytes(value)
