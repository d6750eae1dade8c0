"""What loading took, and predicted against measured bytes."""

from collections.abc import Mapping
from dataclasses import dataclass

from devctl.devices import Device
from devctl.loading.proof import Misplaced, Places, expected_device, tied_places
from devctl.loading.smoke import Smoke
from devctl.models.tree import ModuleTree, TensorKind
from devctl.placement.placement import add_up


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceBytes:
    """Bytes of weights and buffers on one device: what the map predicts, and what is there."""

    device: Device
    predicted: int
    measured: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReport:
    """One load and its smoke inference.

    Attributes:
        load_format: "auto" or "dummy".
        load_seconds: from the first byte asked for to the dispatched model.
        loaded_bytes: bytes of all weights and buffers.
        tensors: parameters and buffers looked up.
        misplaced: those that are not where the map says.
        ok: every tensor is in its place and every output finite.
    """

    model: str
    model_class: str
    dtype: str
    strategy: str | None
    load_format: str
    load_seconds: float
    loaded_bytes: int
    devices: tuple[DeviceBytes, ...]
    tensors: int
    misplaced: tuple[Misplaced, ...]
    smoke: Smoke
    ok: bool
    notes: tuple[str, ...]


def device_bytes(
    tree: ModuleTree, device_map: Mapping[str, Device], main: Device, places: Places
) -> tuple[DeviceBytes, ...]:
    """Predicted beside measured, for every device that has or should have something, in the map's order."""
    tied = tied_places(tree.ties, device_map)
    predicted = add_up(tree, lambda t: expected_device(t.name, t.kind is TensorKind.BUFFER, device_map, main, tied))
    measured = dict(places.measured)
    order = list(dict.fromkeys((*device_map.values(), *predicted, *measured)))
    return tuple(
        DeviceBytes(device=device, predicted=predicted.get(device, 0), measured=measured.get(device, 0))
        for device in order
        if predicted.get(device) or measured.get(device)
    )
