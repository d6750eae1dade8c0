"""Random weights, made one tensor at a time as the loader asks for it."""

from __future__ import annotations

import math
import zlib
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from devctl.models.tree import ModuleTree, Tensor, TensorKind, tensors

if TYPE_CHECKING:
    import torch

_POOL = 2**22
"""Random numbers drawn once; each tensor starts at its own place in them."""


def dummy_weights(tree: ModuleTree) -> dict[str, Any]:
    """A state dict of random parameters that takes no memory until a tensor is sliced, as a safetensors file does.

    Matrices are normal with a standard deviation of 0.02, as most models are initialised; vectors called weight are 1,
    as a norm's scale is, and other vectors 0. The same model gets the same weights.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    numbers = torch.randn(_POOL, generator=generator) * 0.02
    pools = {dtype: numbers.to(getattr(torch, dtype)).repeat(2) for dtype in _floating_dtypes(tree)}
    targets = {target for target, _ in tree.ties}
    return {
        t.name: _DummyTensor(tensor=t, pool=pools.get(t.dtype))
        for t in tensors(tree.root)
        if t.kind is TensorKind.PARAMETER and t.name not in targets
    }


def bytes_beside(tree: ModuleTree, stay: Collection[str]) -> int:
    """What making them takes for itself: the numbers that all start from, and one tensor on its way elsewhere.

    Args:
        stay: names of the tensors that stay in RAM.
    """
    import torch

    pools: int = sum(2 * getattr(torch, dtype).itemsize for dtype in _floating_dtypes(tree))
    return _POOL * (4 + pools) + max((t.nbytes for t in tensors(tree.root) if t.name not in stay), default=0)


def _floating_dtypes(tree: ModuleTree) -> list[str]:
    import torch

    return sorted({t.dtype for t in tensors(tree.root) if getattr(torch, t.dtype).is_floating_point})


@dataclass(frozen=True, slots=True, kw_only=True)
class _DummyTensor:
    """What transformers asks of a lazy tensor: ``[...]`` makes it. ``pool`` is None for integers, which are 0."""

    tensor: Tensor
    pool: torch.Tensor | None

    def __getitem__(self, index: object) -> torch.Tensor:
        import torch

        shape = self.tensor.shape
        if self.pool is None or len(shape) < 2:
            scale = self.pool is not None and self.tensor.name.endswith("weight")
            return torch.full(shape, int(scale), dtype=getattr(torch, self.tensor.dtype))
        count = math.prod(shape)
        start = zlib.crc32(self.tensor.name.encode()) % _POOL
        # in parts, so that it takes no more memory than the tensor has
        made = torch.empty(count, dtype=self.pool.dtype)
        for at in range(0, count, _POOL):
            part = min(_POOL, count - at)
            made[at : at + part] = self.pool[start : start + part]
        return made.reshape(shape)
