"""The header of a GGUF file, which says what tensors it has without any of them being read.

What is refused is what llama.cpp refuses (``gguf_init_from_file`` in ``ggml/src/gguf.cpp``), and what is larger than
any real header: whoever made the file, it takes a bounded time and a bounded amount of memory to say so.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from devctl.errors import ModelError
from devctl.models.files.index import DOWNLOAD_AGAIN
from devctl.models.gguf.types import MOST_BYTES, TYPES, bytes_of
from devctl.reading import open_file

MAGIC = b"GGUF"

RELEASE = "b11434"
"""The release of llama.cpp whose rules these are."""

Value = int | float | bool | str | tuple[int | float | bool, ...]
"""A value of the metadata that is kept."""

MOST_HEADER = 128 * 2**20
"""Bytes of a header. The largest vocabularies, with their merges and a tokenizer in JSON, take some 50 MB."""

MOST_KEYS = 10_000
MOST_TENSORS = 20_000
"""Of one file; the largest models have some 2,000."""

MOST_TEXTS = 2_000_000
"""Strings in arrays: tokens and merges of the largest vocabularies are 800,000."""

MOST_KEPT = 100_000
"""Numbers of arrays that are kept; they are told layer by layer."""

_LONGEST_KEPT = 1024
"""Elements of an array that is kept: a longer one is of tokens, and not of layers."""

_LONGEST_KEY = 1024
_LONGEST_TEXT = 4096
"""Bytes of a string that is kept: a longer one, like a chat template, says nothing of sizes."""

_LONGEST_NAME = 63
"""Bytes of a tensor's name (``GGML_MAX_NAME`` is 64, with the zero at its end)."""

_MOST_DIMENSIONS = 4
_DEFAULT_ALIGNMENT = 32
_WINDOW = 2**20
"""Bytes that are read at once."""

_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""How values are stored, by the number of their type."""
_TEXT, _ARRAY = 8, 9


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """What a header says of a tensor.

    Attributes:
        kind: the name of its type, like Q4_K.
        shape: sizes of its dimensions, in ggml's order: that of a row's elements is first.
        nbytes: what it takes, in the file and in memory.
        start: where it begins, from the first byte of all tensors.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    nbytes: int
    start: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What a file has.

    Attributes:
        version: of the format.
        metadata: by key; without long strings, strings in arrays and long arrays, which say nothing of sizes.
        tensors: in the order of the file, which is that of their bytes.
        first: where the bytes of the tensors begin.
    """

    version: int
    metadata: Mapping[str, Value]
    tensors: tuple[StoredTensor, ...]
    first: int


class _CutOffError(ValueError):
    """The file ends before what it should have."""


def is_gguf(path: Path) -> bool:
    """Whether the file at ``path`` begins as a GGUF file does.

    Raises:
        OSError: it can't be read, or is no file.
    """
    with open_file(path) as file:
        return file.read(len(MAGIC)) == MAGIC


class Bytes(Protocol):
    """A file, or what stands for one on a hub, as far as a header is read from it."""

    def read(self, count: int, /) -> bytes:
        """The next ``count`` bytes; fewer only at its end."""
        ...

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Go to a place, from the start or (2) from the end, and say which from the start."""
        ...


def read_header(path: Path) -> Header:
    """The header of the file at ``path``, which has all bytes that it tells of.

    Raises:
        ModelError: the file can't be read, is none that llama.cpp reads, is cut off or broken.
    """
    try:
        with open_file(path) as file:
            return parse_header(file, str(path))
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from None


def parse_header(file: Bytes, called: str) -> Header:
    """The same of a file that is open.

    Raises:
        ModelError: it is none that llama.cpp reads, is cut off or broken.
    """
    try:
        return _Reader(file).header()
    except _UnreadError as error:
        raise ModelError(f"{called} {error}", hint=error.hint) from None
    except _CutOffError as error:
        raise ModelError(f"{called} is cut off: {error}", hint=DOWNLOAD_AGAIN) from None
    except ValueError as error:
        raise ModelError(f"{called} is corrupt, its header is broken: {error}", hint=DOWNLOAD_AGAIN) from None


