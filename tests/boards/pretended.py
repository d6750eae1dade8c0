"""Cards that are none: simulated devices of torch, whose account of bytes answers, with the kernels of the CPU.

They prove the instrument, and nothing about a board: what they hold follows from the shapes that a plan is made of.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from devctl.devices import Device
from devctl.models.footprint import Kernels
from tests.boards.cards import Held, packages
from tests.boards.records import Board, Box

if TYPE_CHECKING:
    import torch

TOTAL = 4 * 2**30
"""What each is said to have in all."""

COUNT = 2
BOARD = Board(name="simulated", memory=TOTAL, compute_capability=None)
CONTEXT = 100 * 2**20
"""What a process is said to hold beside its tensors."""


@dataclass(slots=True)
class PretendedCard:
    """A simulated device."""

    index: int
    simulated: bool = True
    kernels: Kernels = Kernels.CPU
    said_room: int = TOTAL
    """What a plan is told that it may use."""

    @property
    def place(self) -> str:
        return f"sim:{self.index}"

    @property
    def _memory(self) -> Any:
        from tests import simulated

        return simulated.memory

    def total(self) -> int:
        return TOTAL

    def free(self) -> int:
        return TOTAL - self.reserved_now() - CONTEXT

    def room(self) -> int:
        return self.said_room

    def overhead(self) -> int:
        return CONTEXT

    def board(self) -> Board:
        return BOARD

    def allocated(self) -> int:
        return int(self._memory.live[self.index])

    def peak(self) -> int:
        return int(max(self._memory.peak.get(self.index, 0), self.allocated()))

    def reserved_now(self) -> int:
        return self.peak()  # as an allocator that gives nothing back

    def reserved_peak(self) -> int:
        step = 2 * 2**20  # as CUDA's allocator asks for memory: in whole segments
        return -(-self.peak() // step) * step

    def forget(self) -> None:
        self._memory.begin()

    def empty(self) -> None:
        self._memory.begin()

    def wait(self) -> None:
        """All is done at once."""

    def retries(self) -> int:
        return 0

    @contextmanager
    def segments(self, *, expandable: bool) -> Iterator[None]:
        yield  # this account has no gaps

    @contextmanager
    def limited(self, nbytes: int) -> Iterator[None]:
        before, self._memory.limit = self._memory.limit, nbytes
        try:
            yield
        finally:
            self._memory.limit = before

    @contextmanager
    def running(self) -> Iterator[None]:
        from tests import simulated

        with simulated.Mode(), simulated.Functions():
            yield

    def warm(self, dtypes: tuple[torch.dtype, ...]) -> None:
        """The CPU's kernels keep nothing there."""

    def workspaces(self) -> int:
        return 0

    def held(self) -> Held:
        return Held(nbytes=self.peak() + CONTEXT, how="made up")

    def tame(self, model: Any) -> None:
        # generate gathers experts on accelerators, with kernels that these have not
        model._optimize_model_for_decode = nullcontext


def open_cards() -> tuple[PretendedCard, ...]:
    """Register the devices, for the rest of this process, and let devctl know them by the numbers of GPUs."""
    os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"  # torch's modes are those of one thread
    import torch

    from devctl.loading.proofs import places
    from devctl.loading.weights import loader
    from tests import simulated

    torch.set_num_threads(1)
    simulated.register()
    to_device = loader.to_device

    def told(device: torch.device | int | str) -> Device:
        kind = torch.device("sim", device) if isinstance(device, int) else torch.device(device)
        return Device.gpu(kind.index or 0) if kind.type == "sim" else to_device(device)

    for module in (places, loader):
        vars(module)["to_device"] = told
    return tuple(PretendedCard(index) for index in range(COUNT))


def describe() -> Box:
    """Two boards that nobody sells."""
    return Box(boards=(BOARD,) * COUNT, versions=packages(), simulated=True)
