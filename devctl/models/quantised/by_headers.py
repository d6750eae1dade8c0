"""Bytes of a quantised checkpoint whose method is not counted: those that the headers of its files say."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from devctl.models.files.checkpoint import Stored
from devctl.models.files.headers import renamed
from devctl.models.quantised.counting import Counting
from devctl.models.quantised.modelopt import is_experts

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_WIDE = frozenset({"F64", "F32", "F16", "BF16"})
"""safetensors' dtypes of weights that are loaded in the model's dtype; others stay as they are."""

_PLAIN = _WIDE | {"I64", "BOOL"}


def is_packed(stored: Mapping[str, Stored]) -> bool:
    """Whether a checkpoint has weights in a dtype that none are loaded in plainly; positions are no weights."""
    return any(tensor.dtype not in _PLAIN and tensor.count > 1 for tensor in stored.values())


def count_by_headers(model: PreTrainedModel, stored: Mapping[str, Stored]) -> Counting:
    """The bytes in the files, for each weight that is packed there; what is stored plainly is counted as it is built.

    What belongs to a weight, like its scales, is planned with it: a tensor that the model has no name for goes to the
    module that it is in. What is in no module of the model, as layers that it does not build, is left out.
    """
    modules = dict(model.named_modules())
    parameters = dict(model.named_parameters())
    packed: dict[str, int] = {}
    beside: dict[str, int] = {}
    found = set()
    for old, (new, converted) in renamed(model, stored, parameters).items():
        tensor = stored[old]
        if new in parameters:
            found.add(new)
            if converted:
                packed[new] = packed.get(new, 0) + _loaded(tensor, parameters[new].element_size())
            elif tensor.dtype not in _WIDE or tensor.count != parameters[new].numel():
                packed[new] = packed.get(new, 0) + tensor.nbytes
        elif new not in modules and (owner := _owner(new, modules)) is not None:
            beside[owner] = beside.get(owner, 0) + tensor.nbytes
    counting = Counting(notes=["sizes of what is quantised are those of the checkpoint's files"])
    for name, nbytes in packed.items():
        counting.planned[name] = nbytes
    for owner, nbytes in beside.items():
        own = [f"{owner}.{local}" for local, _ in modules[owner].named_parameters(recurse=False)]
        lost = [name for name in own if name not in found]
        first, *rest = lost or own
        known = counting.planned.get(first, math.prod(parameters[first].shape) * parameters[first].element_size())
        counting.planned[first] = nbytes + (0 if lost else known)
        counting.planned |= dict.fromkeys(rest if lost else (), 0)
    counting.dtypes = dict.fromkeys(counting.planned, "uint8")
    return counting


def _loaded(tensor: Stored, itemsize: int) -> int:
    return tensor.count * itemsize if tensor.dtype in _WIDE else tensor.nbytes


def _owner(name: str, modules: Mapping[str, object]) -> str | None:
    """The innermost module around ``name`` that has weights: experts that are kept in one, or the one itself."""
    import torch

    owner = name.rpartition(".")[0]
    while owner and owner not in modules:
        owner = owner.rpartition(".")[0]
    module = modules.get(owner) if owner else None
    if not isinstance(module, torch.nn.Module) or not any(True for _ in module.named_parameters(recurse=False)):
        return None
    # within a block that the model does not have, only experts are kept apart in the files
    return owner if owner == name.rpartition(".")[0] or _is_near(name, owner) or is_experts(owner, module) else None


def _is_near(name: str, owner: str) -> bool:
    """Whether a tensor is in its module but for one level, as ``W_q.meta`` of a weight is."""
    return name[len(owner) + 1 :].count(".") <= 1
