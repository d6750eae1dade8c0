"""Births and deaths of storages while a model runs, and what they say of its blocks.

Imports torch: to be imported inside functions.
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

MODEL = ""
"""The owner of what belongs to no block."""

_SCRATCH: dict[Any, Callable[[torch.Tensor], int]] = {
    # which rows are masked as a whole: a bool for each score
    torch.ops.aten._safe_softmax.default: lambda out: out.numel(),
}
"""Bytes that an operation takes beside its output, and gives back."""


@dataclass(slots=True, kw_only=True)
class Storage:
    """Bytes that were allocated at once.

    Attributes:
        owner: the block that executed then, or that the operands belong to.
        home: the block that it is state of, if it is: the owner, else the block that had executed last. So a model
            makes at once what all of its blocks then write to, on the device where the hidden states are.
        inside: whether the model was running; what is made between two steps is no state of a block.
    """

    nbytes: int
    owner: str
    home: str
    inside: bool


class _Event(Enum):
    BORN = 0
    DIED = 1
    ENTERED = 2


@dataclass(slots=True)
class Phase:
    """What happened in a phase: which storages were alive when it began, then what came to pass, with numbers of
    storages and names of blocks."""

    begin: frozenset[int]
    events: list[tuple[_Event, Any]] = field(default_factory=list)


class TooManyOperationsError(Exception):
    """More than the tracer has time for: the code loops over the sequence."""


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows every storage that is made while it is active, for ``most`` operations."""

    def __init__(self, ignored: Iterable[torch.Tensor], *, most: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.storages: list[Storage] = []
        self.phase = Phase(frozenset())
        self.executed: dict[str, None] = {}
        self.operations = 0
        self.inside = False
        self._most = most
        self._executing: list[str] = []
        self._latest = MODEL
        self._ignored = {tensor.untyped_storage()._cdata for tensor in ignored}
        self._alive: dict[int, tuple[int, weakref.ref[Any]]] = {}

    def enter(self, owner: str) -> None:
        """The block ``owner`` begins to execute."""
        self._executing.append(owner)
        self._latest = owner
        self.executed.setdefault(owner)
        self.phase.events.append((_Event.ENTERED, owner))

    def leave(self) -> None:
        """The block that entered last is done."""
        self._executing.pop()

    def alive(self) -> frozenset[int]:
        """Numbers of the storages that are alive."""
        return frozenset(number for number, _ in self._alive.values())

    def next_phase(self) -> Phase:
        """Begin a phase; returns the one that it ends."""
        ended, self.phase = self.phase, Phase(self.alive())
        return ended

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.operations += 1
        if self.operations > self._most:
            raise TooManyOperationsError
        out = func(*args, **(kwargs or {}))
        for leaf in (out,) if isinstance(out, torch.Tensor) else tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                storage = leaf.untyped_storage()
                if storage._cdata not in self._alive and storage._cdata not in self._ignored:
                    self._born(storage, args)
        if func in _SCRATCH:
            number = self._new(_SCRATCH[func](out), args)
            self.phase.events += [(_Event.BORN, number), (_Event.DIED, number)]
        return out

    def _new(self, nbytes: int, args: tuple[Any, ...]) -> int:
        owner = self._executing[-1] if self._executing else self._owner_of_largest(args)
        inside = self.inside or bool(self._executing)
        self.storages.append(Storage(nbytes=nbytes, owner=owner, home=owner or self._latest, inside=inside))
        return len(self.storages) - 1

    def _born(self, storage: torch.UntypedStorage, args: tuple[Any, ...]) -> None:
        key, number = storage._cdata, self._new(storage.nbytes(), args)

        def died(_: Any) -> None:
            del self._alive[key]
            self.phase.events.append((_Event.DIED, number))

        self._alive[key] = number, weakref.ref(storage, died)
        self.phase.events.append((_Event.BORN, number))

    def _owner_of_largest(self, args: tuple[Any, ...]) -> str:
        """Between blocks an operation is done where its operands are."""
        largest = Storage(nbytes=-1, owner=MODEL, home=MODEL, inside=False)
        for leaf in tree_leaves(args):
            if isinstance(leaf, torch.Tensor) and (found := self._alive.get(leaf.untyped_storage()._cdata)):
                largest = max(largest, self.storages[found[0]], key=lambda storage: storage.nbytes)
        return largest.owner


def states(recorder: Recorder, survivors: Iterable[int], twins: Mapping[str, str]) -> dict[str, int]:
    """Bytes by block of ``survivors``, without what has no home; a twin has what its original made too."""
    found: dict[str, int] = defaultdict(int)
    made: dict[str, int] = defaultdict(int)
    for number in survivors:
        storage = recorder.storages[number]
        if _may_be_state(storage):
            found[storage.home] += storage.nbytes
            made[storage.owner] += storage.nbytes
    for name, original in twins.items():
        found[name] += made.get(original, 0)
    return {name: nbytes for name, nbytes in found.items() if nbytes}


def _may_be_state(storage: Storage) -> bool:
    return storage.inside and storage.home != MODEL


def peaks(
    recorder: Recorder, phase: Phase, survivors: frozenset[int], state: Mapping[str, int], twins: Mapping[str, str]
) -> dict[str, int]:
    """The most bytes alive while each block executed, beside its own ``state`` and that of others.

    In a prefill the states of blocks that executed first after it did, which it finds when it executes again, are among
    them.

    Args:
        survivors: storages that are alive when the next phase begins; ``state`` are their bytes.
        twins: the original of each block that did not really execute.
    """
    storages = recorder.storages
    order = {name: position for position, name in enumerate(recorder.executed)}
    temporary = 0
    held: dict[str, int] = defaultdict(int)
    highest: dict[str, int] = {}
    found: dict[str, int] = {}  # what was alive when a block began
    furthest = -1

    def count(number: int, sign: int) -> None:
        nonlocal temporary
        storage = storages[number]
        if _may_be_state(storage) and (number in survivors or number in phase.begin):
            held[storage.home] += sign * storage.nbytes
        else:
            temporary += sign * storage.nbytes

    for number in phase.begin:
        count(number, 1)
    is_prefill = not held
    for event, what in phase.events:
        if event is _Event.ENTERED:
            found[what] = temporary
            furthest = max(furthest, order[what])
            continue
        count(what, 1 if event is _Event.BORN else -1)
        if event is _Event.BORN:
            owner = storages[what].owner
            # what the block's old state, or a growing one, holds beside its final state counts as well
            now = temporary + held[owner] - state.get(owner, 0)
            place = order.get(owner, -1)
            if is_prefill and place < furthest:
                now += sum(held[twins.get(name, name)] for name in found if order[name] > place)
            highest[owner] = max(highest.get(owner, 0), now)
    for name, original in twins.items():
        if original in highest and name in found:
            highest[name] = highest[original] - found[original] + found[name]
    return highest


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """The tensors in a model's output."""
    if isinstance(value, torch.Tensor):
        yield value
    elif hasattr(value, "values"):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_in(item)
