"""The tensors of a checkpoint as the headers of its files tell them, without their bytes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from devctl.errors import ModelError
from devctl.models.files.index import missing_shards, shards
from devctl.models.files.resolve import ModelSource, SourceKind
from devctl.models.files.safetensors import read_header
from devctl.models.files.weights import folder_at_hand, folder_index, hub_headers

_BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "BOOL": 8, "F64": 64, "I64": 64, "U64": 64, "C64": 64}
"""Bits of safetensors' dtypes whose names do not say them, like BF16, F8_E4M3 and I32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What a header says of a tensor.

    Attributes:
        count: its elements.
        dtype: safetensors' name, like BF16.
        path: the file it is in; None of one on the hub.
        start: where its bytes begin in that file.
    """

    count: int
    nbytes: int
    shape: tuple[int, ...] = ()
    dtype: str = ""
    path: Path | None = None
    start: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """What is known of a checkpoint before a weight is read.

    Attributes:
        tensors: by name; none where no header can be had.
        note: why the headers of files that are here can't be read.
    """

    tensors: Mapping[str, Stored] = field(default_factory=dict)
    note: str | None = None


def read_checkpoint(source: ModelSource) -> Checkpoint:
    """The tensors of the checkpoint of ``source``, of safetensors alone; none of a bare config.

    A folder may hold a part of it, or broken files: that is noted, as a plan can be made of the config. Of the hub,
    the headers are fetched, where its files are not in the cache.

    Raises:
        ModelError: there is an index that is none.
    """
    if source.kind is SourceKind.CONFIG:
        return Checkpoint()
    if (folder := folder_at_hand(source)) is None:
        try:
            return Checkpoint(tensors=_on_hub(source))
        except Exception:  # noqa: BLE001 - besides its own, those of the HTTP library that the hub's client uses
            return Checkpoint()
    index = folder_index(folder)
    if index is not None and (missing := missing_shards(folder, shards(index))):
        named = len(shards(index))
        return Checkpoint(
            note=f"{len(missing)} of the {named} files that {index.name} names are not in {folder}: "
            "sizes are those of the config"
        )
    try:
        return Checkpoint(tensors=_in_folder(folder))
    except ModelError as error:
        return Checkpoint(note=f"{error.message}: sizes are those of the config")


def stored_tensors(source: ModelSource) -> dict[str, Stored]:
    """The tensors of a checkpoint of safetensors by name; none where there is none.

    Raises:
        Exception: a file is broken, or the hub can't be reached.
    """
    if source.kind is SourceKind.CONFIG:
        return {}
    folder = folder_at_hand(source)
    return _on_hub(source) if folder is None else _in_folder(folder)


def _in_folder(folder: Path) -> dict[str, Stored]:
    found: dict[str, Stored] = {}
    for path in _files(folder):
        header = read_header(path)
        for name, tensor in header.tensors.items():
            found[name] = _stored(tensor.shape, tensor.dtype, path, header.first + tensor.start)
    return found


def _files(folder: Path) -> Iterable[Path]:
    from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

    if (folder / SAFE_WEIGHTS_NAME).is_file():
        return [folder / SAFE_WEIGHTS_NAME]
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    if not index.is_file():
        return []
    return [folder / name for name in shards(index)]


def _on_hub(source: ModelSource) -> dict[str, Stored]:
    metadata = hub_headers(source.location, source.revision)
    return {
        name: _stored(tensor.shape, tensor.dtype)
        for file in metadata.files_metadata.values()
        for name, tensor in file.tensors.items()
    }


def _stored(shape: Iterable[int], dtype: str, path: Path | None = None, start: int = 0) -> Stored:
    sizes = tuple(shape)
    nbytes = bytes_of(sizes, dtype)
    return Stored(count=math.prod(sizes), nbytes=nbytes, shape=sizes, dtype=dtype, path=path, start=start)


def bytes_of(shape: tuple[int, ...], dtype: str) -> int:
    """Bytes of a tensor of safetensors' ``dtype``."""
    return -(-math.prod(shape) * _bits(dtype) // 8)


@cache
def _bits(dtype: str) -> int:
    named = re.match(r"[A-Z]+(\d+)", dtype)
    return _BITS.get(dtype) or (int(named[1]) if named else 8)
