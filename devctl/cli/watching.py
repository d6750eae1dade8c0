"""A screen that is drawn again and again, with keys to leave it, and the terminal as it was behind it."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from devctl.cli.show import streams

_ENTER, _LEAVE = "\x1b[?1049h\x1b[?25l\x1b[H\x1b[2J", "\x1b[?25h\x1b[?1049l"
"""A screen of its own, without a cursor; the one that was there, with it."""
_HOME, _TO_END, _BELOW = "\x1b[H", "\x1b[K", "\x1b[J"
_QUIT = b"qQ\x04"
"""Keys that leave: q, and Ctrl-D."""


class Screen:
    """A terminal while it is watched.

    Attributes:
        has_keys: whether keys are read: stdin is a terminal, and ours.
    """

    def __init__(self) -> None:
        self.has_keys = False
        self._keyboard: int | None = None
        self._modes: list[Any] | None = None
        self._resized, self._wake = os.pipe()
        os.set_blocking(self._wake, False)
        os.set_blocking(self._resized, False)

    def enter(self) -> None:
        """Take the terminal."""
        with contextlib.suppress(ImportError, OSError, ValueError, AttributeError):  # no keys here, but Ctrl-C
            self._take_keyboard()
        _control(_ENTER)

    def _take_keyboard(self) -> None:
        import termios
        import tty

        keyboard = sys.stdin.fileno()
        if not os.isatty(keyboard):
            return
        with contextlib.suppress(OSError):  # a terminal that is not ours to lose stops nobody
            if os.tcgetpgrp(keyboard) != os.getpgrp():
                return  # in the background, where to change it would stop us
        self._modes = termios.tcgetattr(keyboard)
        tty.setcbreak(keyboard, termios.TCSANOW)  # keys at once, and Ctrl-C as ever
        self._keyboard, self.has_keys = keyboard, True

    def leave(self) -> None:
        """Give it back as it was; a second time does nothing."""
        if self._keyboard is not None and self._modes is not None:
            import termios

            with contextlib.suppress(OSError, termios.error):  # it may be gone
                termios.tcsetattr(self._keyboard, termios.TCSANOW, self._modes)
        self._keyboard = self._modes = None
        _control(_LEAVE)

    def close(self) -> None:
        """Nothing more is waited for."""
        os.close(self._resized)
        os.close(self._wake)

    def resized(self, number: int = 0, frame: FrameType | None = None) -> None:
        """Draw anew, as its size is another."""
        with contextlib.suppress(OSError):  # one that is waiting already will do
            os.write(self._wake, b"x")

    def draw(self, text: str) -> None:
        """Show the first lines of ``text``, as many as there is room for, in place of what is shown."""
        lines, rows = text.splitlines(), _rows()
        if len(lines) > rows:
            lines = [*lines[: rows - 1], f"… {len(lines) - rows + 1} more lines, for which the terminal is too low"]
        _control(_HOME)
        for number, line in enumerate(lines):
            streams.answer(line)
            _control(_TO_END + ("\r\n" if number < len(lines) - 1 else ""))
        _control(_BELOW)

    def wait(self, until: float, draw: Callable[[], None]) -> bool:
        """Wait for a time of the monotonic clock; True where somebody wants to leave.

        Args:
            draw: what is done where the terminal's size changes.
        """
        while True:
            heard = [self._resized, *([] if self._keyboard is None else [self._keyboard])]
            ready, _, _ = select.select(heard, [], [], max(0.0, until - time.monotonic()))
            if not ready:
                return False
            if self._resized in ready:
                with contextlib.suppress(OSError):
                    os.read(self._resized, 4096)
                draw()
            if self._keyboard in ready and self._keyboard is not None:
                try:
                    keys = os.read(self._keyboard, 4096)
                except OSError:  # the terminal has gone
                    return True
                if not keys or any(key in _QUIT for key in keys):
                    return True


@contextmanager
def screen() -> Iterator[Screen]:
    """The terminal as a screen, and as it was behind it: however that is left, and while the process is stopped."""
    made = Screen()
    before: dict[int, Any] = {}

    def stop(number: int, _: FrameType | None) -> None:
        """Ctrl-Z, or Ctrl-backslash: what that does, to a terminal that is in order."""
        made.leave()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        # here again, in the foreground, after Ctrl-Z
        signal.signal(number, stop)
        made.enter()
        made.resized()

    handlers: dict[str, Callable[[int, FrameType | None], Any]]
    handlers = {"SIGTSTP": stop, "SIGQUIT": stop, "SIGWINCH": made.resized}
    try:
        for name, handler in handlers.items():
            if (number := getattr(signal, name, None)) is not None and signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, handler)
        made.enter()
        yield made
    finally:
        made.leave()
        for number, handler in before.items():
            signal.signal(number, handler)
        made.close()


def _rows() -> int:
    try:
        return max(2, os.get_terminal_size(sys.stdout.fileno()).lines)
    except (OSError, ValueError):
        return 24


def _control(sequence: str) -> None:
    """Tell the terminal what to do. One that is gone needs nothing."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.write(sequence)
        sys.stdout.flush()
