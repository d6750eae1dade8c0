"""The index of a checkpoint in several files: which file has which tensor."""

import json
from pathlib import Path

from devctl.errors import ModelError, first_line

DOWNLOAD_AGAIN = "download it again"


def read_index(path: Path) -> dict[str, str]:
    """The file of each tensor, as ``model.safetensors.index.json`` and its like have it.

    Raises:
        ModelError: it is no index, or names no file.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["weight_map"].items()
        found = {str(tensor): str(file) for tensor, file in entries}
        if not found:
            raise ValueError("it names no tensor")
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ModelError(f"{path} is no index of a checkpoint: {first_line(error)}", hint=DOWNLOAD_AGAIN) from None
    return found


def shards(path: Path) -> tuple[str, ...]:
    """The files that the index at ``path`` names, in order.

    Raises:
        ModelError: it is no index, or names no file.
    """
    return tuple(sorted(set(read_index(path).values())))
