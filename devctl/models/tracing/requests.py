"""What is asked of a device's allocator in a phase in which all blocks run there, those too that only answered.

Blocks that are alike answer for one another (see `twins`): of a hundred layers two execute. What the others would have
asked for is what those did: the same temporaries, and states of their own. So do chunks of a prompt: of a hundred the
last ones run, and what those before them asked for is what these did, with sizes that go on as they went.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from devctl.models.tracing.recorder import Event, Phase, Recorder, may_be_state
from devctl.models.tracing.segments import Request

_MOST = 25_000
"""Requests of chunks that did not run, at most: they take a second or two, and gaps grow little after them."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked for in a phase: first the storages that it begins with, then those made and let go of."""

    begin: tuple[Request, ...]
    then: tuple[Request, ...]


def requests(
    recorder: Recorder,
    phases: Sequence[tuple[Phase, frozenset[int]]],
    twins: Mapping[str, str],
    stands_for: int = 0,
) -> tuple[Request, ...]:
    """The storages that are made and let go of in ``phases``, in their order; first those that the first begins with.

    Args:
        phases: one after another, each with the storages that are alive when the next begins.
        twins: the original of each block that did not really execute.
        stands_for: equal chunks of a prompt that the first phase read in one go; those behind it read one each, and the
            last phase what was left. 0 where each phase is what it is.
    """
    copies: dict[tuple[str, int], int] = {}
    asked = [_Phase(recorder, phase, survivors, twins, copies).asked() for phase, survivors in phases]
    if stands_for and len(asked) == 4:
        _, one, two, last = asked
        if (found := repeated(one, two, last, stands_for)) is not None:
            return found
    first = 1 if stands_for and len(asked) > 1 else 0  # what was read in one go left other gaps
    return (*asked[first].begin, *(request for each in asked[first:] for request in each.then))


def repeated(one: Asked, two: Asked, last: Asked, times: int) -> tuple[Request, ...] | None:
    """The requests of ``times`` chunks, as those of the chunks ``one`` and ``two`` go on backwards; then of all three.

    Of a great many only the latest are followed, which begin without a gap.

    Returns:
        None where the two do not ask for the same, one by one.
    """
    made_before = {name: at for at, (name, nbytes) in enumerate(one.then) if nbytes}
    made = {name: at for at, (name, nbytes) in enumerate(two.then) if nbytes}
    if [bool(nbytes) for _, nbytes in one.then] != [bool(nbytes) for _, nbytes in two.then]:
        return None
    followed = min(times, _MOST // max(1, len(two.then)))
    free = 1 + max((name for each in (one, two, last) for name, _ in (*each.begin, *each.then)), default=0)

    def named(chunk: int, at: int) -> int:
        """The storage that is made at one place of a chunk; the one before ``one`` of all has number 0."""
        return free + chunk * len(two.then) + at

    def nbytes_of(chunk: int, at: int) -> int:
        """Its bytes, on the line through those of the two chunks."""
        before, now = one.then[at][1], two.then[at][1]
        return max(0, now + (now - before) * (chunk - followed - 2))

    # what ``one`` lets go of at places where ``two`` lets go of what ``one`` made is what a chunk leaves to the next
    left = {one.then[at][0] for at, (name, nbytes) in enumerate(two.then) if not nbytes and name in made_before}
    found = [request for request in one.begin if request[0] not in left]
    if followed < times:
        handed = {made_before[name] for name, nbytes in two.then if not nbytes and name in made_before}
        found += [(named(0, at), nbytes_of(0, at)) for at in sorted(handed)]
    for chunk in range(1, followed + 3):
        for at, (name, nbytes) in enumerate(two.then):
            if nbytes:
                size = nbytes_of(chunk, at)
                found += [(named(chunk, at), size)] if size else []
            elif name in made:
                found.append((named(chunk, made[name]), 0))
            elif name in made_before:
                found.append((named(chunk - 1, made_before[name]), 0))
            else:
                found.append((name, 0))
    found += [(named(followed + 2, made[name]) if name in made else name, nbytes) for name, nbytes in last.then]
    return tuple(found)


class _Phase:
    def __init__(
        self,
        recorder: Recorder,
        phase: Phase,
        survivors: frozenset[int],
        twins: Mapping[str, str],
        copies: dict[tuple[str, int], int],
    ) -> None:
        self._storages = recorder.storages
        self._phase = phase
        self._survivors = survivors
        self._twins = twins
        self._copies = copies
        self._answering: dict[str, list[str]] = defaultdict(list)
        for twin, original in twins.items():
            self._answering[original].append(twin)

    def asked(self) -> Asked:
        return Asked(tuple(self._begin()), tuple(self._then()))

    def _begin(self) -> Iterator[Request]:
        for number in sorted(self._phase.begin):
            storage = self._storages[number]
            yield number, storage.nbytes
            if may_be_state(storage):
                yield from ((self._copy(twin, number), storage.nbytes) for twin in self._answering[storage.owner])

    def _then(self) -> Iterator[Request]:
        within = self._within(set(self._answering))
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
        """What each of ``originals`` asked for while it executed; what it handed on is let go of when it ends."""
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
        handed_on = []
        for event, number in events:
            storage = self._storages[number]
            is_state = may_be_state(storage) and storage.owner == block
            lasts = is_state and number in self._survivors
            if event is Event.BORN and storage.nbytes:
                yield number, storage.nbytes
                if number not in died and not lasts:
                    handed_on.append(number)
            elif event is Event.DIED and (number in born or (is_state and number in self._phase.begin)):
                yield number, 0
        # the storages in which the block answers take their place
        yield from ((number, 0) for number in handed_on)
