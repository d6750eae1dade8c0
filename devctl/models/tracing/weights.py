"""How the weights of a model lie in the memory of an accelerator, as ``from_pretrained`` puts them there.

transformers first asks for one piece as large as all that it will put there, and gives it back
(``caching_allocator_warmup``): the allocator keeps the segment, from which it cuts the tensors. Those of a mebibyte or
less have other segments, so that the first one keeps a hole as large as they are. Buffers that are in no checkpoint are
not counted for the piece, and come last. Threads load in any order, which changes nothing: the hole is at the end.

Imports torch: to be imported inside functions.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from devctl.models.tracing.segments import Loaded, load


def loaded(model: torch.nn.Module) -> Loaded:
    """All of ``model`` on one device; a quantised one as the plain one that it computes as."""
    seen: set[int] = set()
    listed = list(_sizes(model, seen, persistent=True))
    return load([*listed, *_sizes(model, seen, persistent=False)], at_once=sum(listed))


def _sizes(model: torch.nn.Module, seen: set[int], *, persistent: bool) -> Iterator[int]:
    """Bytes of tensors that were not ``seen`` yet: parameters and buffers of a checkpoint, or the others."""
    for module in model.modules():
        others = module._non_persistent_buffers_set
        tensors = {**module._parameters, **module._buffers} if persistent else {n: module._buffers[n] for n in others}
        for name, tensor in tensors.items():
            if tensor is None or (persistent and name in others):
                continue
            storage = tensor.untyped_storage()
            if storage._cdata not in seen:
                seen.add(storage._cdata)
                yield storage.nbytes()