class _UnreadError(Exception):
    """It is no file that llama.cpp reads, whole or not."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class _Reader:
    """A file that is read from its start on, a window at a time, and no further than a header goes."""

    def __init__(self, file: Bytes) -> None:
        self._file = file
        self._size = file.seek(0, 2)
        file.seek(0)
        self._window = b""
        self._at = 0
        """Of the window."""
        self._behind = 0
        """Bytes of the file before the end of the window."""
        self._texts = MOST_TEXTS
        self._kept = MOST_KEPT

    @property
    def at(self) -> int:
        """Bytes of the file before what is read next."""
        return self._behind - len(self._window) + self._at

    def header(self) -> Header:
        version = self._version()
        counts = self._numbers("QQ")
        tensors, keys = int(counts[0]), int(counts[1])
        self._check_count("keys", keys, MOST_KEYS, 13)
        metadata: dict[str, Value] = {}
        seen: set[str] = set()
        for _ in range(keys):
            self._pair(metadata, seen)
        alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
        if type(alignment) is not int or not 0 < alignment < 2**32 or alignment & (alignment - 1):
            raise ValueError(f"its general.alignment is {alignment!r}, which is no power of two")
        self._check_count("tensors", tensors, MOST_TENSORS, 24)
        found: list[StoredTensor] = []
        names: set[str] = set()
        start = 0
        for _ in range(tensors):
            tensor = self._tensor(start)
            if tensor.name in names:
                raise ValueError(f"it has two tensors {tensor.name!r}")
            names.add(tensor.name)
            found.append(tensor)
            start = _padded(start + tensor.nbytes, alignment)
        first = _padded(self.at, alignment)
        if found and (end := first + found[-1].start + found[-1].nbytes) > self._size:
            raise _CutOffError(f"it has {self._size:,} bytes, and its tensors end at {end:,}")
        return Header(version=version, metadata=MappingProxyType(metadata), tensors=tuple(found), first=first)

    def _version(self) -> int:
        begin = self._file.read(16)
        self._file.seek(0)
        if not begin.startswith(MAGIC):
            if b"version https://".startswith(begin) and begin:
                raise _UnreadError("is a pointer of Git LFS, and not the file itself", "`git lfs pull` brings it")
            what = f"it begins with {begin[:8]!r}" if begin else "it is empty"
            raise _UnreadError(f"is no GGUF file: {what}", DOWNLOAD_AGAIN)
        self._skip(len(MAGIC))
        (version,) = self._numbers("I")
        if not version & 0xFFFF:
            raise _UnreadError(
                "is big-endian, and llama.cpp reads such files only on big-endian machines",
                "`gguf-convert-endian FILE little`, of the package gguf, converts it",
            )
        if version == 1:
            raise _UnreadError(
                "is of version 1 of GGUF, which llama.cpp reads no more", "convert the model again, with a newer one"
            )
        if version not in (2, 3):
            raise _UnreadError(f"is of version {version} of GGUF; llama.cpp {RELEASE} reads 2 and 3")
        return int(version)

    def _check_count(self, what: str, count: int, most: int, least_bytes: int) -> None:
        if count > most:
            raise ValueError(f"{count:,} {what}, and {most:,} are the most that are read")
        self._require(count * least_bytes)

    def _pair(self, metadata: dict[str, Value], seen: set[str]) -> None:
        key = self._text(_LONGEST_KEY)
        if key is None:
            raise ValueError(f"a key of more than {_LONGEST_KEY} bytes")
        if key in seen:
            raise ValueError(f"it has the key {_short(key)} twice")
        seen.add(key)
        (kind,) = self._numbers("I")
        value: Value | None
        if kind == _TEXT:
            value = self._text(_LONGEST_TEXT)
        elif kind == _ARRAY:
            value = self._array(key)
        elif kind in _NUMBERS:
            (value,) = self._numbers(_NUMBERS[kind])
        else:
            raise ValueError(f"the value of {_short(key)} is of type {kind}, which is none")
        if value is not None:
            metadata[key] = value

    def _array(self, key: str) -> tuple[int | float | bool, ...] | None:
        """The numbers of an array; None for one that is not kept."""
        kind, count = self._numbers("IQ")
        if kind == _ARRAY:
            raise ValueError(f"{_short(key)} is an array of arrays")
        if kind == _TEXT:
            self._skip_texts(key, int(count))
            return None
        if kind not in _NUMBERS:
            raise ValueError(f"{_short(key)} is an array of type {kind}, which is none")
        size = struct.calcsize(f"<{_NUMBERS[kind]}")
        if count > _LONGEST_KEPT:
            self._skip(count * size)
            return None
        self._kept -= count
        if self._kept < 0:
            raise ValueError(f"its arrays have more than {MOST_KEPT:,} numbers")
        return self._numbers(_NUMBERS[kind] * count)

    def _skip_texts(self, key: str, count: int) -> None:
        self._texts -= count
        if self._texts < 0:
            raise ValueError(f"{_short(key)} and others have more than {MOST_TEXTS:,} strings")
        self._require(8 * count)
        length_of = struct.Struct("<Q").unpack_from
        while count:
            window, at = self._window, self._at
            last = len(window) - 8
            while count and at <= last:
                at += 8 + length_of(window, at)[0]
                count -= 1
            if at <= len(window):
                self._at = at
            else:  # the last one goes beyond it
                self._at = len(window)
                self._skip(at - len(window))
            if count:
                self._fill(8)

    def _tensor(self, expected: int) -> StoredTensor:
        name = self._text(_LONGEST_NAME)
        if name is None:
            raise ValueError(f"a tensor's name of more than {_LONGEST_NAME} bytes")
        (dimensions,) = self._numbers("I")
        if dimensions > _MOST_DIMENSIONS:
            raise ValueError(f"{name!r} has {dimensions:,} dimensions, and {_MOST_DIMENSIONS} are the most")
        *shape, kind, start = self._numbers(f"{'Q' * dimensions}IQ")
        if kind not in TYPES:
            raise _UnreadError(
                f"has a tensor {name!r} of type {kind}, whose size is not known here",
                "a newer devctl may know it; so may `llama-fit-params --model FILE`",
            )
        stored = TYPES[kind]
        elements = math.prod(shape)
        row = shape[0] if shape else 1
        if row % stored.elements:
            raise ValueError(f"a row of {name!r} has {row:,} elements, no whole blocks of {stored.name}")
        nbytes = bytes_of(stored, elements)
        if max([elements, nbytes, *shape]) >= MOST_BYTES:
            raise ValueError(f"{name!r} is larger than any tensor: {' x '.join(map(str, shape))}")
        if start != expected:
            why = "within another tensor" if start < expected else "behind a gap"
            raise ValueError(f"{name!r} begins at {start:,}, {why}: {expected:,} is expected")
        return StoredTensor(name, stored.name, tuple(shape), nbytes, start)

    def _numbers(self, format_: str) -> tuple[int, ...]:
        values = struct.Struct(f"<{format_}")
        self._fill(values.size)
        found = values.unpack_from(self._window, self._at)
        self._at += values.size
        return found

    def _text(self, most: int) -> str | None:
        """A string; None for a longer one, which is passed over."""
        (length,) = self._numbers("Q")
        if length > most:
            self._skip(length)
            return None
        self._fill(length)
        self._at += length
        return self._window[self._at - length : self._at].decode("utf-8", "replace")

    def _skip(self, count: int) -> None:
        self._require(count)
        left = len(self._window) - self._at
        if count <= left:
            self._at += count
            return
        self._behind = self._file.seek(self._behind + count - left)
        self._window, self._at = b"", 0

    def _fill(self, count: int) -> None:
        """Let the window have ``count`` bytes that are not read yet."""
        left = len(self._window) - self._at
        if left >= count:
            return
        self._require(count)
        more = self._file.read(max(_WINDOW, count - left))
        if len(more) < count - left:  # it became shorter meanwhile
            raise _CutOffError(f"it has {self._behind + len(more):,} bytes, and its header more")
        self._window, self._at = self._window[self._at :] + more, 0
        self._behind += len(more)

    def _require(self, count: int) -> None:
        """Refuse what ``count`` more bytes of the header are too many for."""
        end = self.at + count
        if end > self._size:
            raise _CutOffError(f"it has {self._size:,} bytes, and its header more")
        if end > MOST_HEADER:
            raise ValueError(f"it is longer than {MOST_HEADER:,} bytes")


def _padded(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment


def _short(key: str) -> str:
    return repr(key if len(key) <= 80 else f"{key[:79]}…")
