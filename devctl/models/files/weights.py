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
from devctl.models.files.index import shards
from devctl.models.files.integrity import require_whole
from devctl.models.files.resolve import ModelSource, SourceKind
from devctl.models.files.safetensors import SUFFIX, read_header

if TYPE_CHECKING:
    from huggingface_hub import SafetensorsRepoMetadata

_SAFETENSORS_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_FLOATING_DTYPES = frozenset(_SAFETENSORS_DTYPES.values())


def checkpoint_dtype(source: ModelSource) -> str | None:
    """torch's name of the first floating dtype in the file that ``from_pretrained`` would read first.

    Only headers are read; of a model on the hub, only they are downloaded. None where there is no checkpoint.

    Raises:
        ModelError: a local file is broken.
    """
    if source.kind is SourceKind.CONFIG:
        return None
    names = _hub_dtypes(source) if source.kind is SourceKind.HUB else _local_dtypes(source.config_path.parent)
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


def weights_folder(source: ModelSource) -> Path:
    """The folder of a checkpoint's weights, downloaded if it is on the hub, and found whole.

    Raises:
        ModelError: there are none, they can't be downloaded, or a file is missing, cut off or broken.
    """
    if source.kind is SourceKind.HUB:
        folder = fetch_weights(source.location, source.revision)
    else:
        folder = source.config_path.parent
    require_whole(folder)
    return folder


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
    for _, file in sorted(metadata.files_metadata.items()):
        yield from (_SAFETENSORS_DTYPES.get(tensor.dtype, "") for _, tensor in sorted(file.tensors.items()))
