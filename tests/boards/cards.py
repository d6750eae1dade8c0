"""The gate to an accelerator: what is asked of it, and how CUDA answers. `pretended` answers without one."""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Protocol

from devctl.devices import Device
from devctl.errors import DevctlError
from devctl.models.footprint import Kernels
from tests.boards.records import MIB, Board, Box

if TYPE_CHECKING:
    import torch

    from devctl.inventory import Accelerator


class NoSegmentsError(DevctlError):
    """torch's allocator has no segments here that grow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What a process holds of a board, by the driver; ``how`` that was told. None where it is not."""

    nbytes: int | None
    how: str


class Card(Protocol):
    """One accelerator, as the instrument sees it. Sizes are bytes.

    Attributes:
        index: torch's number of it.
        simulated: it is none.
    """

    index: int
    simulated: bool

    @property
    def kernels(self) -> Kernels:
        """Whose kernels run on it."""

    @property
    def place(self) -> str:
        """torch's name of it."""

    def total(self) -> int:
        """What torch says there is in all."""

    def free(self) -> int:
        """What torch says is free."""

    def room(self) -> int:
        """What a plan may use: what was free before this process was there."""

    def overhead(self) -> int:
        """What a plan takes for the context and the libraries."""

    def board(self) -> Board:
        """What it is called, and what it has."""

    def allocated(self) -> int:
        """What tensors hold now."""

    def peak(self) -> int:
        """The most that they held since `forget`."""

    def reserved_now(self) -> int:
        """What the allocator holds for them now."""

    def reserved_peak(self) -> int:
        """The most that the allocator held for them since then."""

    def forget(self) -> None:
        """Count peaks anew."""

    def empty(self) -> None:
        """Give back what the allocator holds and no tensor uses."""

    def wait(self) -> None:
        """Until all that was asked for is done."""

    def retries(self) -> int:
        """How often the allocator has given back what it kept, as memory was short."""

    def limited(self, nbytes: int) -> AbstractContextManager[None]:
        """Within, the allocator may hold no more than this."""

    def segments(self, *, expandable: bool) -> AbstractContextManager[None]:
        """Within, the allocator takes memory in segments that grow, or as by default; afterwards as by default.

        Raises:
            NoSegmentsError: it has none that grow.
        """

    def running(self) -> AbstractContextManager[None]:
        """Within, models run."""

    def warm(self, dtypes: tuple[torch.dtype, ...]) -> None:
        """Let the libraries take what they keep, as a first product of matrices does."""

    def workspaces(self) -> int:
        """What torch allocates for libraries with a first product of matrices."""

    def held(self) -> Held:
        """What this process holds, its context and libraries too."""

    def tame(self, model: Any) -> None:
        """Keep a loaded model from what only other cards can do."""


def devctl_device(card: Card) -> Device:
    """The same in devctl's words."""
    return Device.gpu(card.index)


@dataclass(slots=True)
class CudaCard:
    """A board that CUDA drives."""

    index: int
    simulated: bool = False
    before: int | None = None
    """What the board held before this process made a context on it, by the driver."""
    was_free: int | None = None
    """What was free then."""

    @property
    def kernels(self) -> Kernels:
        from devctl.loading.run.expected import kernels_here

        return kernels_here(devctl_device(self))

    @property
    def place(self) -> str:
        return f"cuda:{self.index}"

    def total(self) -> int:
        import torch

        return int(torch.cuda.mem_get_info(self.index)[1])

    def free(self) -> int:
        import torch

        return int(torch.cuda.mem_get_info(self.index)[0])

    def room(self) -> int:
        return self.was_free or self.total()

    def overhead(self) -> int:
        from devctl.planning.question import MOST_OVERHEAD, OVERHEAD

        return OVERHEAD.get(self.board().compute_capability or "", MOST_OVERHEAD)

    def board(self) -> Board:
        import torch

        facts = torch.cuda.get_device_properties(self.index)
        capability = f"{facts.major}.{facts.minor}"
        return Board(name=facts.name, memory=facts.total_memory, compute_capability=capability)

    def allocated(self) -> int:
        import torch

        return int(torch.cuda.memory_allocated(self.index))

    def peak(self) -> int:
        import torch

        return int(torch.cuda.max_memory_allocated(self.index))

    def reserved_now(self) -> int:
        import torch

        return int(torch.cuda.memory_reserved(self.index))

    def reserved_peak(self) -> int:
        import torch

        return int(torch.cuda.max_memory_reserved(self.index))

    def forget(self) -> None:
        import torch

        torch.cuda.reset_peak_memory_stats(self.index)

    def empty(self) -> None:
        import torch

        torch.cuda.empty_cache()

    def wait(self) -> None:
        import torch

        torch.cuda.synchronize(self.index)

    def retries(self) -> int:
        import torch

        return int(torch.cuda.memory_stats(self.index).get("num_alloc_retries", 0))

    @contextmanager
    def segments(self, *, expandable: bool) -> Iterator[None]:
        import torch

        torch.cuda.empty_cache()  # or what comes would go into segments of the other kind
        _set_segments(expandable)
        try:
            if expandable and not self._grows():
                raise NoSegmentsError("torch's allocator has no expandable segments on this system")
            yield
        finally:
            _set_segments(False)
            torch.cuda.empty_cache()

    def _grows(self) -> bool:
        """Whether what is allocated now goes into a segment that grows: where the driver can't, torch only warns."""
        import torch

        tried = torch.empty(32 * MIB, dtype=torch.uint8, device=self.place)
        there = [each for each in torch.cuda.memory_snapshot() if each["device"] == self.index]
        del tried
        torch.cuda.empty_cache()
        return any(each.get("is_expandable") for each in there)

    @contextmanager
    def limited(self, nbytes: int) -> Iterator[None]:
        import torch

        total = torch.cuda.get_device_properties(self.index).total_memory
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(min(1.0, nbytes / total), self.index)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, self.index)

    @contextmanager
    def running(self) -> Iterator[None]:
        yield

    def warm(self, dtypes: tuple[torch.dtype, ...]) -> None:
        import torch

        for dtype in dtypes:
            one = torch.ones((128, 128), dtype=dtype, device=self.place)
            torch.addmm(one, one, one)
            heads = one.view(1, 1, 128, 128)
            torch.nn.functional.scaled_dot_product_attention(heads, heads, heads)
        self.wait()

    def workspaces(self) -> int:
        import torch

        gc.collect()  # what cells before held
        self.warm((torch.bfloat16, torch.float32))
        return self.allocated()

    def held(self) -> Held:
        board = look(self.index)
        if board is not None and (own := mine(board)) is not None:
            return Held(nbytes=own, how="the driver's figure of this process")
        if board is not None and board.memory_used is not None and self.before is not None:
            used = board.memory_used - self.before
            return Held(nbytes=used, how="the board's used memory, less what was used before")
        return Held(nbytes=None, how="the driver tells neither the process nor the board")

    def tame(self, model: Any) -> None:
        """It can do all."""


