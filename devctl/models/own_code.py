"""Code that comes with a model, while it runs in this process."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_TERMINATED = {128 + signal.SIGTERM, 128 + getattr(signal, "SIGHUP", signal.SIGTERM)}
"""The codes that the command line exits with once it is told to end, whatever runs then."""


class ExitedError(Exception):
    """The code of a model tried to end the process."""


@contextmanager
def contained() -> Iterator[None]:
    """While a model's own code may run: what it prints is no answer of ours, and goes to stderr; its exit is an error.

    Raises:
        ExitedError: it called ``sys.exit``.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except SystemExit as error:
        if error.code in _TERMINATED:
            raise
        raise ExitedError(f"the model's own code calls sys.exit({error.code!r})") from error
