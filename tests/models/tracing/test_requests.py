"""What chunks of a prompt that did not run are taken to ask an allocator for: what they do ask for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pytest

from devctl.models.tracing import requests as module
from devctl.models.tracing.requests import Asked, repeated
from devctl.models.tracing.segments import Request, least_reserved, most_allocated

MIB = 1 << 20
INPUTS = 0


def run(chunks: int, *, layers: int = 2, grown: int = 3 * MIB) -> list[Asked]:
    """Each chunk of a prompt, in each layer of which keys and values grow by ``grown`` bytes, beside 40 MiB."""
    made = INPUTS
    cache: dict[int, Request] = {}
    found = []
    for chunk in range(1, chunks + 1):
        then: list[Request] = []
        begin = ((INPUTS, 2 * MIB), *cache.values())
        for layer in range(layers):
            hidden, states, scores = made + 1, made + 2, made + 3
            made += 3
            then += [(hidden, 40 * MIB), (states, chunk * grown), (scores, chunk * MIB), (hidden, 0)]
            then += [(cache[layer][0], 0)] if layer in cache else []
            then.append((scores, 0))
            cache[layer] = states, chunk * grown
        found.append(Asked(begin, tuple(then)))
    return found


def alike(requests: Iterable[Request]) -> Iterator[Request]:
    """The same with storages numbered as they come."""
    numbers: dict[int, int] = {}
    return ((numbers.setdefault(name, len(numbers)), nbytes) for name, nbytes in requests)


def in_a_row(chunks: list[Asked]) -> list[Request]:
    return [*chunks[0].begin, *(request for each in chunks for request in each.then)]


@pytest.mark.parametrize("layers", [1, 3])
def test_chunks_that_did_not_run_ask_for_what_they_would_have(layers: int) -> None:
    chunks = run(12, layers=layers)
    found = repeated(chunks[-3], chunks[-2], chunks[-1], 9)
    assert found is not None
    # the first has nothing of a chunk before it to let go of, and does so in vain
    made = {name for name, nbytes in found if nbytes}
    assert list(alike(r for r in found if r[0] in made)) == list(alike(in_a_row(chunks)))


def test_gaps_of_a_cache_that_grows_from_chunk_to_chunk_are_seen() -> None:
    chunks = run(8, layers=3, grown=2 * MIB)
    found = repeated(chunks[-3], chunks[-2], chunks[-1], 5)
    assert found is not None
    alone = in_a_row(chunks[-1:])
    assert most_allocated(found) == most_allocated(alone)
    assert least_reserved(found) == least_reserved(in_a_row(chunks)) == 136 * MIB
    assert least_reserved(alone) == 124 * MIB


def test_of_a_great_many_chunks_the_latest_are_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    chunks = run(12)
    monkeypatch.setattr(module, "_MOST", 4 * len(chunks[-2].then))
    found = repeated(chunks[-3], chunks[-2], chunks[-1], 9)
    assert found is not None
    assert list(alike(found)) == list(alike(in_a_row(chunks[5:])))


def test_chunks_that_ask_for_other_things_tell_nothing_of_those_before() -> None:
    one, two, last = run(12)[-3:]
    assert repeated(one, Asked(two.begin, two.then[:-1]), last, 9) is None
    assert repeated(one, Asked(two.begin, (*two.then[1:], two.then[0])), last, 9) is None
