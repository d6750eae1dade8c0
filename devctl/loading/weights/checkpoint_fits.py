"""Does the checkpoint fit the model: what it lacks, what it has too much, and shapes that differ."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from devctl.devices import Device
from devctl.errors import ModelError
from devctl.loading.weights.hooks import hooks_of
from devctl.models.files.headers import renamed
from devctl.models.files.index import DOWNLOAD_AGAIN
from devctl.models.files.safetensors import read_header
from devctl.models.skeleton import empty_model
from devctl.models.tree import tensors
from devctl.placement.judge import shorten
from devctl.placement.strategy import device_of

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from devctl.models.skeleton import Skeleton

_RIGHT_CONFIG = "is it the config of this checkpoint?"


def require_fit(
    skeleton: Skeleton,
    device_map: Mapping[str, Device],
    model: PreTrainedModel,
    info: Mapping[str, Any],
    name: str,
    *,
    allow_missing: bool = False,
) -> tuple[str, ...]:
    """Judge what ``from_pretrained`` found in the checkpoint called ``name``; ``info`` is its loading info.

    A class that the config does not name may have parts of its own, like the head of a classifier. Otherwise a
    checkpoint that both lacks tensors and has others is one of another model. A weight that is tied to one that is
    there is not missing, nor is what the class lets a checkpoint leave out.

    Args:
        allow_missing: leave what is missing random, as for a head that is trained later.

    Returns:
        Notes on what is missing, so random, and on what was not used.

    Raises:
        ModelError: the checkpoint is of another model, lacks weights, or what the map puts on disk.
    """
    wrong = [(key, tuple(stored), tuple(built)) for key, stored, built in info["mismatched_keys"]]
    if mismatched := sorted([*wrong, *_mismatched_on_disk(model)]):
        first, stored, built = mismatched[0]
        more = f" and {len(mismatched) - 1} more" if len(mismatched) > 1 else ""
        raise ModelError(
            f"the weights of {name} do not fit its config: {first} is {list(stored)} in the checkpoint and "
            f"{list(built)} in the model{more}",
            hint=_RIGHT_CONFIG,
        )
    missing, unexpected = _absent(model, info["missing_keys"]), sorted(info["unexpected_keys"])
    own = type(model).__name__ in (getattr(skeleton.config, "architectures", None) or ())
    expected = sum(1 for _ in model.parameters())
    if missing and unexpected and (own or len(missing) >= expected):
        raise ModelError(
            f"the weights of {name} are not of {type(model).__name__}: they lack {len(missing)} of its tensors "
            f"({shorten(missing)}), and have {len(unexpected)} that are not of it ({shorten(unexpected)})",
            hint=_RIGHT_CONFIG if own else "--model-class may name another class",
        )
    if on_disk := _unreadable(model, device_map):
        raise ModelError(
            f"the weights of {name} lack {shorten(on_disk)}, which the map puts on disk, where nothing can be read",
            hint="put these on a device that computes",
        )
    if missing and not allow_missing:
        raise ModelError(
            f"the weights of {name} lack {len(missing)} of the {expected} tensors of {type(model).__name__}: "
            f"{shorten(missing)}",
            hint="with --allow-missing they are random, as for a head that is trained later",
        )
    notes = []
    if missing:
        notes.append(f"not in the checkpoint, so random: {shorten(missing)}")
    if unexpected:
        notes.append(f"in the checkpoint, and not of {type(model).__name__}: {shorten(unexpected)}")
    return tuple(notes)


def require_unneeded(skeleton: Skeleton, device_map: Mapping[str, Device], nowhere: Sequence[str], name: str) -> None:
    """See that the model called ``name`` does without the tensors ``nowhere``, which its index names and no file has.

    A tied one is read under the other name, but on disk, where the index is believed.

    Raises:
        ModelError: it needs one.
    """
    if not nowhere:
        return
    tree = skeleton.tree
    targets = {target for target, _ in tree.ties}
    built = [t.name for t in tensors(tree.root) if t.persistent]
    found = {old: new for old, (new, _) in renamed(empty_model(skeleton), nowhere, built).items()}
    known = frozenset(built)
    needed = [
        old
        for old, new in found.items()
        if new in known and (new not in targets or device_of(new, device_map) == Device.disk())
    ]
    if needed:
        raise ModelError(
            f"the weights of {name} lack {shorten(sorted(needed))}, which the index names and no file has",
            hint=DOWNLOAD_AGAIN,
        )


def _absent(model: PreTrainedModel, missing: Collection[str]) -> list[str]:
    """Those of ``missing`` that no other name of the same tensor has brought."""
    names: dict[int, list[str]] = {}
    for name, tensor in (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)):
        if tensor.device.type != "meta":
            names.setdefault(id(tensor), []).append(name)
    there = {name for same in names.values() if any(each not in missing for each in same) for name in same}
    return sorted(name for name in missing if name not in there)


def _unreadable(model: PreTrainedModel, device_map: Mapping[str, Device]) -> list[str]:
    """Weights on disk that no file has: missing ones, and those that a model computes and does not save."""
    found = []
    kept = {name for pair in model.all_tied_weights_keys.items() for name in pair}  # read under either name
    for module_name, module in model.named_modules():
        for local, tensor in module._parameters.items():
            name = f"{module_name}.{local}" if module_name else local
            if tensor is None or tensor.device.type != "meta" or name in kept:
                continue
            stores = [
                weights for hook in hooks_of(module) if (weights := getattr(hook, "weights_map", None)) is not None
            ]
            if device_of(name, device_map) == Device.disk() and not any(local in weights for weights in stores):
                found.append(name)
    return sorted(found)


def _mismatched_on_disk(model: PreTrainedModel) -> Iterator[tuple[str, tuple[int, ...], tuple[int, ...]]]:
    """(name, shape in the file, shape in the model) of weights on disk, which transformers does not compare."""
    entries: dict[str, dict[str, tuple[str, torch.Tensor]]] = {}
    for module_name, module in model.named_modules():
        for hook in hooks_of(module):
            weights = getattr(hook, "weights_map", None)
            index = getattr(getattr(weights, "dataset", weights), "index", None) or {}
            for local, tensor in module._parameters.items():
                full = f"{module_name}.{local}" if module_name else local
                entry = index.get(f"{getattr(weights, 'prefix', '')}{local}")
                if tensor is not None and entry and entry.get("safetensors_file"):
                    entries.setdefault(entry["safetensors_file"], {})[full] = (entry["weight_name"], tensor)
    for path, wanted in entries.items():
        stored = read_header(Path(path)).tensors
        for full, (stored_name, tensor) in wanted.items():
            shape = stored[stored_name].shape
            if shape != tuple(tensor.shape):
                yield full, shape, tuple(tensor.shape)
