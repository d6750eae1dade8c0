"""What the headers of a checkpoint say where nothing builds its model: bytes by module, and in what they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from devctl.errors import ModelError
from devctl.models.files.checkpoint import Stored, read_checkpoint
from devctl.models.files.resolve import ModelSource
from devctl.units import format_bytes

_MOST = 12
"""Modules that are told one by one."""


def told_by_headers(source: ModelSource) -> tuple[str, ...]:
    """What the files of ``source`` hold, a line each; nothing where no header can be had."""
    try:
        checkpoint = read_checkpoint(source)
    except ModelError as error:
        return (error.message,)
    if not checkpoint.tensors:
        return () if checkpoint.note is None else (checkpoint.note,)
    return (_whole(checkpoint.tensors), *_modules(checkpoint.tensors))


def _whole(tensors: Mapping[str, Stored]) -> str:
    by_dtype: Counter[str] = Counter()
    for tensor in tensors.values():
        by_dtype[tensor.dtype] += tensor.nbytes
    parts = ", ".join(f"{format_bytes(nbytes)} in {dtype}" for dtype, nbytes in by_dtype.most_common(_MOST))
    count = f"{len(tensors):,} tensor{'s' * (len(tensors) != 1)}"
    return f"its files hold {count}, {format_bytes(by_dtype.total())}: {parts}"


def _modules(tensors: Mapping[str, Stored]) -> list[str]:
    """A line for each module, of those that are numbered one for all."""
    sizes: Counter[str] = Counter()
    numbered: dict[str, Counter[str]] = {}
    for name, tensor in tensors.items():
        parts = name.split(".")
        at = next((at for at, part in enumerate(parts) if part.isdigit()), None)
        module = ".".join(parts[: len(parts) - 1 if at is None else at])
        sizes[module] += tensor.nbytes
        if at is not None:
            numbered.setdefault(module, Counter())[parts[at]] += tensor.nbytes
    lines = []
    for module, nbytes in sizes.most_common(_MOST):
        each = numbered.get(module)
        more = "" if each is None else f", {len(each)} of them, the largest {format_bytes(max(each.values()))}"
        lines.append(f"{module or 'the model itself'}: {format_bytes(nbytes)}{more}")
    if len(sizes) > _MOST:
        lines.append(f"and {len(sizes) - _MOST:,} more")
    return lines
