"""What is going on, told to whoever wants to know: nobody, unless a program says so.

Below the command line nothing is printed. What takes long says so here; the command line sets a reporter that shows it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Protocol


class Reporter(Protocol):
    """Shows what is going on."""

    def status(self, text: str) -> AbstractContextManager[None]:
        """Something that takes long, while it does."""

    def progress(self, text: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
        """The same, whose bytes are counted: the value is told how many more of ``total`` are done."""

    def building(self) -> AbstractContextManager[None]:
        """Frameworks are imported and a model is built: what is made then stays, and holds no garbage to look for."""

    def warn(self, text: str) -> None:
        """Something that a person should know before the answer."""


class Silent:
    """The reporter of a program that has set none."""

    def status(self, _: str) -> AbstractContextManager[None]:
        """Nothing."""
        return nullcontext()

    def progress(self, _text: str, _total: int) -> AbstractContextManager[Callable[[int], None]]:
        """Nothing."""
        return nullcontext(lambda _: None)

    def building(self) -> AbstractContextManager[None]:
        """Nothing."""
        return nullcontext()

    def warn(self, _: str) -> None:
        """Nothing."""


_SILENT = Silent()
_REPORTER: ContextVar[Reporter] = ContextVar("reporter", default=_SILENT)


def reporter() -> Reporter:
    """The reporter of this context."""
    return _REPORTER.get()


@contextmanager
def reporting(to: Reporter) -> Iterator[None]:
    """Tell ``to`` what is going on within."""
    token = _REPORTER.set(to)
    try:
        yield
    finally:
        _REPORTER.reset(token)
