"""Births and deaths of storages while a model runs, and what they say of its blocks.

Imports torch: to be imported inside functions.
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from devctl.models.tracing.cpu_scratch import of_flash_attention

_PADDED = 16
"""To a multiple of this, kernels pad a mask."""

MODEL = ""
"""The owner of what belongs to no block."""


def _converts(args: tuple[Any, ...], out: Any) -> bool:
    """Whether a sum is of a mask, which is converted to integers first."""
    return args[0].dtype is torch.bool and out.dtype is not torch.bool


_REORDER = torch.ops.aten.index_select.default
"""How a cache follows its beams from one step to the next."""

_SCRATCH: dict[Any, Callable[[tuple[Any, ...], Any], int]] = {
    # which rows are masked as a whole: a bool for each score
    torch.ops.aten._safe_softmax.default: lambda _, out: int(out.numel()),
    torch.ops.aten.sum.dim_IntList: lambda args, out: (
        int(args[0].numel() * out.itemsize) if _converts(args, out) else 0
    ),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default: lambda args, _: of_flash_attention(*args),
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
        square: whether it grows with the square of the text: two of its dimensions are as long, or padded from that.
    """

    nbytes: int
    owner: str
    home: str
    inside: bool
    square: bool = False


class Event(Enum):
    """What came to pass."""

    BORN = 0
    DIED = 1
    ENTERED = 2
    LEFT = 3


@dataclass(slots=True)
class Phase:
    """What happened in a phase: which storages were alive when it began, then what came to pass, with numbers of
    storages, or names of blocks and the storages that they were given."""

    begin: frozenset[int]
    events: list[tuple[Event, Any]] = field(default_factory=list)


class TooManyOperationsError(Exception):
    """More than the tracer has time for: the code loops over the sequence."""

    def __init__(self, most: int) -> None:
        super().__init__(f"it takes more than {most} operations")


def _of_sort(args: tuple[Any, ...], out: Any, *, on_accelerator: bool) -> int:
    """What sorting takes: positions of a row on the CPU.

    CUDA sorts all rows at once, with a second copy of keys and positions to go to and fro between, and where there are
    several rows, positions within them (``SortStable.cu``, ``radix_sort_pairs``).
    """
    values, positions = out
    length = values.shape[-1] if values.dim() else 1
    if not on_accelerator:
        return int(length * positions.itemsize)
    if length <= _SORTED_IN_PLACE:
        return 0
    rows = values.numel() // max(1, length)
    return int(values.numel() * (values.itemsize + (2 if rows == 1 else 3) * positions.itemsize))


def _of_promotion(args: tuple[Any, ...]) -> int:
    """Bytes of the operands that the CPU converts first to the dtype that it computes in (``TensorIterator.cpp``)."""
    operands = [each for each in args if isinstance(each, torch.Tensor) and each.dim()]
    if len({operand.dtype for operand in operands}) < 2:
        return 0
    wide = torch.promote_types(operands[0].dtype, operands[1].dtype)
    return sum(operand.numel() * wide.itemsize for operand in operands if operand.dtype != wide)


_ELEMENTWISE = {torch.ops.aten.add.Tensor, torch.ops.aten.sub.Tensor, torch.ops.aten.mul.Tensor}
_ELEMENTWISE |= {torch.ops.aten.div.Tensor, torch.ops.aten.add_.Tensor, torch.ops.aten.mul_.Tensor}

_SORTED_IN_PLACE = 4096
"""CUDA sorts rows of up to so many values without a copy."""
_SORTS = {torch.ops.aten.sort.default, torch.ops.aten.sort.stable}


