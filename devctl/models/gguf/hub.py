"""GGUF files on a hub: their headers are read by ranges, and never a file."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from devctl.errors import UsageError
from devctl.models.files.hub import files_of, read_range
from devctl.models.gguf.files import SUFFIX, GgufModel, read_model, several, wholes_of
from devctl.models.gguf.header import Header, parse_header

_MODEL = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(:(?P<tag>[\w.-]+))?")

_BLOCK = 4 * 2**20
"""Bytes that are asked for at once: most headers have no more."""


def names_one_of_several(model: str) -> bool:
    """Whether ``model`` is written as llama.cpp's ``-hf`` takes it: org/name:Q4_K_M."""
    found = _MODEL.fullmatch(model)
    return found is not None and found["tag"] is not None


def read_on_hub(model: str, revision: str | None) -> GgufModel | None:
    """The model in GGUF files that the hub's ``model`` has, org/name or org/name:TAG; None where it has no such file.

    Raises:
        ModelError: there is no such repository, the hub can't be reached, or a file is broken or holds no model.
        UsageError: there are several models, or none of that name.
    """
    named = _MODEL.fullmatch(model)
    if named is None:
        return None
    repository, tag = named["repository"], named["tag"]
    commit, names = files_of(repository, revision)
    there = [name for name in sorted(names) if name.lower().endswith(SUFFIX)]
    if not there:
        return None
    projectors = [name for name in there if "mmproj" in name.lower()]
    models = wholes_of(name for name in there if name not in projectors)
    wanted = [name for name in models if tag is None or _is_of(name, tag)]
    if not wanted:
        raise UsageError(f"{repository} has no {tag} among its GGUF files", hint=f"it has {', '.join(models[:12])}")
    if len(wanted) > 1:
        raise several(model, wanted, f"{repository}:Q4_K_M, by what its name ends with")
    found = read_model(_Repository(repository, commit, frozenset(there)), wanted[0])
    beside = (projectors[0], None) if projectors else None
    return replace(found, projector=beside, revision=commit)


def _is_of(name: str, tag: str) -> bool:
    """Whether a file's name has a tag as a word of its own, as llama.cpp looks for it."""
    return re.search(rf"(^|[-_./]){re.escape(tag)}(?=[-.])", name, re.IGNORECASE) is not None


@dataclass(frozen=True, slots=True)
class _Repository:
    model: str
    revision: str
    names: frozenset[str]

    def called(self, name: str) -> str:
        return f"{self.model}/{name}"

    def has(self, name: str) -> bool:
        return name in self.names

    def header(self, name: str) -> Header:
        return parse_header(_Remote(self.model, name, self.revision), self.called(name))


class _Remote:
    """A file on the hub, of which blocks are read."""

    def __init__(self, model: str, name: str, revision: str) -> None:
        self._which = model, name, revision
        self._at = 0
        self._first = 0
        self._block, self._size = read_range(*self._which, 0, _BLOCK)

    def read(self, count: int, /) -> bytes:
        end = min(self._at + count, self._size)
        if end <= self._at:
            return b""
        if not self._first <= self._at <= end <= self._first + len(self._block):
            self._first = self._at
            self._block, _ = read_range(*self._which, self._at, max(_BLOCK, end - self._at))
        found = self._block[self._at - self._first : end - self._first]
        self._at += len(found)
        return found

    def seek(self, offset: int, whence: int = 0, /) -> int:
        self._at = offset + (self._size if whence == 2 else 0)
        return self._at
