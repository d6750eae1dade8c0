"""What a load took, and the bytes that were predicted beside those that were measured."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
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
from devctl.placement.budget import is_accelerator
from devctl.placement.placement import HfDevice, add_up, loaded_beside

_TAKEN = 1.02
"""A device is worth a note when it held more than this many times what was predicted."""


SCHEMA = 1
"""Version of the report's document; it grows when a key changes its meaning or goes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceBytes:
    """Bytes on one device, as predicted and as measured.

    Attributes:
        predicted: bytes of the weights and buffers that the map puts there.
        measured: bytes of the weights and buffers that are there.
        predicted_peak: the most bytes that the device should hold at one time while the model runs, weights included.
            On an accelerator this is the peak of the load, the forward and the generate, on the CPU that of the
            forward. None where nothing runs, and where the model can't be traced.
        peak: the most bytes that torch counted there at one time. On an accelerator it counts from the beginning of the
            load. None where nothing runs, and where torch keeps no such count.
        reserved: the most bytes that torch's allocator took of the device at one time, gaps and what it kept for later
            included. None as for the peak, and on the CPU.
    """

    device: Device
    predicted: int
    measured: int
    predicted_peak: int | None
    peak: int | None
    reserved: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReport:
    """One load and its smoke inference.

    Attributes:
        attention: how the model attends, in transformers' words; None where it does not say.
        generation: what generate was told, by name, where that is not as in a greedy one.
        prefill_chunk: tokens of the prompt that generate read at once; None for all.
        load_format: "auto" or "dummy".
        device_map: as Hugging Face has it.
        max_new_tokens: tokens to generate, where the model generates.
        load_seconds: seconds from the first request for a byte until the model was on its devices.
        loaded_bytes: bytes of all weights and buffers.
        host_peak: the most bytes of RAM that the whole process held at one time until the smoke inference was done.
            Python, torch and the pages of mapped files count. None where the system does not say.
        tensors: how many parameters and buffers were looked up.
        misplaced: the parameters and buffers that are not where the map puts them.
        copies: whether bytes arrived unchanged that were copied between accelerators. It is empty unless the map uses
            several.
        verification: how the model compares with the same model on the CPU; None unless asked for.
        proofs: the outcome of each proof, in the order in which they are shown.
        ok: whether every proof holds.
    """

    model: str
    model_class: str
    dtype: str
    attention: str | None
    generation: Mapping[str, bool | int | float | str]
    prefill_chunk: int | None
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
            **to_json_values(self),
        }


def device_bytes(
    tree: ModuleTree,
    device_map: Mapping[str, Device],
    main: Device,
    places: Places,
    *,
    beside: Mapping[Device, int] | None = None,
    peaks: Mapping[Device, int] | None = None,
    reserved: Mapping[Device, int] | None = None,
) -> tuple[DeviceBytes, ...]:
    """Predicted and measured bytes of every device that holds something or should, in the map's order.

    Args:
        beside: bytes that each device should hold beside its weights while the model runs. A device for which that is
            not known is missing; None means that it is known for none.
        peaks: the most bytes that each device held, weights included. A device whose peak was not counted is missing;
            None means that none was counted.
        reserved: the most bytes that torch's allocator took of each device, as far as it counts them.
    """
    tied = tied_places(tree.ties, device_map)
    predicted = add_up(tree, lambda t: expected_device(t.name, t.kind is TensorKind.BUFFER, device_map, main, tied))
    measured = dict(places.measured)
    beside, peaks = beside or {}, peaks or {}
    loading = loaded_beside(tree, device_map)
    most = {d: max(n, loading.get(d, 0)) if is_accelerator(d) else n for d, n in beside.items()}
    order = list(dict.fromkeys((*device_map.values(), *predicted, *measured)))
    return tuple(
        DeviceBytes(
            device=device,
            predicted=predicted.get(device, 0),
            measured=measured.get(device, 0),
            predicted_peak=predicted.get(device, 0) + most[device] if device in beside else None,
            peak=peaks.get(device),
            reserved=(reserved or {}).get(device),
        )
        for device in order
        if predicted.get(device) or measured.get(device)
    )


def above_prediction(devices: Iterable[DeviceBytes]) -> Iterator[str]:
    """A line for each device whose peak was above the prediction by more than kernels usually take for themselves."""
    for each in devices:
        if each.predicted_peak and each.peak and each.peak > _TAKEN * each.predicted_peak:
            yield (
                f"{each.device} held more than predicted: what libraries take for themselves, like a convolution's "
                "scratch, is not known before"
            )


def _counting(devices: Iterable[Device]) -> Iterator[tuple[Device, Any]]:
    """Those of ``devices`` whose memory torch counts, each with its part of torch."""
    import torch

    parts = {DeviceType.GPU: torch.cuda, DeviceType.XPU: torch.xpu}
    return ((device, parts[device.type]) for device in devices if device.type in parts)


def forget_peaks(devices: Iterable[Device]) -> None:
    """Let torch count the peaks of ``devices`` anew, from now on."""
    for device, part in _counting(devices):
        part.init()  # before its first use torch knows no device, and refuses every number: "Invalid device argument"
        part.reset_peak_memory_stats(device.id)


def device_peaks(devices: Iterable[Device]) -> dict[Device, int]:
    """The most bytes that torch's tensors took on each device at one time; devices without a count are missing."""
    return {device: int(part.max_memory_allocated(device.id)) for device, part in _counting(devices)}


def device_reserved(devices: Iterable[Device]) -> dict[Device, int]:
    """The most bytes that torch's allocator took of each device at one time; devices without a count are missing."""
    return {device: int(part.max_memory_reserved(device.id)) for device, part in _counting(devices)}


def host_peak() -> int | None:
    """The most bytes of RAM that this process held at one time; None where the system does not say."""
    try:
        # on Linux, the resource module's figure includes what the parent process held when it started this one
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
