"""What a load takes of the host's RAM: what has to stay there, and what can be read again from files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from devctl.devices import Device
from devctl.loading.weights.dummy import bytes_beside
from devctl.loading.weights.loader import local_copy
from devctl.models.files.checkpoint import stored_tensors
from devctl.models.files.headers import renamed
from devctl.models.files.resolve import ModelSource, SourceKind
from devctl.models.files.weights import weights_file
from devctl.models.skeleton import Skeleton, empty_model
from devctl.models.tree import counted_bytes, tensors
from devctl.placement.budget import is_accelerator
from devctl.placement.placement import loaded_beside
from devctl.placement.strategy import device_of

LIBRARIES = 96 * 2**20
"""Bytes that torch and transformers still take once they are imported: kernels, threads, modelling code, hooks.

A load of small models on the CPU was measured to take 10 to 60 MiB beside weights and forward.
"""

_SAME = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True, slots=True, kw_only=True)
class HostNeed:
    """Bytes of RAM that a load takes.

    Attributes:
        made: weights that are made up, or converted as they are loaded, and so are in no file as they are.
        beside: what making them takes.
        forward: what the run holds beside weights.
        libraries: what the process takes for itself.
        loading: what is held for a while beside the weights as they are loaded, and let go of before the model runs.
        mapped: weights that are mapped from their files: the system reads them again where RAM is short.
    """

    made: int
    beside: int
    forward: int
    libraries: int
    loading: int
    mapped: int

    @property
    def anonymous(self) -> int:
        """What has to be there, all at once."""
        return self.made + self.libraries + max(self.beside + self.forward, self.loading)


def host_need(
    source: ModelSource, skeleton: Skeleton, device_map: Mapping[str, Device], *, random_weights: bool, forward: int
) -> HostNeed:
    """What a load on ``device_map`` takes of the RAM.

    Args:
        forward: bytes that the CPU holds beside weights while the model runs.

    Raises:
        ModelError: there are no weights, or a file is missing or broken.
    """
    size = counted_bytes(skeleton.tree)
    here = {t.name: t for t in tensors(skeleton.tree.root) if device_of(t.name, device_map) in (Device.cpu(), None)}
    away = any(is_accelerator(device) for device in device_map.values())
    as_they_are, recast = (set(), {}) if random_weights or not (here or away) else _read(source, skeleton)
    mapped = sum(size[name] for name in here if name in as_they_are)
    return HostNeed(
        made=sum(size[name] for name in here) - mapped,
        beside=bytes_beside(skeleton.tree, here) if random_weights else 0,
        forward=forward,
        libraries=LIBRARIES,
        loading=0 if random_weights else _loading(skeleton, device_map, recast),
        mapped=mapped,
    )


def _loading(skeleton: Skeleton, device_map: Mapping[str, Device], recast: Mapping[str, int]) -> int:
    """What is held for a while as weights are loaded.

    That is the parts of what is made on the CPU, and what goes to an accelerator in another dtype, which torch changes
    on the CPU: as many tensors at a time as transformers reads (``GLOBAL_WORKERS``).

    Args:
        recast: bytes of the largest of the tensors that become each weight in another dtype.
    """
    from transformers.core_model_loading import GLOBAL_WORKERS

    here = loaded_beside(skeleton.tree, device_map).get(Device.cpu(), 0)
    away = [n for name, n in recast.items() if is_accelerator(device_of(name, device_map) or Device.cpu())]
    return here + sum(sorted(away, reverse=True)[:GLOBAL_WORKERS])


def _read(source: ModelSource, skeleton: Skeleton) -> tuple[set[str], dict[str, int]]:
    """Names of the tensors that a safetensors file has as the model wants them; those of pickles are read in whole.

    All of them where there is no file, so that the load can say so. Beside them, what is to be in another dtype, and
    the bytes of the largest tensor that it is made of.
    """
    import torch

    known = {t.name: t.dtype for t in tensors(skeleton.tree.root) if t.persistent}
    if source.kind is SourceKind.HUB:
        try:
            found = stored_tensors(source)
        except Exception:  # noqa: BLE001 - those of the hub's client: then what is downloaded is looked at
            source = local_copy(source)
            found = stored_tensors(source)
    else:
        found = stored_tensors(source)
    stored = {name: tensor.dtype for name, tensor in found.items()}
    if not stored:
        there_are_none = source.kind is not SourceKind.HUB and weights_file(source.config_path.parent) is None
        return (set(known) if there_are_none else set()), {}
    if skeleton.tree.quantisation is not None:
        there = {name: (name, False) for name in stored}
    else:
        there = renamed(empty_model(skeleton), stored, known)
    as_they_are: set[str] = set()
    recast: dict[str, int] = {}
    for old, (new, converted) in there.items():
        if new in known and _SAME.get(stored[old], known[new]) != known[new]:
            nbytes = found[old].count * getattr(torch, known[new]).itemsize
            recast[new] = max(recast.get(new, 0), nbytes)
        elif new in known and not converted:
            as_they_are.add(new)
    return as_they_are, recast
