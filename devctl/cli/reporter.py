"""What is going on, shown on a terminal's stderr."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from devctl.cli.show import streams
from devctl.cli.signals import ending_at_once


class Terminal:
    """The reporter of the command line."""

    def status(self, text: str) -> AbstractContextManager[None]:
        """A line while it lasts; nothing where nobody looks."""
        return streams.status(text)

    def progress(self, text: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
        """A bar; nothing where nobody looks."""
        return streams.progress(text, total)

    @contextmanager
    def building(self) -> Iterator[None]:
        """What is imported and built stays: to look for garbage among it is in vain, and takes a sixth of the time."""
        collects = gc.isenabled()
        gc.disable()
        try:
            with ending_at_once():
                yield
            gc.freeze()
        finally:
            if collects:
                gc.enable()

    def warn(self, text: str) -> None:
        """A line."""
        streams.message(text)
