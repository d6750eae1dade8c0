"""The index of a checkpoint in several files: which file has which tensor."""

import json
from pathlib import Path, PurePosixPath, PureWindowsPath

from devctl.errors import ModelError, first_line

DOWNLOAD_AGAIN = "download it again"


def read_index(path: Path) -> dict[str, str]:
    """The file of each tensor, as ``model.safetensors.index.json`` and its like have it.

    Raises:
        ModelError: it is no index, names no file, or one that is not in its folder.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["weight_map"].items()
        found = {str(tensor): str(file) for tensor, file in entries}
        if not found:
            raise ValueError("it names no tensor")
        if outside := [file for file in found.values() if not _is_within(file)]:
            raise ValueError(f"it names {outside[0]!r}, which is not in its folder")
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ModelError(f"{path} is no index of a checkpoint: {first_line(error)}", hint=DOWNLOAD_AGAIN) from None
    return found


def _is_within(file: str) -> bool:
    """Whether ``file`` is the name of one below the folder that it is looked for in, on any system."""
    parts = PurePosixPath(file.replace("\\", "/")).parts
    rooted = PureWindowsPath(file).anchor or PurePosixPath(file).anchor
    return bool(parts) and not rooted and ".." not in parts and "\x00" not in file


def shards(path: Path) -> tuple[str, ...]:
    """The files that the index at ``path`` names, in order.

    Raises:
        ModelError: it is no index, or names no file.
    """
    return tuple(sorted(set(read_index(path).values())))
