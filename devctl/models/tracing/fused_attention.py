"""What torch's ``scaled_dot_product_attention`` makes on an accelerator, by the kernel that it takes there.

The choice is that of torch 2.11 to 2.13 (``sdp_utils.cpp``), and was read beside an H100's: of cuDNN's kernel, flash
attention, memory-efficient attention and plain products, the first that takes these tensors. Imports torch: to be
imported inside functions.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import torch

from devctl.models.footprint import Kernels

_HALVES = (torch.float16, torch.bfloat16)
_IN_REGISTERS = 128
"""Memory-efficient attention sums the values of a larger head in a float32 copy of its output."""
_LARGEST_HEAD = 256
"""Of what flash attention and cuDNN's kernel take; cuDNN's on Hopper and Blackwell, the boards that prefer it."""


class Kernel(Enum):
    """Which one runs."""

    CUDNN = "cuDNN's"
    FLASH = "flash"
    EFFICIENT = "memory-efficient"
    PLAIN = "plain"


@dataclass(frozen=True, slots=True)
class Given:
    """What is asked for."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    mask: torch.Tensor | None
    is_causal: bool
    shares_keys: bool


def attention(
    kernels: Kernels,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """As ``scaled_dot_product_attention``, on fake tensors: what it gives, with what it takes meanwhile.

    Args:
        kernels: those of which accelerator.
    """
    given = Given(query, key, value, attn_mask, is_causal, enable_gqa)
    chosen = choose(kernels, given)
    if chosen is Kernel.CUDNN:
        return _cudnn(given)
    if chosen is Kernel.FLASH:
        return _flash(given)
    return _memory_efficient(given) if chosen is Kernel.EFFICIENT else _plain(given)


def choose(kernels: Kernels, given: Given) -> Kernel:
    """The first kernel that takes these tensors."""
    if not _may_be_fused(given):
        return Kernel.PLAIN
    if kernels is Kernels.ACCELERATOR_CUDNN and _takes_cudnn(given):
        return Kernel.CUDNN
    if kernels is not Kernels.ACCELERATOR_BEFORE_8 and _takes_flash(given):
        return Kernel.FLASH
    return Kernel.EFFICIENT if _takes_memory_efficient(given, kernels) else Kernel.PLAIN


def _may_be_fused(given: Given) -> bool:
    """What all fused kernels ask for."""
    query, key, value, mask = given.query, given.key, given.value, given.mask
    if {query.dim(), key.dim(), value.dim()} != {4} or not query.dtype == key.dtype == value.dtype:
        return False
    if not query.shape[0] == key.shape[0] == value.shape[0] or not query.shape[-2] or not key.shape[-2]:
        return False
    rows = [query, key, value, *([] if mask is None else [mask])]
    return all(tensor.stride(-1) == 1 for tensor in rows)


def _has_heads(given: Given, *, may_share: bool) -> bool:
    """Whether there are as many heads of keys as of queries, or groups of these share one, where a kernel knows that.

    Keys of one head that broadcast over those of the queries are taken by no fused kernel.
    """
    queries, keys, values = (tensor.shape[1] for tensor in (given.query, given.key, given.value))
    if given.shares_keys:
        return may_share and keys == values and not queries % keys
    return bool(queries == keys == values)


def _takes_cudnn(given: Given) -> bool:
    sizes = (given.query.shape[-1], given.value.shape[-1])
    return (
        given.query.dtype in _HALVES
        and _has_heads(given, may_share=True)
        and all(size % 8 == 0 and size <= _LARGEST_HEAD for size in sizes)
        and given.key.shape[-2] != 1
        and (given.mask is None or _is_known_shape(given.mask, given))
    )


def _is_known_shape(mask: torch.Tensor, given: Given) -> bool:
    batch, heads, length, _ = given.query.shape
    if mask.shape[-2] not in (1, length) or mask.shape[-1] not in (1, given.key.shape[-2]):
        return False
    return mask.dim() == 2 or (mask.dim() == 4 and mask.shape[0] in (1, batch) and mask.shape[1] in (1, heads))


def _takes_flash(given: Given) -> bool:
    size = given.query.shape[-1]
    return (
        given.query.dtype in _HALVES
        and given.mask is None
        and size == given.key.shape[-1] == given.value.shape[-1]
        and size <= _LARGEST_HEAD
        and not (given.is_causal and given.query.shape[-2] != given.key.shape[-2])
        and _has_heads(given, may_share=True)
    )


def _takes_memory_efficient(given: Given, kernels: Kernels) -> bool:
    dtype, size = given.query.dtype, given.query.shape[-1]
    before_8 = kernels is Kernels.ACCELERATOR_BEFORE_8
    if dtype not in (*_HALVES, torch.float32) or (before_8 and dtype is torch.bfloat16):
        return False
    unit = 8 if dtype in _HALVES else 1 if before_8 else 4
    return (
        size == given.key.shape[-1]
        and not size % unit
        and not given.value.shape[-1] % unit
        and _has_heads(given, may_share=False)
    )


def _cudnn(given: Given) -> torch.Tensor:
    mask = given.mask
    if mask is not None and mask.dtype is torch.bool:
        mask = mask.new_empty(mask.shape, dtype=given.query.dtype)
    return _laid_out_as(given.query, given.value.shape[-1])


def _flash(given: Given) -> torch.Tensor:
    query, key, value = given.query, given.key, given.value
    size = value.shape[-1]
    if padding := -size % 8:
        query, key, value = (torch.nn.functional.pad(t, (0, padding)) for t in (query, key, value))
    out = _laid_out_as(query, size + padding)
    query.new_empty(query.shape[:-1], dtype=torch.float32)  # the log-sum-exp
    return out[..., :size]


def _laid_out_as(query: torch.Tensor, size: int) -> torch.Tensor:
    """An output whose dimensions lie in memory as those of ``query`` do: token by token mostly, or head by head."""
    order = sorted(range(4), key=query.stride, reverse=True)
    shape = (*query.shape[:-1], size)
    if 0 in query.stride():
        order = [0, 1, 2, 3]
    laid = query.new_empty(tuple(shape[d] for d in order))
    return laid.permute(tuple(order.index(d) for d in range(4)))


def _memory_efficient(given: Given) -> torch.Tensor:
    mask = given.mask
    if mask is not None:
        if mask.dtype is torch.bool:
            mask = mask.new_empty(mask.shape, dtype=given.query.dtype)
        if mask.shape[-1] % 16:
            mask = torch.nn.functional.pad(mask, (0, -mask.shape[-1] % 16))
    (batch, heads, length, _), size = given.query.shape, given.value.shape[-1]
    # token by token, so that the heads can be joined afterwards without a copy
    out = given.query.new_empty((batch, length, heads, size)).transpose(1, 2)
    if size > _IN_REGISTERS and out.dtype is not torch.float32:
        out.new_empty(out.shape, dtype=torch.float32)
    return out


def _plain(given: Given) -> torch.Tensor:
    """Products and a softmax of all scores, in float32."""
    query, key, value, mask = given.query, given.key, given.value, given.mask
    dtype = query.dtype
    if given.is_causal:
        mask = query.new_empty((query.shape[-2], key.shape[-2]), dtype=torch.bool)
    if dtype in _HALVES:
        query, key, value = query.float(), key.float(), value.float()
    if mask is not None and mask.dtype is torch.bool:
        mask = mask.new_empty(mask.shape, dtype=query.dtype if given.is_causal else dtype)
    keys, values = key, value
    if given.shares_keys:
        groups = query.shape[-3] // key.shape[-3]
        keys, values = key.repeat_interleave(groups, -3), value.repeat_interleave(groups, -3)
    scaled = query * 0.5
    scores = scaled @ (keys * 0.5).transpose(-2, -1)
    if mask is not None:
        scores.add_(mask)
    scores = torch.ops.aten._safe_softmax(scores, -1)
    out: torch.Tensor = scores @ values
    out, scores = out.to(dtype), scores.to(dtype)  # it gives both
    return out
