"""Are a checkpoint's files all there, and whole? Told from their sizes and headers, before a weight is read."""

from __future__ import annotations

import zipfile
from pathlib import Path

from devctl.errors import ModelError
from devctl.models.files.index import DOWNLOAD_AGAIN, missing_shards, read_index
from devctl.models.files.safetensors import SUFFIX, read_whole
from devctl.reading import open_file

_LFS = b"version https://git-lfs"
"""What a file begins with that git keeps elsewhere."""


def require_whole(folder: Path) -> tuple[str, ...]:
    """See that the files of weights that ``from_pretrained`` would read from ``folder`` are there, and whole.

    Returns:
        Tensors that the index names and no file has. Whether the model needs them is not known here: transformers reads
        what the files have, and asks for nothing else.

    Raises:
        ModelError: there are none, one is missing, cut off or broken, or lacks a tensor that the index says it has and
            another file has.
    """
    from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME

    for whole, index in ((SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME), (WEIGHTS_NAME, WEIGHTS_INDEX_NAME)):
        if (folder / whole).is_file():
            _check(folder / whole)
            return ()
        if (folder / index).is_file():
            return _shards(folder, index)
    raise ModelError(
        f"{folder} has no weights to load",
        hint="give the folder of a checkpoint, or try the placement with --load-format dummy",
    )


def _shards(folder: Path, index: str) -> tuple[str, ...]:
    weights = read_index(folder / index)
    files = sorted(set(weights.values()))
    if missing := missing_shards(folder, files):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ModelError(f"{folder} lacks {missing[0]}{more}, which {index} names", hint=DOWNLOAD_AGAIN)
    found = {name: _check(folder / name) for name in files}
    nowhere = []
    anywhere = frozenset(tensor for tensors in found.values() for tensor in tensors or ())
    for tensor, name in weights.items():
        there = found[name]
        if there is None or tensor in there:
            continue
        if tensor in anywhere:
            raise ModelError(f"{folder / name} has no {tensor}, which {index} says it has", hint=DOWNLOAD_AGAIN)
        nowhere.append(tensor)
    return tuple(nowhere)


def _check(path: Path) -> frozenset[str] | None:
    """The names of the tensors in a safetensors file; None of a pickle, which has to be run to know."""
    try:
        size = path.stat().st_size
        with open_file(path) as file:
            start = file.read(len(_LFS))
        if start == _LFS:
            raise ModelError(f"{path} is a pointer of Git LFS, not weights", hint="run `git lfs pull` there")
        if path.suffix != SUFFIX:
            # torch's pickles are zip archives, whose table is at the end; those of before 2020 are not
            if not start or (start.startswith(b"PK") and not zipfile.is_zipfile(path)):
                raise ModelError(f"{path} is cut off: {size:,} bytes", hint=DOWNLOAD_AGAIN)
            return None
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from None
    return frozenset(read_whole(path).tensors)
