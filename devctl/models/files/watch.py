"""What a hub answers, watched as it comes: silent and slow ones end, and names that leave the cache are refused."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from devctl.errors import ModelError

_TO_ANSWER = 60.0
"""Seconds for a hub to begin a file, all tries of huggingface_hub together; it gives each ten."""

_WINDOW, _SLOWEST = 30.0, 1024
"""Seconds in which so many bytes a second have to come."""

_NAMES = ("etag", "x-linked-etag", "x-repo-commit")
"""Headers whose values huggingface_hub takes for names of files and folders in its cache."""

_NAME = re.compile(r"[A-Za-z0-9_.:+=~-]{1,200}")


@contextmanager
def watched(what: str, most: int | None) -> Iterator[None]:
    """While huggingface_hub downloads ``what``, which may have ``most`` bytes: its answers are watched.

    Its own client is told to, as that is where all of its requests go.

    Raises:
        ModelError: the hub is silent or slow, sends more, or names what is no name.
    """
    from huggingface_hub import get_session

    watch = _Watch(what, most)
    client: Any = get_session()
    hooks = client.event_hooks
    client.event_hooks = {
        "request": [*hooks["request"], watch.asked],
        "response": [*hooks["response"], watch.answered],
    }
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        found = next((cause for cause in _causes(error) if isinstance(cause, ModelError)), None)
        if found is not None:  # which huggingface_hub took for a failure of the network
            raise found from None
        raise
    finally:
        client.event_hooks = hooks


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause = error.__cause__ or error.__context__
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


class _Watch:
    def __init__(self, what: str, most: int | None) -> None:
        self._what, self._most = what, most
        self._begun = time.monotonic()

    def asked(self, _: Any) -> None:
        """Before each request, the first and those that follow one that failed."""
        if time.monotonic() - self._begun > _TO_ANSWER:
            raise ModelError(
                f"the hub did not answer in {_TO_ANSWER:.0f} s, asked for {self._what}",
                hint="check the network and HF_ENDPOINT, or give a folder or a config file",
            )

    def answered(self, response: Any) -> None:
        """Before the body of an answer is read."""
        self._begun = time.monotonic()
        for header in _NAMES:
            value = response.headers.get(header)
            name = None if value is None else value.lstrip("W/").strip('"')  # as huggingface_hub reads it
            if name and (not _NAME.fullmatch(name) or set(name) == {"."}):
                raise ModelError(
                    f"the hub's answer for {self._what} has an {header} that is no name: {value[:80]!r}",
                    hint="is HF_ENDPOINT a hub that you trust?",
                )
        if response.request.method == "GET" and response.is_success:
            self._refuse_size(int(response.headers.get("content-length") or 0))
            response.stream = _limited(response.stream, self._counted)

    def _refuse_size(self, size: int) -> None:
        if self._most is not None and size > self._most:
            raise ModelError(
                f"the hub's {self._what} is larger than any: more than {self._most:,} bytes",
                hint="is it the model that you mean?",
            )

    def _counted(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        came, begun, whole = 0, time.monotonic(), 0
        for piece in pieces:
            came += len(piece)
            whole += len(piece)
            self._refuse_size(whole)
            taken = time.monotonic() - begun
            if taken > _WINDOW:
                if came < _SLOWEST * taken:
                    raise ModelError(
                        f"the hub sends {self._what} too slowly: {came:,} bytes in {taken:.0f} s",
                        hint="try again later: what is there already is not downloaded twice",
                    )
                came, begun = 0, time.monotonic()
            yield piece


def _limited(stream: Any, counted: Any) -> Any:
    """``stream`` of a response, each piece of which goes through ``counted``."""
    # the class that the HTTP library, whichever it is, wants a body to be of
    base: Any = next(kind for kind in type(stream).__mro__ if kind.__name__ == "SyncByteStream")

    class Limited(base):  # type: ignore[misc]
        def __iter__(self) -> Iterator[bytes]:
            yield from counted(iter(stream))

        def close(self) -> None:
            stream.close()

    return Limited()
