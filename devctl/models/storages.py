"""Births and deaths of storages while a model runs, and what they say of its blocks.

Imports torch: to be imported inside functions.
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
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
        inside: whether the model was running; what is made between two steps is no state of a block.
    """

    nbytes: int
    owner: str
    inside: bool


@dataclass(slots=True)
class Phase:
    """What happened in a phase: who was alive when it began, then births and deaths by turns."""

    begin: frozenset[int]
    events: list[tuple[int, bool]] = field(default_factory=list)


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows every storage that is made while it is active."""

    def __init__(self, ignored: Iterable[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.storages: list[Storage] = []
        self.phase = Phase(frozenset())
        self.executed: dict[str, None] = {}
        self.inside = False
        self._executing: list[str] = []
        self._ignored = {tensor.untyped_storage()._cdata for tensor in ignored}
        self._alive: dict[int, tuple[int, weakref.ref[Any]]] = {}

    def enter(self, owner: str) -> None:
        """The block ``owner`` begins to execute."""
        self._executing.append(owner)
        self.executed.setdefault(owner)

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
        out = func(*args, **(kwargs or {}))
        for leaf in (out,) if isinstance(out, torch.Tensor) else tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                storage = leaf.untyped_storage()
                if storage._cdata not in self._alive and storage._cdata not in self._ignored:
                    self._born(storage, args)
        if func in _SCRATCH:
            number = self._new(_SCRATCH[func](out), args)
            self.phase.events += [(number, True), (number, False)]
        return out

    def _new(self, nbytes: int, args: tuple[Any, ...]) -> int:
        owner = self._executing[-1] if self._executing else self._owner_of_largest(args)
        self.storages.append(Storage(nbytes=nbytes, owner=owner, inside=self.inside or bool(self._executing)))
        return len(self.storages) - 1

    def _born(self, storage: torch.UntypedStorage, args: tuple[Any, ...]) -> None:
        key, number = storage._cdata, self._new(storage.nbytes(), args)

        def died(_: Any) -> None:
            del self._alive[key]
            self.phase.events.append((number, False))

        self._alive[key] = number, weakref.ref(storage, died)
        self.phase.events.append((number, True))

    def _owner_of_largest(self, args: tuple[Any, ...]) -> str:
        """Between blocks an operation is done where its operands are."""
        largest = Storage(nbytes=-1, owner=MODEL, inside=False)
        for leaf in tree_leaves(args):
            if isinstance(leaf, torch.Tensor) and (found := self._alive.get(leaf.untyped_storage()._cdata)):
                largest = max(largest, self.storages[found[0]], key=lambda storage: storage.nbytes)
        return largest.owner


def states(recorder: Recorder, survivors: Iterable[int]) -> dict[str, int]:
    """Bytes by block of ``survivors``, without what belongs to no block."""
    found: dict[str, int] = defaultdict(int)
    for number in survivors:
        storage = recorder.storages[number]
        if _may_be_state(storage):
            found[storage.owner] += storage.nbytes
    return dict(found)


def _may_be_state(storage: Storage) -> bool:
    return storage.inside and storage.owner != MODEL


def peaks(recorder: Recorder, phase: Phase, survivors: frozenset[int], state: Mapping[str, int]) -> dict[str, int]:
    """The most bytes alive while each block executed, beside its own ``state`` and that of others.

    States of blocks that executed first after it did, which it finds when it executes again in a prefill, are among them.

    Args:
        survivors: storages that are alive when the next phase begins; ``state`` are their bytes.
    """
    storages = recorder.storages
    order = {name: position for position, name in enumerate(recorder.executed)}
    temporary = 0
    held: dict[str, int] = defaultdict(int)
    highest: dict[str, int] = {}

    def count(number: int, sign: int) -> None:
        nonlocal temporary
        storage = storages[number]
        if _may_be_state(storage) and (number in survivors or number in phase.begin):
            held[storage.owner] += sign * storage.nbytes
        else:
            temporary += sign * storage.nbytes

    for number in phase.begin:
        count(number, 1)
    is_prefill = not held
    for number, born in phase.events:
        count(number, 1 if born else -1)
        if born:
            owner = storages[number].owner
            # what the block's old state, or a growing one, holds beside its final state counts as well
            now = temporary + held[owner] - state.get(owner, 0)
            if is_prefill:
                place = order.get(owner, -1)
                now += sum(nbytes for name, nbytes in held.items() if order.get(name, -1) > place)
            highest[owner] = max(highest.get(owner, 0), now)
    return highest