class Recorder:
    """Follows every storage that is made, for ``most`` operations; it is told of each by `FakeWorld`.

    Args:
        ignored: the weights.
        length: tokens of the text.
        on_accelerator: whose kernels run.
        promoting: whether operands of several dtypes are met, as beside adapters, of which the CPU makes copies.
    """

    def __init__(
        self,
        ignored: Collection[torch.Tensor],
        *,
        length: int,
        most: int,
        on_accelerator: bool = False,
        promoting: bool = False,
    ) -> None:
        of_weights = {size for tensor in ignored for size in tensor.shape}
        self._as_long = frozenset(range(length, length + _PADDED)) - of_weights
        self.storages: list[Storage] = []
        self.phase = Phase(frozenset())
        self.executed: dict[str, None] = {}
        self.operations = 0
        self.inside = False
        self.held = 0
        """Bytes that are alive."""
        self._most = most
        self._on_accelerator = on_accelerator
        self._promoting = promoting and not on_accelerator
        self._executing: list[str] = []
        self._latest = MODEL
        self._ignored = {tensor.untyped_storage()._cdata for tensor in ignored}
        self._alive: dict[int, tuple[int, weakref.ref[Any]]] = {}
        self._reordered: dict[int, tuple[int, int]] = {}
        """By a storage: the one that takes its place when it dies, and the number that this has until then."""

    def enter(self, owner: str, given: Any = ()) -> None:
        """The block ``owner`` begins to execute, with what it is ``given``."""
        keys = {leaf.untyped_storage()._cdata for leaf in tree_leaves(given) if isinstance(leaf, torch.Tensor)}
        self._executing.append(owner)
        self._latest = owner
        self.executed.setdefault(owner)
        numbers = frozenset(self._alive[key][0] for key in keys if key in self._alive)
        self.phase.events.append((Event.ENTERED, (owner, numbers)))

    def leave(self) -> None:
        """The block that entered last is done."""
        self.phase.events.append((Event.LEFT, self._executing.pop()))

    def alive(self, *, but: Collection[int] = ()) -> frozenset[int]:
        """Numbers of the storages that are alive, without those at the addresses of ``but``."""
        return frozenset(number for address, (number, _) in self._alive.items() if address not in but)

    def next_phase(self) -> Phase:
        """Begin a phase; returns the one that it ends."""
        ended, self.phase = self.phase, Phase(self.alive())
        return ended

    def begin(self) -> None:
        """An operation begins.

        Raises:
            TooManyOperationsError: it is one too many.
        """
        self.operations += 1
        if self.operations > self._most:
            raise TooManyOperationsError(self._most)

    def end(self, func: Any, args: tuple[Any, ...], out: Any) -> None:
        """The operation ``func`` was done on ``args``, and gave ``out``."""
        for tensor in operands((out,)):
            storage = tensor.untyped_storage()
            if storage._cdata not in self._alive and storage._cdata not in self._ignored:
                self._born(storage, tensor.shape, args)
                if func is _REORDER and not self._executing:
                    self._take_place(args[0].untyped_storage()._cdata, storage._cdata)
        scratch = _SCRATCH[func](args, out) if func in _SCRATCH else None
        if func in _SORTS:
            scratch = _of_sort(args, out, on_accelerator=self._on_accelerator)
        if self._promoting and func in _ELEMENTWISE and (copied := _of_promotion(args)):
            scratch = copied
        if scratch is not None:
            number = self._new(scratch, (), args)
            self.phase.events += [(Event.BORN, number), (Event.DIED, number)]

    def _new(self, nbytes: int, shape: Sequence[int], args: tuple[Any, ...]) -> int:
        owner = self._executing[-1] if self._executing else self._owner_of_largest(args)
        inside = self.inside or bool(self._executing)
        home, square = owner or self._latest, sum(size in self._as_long for size in shape) > 1
        self.storages.append(Storage(nbytes=nbytes, owner=owner, home=home, inside=inside, square=square))
        return len(self.storages) - 1

    def _born(self, storage: torch.UntypedStorage, shape: Sequence[int], args: tuple[Any, ...]) -> None:
        nbytes = storage.nbytes()
        key, number = storage._cdata, self._new(nbytes, shape, args)
        self.held += nbytes

        def died(_: Any) -> None:
            ended, _ = self._alive.pop(key)
            heir = self._reordered.pop(key, None)
            if heir is not None and heir[0] in self._alive:
                self._alive[heir[0]] = ended, self._alive[heir[0]][1]
                ended = heir[1]
            self.phase.events.append((Event.DIED, ended))
            self.held -= nbytes

        self._alive[key] = number, weakref.ref(storage, died)
        self.phase.events.append((Event.BORN, number))

    def _take_place(self, old: int, new: int) -> None:
        """Of a state that beams reorder, a copy takes the place: the same state, which is there twice in between."""
        if old in self._alive and self.storages[self._alive[old][0]].inside:
            self._reordered[old] = new, self._alive[new][0]

    def _owner_of_largest(self, args: tuple[Any, ...]) -> str:
        """Between blocks an operation is done where its operands are."""
        largest = Storage(nbytes=-1, owner=MODEL, home=MODEL, inside=False)
        for tensor in operands(args):
            if found := self._alive.get(tensor.untyped_storage()._cdata):
                largest = max(largest, self.storages[found[0]], key=lambda storage: storage.nbytes)
        return largest.owner


def states(recorder: Recorder, survivors: Iterable[int], twins: Mapping[str, str]) -> dict[str, int]:
    """Bytes by block of ``survivors``, without what has no home; a twin has what its original made too."""
    found: dict[str, int] = defaultdict(int)
    made: dict[str, int] = defaultdict(int)
    for number in survivors:
        storage = recorder.storages[number]
        if may_be_state(storage):
            found[storage.home] += storage.nbytes
            made[storage.owner] += storage.nbytes
    for name, original in twins.items():
        found[name] += made.get(original, 0)
    return {name: nbytes for name, nbytes in found.items() if nbytes}


def may_be_state(storage: Storage) -> bool:
    """Whether it is state if it outlives its step."""
    return storage.inside and storage.home != MODEL


def operands(args: Iterable[Any]) -> list[torch.Tensor]:
    """The tensors among the arguments or results of an operation: each is by itself or in a list."""
    found: list[torch.Tensor] = []
    for each in args:
        if isinstance(each, torch.Tensor):
            found.append(each)
        elif isinstance(each, list | tuple):
            found += operands(each)
    return found


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
