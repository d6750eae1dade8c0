"""The index of a checkpoint in several files: which file has which tensor."""

import json
from collections.abc import Iterable
from pathlib import Path, PurePosixPath, PureWindowsPath

from devctl.as_json import kind_in_json
from devctl.errors import ModelError, first_line
from devctl.reading import read_bytes

DOWNLOAD_AGAIN = "download it again"


MOST_INDEX = 200_000_000
"""Bytes of an index that are read: that of a checkpoint of a million tensors has 100 MB."""


def read_index(path: Path) -> dict[str, str]:
    """The file of each tensor, as ``model.safetensors.index.json`` and its like have it.

    What transformers needs is asked for: it reads ``metadata``, an object, of which it wants nothing
    (``utils/hub.py::get_checkpoint_shard_files``).

    Raises:
        ModelError: it is no index, names no file, or one that is not in its folder.
    """
    return _parsed(path)["weight_map"]


def index_dtype(path: Path) -> str | None:
    """The dtype that the metadata of the index at ``path`` names; None where it names none.

    Raises:
        ModelError: it is no index.
    """
    named = _parsed(path)["metadata"].get("dtype")
    return named if isinstance(named, str) else None


def _parsed(path: Path) -> dict[str, dict[str, str]]:
    try:
        index = json.loads(read_bytes(path, MOST_INDEX).decode())
        if not isinstance(index, dict):
            raise ValueError(f"it is {kind_in_json(type(index).__name__)}, not an object")
        for key in ("weight_map", "metadata"):
            if key not in index:
                raise ValueError(f'it has no "{key}", which transformers needs')
            if not isinstance(index[key], dict):
                raise ValueError(f'its "{key}" is {json.dumps(index[key])[:40]}, and no object')
        weights: dict[str, str] = index["weight_map"]
        if not weights:
            raise ValueError("it names no tensor")
        for tensor, file in weights.items():
            if not isinstance(file, str) or not file or "\0" in file:
                raise ValueError(f"{tensor[:80]!r} is in {json.dumps(file)[:40]}, which is no file's name")
            if not _is_within(file):
                raise ValueError(f"it names {file[:80]!r}, which is not in its folder")
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else first_line(error)
        raise ModelError(f"{path} is no index of a checkpoint: {reason}", hint=DOWNLOAD_AGAIN) from None
    return index


def _is_within(file: str) -> bool:
    """Whether ``file`` is the name of one below the folder that it is looked for in, on any system."""
    parts = PurePosixPath(file.replace("\\", "/")).parts
    rooted = PureWindowsPath(file).anchor or PurePosixPath(file).anchor
    return bool(parts) and not rooted and ".." not in parts


def shards(path: Path) -> tuple[str, ...]:
    """The files that the index at ``path`` names, in order.

    Raises:
        ModelError: it is no index, or names no file.
    """
    return tuple(sorted(set(read_index(path).values())))


def missing_shards(folder: Path, names: Iterable[str]) -> list[str]:
    """Those of the files ``names`` that are not in ``folder``; a name too long for a file is of none."""
    missing = []
    for name in names:
        try:
            there = (folder / name).is_file()
        except OSError:
            there = False
        if not there:
            missing.append(name)
    return missing
