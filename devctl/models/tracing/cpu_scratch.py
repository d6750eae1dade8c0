"""What kernels of the CPU take beside their output.

Flash attention's is as torch 2.13 allocates it (``FlashAttentionKernel.cpp``). Where oneDNN may use AMX, the kernel
packs keys and values first, which takes a copy of both. `packs` knows that by the processor, the switch of torch and
the limit in the environment, which are all that oneDNN looks at. A product in half precision is oneDNN's own, and how
it blocks one follows from the processor, so that what is said of it is a bound.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
"""What limits oneDNN's instruction set; the first of them that is set counts."""

_BELOW_AMX = frozenset(
    {
        *("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2"),
        *("AVX512_CORE", "AVX512_CORE_VNNI", "AVX512_CORE_BF16", "AVX512_CORE_FP16", "AVX10_1_512"),
    }
)
_AMX_WITHOUT_FP16 = frozenset({"AVX512_CORE_AMX", "AVX10_1_512_AMX"})

_AVX512 = frozenset(
    {"AVX512_CORE", "AVX512_CORE_VNNI", "AVX512_CORE_BF16", "AVX512_CORE_FP16", "AVX10_1_512"}
)  # a limit below them leaves half precision to torch's own kernels
_WITHOUT_BF16 = frozenset({"AVX512_CORE", "AVX512_CORE_VNNI"})
_COLUMNS, _BLOCKS = 64, 3
"""Columns of a block of a product in half precision, and the most blocks of weights, of 64 KiB, that a thread holds."""

_TILE_OF_SCORES = 512
"""Keys of a tile."""


def packs(dtype: torch.dtype) -> bool:
    """Whether oneDNN offers kernels with packed operands of ``dtype`` in this process: AMX, and for float16 its own."""
    import torch

    is_half = dtype is torch.float16
    if dtype not in (torch.float16, torch.bfloat16) or not torch._C._has_mkldnn:
        return False
    limit = _limit()
    if not torch._C._get_mkldnn_enabled() or limit in _BELOW_AMX or (is_half and limit in _AMX_WITHOUT_FP16):
        return False
    return torch.cpu._is_amx_fp16_supported() if is_half else torch.cpu._is_amx_tile_supported()


def of_product(
    dtype: torch.dtype, rows: int, inner: int, columns: int, *, packed: bool = False, threads: int | None = None
) -> int:
    """A bound of what oneDNN takes for ``rows`` × ``inner`` by ``inner`` × ``columns`` beside the output.

    Args:
        packed: whether it may pack all of the weights where it has AMX, as it does for experts.
        threads: of torch; as many as it has now by default.
    """
    import torch

    if dtype not in (torch.float16, torch.bfloat16) or not _has_avx512():
        return 0
    if not packs(dtype) and (dtype is torch.float16 or not _has_bf16()):
        return 4 * rows * columns + 256  # the output in float32 first
    held = min(_BLOCKS << 16, dtype.itemsize * max(inner, 32) * max(columns, _COLUMNS))
    of_thread = held + 1024 + 4 * _COLUMNS * min(rows, _COLUMNS)
    whole = dtype.itemsize * _even(inner) * -(-columns // _COLUMNS) * _COLUMNS if packed and packs(dtype) else 0
    return (threads or torch.get_num_threads()) * of_thread + whole


def _has_avx512() -> bool:
    import torch

    if not torch._C._has_mkldnn or not torch._C._get_mkldnn_enabled():
        return False
    limit = _limit()
    return bool(torch.cpu._is_avx512_supported()) and (limit not in _BELOW_AMX or limit in _AVX512)


def _has_bf16() -> bool:
    import torch

    return bool(torch.cpu._is_avx512_bf16_supported()) and _limit() not in _WITHOUT_BF16


def processor() -> list[object]:
    """What the scratch of a kernel on this CPU follows from, without torch: threads, instructions, limits of both."""
    try:
        with Path("/proc/cpuinfo").open(encoding="ascii", errors="replace") as file:
            flags = next((line.split() for line in file if line.startswith("flags")), [])
    except OSError:  # elsewhere than on Linux torch is asked
        flags = []
    known = [flag for flag in ("avx512f", "avx512_bf16", "amx_tile", "amx_fp16") if flag in flags]
    return [os.cpu_count(), os.environ.get("OMP_NUM_THREADS"), known, _limit()]


def of_flash_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    _value: torch.Tensor,
    _dropout: float = 0.0,
    is_causal: bool = False,
    *,
    threads: int | None = None,
    packed: bool | None = None,
) -> int:
    """Bytes of scratch of one call, whose first arguments are the operator's own.

    Args:
        query: batch × heads × tokens × size of a head; ``key`` the same, perhaps with fewer heads.
        threads: of torch; as many as it has now by default.
        packed: whether oneDNN packs this dtype; as `packs` says by default.
    """
    import torch

    threads = threads or torch.get_num_threads()
    packed = packs(query.dtype) if packed is None else packed
    (batch, _, length, size), (key_heads, keys) = query.shape, key.shape[1:3]
    rows = min(length, 256 if length >= 768 else 64 if length >= 192 else 32)
    columns = min(keys, _TILE_OF_SCORES)
    packed = packed and _is_worth_packing(query, key, rows, is_causal, threads)
    reduced = query.element_size() if query.dtype in (torch.float16, torch.bfloat16) else 0

    # scores, their maxima and sums, and a tile of the output, in float32; the scores again in a reduced dtype
    tile = rows * (4 * (columns + 2 + size) + reduced * (_even(columns) if packed else columns))
    if not packed:
        return int(threads * tile)
    of_thread = tile + reduced * columns * size  # transposed keys
    if size % 2:
        of_thread += reduced * rows * _even(size)  # queries, padded
    tiles, rest = divmod(keys - 1, columns)
    values = tiles * _even(columns) + _even(rest + 1)
    return int(threads * of_thread + reduced * batch * key_heads * (_even(size) * keys + values * size))


def _is_worth_packing(query: torch.Tensor, key: torch.Tensor, rows: int, is_causal: bool, threads: int) -> bool:
    """Whether the kernel finds the products of a thread large enough, beside what is packed."""
    import torch

    is_bfloat16 = query.dtype is torch.bfloat16
    (batch, heads, length), (key_heads, keys) = query.shape[:3], key.shape[1:3]
    if min(length, keys) < (64 if is_bfloat16 else 16):
        return False
    tiles_of_thread = -(-batch * heads * -(-length // rows) // threads)
    products = tiles_of_thread * rows * (min(length, keys) if is_causal else keys)
    return bool(products >= (4 if is_bfloat16 else 1) * batch * key_heads * keys)


def _even(number: int) -> int:
    return number + number % 2


def _limit() -> str | None:
    return next((value.upper() for name in _LIMITS if (value := os.environ.get(name))), None)
