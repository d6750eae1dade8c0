"""A checkpoint's tensors held against the model that is built for it, from the headers of its files alone."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from devctl.models.files.index import shards
from devctl.models.files.resolve import ModelSource, SourceKind
from devctl.models.files.safetensors import read_header
from devctl.models.files.weights import hub_headers
from devctl.models.tree import ModuleTree, tensors
from devctl.units import format_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_QUANTISED_SLACK = 0.01
"""Share by which a quantised checkpoint may differ in bytes: what is not quantised may be in another dtype."""

_BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "BOOL": 8, "F64": 64, "I64": 64, "U64": 64, "C64": 64}
"""Bits of safetensors' dtypes whose names do not say them, like BF16, F8_E4M3 and I32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What a header says of a tensor."""

    count: int
    nbytes: int


def disagreement(model: PreTrainedModel, tree: ModuleTree, source: ModelSource, *, hidden: int = 0) -> str | None:
    """A line on how the checkpoint and ``model`` differ; None where they agree, or no header can be had.

    Elements are compared, since a checkpoint may be in another dtype than it is loaded in; of a checkpoint that is
    quantised, bytes. A weight that is tied counts once, and what the model's class ignores does not count.

    Args:
        hidden: bytes of a quantised model that are not in its tree's tensors.
    """
    try:
        stored = stored_tensors(source)
    except Exception:  # noqa: BLE001 - files and the hub may hold anything; loading tells what is wrong
        return None
    if not stored:
        return None
    targets = {target for target, _ in tree.ties}
    kept = {name: tensor for name, tensor in stored.items() if name not in targets}
    built = {
        t.name: Stored(count=math.prod(t.shape), nbytes=t.nbytes)
        for t in tensors(tree.root)
        if t.persistent and t.same_as is None and t.name not in targets
    }
    unexpected = _pattern(model._keys_to_ignore_on_load_unexpected)
    # what is ignored is so only where the model does not have it
    kept = {name: tensor for name, tensor in kept.items() if name in built or not unexpected.search(name)}
    if tree.quantisation is not None:
        return _bytes_differ(kept, built, hidden)
    return _elements_differ(model, kept, built)


def stored_tensors(source: ModelSource) -> dict[str, Stored]:
    """The tensors of a checkpoint of safetensors by name; none where there is none, or the hub can't be reached.

    Raises:
        Exception: a file is broken.
    """
    if source.kind is SourceKind.CONFIG:
        return {}
    if source.kind is SourceKind.HUB:
        return _on_hub(source)
    found: dict[str, Stored] = {}
    for path in _files(source.config_path.parent):
        found |= {name: _stored(t.shape, t.dtype) for name, t in read_header(path).tensors.items()}
    return found


def stored_dtypes(source: ModelSource) -> dict[str, str]:
    """safetensors' names of the dtypes of a checkpoint's tensors, by name, as `stored_tensors` finds these.

    Raises:
        Exception: a file is broken.
    """
    if source.kind is SourceKind.CONFIG:
        return {}
    if source.kind is SourceKind.HUB:
        metadata = hub_headers(source.location, source.revision)
        return {name: t.dtype for file in metadata.files_metadata.values() for name, t in file.tensors.items()}
    paths = _files(source.config_path.parent)
    return {name: tensor.dtype for path in paths for name, tensor in read_header(path).tensors.items()}


def _files(folder: Path) -> Iterable[Path]:
    from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

    if (folder / SAFE_WEIGHTS_NAME).is_file():
        return [folder / SAFE_WEIGHTS_NAME]
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    if not index.is_file():
        return []
    return [folder / name for name in shards(index)]


def _on_hub(source: ModelSource) -> dict[str, Stored]:
    metadata = hub_headers(source.location, source.revision)
    return {
        name: _stored(tensor.shape, tensor.dtype)
        for file in metadata.files_metadata.values()
        for name, tensor in file.tensors.items()
    }


def _stored(shape: Iterable[int], dtype: str) -> Stored:
    count = math.prod(shape)
    return Stored(count=count, nbytes=math.ceil(count * _bits(dtype) / 8))


@cache
def _bits(dtype: str) -> int:
    named = re.match(r"[A-Z]+(\d+)", dtype)
    return _BITS.get(dtype) or (int(named[1]) if named else 8)


def _bytes_differ(stored: dict[str, Stored], built: dict[str, Stored], hidden: int) -> str | None:
    there, here = sum(t.nbytes for t in stored.values()), hidden + sum(t.nbytes for t in built.values())
    if abs(there - here) <= _QUANTISED_SLACK * max(there, here):
        return None
    return _line(format_bytes(there), format_bytes(here), set(), set())


def _elements_differ(model: PreTrainedModel, stored: dict[str, Stored], built: dict[str, Stored]) -> str | None:
    if sum(t.count for t in stored.values()) == sum(t.count for t in built.values()):
        return None
    # only now is each name looked up: a checkpoint may have 90,000, and patterns that rename them
    unexpected = _pattern(model._keys_to_ignore_on_load_unexpected)
    names = {
        old: new
        for old, (new, _) in renamed(model, stored, built).items()
        if new in built or not unexpected.search(new)
    }
    found = set(names.values())
    absent = _pattern(model._keys_to_ignore_on_load_missing)
    expected = {name: t for name, t in built.items() if name in found or not absent.search(name)}
    there, here = sum(stored[name].count for name in names), sum(t.count for t in expected.values())
    if there == here:
        return None
    extra = {old for old, new in names.items() if new not in built}
    return _line(f"{there:,} elements", f"{here:,}", extra, set(expected) - found)


def _pattern(patterns: Iterable[str] | None) -> re.Pattern[str]:
    """One that is found where any of ``patterns`` is."""
    return re.compile("|".join(f"(?:{pattern})" for pattern in patterns or ()) or "(?!)")


def renamed(model: PreTrainedModel, stored: Iterable[str], built: Iterable[str]) -> dict[str, tuple[str, bool]]:
    """The model's name for each name in the checkpoint, by transformers' own rules for loading it.

    Beside it, whether the tensor is also converted, as experts are that the model keeps in one tensor.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    try:
        mapping: list[Any] = get_model_conversion_mapping(model)
        renamings = [m for m in mapping if isinstance(m, WeightRenaming)]
        converters = [m for m in mapping if isinstance(m, WeightConverter)]
        known = dict.fromkeys(built, True)
        found = {}
        for name in stored:
            new, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, known)
            found[name] = (new, pattern is not None)
        return found
    except Exception:  # noqa: BLE001 - the rules may be of a model that brings its own code
        return {name: (name, False) for name in stored}


def _line(there: str, here: str, extra: set[str], missing: set[str]) -> str:
    details = [
        f"{len(names)} of its tensors {what} ({_some(names)})"
        for names, what in ((extra, "are not in the model"), (missing, "are not in the checkpoint"))
        if names
    ]
    more = f": {'; '.join(details)}" if details else ""
    return f"the checkpoint holds {there}, the model as built {here}{more}"


def _some(names: set[str], most: int = 3) -> str:
    shown = ", ".join(sorted(names)[:most])
    return shown if len(names) <= most else f"{shown}, …"
