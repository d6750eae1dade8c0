"""A process that hangs, and a clock that does not make its test wait."""

from types import SimpleNamespace

import pytest

from devctl.planning.examining import frameworks
from tests.cli.conftest import short  # noqa: F401 - a fixture


@pytest.fixture
def over_once_told(monkeypatch):
    """The time of a process that imports is over once it has told so much: ``over_once_told('"devices"')``.

    A deadline that really passes has to be longer than a busy machine takes to start that process.
    """

    def end(text):
        clock = SimpleNamespace(now=0.0)
        reader = frameworks._reader

        def watched(descriptor):
            read, came = reader(descriptor), bytearray()

            def read_and_look(seconds):
                chunk = read(seconds)
                came.extend(chunk or b"")
                if text.encode() in came:
                    clock.now = float("inf")
                return chunk

            return read_and_look

        monkeypatch.setattr(frameworks, "_reader", watched)
        monkeypatch.setattr(frameworks, "time", SimpleNamespace(monotonic=lambda: clock.now))

    return end