def _set_segments(expandable: bool) -> None:
    """Set what PYTORCH_CUDA_ALLOC_CONF would set; what is allocated stays where it is."""
    import torch

    with warnings.catch_warnings():
        # its successor in torch._C is not in every torch
        warnings.simplefilter("ignore")
        torch.cuda.memory._set_allocator_settings(f"expandable_segments:{expandable}")


def look(index: int) -> Accelerator | None:
    """A board as the driver tells it now, by devctl's own inventory; None where it does not tell that one."""
    from devctl.inventory import Part, take_inventory

    found = take_inventory(only=Part.GPU)
    return next((each for each in found.accelerators if each.device == Device.gpu(index)), None)


def mine(board: Accelerator) -> int | None:
    """Bytes of ``board`` that this process holds; None where the driver does not tell, or counts it by another number.

    Within a container the driver may know it by the host's number.
    """
    known = [process.memory for process in board.processes or () if process.pid == os.getpid() and process.memory]
    return max(known, default=None)


def open_cards() -> tuple[CudaCard, ...]:
    """All boards that torch can use, before a context is made on one of them."""
    import torch

    found = []
    for index in range(torch.cuda.device_count()):
        board = look(index)
        used, free = (None, None) if board is None else (board.memory_used, board.memory_free)
        found.append(CudaCard(index, before=used, was_free=free))
    return tuple(found)


PACKAGES = {
    "torch": "torch",
    "transformers": "transformers",
    "accelerate": "accelerate",
    "safetensors": "safetensors",
    "huggingface_hub": "huggingface-hub",
    "typer": "typer",
    "rich": "rich",
    "psutil": "psutil",
    "pynvml": "nvidia-ml-py",
}
"""What devctl imports, and what it is called by those who install it."""


def missing() -> tuple[str, ...]:
    """What has to be installed for devctl to run from a checkout."""
    return tuple(package for module, package in PACKAGES.items() if find_spec(module) is None)


def describe() -> Box:
    """This box, by what torch and the driver say."""
    if absent := missing():
        return Box(boards=(), versions={}, problem=f"packages are missing: pip install {' '.join(absent)}")
    import torch

    from devctl.inventory import Part, take_inventory

    found = take_inventory(only=Part.GPU)
    versions = {**packages(), "cuda of torch": str(torch.version.cuda or "none")}
    for driver in found.drivers:
        versions[f"driver of {driver.vendor}"] = str(driver.version or driver.fault)
    if not torch.cuda.is_available():
        return Box(boards=(), versions=versions, problem=_problem(torch, found.notes, found.drivers))
    boards = tuple(CudaCard(index).board() for index in range(torch.cuda.device_count()))
    return Box(boards=boards, versions=versions)


def _problem(torch: Any, notes: tuple[str, ...], drivers: tuple[Any, ...]) -> str:
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    faults = [driver.fault for driver in drivers if driver.fault]
    return "; ".join([f"torch {torch.__version__} finds no board that CUDA drives", *faults, *notes])


def packages() -> dict[str, str]:
    """Versions of what decides on the figures, as installed."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    import devctl

    found = {"devctl": devctl.__version__, "python": platform.python_version()}
    for name in ("torch", "transformers", "accelerate", "safetensors", "kernels", "flash-attn", "triton"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
