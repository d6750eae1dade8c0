"""Programs that a step asks: devctl's own command line, and others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from devctl.errors import DevctlError


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """What a program answered."""

    code: int
    out: str
    err: str

    @property
    def said(self) -> str:
        """How it ended, in a line."""
        lines = [line.strip() for line in self.err.splitlines() if line.strip()]
        return f"exit code {self.code}{': ' + '; '.join(lines[-3:])[:400] if lines else ''}"

    def document(self) -> Any:
        """Its stdout as JSON.

        Raises:
            NoAnswerError: it is none.
        """
        try:
            return json.loads(self.out)
        except ValueError:
            raise NoAnswerError(f"no JSON came: {self.said}") from None


class NoAnswerError(DevctlError):
    """A program gave no answer that can be used."""


def ask(command: Sequence[str], *, seconds: float = 120, environment: Mapping[str, str] | None = None) -> Done:
    """Run a command, with the given variables besides this process's own.

    Raises:
        NoAnswerError: it is not there, or did not end in time.
    """
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **(environment or {})},
            timeout=seconds,
            check=False,
        )
    except OSError as error:
        raise NoAnswerError(f"{command[0]} can't be run: {error.strerror}") from None
    except subprocess.TimeoutExpired:
        raise NoAnswerError(f"{command[0]} did not end in {seconds:.0f} s") from None
    out, err = (text.decode(errors="replace") for text in (done.stdout, done.stderr))
    return Done(code=done.returncode, out=out, err=err)


def ask_devctl(*arguments: str, seconds: float = 240, environment: Mapping[str, str] | None = None) -> Done:
    """Run devctl's command line, as this process would import it."""
    return ask([sys.executable, "-m", "devctl", *arguments], seconds=seconds, environment=environment)


def ask_python(code: str, *arguments: str, seconds: float = 120, environment: Mapping[str, str] | None = None) -> Done:
    """Run some Python in a process of its own."""
    return ask([sys.executable, "-c", code, *arguments], seconds=seconds, environment=environment)
