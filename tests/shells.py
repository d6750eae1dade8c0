"""Real shells on a pseudo-terminal: something is typed, TAB is pressed, and what the shell shows is read."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time

SECONDS = 60.0
"""How long a shell may take to show what is waited for, on a machine with much else to do."""

_ESCAPES = re.compile(
    r"\x1b\[[0-9;?<>=]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[()][0-9A-B]|\x1b[=>78MHcZ]|[\x0f\x0e\x07]"
)

_START = {
    "bash": ["bash", "--norc", "--noprofile", "-i"],
    "zsh": ["zsh", "-f", "-i"],
    "fish": ["fish", "--no-config", "-i"],
}
_QUIET = {
    "bash": "PS1='ready> '; bind 'set show-all-if-ambiguous on'; bind 'set completion-query-items 0'; "
    "bind 'set page-completions off'; bind 'set enable-bracketed-paste off'; bind 'set bell-style none'",
    "zsh": "PS1='ready> '; unsetopt zle_bracketed_paste auto_remove_slash prompt_sp prompt_cr; "
    "unsetopt list_ambiguous auto_menu list_beep beep; LISTMAX=100000; autoload -Uz compinit && compinit -u -D",
    "fish": "function fish_prompt; echo 'ready> '; end; set -g fish_autosuggestion_enabled 0; set -g fish_greeting",
}


_FOLDERS = ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_DATA_DIRS")


class Shell:
    """An interactive shell with ``variables``, in a terminal of 200 columns and 500 lines.

    ``set_up`` is run in it first. Where it is ``configured`` it reads its own files in ``folder``, its home.
    """

    def __init__(
        self, name: str, folder: str, set_up: str, variables: dict[str, str], *, configured: bool = False
    ) -> None:
        self.name = name
        self._parent, child = pty.openpty()
        fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 500, 200, 0, 0))
        environment = {
            n: v for n, v in os.environ.items() if n not in ("ENV", "BASH_ENV", "ZDOTDIR", "PS1", "FPATH", *_FOLDERS)
        }

        def own_terminal() -> None:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        self._process = subprocess.Popen(
            [name, "-i"] if configured else _START[name],
            stdin=child,
            stdout=child,
            stderr=child,
            cwd=folder,
            env=environment | {"HOME": folder, "TERM": "xterm", "HISTFILE": "/dev/null"} | variables,
            start_new_session=True,
            preexec_fn=own_terminal,  # noqa: PLW1509 - zsh and fish ask who has the terminal
        )
        os.close(child)
        self._seen = ""
        self._send(f"{_QUIET[name]}; {set_up}; echo set''-up\n")
        self.shows("set-up")
        self.shows("ready> ", after="set-up")

    def __enter__(self) -> Shell:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._parent)

    def offers(self, typed: str, *expected: str) -> str:
        """What is shown after ``typed`` and TAB, once all of ``expected`` are in it as words; the line is cleared."""
        self._seen = ""
        self._send(typed + "\t")
        try:
            for word in expected:
                self.shows(word, whole=True)
            return self.text
        finally:
            self._clear()

    def completes(self, typed: str, line: str) -> None:
        """After ``typed`` and TAB the words of the line are those of ``line``."""
        self._seen = ""
        self._send(typed + "\t")
        # typed over itself, the line is given to a command that shows its words: keys are taken one after the other
        if self.name != "bash":
            self.shows(line.rpartition(" ")[2], whole=True)
        self._send("\x01set -- " if self.name != "fish" else "\x01printf '<%s>' ")
        self._send("\x05\n" if self.name == "fish" else "\x05; printf '<%s>' \"$@\"; echo\n")
        words = "".join(f"<{word}>" for word in line.split(" "))
        self.shows(words)
        self.shows("ready> ", after=words)

    @property
    def text(self) -> str:
        """All that was shown since the last question, without what moves a cursor or colours."""
        return _ESCAPES.sub("", self._seen)

    def shows(self, words: str, *, after: str = "", whole: bool = False) -> None:
        """Wait until ``words`` are shown, behind ``after``; as a word of their own where ``whole``."""
        wanted = re.compile(rf"(?<![\w.=/-]){re.escape(words)}(?![\w.-])" if whole else re.escape(words))
        due = time.monotonic() + SECONDS
        while not wanted.search(
            self.text.rpartition(after)[2] if after and after in self.text else "" if after else self.text
        ):
            left = due - time.monotonic()
            assert left > 0, f"{self.name} does not show {words!r}: {self.text!r}"
            if select.select([self._parent], [], [], min(left, 1.0))[0]:
                try:
                    self._seen += os.read(self._parent, 1 << 16).decode("utf-8", "replace")
                except OSError as error:
                    raise AssertionError(f"{self.name} has ended: {self.text!r}") from error

    def _clear(self) -> None:
        self._send("\x03" if self.name != "fish" else "\x1b")
        if self.name == "fish":
            time.sleep(0.05)  # an escape is taken for one alone where nothing follows it at once
            self._send("\x03")
        # a command that prints what was not typed tells that all before it is done
        self._send("\n" + "echo cle''ared\n")
        self.shows("cleared")
        self.shows("ready> ", after="cleared")

    def _send(self, text: str) -> None:
        os.write(self._parent, text.encode())
