"""The header of a safetensors file, which says what tensors it has without any of them being read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from devctl.errors import ModelError, first_line
from devctl.models.files.index import DOWNLOAD_AGAIN
from devctl.reading import open_file

SUFFIX = ".safetensors"

MOST_HEADER = 100_000_000
"""Bytes that the format allows a header."""

MOST_NAME, MOST_DIMENSIONS = 16, 64
"""Characters of a dtype's name, and dimensions of a tensor; what has more is none, and takes long to multiply."""

_LENGTH = 8
"""Bytes at the start of a file that are the header's length, little-endian."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """What a header says of a tensor: safetensors' name of its dtype, like BF16, its shape, and where its bytes are.

    Both places are counted from the first byte behind the header.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    """What a file has.

    Attributes:
        tensors: by name, in the header's order, which is that of their bytes.
        file_size: bytes that the whole file has to have.
        first: where the bytes of the tensors begin.
    """

    tensors: dict[str, StoredTensor]
    file_size: int
    first: int


def read_header(path: Path) -> Header:
    """The header of the file at ``path``. It may still be that the file has another size than it says.

    Read as it is, since the library hands tensors out one by one: three times as long for a checkpoint of 90,000.

    Raises:
        ModelError: the file can't be read, is cut off within its header, or its header is broken.
    """
    try:
        with open_file(path) as file:
            size = path.stat().st_size
            start = file.read(_LENGTH)
            length = int.from_bytes(start, "little")
            if len(start) < _LENGTH or _LENGTH + length > size:
                raise ModelError(f"{path} is cut off, or no safetensors file: {size:,} bytes", hint=DOWNLOAD_AGAIN)
            if length > MOST_HEADER:
                raise ValueError(f"a header of {length:,} bytes")
            return parse_header(file.read(length))
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise ModelError(f"{path} is corrupt, its header is broken: {first_line(error)}", hint=DOWNLOAD_AGAIN) from None


def read_whole(path: Path) -> Header:
    """The header of a file that has all of its bytes.

    Raises:
        ModelError: as `read_header`, or it has more or fewer bytes than its header says.
    """
    header = read_header(path)
    try:
        size = path.stat().st_size
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from None
    if size != header.file_size:
        what = "cut off" if size < header.file_size else "corrupt"
        raise ModelError(
            f"{path} is {what}: it has {size:,} bytes, and should have {header.file_size:,}", hint=DOWNLOAD_AGAIN
        )
    return header


def parse_header(data: bytes) -> Header:
    """The header whose JSON is ``data``, without the eight bytes before it.

    Raises:
        ValueError: it is none; the message says where.
    """
    try:
        header = json.loads(data)
    except RecursionError as error:
        raise ValueError(str(error)) from None
    if not isinstance(header, dict):
        raise ValueError("it is no object")
    header.pop("__metadata__", None)
    found = {name: _tensor(name, entry) for name, entry in header.items()}
    end = max((tensor.end for tensor in found.values()), default=0)
    first = _LENGTH + len(data)
    return Header(tensors=found, file_size=first + end, first=first)


def _tensor(name: str, entry: Any) -> StoredTensor:
    try:
        dtype, shape, (start, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        if type(dtype) is not str or type(start) is not int or type(end) is not int or not 0 <= start <= end:
            raise ValueError
        if len(dtype) > MOST_NAME or len(shape) > MOST_DIMENSIONS:
            raise ValueError
        for length in shape:
            if type(length) is not int or length < 0:
                raise ValueError
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{name!r} has no dtype, shape and data_offsets") from None
    return StoredTensor(dtype, tuple(shape), start, end)
