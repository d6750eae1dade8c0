"""Is every tensor where the map says, and are tied ones still one?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from devctl.devices import Device, DeviceType
from devctl.loading.weights.hooks import hooks_of
from devctl.loading.weights.loader import main_device, to_device
from devctl.models.tree import ModuleTree
from devctl.placement.judge import holder, split_ties
from devctl.placement.strategy import device_of

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Misplaced:
    """A tensor that is not where it should be; ``actual`` None means that it has no data anywhere."""

    name: str
    expected: Device
    actual: Device | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where the tensors of a loaded model are.

    Attributes:
        count: tensors looked at.
        misplaced: those that are not where the map says.
        measured: bytes on each device, each storage once.
    """

    count: int
    misplaced: tuple[Misplaced, ...]
    measured: tuple[tuple[Device, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ties:
    """What became of the tensors that the model ties.

    Attributes:
        shared: pairs that share their storage.
        copied: pairs, as "a = b", that the map puts on two devices, each of which holds a copy.
        untied: pairs on one device that do not share their storage, though they should.
    """

    shared: int
    copied: tuple[str, ...]
    untied: tuple[str, ...]


def find_ties(model: PreTrainedModel, tree: ModuleTree) -> Ties:
    """Look at the storage of both tensors of every tie."""
    shared = 0
    copied, untied = [], []
    for target, source in tree.ties:
        if target in tree.untied:  # two weights, which only share a device
            continue
        ends = [_find_by_name(model, name) for name in (target, source)]
        if None in ends:
            continue
        (there, at), (here, same) = (end for end in ends if end is not None)
        if there != here:
            copied.append(f"{target} = {source}")
        # on disk, a tied tensor may be in the checkpoint once or twice: it is only read
        elif at == same or there == Device.disk():
            shared += 1
        else:
            untied.append(f"{target} = {source}")
    return Ties(shared=shared, copied=tuple(copied), untied=tuple(untied))


def _find_by_name(model: PreTrainedModel, name: str) -> tuple[Device | None, object] | None:
    """As ``_find``, for a full name; None where the model has no such tensor, as some of quantised ones."""
    owner, _, local = name.rpartition(".")
    try:
        module = model.get_submodule(owner)
    except AttributeError:
        return None
    tensor = {**module._parameters, **module._buffers}.get(local)
    return None if tensor is None else _find(module, local, tensor)


def find_places(model: PreTrainedModel, device_map: Mapping[str, Device]) -> Places:
    """Look every parameter and buffer up, in the offload hooks too.

    Buffers are not offloaded: those of an offloaded module belong on the device that runs it.
    """
    main = main_device(model, device_map)
    ties = model.all_tied_weights_keys
    tied = tied_places(ties.items(), device_map)
    twins = {**{source: target for target, source in ties.items()}, **ties}
    misplaced = []
    measured: dict[Device, int] = {}
    seen: set[object] = set()
    count = 0
    for module_name, module in model.named_modules():
        direct = [*module._parameters.items(), *module._buffers.items()]
        for local, tensor in direct:
            if tensor is None:
                continue
            count += 1
            name = f"{module_name}.{local}" if module_name else local
            expected = expected_device(name, local in module._buffers, device_map, main, tied)
            actual, identity = _find(module, local, tensor)
            if actual is None and name in twins:  # on disk, and read under its other name alone
                owner, _, other = twins[name].rpartition(".")
                twin = model.get_submodule(owner)
                actual, identity = _find(twin, other, getattr(twin, other))
            if actual != expected:
                misplaced.append(Misplaced(name=name, expected=expected, actual=actual))
            if actual is not None and (actual, identity) not in seen:
                seen.add((actual, identity))
                measured[actual] = measured.get(actual, 0) + tensor.numel() * tensor.element_size()
    return Places(count=count, misplaced=tuple(misplaced), measured=tuple(measured.items()))


def expected_device(
    name: str, is_buffer: bool, device_map: Mapping[str, Device], main: Device, tied: Mapping[str, Device]
) -> Device:
    """Where a tensor belongs: what the map says, but for what accelerate decides.

    Buffers of offloaded modules stay where those run, on ``main``. So do the tensors of the model itself, that are in
    no module of it. ``tied`` are those of ``tied_places``.
    """
    if name in tied:
        return tied[name]
    device = device_of(name, device_map) or Device.cpu()
    computing = (DeviceType.CPU, DeviceType.MPS)  # on these, what the map puts on the CPU runs there
    offloaded = device == Device.disk() or (device == Device.cpu() and main.type not in computing)
    belongs_to_main = is_buffer if offloaded else "." not in name
    return main if belongs_to_main else device


def tied_places(ties: Iterable[tuple[str, str]], device_map: Mapping[str, Device]) -> dict[str, Device]:
    """Where the tied tensors are that the map puts on two devices, as both names of one tensor."""
    found: dict[str, Device] = {}
    for target, source, there, here in split_ties(ties, device_map):
        if (held := holder(there, here)) is not None:
            found |= {target: held, source: held}
    return found


def _find(module: torch.nn.Module, name: str, tensor: torch.Tensor) -> tuple[Device | None, object]:
    """The device of a module's own tensor, and what tells its storage from others."""
    if tensor.device.type != "meta":
        return to_device(tensor.device), tensor.untyped_storage().data_ptr() or id(tensor)
    for hook in hooks_of(module):
        weights = getattr(hook, "weights_map", None)
        if weights is None:
            continue
        full = f"{getattr(weights, 'prefix', '')}{name}"
        store = getattr(weights, "dataset", weights)
        kept = getattr(store, "state_dict", store)
        if full in kept:
            return to_device(kept[full].device), kept[full].untyped_storage().data_ptr()
        entry = getattr(store, "index", {}).get(full)
        if entry is not None:
            return Device.disk(), (entry.get("safetensors_file"), entry.get("weight_name", full))
    return None, None
