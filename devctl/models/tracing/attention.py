"""Attention of packages that need a GPU, stood in for by what is known of its memory, so that it can be traced here.

Flash attention (FlashAttention 2 to 4, and the hub's kernels of them) makes its output and a log-sum-exp of each row,
and no score (``flash_api.cpp``). What it takes to split the keys of a decode step among idle multiprocessors is a few
MiB, and not counted. Flex attention makes the same (``torch/_inductor/kernel/flex``), and a mask of blocks of 128 by
128. Imports torch and transformers: to be imported inside functions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from devctl.models.attention import FLEX, is_flash

_BLOCK = 128
"""Queries and keys of a block of flex attention's mask."""


@contextmanager
def standing_in(name: str | None) -> Iterator[None]:
    """Let models run that attend by ``name``, if that is flash or flex attention."""
    if name is not None and is_flash(name):
        with _flash(name):
            yield
    elif name == FLEX:
        with _flex():
            yield
    else:
        yield


@contextmanager
def _flash(name: str) -> Iterator[None]:
    from transformers import masking_utils, modeling_flash_attention_utils, modeling_utils
    from transformers.integrations.flash_attention import flash_attention_forward

    flash: Any = modeling_flash_attention_utils
    functions = (_flash_attention, _flash_of_varying_lengths, None, flash._pad_input, flash._unpad_input)
    of_transformers = flash.lazy_import_flash_attention
    flash.lazy_import_flash_attention = lambda *_, **__: (functions, (_arguments, _arguments))
    try:
        # a kernel of the hub is entered here too, as transformers does once it has fetched it
        with (
            _entered(modeling_utils.AttentionInterface, {name: flash_attention_forward}),
            _entered(masking_utils.AttentionMaskInterface, {name: masking_utils.flash_attention_mask}),
        ):
            yield
    finally:
        flash.lazy_import_flash_attention = of_transformers


@contextmanager
def _flex() -> Iterator[None]:
    from transformers import masking_utils, modeling_utils

    with (
        _entered(modeling_utils.AttentionInterface, {FLEX: _flex_attention}),
        _entered(masking_utils.AttentionMaskInterface, {FLEX: _flex_mask}),
    ):
        yield


@contextmanager
def _entered(interface: Any, entries: Mapping[str, Any]) -> Iterator[None]:
    """Let a table of transformers, which is one for all models, have ``entries``."""
    table = interface._global_mapping
    before = dict(table)
    table.update(entries)
    try:
        yield
    finally:
        table.clear()
        table.update(before)


def _arguments(**_: Any) -> dict[str, Any]:
    """What transformers gives the functions besides tensors: nothing that they need."""
    return {}


def _flash_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **_: Any) -> torch.Tensor:
    """On tensors of (batch, length, heads, size)."""
    batch, length, heads, size = query.shape
    padding = -size % 8
    if padding:
        query, key, value = (torch.nn.functional.pad(t, (0, padding)) for t in (query, key, value))
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    query.new_empty((batch, heads, length), dtype=torch.float32)  # the log-sum-exp
    return out[..., :size]


def _flash_of_varying_lengths(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **_: Any) -> torch.Tensor:
    """On tensors of (tokens of all sequences, heads, size)."""
    return _flash_attention(query[None], key[None], value[None])[0]


def _flex_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    s_aux: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What ``flex_attention_forward`` of transformers does, without the kernel that torch compiles for it."""
    batch, heads, length, _size = query.shape
    if heads & (heads - 1):  # heads of keys are shared where their number is a power of two alone
        key, value = (t.repeat_interleave(heads // t.shape[1], 1) for t in (key, value))
    out = query.new_empty((batch, heads, length, value.shape[-1]))
    sums = query.new_empty((batch, heads, length), dtype=torch.float32).to(value.dtype)
    if s_aux is not None:
        sinks = s_aux.view(1, -1, 1, 1).expand(batch, heads, length, 1)
        both = torch.logsumexp(torch.cat([sums.unsqueeze(-1), sinks], dim=-1), dim=-1, keepdim=True)
        out = (out * torch.exp(sums.unsqueeze(-1) - both)).to(query.dtype)
    return out.transpose(1, 2).contiguous(), sums


def _flex_mask(batch_size: int, q_length: int, kv_length: int, *_: Any, **__: Any) -> tuple[torch.Tensor, ...]:
    """The tensors of a ``BlockMask``: which blocks are computed, whole and in part, for queries and for keys."""
    rows, columns = -(-q_length // _BLOCK), -(-kv_length // _BLOCK)
    made = []
    for one, other in ((rows, columns), (columns, rows)):
        for _whole in (False, True):
            made.append(torch.empty((batch_size, 1, one), dtype=torch.int32))
            made.append(torch.empty((batch_size, 1, one, other), dtype=torch.int32))
    return tuple(made)
