"""Are a checkpoint's files all there, and whole? Told from their sizes and headers, before a weight is read."""

from __future__ import annotations

import zipfile
from pathlib import Path

from devctl.errors import ModelError
from devctl.models.files.index import DOWNLOAD_AGAIN, read_index
from devctl.models.files.safetensors import SUFFIX, read_header

_LFS = b"version https://git-lfs"
"""What a file begins with that git keeps elsewhere."""


def require_whole(folder: Path) -> tuple[Path, ...]:
    """The files of weights that ``from_pretrained`` would read from ``folder``.

    Raises:
        ModelError: there are none, one is missing, cut off or broken, or lacks a tensor that the index says it has.
    """
    from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME

    for whole, index in ((SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME), (WEIGHTS_NAME, WEIGHTS_INDEX_NAME)):
        if (folder / whole).is_file():
            _check(folder / whole)
            return (folder / whole,)
        if (folder / index).is_file():
            return _shards(folder, index)
    raise ModelError(
        f"{folder} has no weights to load",
        hint="give the folder of a checkpoint, or try the placement with --load-format dummy",
    )


def _shards(folder: Path, index: str) -> tuple[Path, ...]:
    weights = read_index(folder / index)
    files = tuple(folder / name for name in sorted(set(weights.values())))
    if missing := [path.name for path in files if not path.is_file()]:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ModelError(f"{folder} lacks {missing[0]}{more}, which {index} names", hint=DOWNLOAD_AGAIN)
    found = {path: _check(path) for path in files}
    for tensor, name in weights.items():
        there = found[folder / name]
        if there is not None and tensor not in there:
            raise ModelError(f"{folder / name} has no {tensor}, which {index} says it has", hint=DOWNLOAD_AGAIN)
    return files


def _check(path: Path) -> frozenset[str] | None:
    """The names of the tensors in a safetensors file; None of a pickle, which has to be run to know."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
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
    header = read_header(path)
    if size != header.file_size:
        what = "cut off" if size < header.file_size else "corrupt"
        raise ModelError(
            f"{path} is {what}: it has {size:,} bytes, and should have {header.file_size:,}", hint=DOWNLOAD_AGAIN
        )
    return frozenset(header.tensors)
