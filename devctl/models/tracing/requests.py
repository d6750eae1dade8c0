"""What is asked of a device's allocator in a phase in which all blocks run there, those too that only answered.

Blocks that are alike answer for one another (see `twins`): of a hundred layers two execute. What the others would have
asked for is what those did: the same temporaries, and states of their own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping

from devctl.models.tracing.recorder import Event, Phase, Recorder, may_be_state
from devctl.models.tracing.segments import Request


def requests(
    recorder: Recorder, phase: Phase, survivors: frozenset[int], twins: Mapping[str, str]
) -> tuple[Request, ...]:
    """The storages that are made and let go of in ``phase``, in their order; first those that it begins with.

    Args:
        survivors: storages that are alive when the next phase begins.
        twins: the original of each block that did not really execute.
    """
    return tuple(_Phase(recorder, phase, survivors, twins).requests())


class _Phase:
    def __init__(self, recorder: Recorder, phase: Phase, survivors: frozenset[int], twins: Mapping[str, str]) -> None:
        self._storages = recorder.storages
        self._phase = phase
        self._survivors = survivors
        self._twins = twins
        self._copies: dict[tuple[str, int], int] = {}

    def requests(self) -> Iterator[Request]:
        answering: dict[str, list[str]] = defaultdict(list)
        for twin, original in self._twins.items():
            answering[original].append(twin)
        for number in sorted(self._phase.begin):
            storage = self._storages[number]
            yield number, storage.nbytes
            if may_be_state(storage):
                yield from ((self._copy(twin, number), storage.nbytes) for twin in answering[storage.owner])
        within = self._within(set(answering))
        for event, what in self._phase.events:
            if event is Event.BORN and self._storages[what].nbytes:
                yield what, self._storages[what].nbytes
            elif event is Event.DIED:
                yield what, 0
            elif event is Event.ENTERED and what[0] in self._twins:
                for number, nbytes in within.get(self._twins[what[0]], ()):
                    yield self._copy(what[0], number), nbytes

    def _copy(self, twin: str, number: int) -> int:
        """The storage that a block has in place of the one that its original has."""
        return self._copies.setdefault((twin, number), len(self._storages) + len(self._copies))

    def _within(self, originals: set[str]) -> dict[str, list[Request]]:
        """What each of ``originals`` asked for while it executed, without what it handed on."""
        found: dict[str, list[Request]] = {}
        events: list[tuple[Event, int]] | None = None
        for event, what in self._phase.events:
            if event is Event.ENTERED and what[0] in originals:
                events = []
            elif event is Event.LEFT and what in originals and events is not None:
                found[what] = list(self._own(what, events))
                events = None
            elif events is not None and event in {Event.BORN, Event.DIED}:
                events.append((event, what))
        return found

    def _own(self, block: str, events: list[tuple[Event, int]]) -> Iterator[Request]:
        born = {number for event, number in events if event is Event.BORN}
        died = {number for event, number in events if event is Event.DIED}
        for event, number in events:
            storage = self._storages[number]
            is_state = may_be_state(storage) and storage.owner == block
            lasts = is_state and number in self._survivors
            if event is Event.BORN and storage.nbytes and (number in died or lasts):
                yield number, storage.nbytes
            elif event is Event.DIED and (number in born or (is_state and number in self._phase.begin)):
                yield number, 0
