"""The most that is alive while each block of a model executes, from the births and deaths of storages.

Imports torch: to be imported inside functions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from devctl.models.tracing.recorder import Event, Phase, Recorder, may_be_state


@dataclass(slots=True)
class Peaks:
    """The most bytes alive while each block executed.

    Attributes:
        beside: those beside its own state and those of blocks before it; in a step after prefill, beside all states.
        again: the same, beside all states, where it executes once more in prefill after blocks behind it.
        apart: by block and another, how much ``beside`` changes with the other on another device: a state of the
            other's that the block is given is copied from there, and what it is not given lives there.
        square: those among the most of ``beside`` that grow with the square of the text.
    """

    beside: dict[str, int] = field(default_factory=dict)
    again: dict[str, int] = field(default_factory=dict)
    apart: dict[str, dict[str, int]] = field(default_factory=dict)
    square: int = 0


def peaks(
    recorder: Recorder, phase: Phase, survivors: frozenset[int], state: Mapping[str, int], twins: Mapping[str, str]
) -> Peaks:
    """The most bytes alive while each block executed in ``phase``.

    Args:
        survivors: storages that are alive when the next phase begins; ``state`` are their bytes.
        twins: the original of each block that did not really execute.
    """
    account = _Account(recorder, phase, survivors, state)
    for event, what in phase.events:
        if event is Event.ENTERED:
            name, given = what
            account.enter(name, given)
            if name in twins:
                account.keep_apart(name)
        elif event is Event.LEFT:
            account.executing.remove(what)
        elif event is Event.BORN:
            account.born(what)
        else:
            account.count(what, -1)
    for name, original in twins.items():
        for figures in (account.found.beside, account.found.again):
            if name in account.begun and original in figures:
                figures[name] = figures[original] - account.begun[original] + account.begun[name]
    return account.found


class _Account:
    """What is alive as a phase goes on, and the most of it so far."""

    def __init__(self, recorder: Recorder, phase: Phase, survivors: frozenset[int], state: Mapping[str, int]) -> None:
        self.found = Peaks()
        self.executing: list[str] = []
        self.begun: dict[str, int] = {}
        """Bytes that were alive when a block began."""
        self._storages = recorder.storages
        self._order = {name: position for position, name in enumerate(recorder.executed)}
        self._lasting = survivors | phase.begin
        self._state = state
        self._temporary: set[int] = set()
        self._bytes = self._square = self._most = 0
        self._held: dict[str, int] = defaultdict(int)
        self._others: dict[str, dict[int, int]] = {}
        self._furthest = -1
        for number in phase.begin:
            self.count(number, 1)
        self._is_prefill = not self._held

    def count(self, number: int, sign: int) -> None:
        """A storage is alive from now on, or no more."""
        storage = self._storages[number]
        if self._is_state(number):
            self._held[storage.home] += sign * storage.nbytes
            return
        self._bytes += sign * storage.nbytes
        self._square += sign * storage.nbytes * storage.square
        (self._temporary.add if sign > 0 else self._temporary.discard)(number)

    def _is_state(self, number: int) -> bool:
        return number in self._lasting and may_be_state(self._storages[number])

    def _place(self, number: int) -> str:
        storage = self._storages[number]
        return storage.home if self._is_state(number) else storage.owner

    def enter(self, name: str, given: frozenset[int]) -> None:
        """A block begins, which is given some storages."""
        self.executing.append(name)
        self.begun[name] = self._bytes
        self._furthest = max(self._furthest, self._order[name])
        sizes = {number: -self._storages[number].nbytes for number in sorted(self._temporary - given)}
        sizes |= {number: self._storages[number].nbytes for number in given if self._is_state(number)}
        self._others[name] = {n: nbytes for n, nbytes in sizes.items() if self._place(n) != name}

    def born(self, number: int) -> None:
        """A storage is made, perhaps when the block that it belongs to has more alive than ever."""
        self.count(number, 1)
        owner = self._storages[number].owner
        # what the block's old state, or a growing one, holds beside its final state counts as well
        now = self._bytes + self._held[owner] - self._state.get(owner, 0)
        if self._is_prefill and self._order.get(owner, -1) < self._furthest:
            self.found.again[owner] = max(self.found.again.get(owner, 0), now)
        elif now > self.found.beside.get(owner, 0):
            self.found.beside[owner] = now
            if now > self._most:
                self._most, self.found.square = now, self._square
            if owner not in self.executing:
                self._others[owner] = {}
            self.keep_apart(owner)

    def keep_apart(self, name: str) -> None:
        """Keep what others have a part in of what is alive now."""
        sums: dict[str, int] = defaultdict(int)
        for number, nbytes in self._others[name].items():
            if nbytes > 0 or number in self._temporary:
                sums[self._place(number)] += nbytes
        self.found.apart[name] = sums
