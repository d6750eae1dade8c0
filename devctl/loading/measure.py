"""What loading took, and predicted against measured bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from devctl.as_json import to_json_values
from devctl.devices import Device, DeviceType
from devctl.loading.proofs.copies import Copied
from devctl.loading.proofs.places import Misplaced, Places, Ties, expected_device, tied_places
from devctl.loading.proofs.reference import Verification
from devctl.loading.proofs.verdict import Proof
from devctl.loading.run.smoke import Smoke
from devctl.models.tree import ModuleTree, TensorKind
from devctl.placement.placement import HfDevice, add_up

_TAKEN = 1.02
"""Of what was predicted; less is no news."""


SCHEMA = 1
"""Version of the report's document; it grows when a key changes its meaning or goes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceBytes:
    """Bytes on one device, as predicted and as found.

    Attributes:
        predicted: weights and buffers that the map puts there.
        measured: those that are there.
        predicted_peak: the most that is there at a time while the model runs, weights among it: on an accelerator in
            the forward or the generate, on the CPU in the forward; None where nothing runs, or the model can't be
            traced.
        peak: the same as torch counted it, on an accelerator from the beginning of the load; None where nothing runs,
            or torch keeps no such count.
    """

    device: Device
    predicted: int
    measured: int
    predicted_peak: int | None
    peak: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReport:
    """One load and its smoke inference.

    Attributes:
        load_format: "auto" or "dummy".
        device_map: as Hugging Face has it.
        max_new_tokens: tokens to generate, where the model generates.
        load_seconds: from the first byte asked for to the dispatched model.
        loaded_bytes: bytes of all weights and buffers.
        host_peak: the most RAM that the whole process held at a time, with Python, torch and pages of mapped files,
            until the smoke inference was done; None where the system does not say.
        tensors: parameters and buffers looked up.
        misplaced: those that are not where the map says.
        copies: what accelerators made of bytes that were copied between them; empty unless the map uses several.
        verification: the model beside the same one on the CPU; None unless asked for.
        proofs: the outcome of each, in the order in which they are told.
        ok: every proof holds.
    """

    model: str
    model_class: str
    dtype: str
    strategy: str | None
    load_format: str
    device_map: Mapping[str, HfDevice]
    max_new_tokens: int
    load_seconds: float
    loaded_bytes: int
    devices: tuple[DeviceBytes, ...]
    host_peak: int | None
    tensors: int
    misplaced: tuple[Misplaced, ...]
    ties: Ties
    copies: tuple[Copied, ...]
    smoke: Smoke
    verification: Verification | None
    proofs: tuple[Proof, ...]
    ok: bool
    notes: tuple[str, ...]

    def to_document(self) -> dict[str, Any]:
        """The report as JSON values; see ``schema.json``. Sizes are bytes, times seconds."""
        return {
            "schema": SCHEMA,
            "kind": "devctl.load",
            **{field.name: to_json_values(getattr(self, field.name)) for field in fields(self)},
        }


def device_bytes(
    tree: ModuleTree,
    device_map: Mapping[str, Device],
    main: Device,
    places: Places,
    *,
    beside: Mapping[Device, int] | None = None,
    peaks: Mapping[Device, int] | None = None,
) -> tuple[DeviceBytes, ...]:
    """Predicted beside measured, for every device that has or should have something, in the map's order.

    Args:
        beside: bytes that each device should hold beside weights while it runs; None where that is not known.
        peaks: bytes that each held, with weights; None where that was not counted.
    """
    tied = tied_places(tree.ties, device_map)
    predicted = add_up(tree, lambda t: expected_device(t.name, t.kind is TensorKind.BUFFER, device_map, main, tied))
    measured = dict(places.measured)
    beside, peaks = beside or {}, peaks or {}
    order = list(dict.fromkeys((*device_map.values(), *predicted, *measured)))
    return tuple(
        DeviceBytes(
            device=device,
            predicted=predicted.get(device, 0),
            measured=measured.get(device, 0),
            predicted_peak=predicted.get(device, 0) + beside[device] if device in beside else None,
            peak=peaks.get(device),
        )
        for device in order
        if predicted.get(device) or measured.get(device)
    )


def above_prediction(devices: Iterable[DeviceBytes]) -> Iterator[str]:
    """A line for each device that held more than was predicted, by more than kernels usually take for themselves."""
    for each in devices:
        if each.predicted_peak and each.peak and each.peak > _TAKEN * each.predicted_peak:
            yield (
                f"{each.device} held more than predicted: what libraries take for themselves, like a convolution's "
                "scratch, is not known before"
            )


def forget_peaks(devices: Iterable[Device]) -> None:
    """Count the peaks of ``devices`` from now on."""
    import torch

    for device in devices:
        if device.type is DeviceType.GPU:
            torch.cuda.reset_peak_memory_stats(device.id)
        elif device.type is DeviceType.XPU:
            torch.xpu.reset_peak_memory_stats(device.id)


def device_peaks(devices: Iterable[Device]) -> dict[Device, int]:
    """The most bytes that torch's tensors took on each device at a time."""
    import torch

    found = {}
    for device in devices:
        if device.type is DeviceType.GPU:
            found[device] = int(torch.cuda.max_memory_allocated(device.id))
        elif device.type is DeviceType.XPU:
            found[device] = int(torch.xpu.max_memory_allocated(device.id))
    return found


def host_peak() -> int | None:
    """The most bytes of RAM that this process held at a time; None where the system does not say."""
    try:
        # Linux: the resource module's figure would count what the process that started this one had held
        return parse_peak(Path("/proc/self/status").read_text(encoding="ascii", errors="replace"))
    except OSError:
        pass
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        peak = getattr(psutil.Process().memory_info(), "peak_wset", None)
        return None if peak is None else int(peak)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS counts in bytes


def parse_peak(status: str) -> int | None:
    """The bytes in the line "VmHWM:   123456 kB" of a process' status; None without one."""
    for line in status.splitlines():
        name, _, value = line.partition(":")
        if name == "VmHWM":
            number = value.split()[:1]
            return int(number[0]) * 1024 if number and number[0].isdecimal() else None
    return None
