"""What ends devctl: Ctrl-C, a job that is cancelled, a terminal that goes; heard at once, whatever is going on."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from devctl.cli.show import streams
from devctl.errors import ExitCode

_ENDING = (signal.SIGINT, signal.SIGTERM, *((signal.SIGHUP,) if hasattr(signal, "SIGHUP") else ()))


def listen() -> None:
    """Clean up behind a job that is cancelled, or whose terminal goes, as behind one that is interrupted."""
    for number in _ENDING:
        if number is not signal.SIGINT and signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
            signal.signal(number, _unwind)


_heard: list[int] = []
"""Signals that were to end the process."""


def _unwind(number: int, _: FrameType | None) -> None:
    _heard.append(number)
    sys.exit(128 + number)


def exit_if_ended() -> None:
    """Exit where a signal was heard, and what it raised was passed over: C++ of a framework makes an error of its own
    of it."""
    if _heard:
        sys.exit(128 + _heard[0])


@contextmanager
def ending_at_once() -> Iterator[None]:
    """While frameworks are imported and nothing is there to be cleaned up: a signal ends the process where it is.

    An exception would be raised in the midst of what can't have one: callbacks pass over it, C++ aborts the process.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _ENDING}
    heard = {number for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    for number in heard:
        signal.signal(number, _end)
    try:
        yield
    finally:
        for number in heard:
            signal.signal(number, before[number])


def _end(number: int, _: FrameType | None) -> None:
    if streams.is_terminal(sys.stderr):
        os.write(sys.stderr.fileno(), b"\r\x1b[2K\x1b[?25h")  # the line that is shown, and the cursor that it hides
    if number == signal.SIGINT:
        streams.message("interrupted")
    leave(128 + number)


def leave_if_ended(code: object) -> None:
    """Leave, with all cleaned up, without the second that frameworks take to be taken down, if a signal is why.

    So too where a thread is in a call to other hosts that never comes back, which the interpreter would abort on.
    """
    stuck = any(thread.name == "devctl-in-store" for thread in threading.enumerate())
    if code in {ExitCode.INTERRUPTED, *(128 + number for number in _ENDING)} or stuck:
        leave(code if isinstance(code, int) else int(code is not None))


def leave(code: int) -> None:
    """End the process, with what was written."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # nobody reads, or it is closed
            stream.flush()
    os._exit(code)
