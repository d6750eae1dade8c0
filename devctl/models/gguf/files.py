"""From a MODEL argument to the GGUF files of one model: a file, the parts of a split one, or a folder's only one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from devctl.errors import ModelError, UsageError
from devctl.models.files.index import DOWNLOAD_AGAIN
from devctl.models.gguf.header import Header, StoredTensor, Value, is_gguf, read_header
from devctl.models.gguf.types import FILE_TYPES

SUFFIX = ".gguf"

_PART = re.compile(r"(?P<base>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)
"""The name of a part, by which llama.cpp finds the others (``llama_split_path``)."""

_OTHER_WEIGHTS = frozenset({".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack"})
"""How files with weights end that transformers loads."""

_MOST_READ = 64
"""Files of a folder whose headers are looked at, to tell what they are."""

_MOST_SHOWN = 6


class Kind(StrEnum):
    """What a GGUF file may hold."""

    MODEL = "model"
    PROJECTOR = "projector"
    ADAPTER = "adapter"
    OTHER = "other"


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufModel:
    """A model in one GGUF file or several.

    Attributes:
        name: the file that llama.cpp is given, of a split model its first part: a path, or org/name/file on a hub.
        architecture: as llama.cpp calls it, like "llama" or "qwen3moe".
        metadata: of the first file.
        tensors: of all files, in their order.
        files: how many there are.
        projector: a file beside it with what makes images into tokens, and the bytes of its tensors where they are
            known.
        revision: the hub's commit; None for files.
    """

    name: str
    architecture: str
    metadata: Mapping[str, Value]
    tensors: tuple[StoredTensor, ...]
    files: int = 1
    projector: tuple[str, int | None] | None = None
    revision: str | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def file_type(self) -> str:
        """How it is quantised, like Q4_K_M; by the type of most of its bytes where the header does not say."""
        named = FILE_TYPES.get(_whole(self.metadata.get("general.file_type")))
        if named is not None:
            return named
        by_type: dict[str, int] = {}
        for tensor in self.tensors:
            by_type[tensor.kind] = by_type.get(tensor.kind, 0) + tensor.nbytes
        return max(by_type, key=lambda kind: by_type[kind], default="unknown")

    def key(self, name: str) -> Value | None:
        """The value of a key of the architecture's own, like "block_count"; None where there is none."""
        return self.metadata.get(f"{self.architecture}.{name}")


def gguf_at(model: str) -> Path | None:
    """The GGUF file or the folder of such that ``model`` names; None where it names something else, or nothing.

    A folder with a config.json and weights of another format is one that transformers loads, whatever else is in it.
    """
    try:
        path = Path(model).expanduser()
        if path.is_dir():
            is_one = any(_names(path)) and not ((path / "config.json").exists() and _has_other_weights(path))
        elif path.exists():
            is_one = path.suffix.lower() == SUFFIX or (path.is_file() and path.suffix != ".json" and is_gguf(path))
        else:
            is_one = False
    except (OSError, RuntimeError, ValueError):  # which is told where it is looked for
        return None
    return path if is_one else None


def read_gguf(path: Path) -> GgufModel:
    """The model in the file at ``path`` or in the folder there.

    Raises:
        ModelError: a file can't be read, is missing, broken, or holds no model.
        UsageError: a folder has several models.
    """
    if not path.is_dir():
        return read_model(_Folder(path.parent), path.name)
    folder = _Folder(path)
    try:
        names = sorted(each.name for each in _names(path))
    except OSError as error:
        raise ModelError(f"cannot look at {path}: {error.strerror}") from None
    wholes = wholes_of(names)
    if len(wholes) == 1:
        return read_model(folder, wholes[0])
    if len(wholes) > _MOST_READ:
        raise several(str(path), wholes, folder.called(wholes[0]))
    kinds = {name: kind_of(folder.header(name)) for name in wholes}
    models = [name for name, kind in kinds.items() if kind is Kind.MODEL]
    projectors = [name for name, kind in kinds.items() if kind is Kind.PROJECTOR]
    if len(models) > 1:
        raise several(str(path), models, folder.called(models[0]))
    if not models:
        raise ModelError(f"{path} has {len(kinds)} GGUF files, and no model among them: {_shown(list(kinds))}")
    found = read_model(folder, models[0])
    if not projectors:
        return found
    beside = folder.header(projectors[0])
    return replace(found, projector=(projectors[0], sum(tensor.nbytes for tensor in beside.tensors)))


class Place(Protocol):
    """Where the files of a model are: a folder, or a repository on a hub."""

    def called(self, name: str) -> str:
        """The file ``name`` for messages, and for llama.cpp."""
        ...

    def has(self, name: str) -> bool:
        """Whether it is there."""
        ...

    def header(self, name: str) -> Header:
        """Its header.

        Raises:
            ModelError: it can't be read, or is broken.
        """
        ...


@dataclass(frozen=True, slots=True)
class _Folder:
    path: Path

    def called(self, name: str) -> str:
        return str(self.path / name)

    def has(self, name: str) -> bool:
        return (self.path / name).exists()

    def header(self, name: str) -> Header:
        return read_header(self.path / name)


