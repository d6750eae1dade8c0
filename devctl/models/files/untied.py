"""Weights that a config ties and a checkpoint holds apart: from_pretrained keeps both, where they differ."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import is_zipfile

from devctl.models.files.checkpoint import Checkpoint, Stored
from devctl.models.files.headers import renamed
from devctl.models.files.index import shards
from devctl.models.files.resolve import ModelSource
from devctl.models.files.safetensors import SUFFIX
from devctl.models.files.weights import folder_at_hand, folder_index, weights_file
from devctl.reading import open_file
from devctl.units import format_bytes

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_AT_ONCE = 2**23
"""Elements of two weights that are read and compared at a time."""


def find_untied(
    model: PreTrainedModel, source: ModelSource, checkpoint: Checkpoint, dtype: torch.dtype
) -> tuple[frozenset[str], list[str]]:
    """The targets of ties that ``from_pretrained`` would not tie, and notes on them.

    It compares the values of two weights that are both in the checkpoint, in ``dtype``, and ties them where they are
    equal (``tie_weights``). Where no weight is at hand, both are counted: of a checkpoint on the hub that has both,
    and of a config that says ``tie_word_embeddings: false`` and whose class ties all the same, as T5's does.

    Args:
        model: as it was built, with its ties.
    """
    ties = dict(model.all_tied_weights_keys)
    if not ties:
        return frozenset(), []
    weights = _weights(model, source, checkpoint, frozenset((*ties, *ties.values())))
    if weights is None:
        return _by_config(model, source, ties)
    apart = []
    unknown = False
    for target, kept in _pairs(ties, weights):
        equal = _equal(weights[target], weights[kept], dtype)
        unknown |= equal is None
        if not equal:
            apart.append((target, ties[target]))
    if not apart:
        return frozenset(), []
    names = ", ".join(f"{target} and {other}" for target, other in apart)
    why = (
        "both are in the checkpoint; transformers makes them one only if they are equal, which is not known"
        if unknown
        else "the checkpoint has both, which differ"
    )
    return frozenset(target for target, _ in apart), [f"{names} are counted as two weights, though tied: {why}"]


def _by_config(
    model: PreTrainedModel, source: ModelSource, ties: Mapping[str, str]
) -> tuple[frozenset[str], list[str]]:
    """What is likely where no checkpoint is at hand."""
    text = source.config.get("text_config")
    parts = (source.config, text if isinstance(text, dict) else {})
    head: Any = None
    with contextlib.suppress(Exception):  # a model may have no such method, or code of its own in it
        head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    weight = getattr(head, "weight", None)
    target = next((name for name, p in model.named_parameters() if p is weight and name in ties), None)
    if target is None or weight is None or not any(part.get("tie_word_embeddings") is False for part in parts):
        return frozenset(), []
    size = format_bytes(weight.numel() * weight.element_size())
    return frozenset({target}), [
        f"the config says that embeddings are not tied, and {type(model).__name__} ties them: {target} is counted as a "
        f"weight of its own ({size}), which it is where the checkpoint has it and it differs"
    ]


def _pairs(ties: Mapping[str, str], weights: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Pairs of which both are in the checkpoint, as ``tie_weights`` comes upon them; one that is not is filled in."""
    items = list(ties.items())
    for at, (target, source) in enumerate(items):
        if target in weights and source in weights:
            yield target, source
        elif target in weights:
            weights[source] = weights[target]
        elif source not in weights:
            backup = next((t for t, s in items[at + 1 :] if s == source and t in weights), None)
            if backup is not None:
                weights[target] = weights[backup]


def _weights(
    model: PreTrainedModel, source: ModelSource, checkpoint: Checkpoint, wanted: frozenset[str]
) -> dict[str, Any] | None:
    """The stored ones of the weights ``wanted``, by the model's names; None where no checkpoint is at hand."""
    stored: Mapping[str, Any] = checkpoint.tensors or _pickled(source, checkpoint)
    if not stored:
        return None
    shapes = {tuple(p.shape) for name, p in _named(model) if name in wanted}
    same = [name for name, tensor in stored.items() if tuple(tensor.shape) in shapes]
    # the rules for names look at what the model has, so that they are given all of it
    names = renamed(model, same, [name for name, _ in _named(model)])
    return {new: stored[old] for old, (new, converted) in names.items() if new in wanted and not converted}


def _named(model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _pickled(source: ModelSource, checkpoint: Checkpoint) -> dict[str, Any]:
    """The tensors of a checkpoint of pickles that is here, their bytes left in the files.

    Those of before 2020 are no zip archives, and would be read whole: they are left alone.
    """
    import torch

    folder = folder_at_hand(source)
    if folder is None or checkpoint.note is not None:
        return {}
    first = weights_file(folder)
    if first is None or first.suffix == SUFFIX:
        return {}
    index = folder_index(folder)
    files = [first] if index is None else [folder / name for name in shards(index)]
    found: dict[str, Any] = {}
    for path in files:
        if not is_zipfile(path):
            return {}
        try:
            found |= torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except Exception:  # noqa: BLE001 - a pickle may hold anything; loading tells what is wrong
            return {}
    return {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}


def _equal(one: Any, other: Any, dtype: torch.dtype) -> bool | None:
    """Whether two weights are equal in ``dtype``, as torch compares them; None where that can't be read."""
    import torch

    if tuple(one.shape) != tuple(other.shape):
        return False
    if not isinstance(one, Stored):
        return one.data_ptr() == other.data_ptr() or torch.equal(one.to(dtype), other.to(dtype))
    if one.path is None or other.path is None:
        return None
    if one == other:
        return True
    pieces = zip(_read(one, one.path), _read(other, other.path), strict=True)
    try:
        return all(torch.equal(a.to(dtype), b.to(dtype)) for a, b in pieces)
    except (OSError, EOFError, KeyError):  # cut off behind its header, or of a dtype that torch has not
        return None


def _read(tensor: Stored, path: Path) -> Iterator[torch.Tensor]:
    """The elements of a stored tensor, some at a time."""
    import torch
    from transformers.modeling_utils import str_to_torch_dtype

    dtype = str_to_torch_dtype[tensor.dtype]
    with open_file(path) as file:
        file.seek(tensor.start)
        for start in range(0, tensor.count, _AT_ONCE):
            count = min(_AT_ONCE, tensor.count - start)
            data = bytearray(count * dtype.itemsize)
            if file.readinto(data) != len(data):
                raise EOFError(f"{path} is cut off")
            yield torch.frombuffer(data, dtype=dtype)
