"""What the files of a checkpoint say of themselves, without their weights being read."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING
from zipfile import is_zipfile

from devctl.errors import ModelError, first_line
from devctl.models.files.hub import fetch_weights
from devctl.models.files.index import index_dtype, missing_shards, read_index, shards
from devctl.models.files.integrity import require_whole
from devctl.models.files.resolve import ModelSource, SourceKind
from devctl.models.files.safetensors import SUFFIX, read_header

if TYPE_CHECKING:
    from huggingface_hub import SafetensorsRepoMetadata

_SAFETENSORS_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_FLOATING_DTYPES = frozenset(_SAFETENSORS_DTYPES.values())


def checkpoint_dtype(source: ModelSource) -> str | None:
    """torch's name of the dtype that ``from_pretrained`` takes from a checkpoint whose config names none.

    That is the one that the index names, else the first floating one in the file that it would read first, but for
    those of 8 bits or fewer, in which no model is built (``_get_dtype``). Only headers are read; of a model on the hub,
    only they are downloaded. None where there is no checkpoint, or it has no such tensor.

    Raises:
        ModelError: a local file is broken.
    """
    if source.kind is SourceKind.CONFIG:
        return None
    folder = folder_at_hand(source)
    if folder is None:
        names = _hub_dtypes(source)
    else:
        index = folder_index(folder)
        named = None if index is None else index_dtype(index)
        names = iter([named]) if named is not None else _local_dtypes(folder)
    return next((name for name in names if name in _FLOATING_DTYPES), None)


def weights_file(folder: Path) -> Path | None:
    """The file in ``folder`` that ``from_pretrained`` would read first; None where there is none.

    Raises:
        ModelError: the index that decides it is broken.
    """
    from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME

    for whole, index in ((SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME), (WEIGHTS_NAME, WEIGHTS_INDEX_NAME)):
        if (folder / whole).is_file():
            return folder / whole
        if (folder / index).is_file():
            return folder / shards(folder / index)[0]
    return None


def folder_at_hand(source: ModelSource) -> Path | None:
    """The folder on this machine that weights of ``source`` are read from; None where they are on the hub alone."""
    from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME

    folder = source.config_path.parent
    if source.kind is SourceKind.DIRECTORY:
        return folder
    if source.kind is SourceKind.CONFIG:
        return None
    if any((folder / name).is_file() for name in (SAFE_WEIGHTS_NAME, WEIGHTS_NAME)):
        return folder
    for name in (SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_INDEX_NAME):
        if (folder / name).is_file():
            return None if missing_shards(folder, shards(folder / name)) else folder
    return None


def folder_index(folder: Path) -> Path | None:
    """The index that ``from_pretrained`` would go by in ``folder``; None where one file is the whole, or none is there.

    Raises:
        ModelError: it is no index.
    """
    from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME

    for whole, index in ((SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME), (WEIGHTS_NAME, WEIGHTS_INDEX_NAME)):
        if (folder / whole).is_file():
            return None
        if (folder / index).is_file():
            read_index(folder / index)
            return folder / index
    return None


def weights_folder(source: ModelSource) -> Path:
    """The folder of a checkpoint's weights, downloaded if it is on the hub, and found whole.

    Raises:
        ModelError: there are none, they can't be downloaded, or a file is missing, cut off or broken.
    """
    return whole_weights(source)[0]


def whole_weights(source: ModelSource) -> tuple[Path, tuple[str, ...]]:
    """The same, and the tensors that its index names and no file has.

    Raises:
        ModelError: as `weights_folder`.
    """
    if source.kind is SourceKind.HUB:
        folder = fetch_weights(source.location, source.revision)
    else:
        folder = source.config_path.parent
    return folder, require_whole(folder)


def _local_dtypes(folder: Path) -> Iterator[str]:
    """torch's names of the dtypes in a local checkpoint, in the order in which transformers looks at its tensors."""
    path = weights_file(folder)
    if path is None or not path.is_file():
        return
    if path.suffix == SUFFIX:
        # the library gives the names of a file sorted
        for _, tensor in sorted(read_header(path).tensors.items()):
            yield _SAFETENSORS_DTYPES.get(tensor.dtype, "")
    else:
        yield from _pickled_dtypes(path)


def _pickled_dtypes(path: Path) -> Iterator[str]:
    import torch

    try:
        # a pickle of before 2020 is no zip archive, and is read whole
        weights = torch.load(path, map_location="meta", weights_only=True, mmap=is_zipfile(path))
        dtypes = (str(value.dtype) for value in weights.values() if isinstance(value, torch.Tensor))
        yield from (dtype.removeprefix("torch.") for dtype in dtypes)
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        raise ModelError(f"the weights in {path} can't be read: {first_line(error)}") from None


@cache
def hub_headers(model: str, revision: str | None) -> SafetensorsRepoMetadata:
    """The headers of the safetensors files of ``model``, each downloaded once.

    Raises:
        Exception: those of ``get_safetensors_metadata``.
    """
    from huggingface_hub import get_safetensors_metadata

    return get_safetensors_metadata(model, revision=revision)


def _hub_dtypes(source: ModelSource) -> Iterator[str]:
    """Asks the hub for the headers alone; none where it has no safetensors, or can't be reached."""
    try:
        metadata = hub_headers(source.location, source.revision)
    except Exception:  # noqa: BLE001 - besides its own, those of the HTTP library that the hub's client happens to use
        return
    named = (metadata.metadata or {}).get("dtype") if metadata.sharded else None
    if isinstance(named, str):
        yield named
    for _, file in sorted(metadata.files_metadata.items()):
        yield from (_SAFETENSORS_DTYPES.get(tensor.dtype, "") for _, tensor in sorted(file.tensors.items()))