def read_model(place: Place, name: str) -> GgufModel:
    """The model that the file ``name`` is, or is a part of.

    Raises:
        ModelError: a file can't be read, is missing, broken, or holds no model.
    """
    first = _first_part(place, name)
    header = place.header(first)
    kind = kind_of(header)
    if kind is not Kind.MODEL:
        raise ModelError(f"{place.called(name)} {_WHAT_IT_IS[kind]}", hint=_WHAT_TO_GIVE[kind])
    headers = [header, *_other_parts(place, first, header)]
    tensors = tuple(tensor for each in headers for tensor in each.tensors)
    _check_whole(place.called(first), header, tensors)
    architecture = header.metadata["general.architecture"]
    assert isinstance(architecture, str), "a model has one"
    return GgufModel(
        name=place.called(first),
        architecture=architecture,
        metadata=header.metadata,
        tensors=tensors,
        files=len(headers),
    )


def wholes_of(names: Iterable[str]) -> list[str]:
    """One name of each file that is by itself, and of each that has parts."""
    wholes: dict[str, str] = {}
    for name in names:
        part = _PART.fullmatch(name)
        wholes.setdefault(name if part is None else f"{part['base']}-of-{part['count']}", name)
    return list(wholes.values())


def several(where: str, models: Sequence[str], like: str) -> UsageError:
    """Why one of several models has to be named."""
    return UsageError(f"{where} holds {len(models)} models: {_shown(models)}", hint=f"give one of them, like {like}")


_WHAT_IT_IS = {
    Kind.PROJECTOR: "is a projector (mmproj), what a model that sees makes of images, and no model by itself",
    Kind.ADAPTER: "is an adapter (LoRA) for a model, and no model by itself",
    Kind.OTHER: "is a GGUF file that names no architecture: it holds no model",
}
_WHAT_TO_GIVE = {
    Kind.PROJECTOR: "give the model's own file; llama-server takes this one with --mmproj",
    Kind.ADAPTER: "give the model's own file; llama-server takes this one with --lora",
    Kind.OTHER: "give the model's own file",
}


def kind_of(header: Header) -> Kind:
    """What the file with ``header`` holds."""
    architecture, type_ = header.metadata.get("general.architecture"), header.metadata.get("general.type")
    if type_ == "adapter":
        return Kind.ADAPTER
    if architecture == "clip" or type_ == "mmproj":
        return Kind.PROJECTOR
    is_named = isinstance(architecture, str) and architecture
    return Kind.MODEL if is_named and type_ in (None, "model") else Kind.OTHER


def _has_other_weights(folder: Path) -> bool:
    return any(path.suffix in _OTHER_WEIGHTS or path.name.endswith(".index.json") for path in folder.iterdir())


def _names(folder: Path) -> Iterator[Path]:
    return (path for path in folder.iterdir() if path.suffix.lower() == SUFFIX and not path.name.startswith("."))


def _shown(names: Sequence[str]) -> str:
    more = len(names) - _MOST_SHOWN
    told = ", ".join(names[:_MOST_SHOWN])
    return f"{told} and {more} more" if more > 0 else told


def _first_part(place: Place, name: str) -> str:
    """The first part of the model that the file ``name`` is a part of; that itself where it is none."""
    part = _PART.fullmatch(name)
    if part is None or int(part["number"]) < 2:
        return name
    first = _part(part["base"], 1, int(part["count"]))
    if not place.has(first):
        raise ModelError(f"{place.called(name)} is a part of a model, whose first, {first}, is not beside it")
    return first


def _part(base: str, number: int, count: int) -> str:
    return f"{base}-{number:05}-of-{count:05}{SUFFIX}"


def _other_parts(place: Place, first: str, header: Header) -> list[Header]:
    """The headers of the parts behind the first one.

    Raises:
        ModelError: one is missing, broken, or of another model.
    """
    count = _whole(header.metadata.get("split.count"), 1)
    if count < 2:
        return []
    part = _PART.fullmatch(first)
    if part is None or int(part["count"]) != count:
        raise ModelError(
            f"{place.called(first)} says that it is one of {count} parts, which its name does not",
            hint=f"llama.cpp finds the others by names like model-00001-of-{count:05}{SUFFIX}",
        )
    names = [_part(part["base"], number, count) for number in range(2, count + 1)]
    missing = [name for name in names if not place.has(name)]
    if missing:
        raise ModelError(
            f"{len(missing)} of the {count} parts of {place.called(first)} are not beside it: {_shown(missing)}",
            hint=DOWNLOAD_AGAIN,
        )
    headers = [place.header(name) for name in names]
    for number, (name, each) in enumerate(zip([first, *names], [header, *headers], strict=True)):
        said = each.metadata.get("split.no"), each.metadata.get("split.count")
        if said != (number, count):
            raise ModelError(
                f"{place.called(name)} is not part {number + 1} of {count}: its header says {said[0]} of {said[1]}"
            )
    return headers


def _check_whole(first: str, header: Header, tensors: Sequence[StoredTensor]) -> None:
    said = header.metadata.get("split.tensors.count", len(tensors))
    if said != len(tensors):
        raise ModelError(f"the parts of {first} have {len(tensors)} tensors, and should have {said}")
    if len({tensor.name for tensor in tensors}) < len(tensors):
        raise ModelError(f"the parts of {first} have tensors of the same name")
    if not tensors:
        raise ModelError(f"{first} has no tensors: it is a vocabulary alone", hint="give the model's own file")


def _whole(value: Value | None, default: int = -1) -> int:
    return value if type(value) is int else default
