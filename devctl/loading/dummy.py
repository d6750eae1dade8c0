"""Random weights, made one tensor at a time as the loader asks for it."""

from __future__ import annotations

import math
import zlib
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
    pool = torch.randn(_POOL, generator=generator) * 0.02
    targets = {target for target, _ in tree.ties}
    return {
        t.name: _DummyTensor(tensor=t, pool=pool)
        for t in tensors(tree.root)
        if t.kind is TensorKind.PARAMETER and t.name not in targets
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class _DummyTensor:
    """What transformers asks of a lazy tensor: ``[...]`` makes it."""

    tensor: Tensor
    pool: torch.Tensor

    def __getitem__(self, index: object) -> torch.Tensor:
        import torch

        shape, dtype = self.tensor.shape, getattr(torch, self.tensor.dtype)
        if len(shape) < 2 or not dtype.is_floating_point:
            scale = dtype.is_floating_point and self.tensor.name.endswith("weight")
            return torch.full(shape, float(scale), dtype=dtype)
        count = math.prod(shape)
        start = zlib.crc32(self.tensor.name.encode()) % _POOL
        pool = self.pool.to(dtype).roll(-start)
        if count <= _POOL:
            return pool[:count].reshape(shape).clone()
        return pool.repeat(-(-count // _POOL))[:count].reshape(shape)

    def get_shape(self) -> list[int]:
        return list(self.tensor.shape)
