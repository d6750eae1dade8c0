"""What the frameworks say of themselves, asked in a process of its own: an import may hang, crash or be killed."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from devctl.errors import first_line
from devctl.inventory.ending import end_group

SECONDS = 120.0
"""How long all imports together have. They take five to ten seconds, and a minute from a cold network file system."""

STEPS = ("torch", "devices", "transformers", "accelerate")
_SCRIPT = Path(__file__).with_name("importing.py")
_MOST_BYTES = 1 << 20
"""An answer has a few kilobytes."""

_LEAVING = 1.0
"""Seconds that a killed process has to end; one that is stuck in the kernel goes when the kernel lets it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What one import, or one look at the devices, came to.

    Attributes:
        facts: what it told; None where it told nothing.
        fault: why it told nothing, in words that may be private; None where the package is not installed, too.
        reached: whether it was begun at all.
    """

    facts: Mapping[str, Any] | None = None
    fault: str | None = None
    reached: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How the process came to its end.

    Attributes:
        code: its exit code, negative for a signal; None where it had to be killed.
        seconds: how long it had, where it took longer.
        flooded: whether it wrote more than any answer has.
        silent: whether it ended well, and said nothing that can be read.
    """

    code: int | None
    seconds: float | None = None
    flooded: bool = False
    silent: bool = False

    def __str__(self) -> str:
        if self.silent:
            return "answered nothing that can be read"
        if self.flooded:
            return "wrote without end, and was stopped"
        if self.seconds is not None:
            return f"did not end within {self.seconds:g} s"
        return _of_code(self.code)


def _of_code(code: int | None) -> str:
    if code is None or code >= 0:
        return f"ended the process that imports it (exit code {code})"
    if code == -int(getattr(signal, "SIGKILL", 9)):
        return "was killed (SIGKILL), as the kernel does when memory runs out"
    try:
        return f"crashed ({signal.Signals(-code).name})"
    except ValueError:
        return f"crashed (signal {-code})"


class Question:
    """The process that imports, begun when it is made; ``answers`` waits for it, ``close`` ends it in any case.

    Args:
        seconds: how long it has, from now on.
        command: what is run, instead of this interpreter with the script; it is given the mark as the last argument.
        environment: its variables; this process's own where it is None.
    """

    def __init__(
        self,
        seconds: float = SECONDS,
        command: Sequence[str] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._seconds, self._due = seconds, time.monotonic() + seconds
        self._mark = f"devctl-{secrets.token_hex(8)}:"
        self._fault: str | None = None
        self._process: subprocess.Popen[bytes] | None = None
        # -P: what lies in the working directory is not imported, as it is not by devctl
        command = [sys.executable, "-P", str(_SCRIPT)] if command is None else list(command)
        try:
            self._process = subprocess.Popen(
                [*command, self._mark],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                env=None if environment is None else dict(environment),
            )
        except (OSError, ValueError) as error:
            self._fault = f"no process could be started to import it: {first_line(error)}"

    def answers(self) -> dict[str, Step]:
        """What each of `STEPS` came to."""
        if self._process is None:
            return {"torch": Step(fault=self._fault), **{name: Step(reached=False) for name in STEPS[1:]}}
        text, ended = _heard(self._process, self._due, self._seconds)
        self.close()
        return parse_answers(text, self._mark, ended)

    def close(self) -> None:
        """End it and all that it started, without waiting for what can't be ended."""
        if self._process is None:
            return
        end_group(self._process, _LEAVING)
        if self._process.stdout is not None:
            self._process.stdout.close()


def parse_answers(text: str, mark: str, ended: Ended) -> dict[str, Step]:
    """What the lines of the process say, and how it ended; whatever else is among them is passed over."""
    steps: dict[str, Step] = {}
    at: str | None = None
    for line in text.split("\n"):
        said = _line(line, mark)
        if said is None or said["step"] not in STEPS:
            continue
        step, state = said["step"], said.get("state")
        at = step if state == "begun" else None
        if state == "done" and isinstance(said.get("facts"), dict):
            steps[step] = Step(facts=said["facts"])
        elif state == "absent":
            steps[step] = Step()
        elif state == "failed":
            steps[step] = Step(fault=str(said.get("said")))
    if all(name in steps for name in STEPS):
        return steps
    if at is None:  # between two steps, or before the first
        at = next(name for name in STEPS if name not in steps)
        if ended.code == 0:
            ended = Ended(code=0, silent=True)
    steps[at] = Step(fault=str(ended))
    return {name: steps.get(name, Step(reached=False)) for name in STEPS}


def _line(line: str, mark: str) -> dict[str, Any] | None:
    if not line.startswith(mark):
        return None
    try:
        said = json.loads(line.removeprefix(mark))
    except (ValueError, RecursionError):
        return None
    return said if isinstance(said, dict) and isinstance(said.get("step"), str) else None


def _heard(process: subprocess.Popen[bytes], due: float, seconds: float) -> tuple[str, Ended]:
    """What ``process`` writes until it ends, has written too much, or its time is over; and which of these it was.

    A process that it started may keep the pipe open: what is read is what it wrote itself until its own end.
    """
    assert process.stdout is not None
    came = bytearray()
    read = _reader(process.stdout.fileno())
    while True:
        over = process.poll() is not None
        chunk = read(0.0 if over else max(0.0, min(0.1, due - time.monotonic())))
        if chunk:
            came += chunk
        if len(came) > _MOST_BYTES:
            return _text(came[:_MOST_BYTES]), Ended(code=None, flooded=True)
        if over and not chunk:
            return _text(came), Ended(code=process.returncode)
        if chunk == b"":  # it has closed its end, and is about to end
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, min(_LEAVING, due - time.monotonic())))
        if not over and time.monotonic() >= due:
            return _text(came), Ended(code=None, seconds=seconds)


def _reader(descriptor: int) -> Callable[[float], bytes | None]:
    """Reads what comes within some seconds: bytes, b"" at the end, None where nothing came."""
    if os.name == "posix":
        waiting = select.poll()
        waiting.register(descriptor, select.POLLIN)

        def read(seconds: float) -> bytes | None:
            return os.read(descriptor, 1 << 16) if waiting.poll(round(seconds * 1000)) else None

        return read
    import queue  # there is no waiting for pipes: a thread reads

    chunks: queue.Queue[bytes] = queue.Queue()

    def forward() -> None:
        with contextlib.suppress(OSError):
            while chunk := os.read(descriptor, 1 << 16):
                chunks.put(chunk)
        chunks.put(b"")

    threading.Thread(target=forward, daemon=True).start()

    def take(seconds: float) -> bytes | None:
        try:
            return chunks.get(timeout=max(seconds, 0.01))
        except queue.Empty:
            return None

    return take


def _text(came: bytes | bytearray) -> str:
    return bytes(came).decode("utf-8", "replace")
