"""Naming devices without knowing the framework.

A component says "here" with a `ComponentDevice`; only the edge that talks to a framework converts it (``to_torch``,
``to_hf``, ``to_spacy``). Importing this module imports no framework.

The shapes and names are those of Haystack's ``haystack.utils.device``: code written for one runs with the other.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


class DeviceType(StrEnum):
    """A kind of device. ``str()`` of a member is the name that torch and Hugging Face use."""

    CPU = "cpu"
    GPU = "cuda"
    DISK = "disk"
    MPS = "mps"
    XPU = "xpu"

    @staticmethod
    def from_str(string: str) -> DeviceType:
        """The device type called ``string``; upper and lower case differ.

        Raises:
            ValueError: no device type has that name.
        """
        try:
            return DeviceType(string)
        except ValueError:
            known = ", ".join(DeviceType)
            raise ValueError(f"Unknown device type string '{string}'; known are {known}") from None


@dataclass(frozen=True, slots=True)
class Device:
    """One device: its type and, where there are several of the type, its id.

    Raises:
        ValueError: ``id`` is negative, or no integer.
    """

    type: DeviceType
    id: int | None = None

    def __post_init__(self) -> None:
        if self.id is not None and (not isinstance(self.id, int) or isinstance(self.id, bool) or self.id < 0):
            raise ValueError(f"Device id must be >= 0, and an integer, got {self.id!r}")

    def __str__(self) -> str:
        return str(self.type) if self.id is None else f"{self.type}:{self.id}"

    @staticmethod
    def cpu() -> Device:
        """The CPU and its memory."""
        return Device(DeviceType.CPU)

    @staticmethod
    def gpu(id: int = 0) -> Device:
        """The CUDA (or ROCm) GPU that the framework counts as ``id``."""
        return Device(DeviceType.GPU, id)

    @staticmethod
    def disk() -> Device:
        """Weights left on disk and read when they are needed; only as a part of device maps."""
        return Device(DeviceType.DISK)

    @staticmethod
    def mps() -> Device:
        """The GPU of an Apple chip."""
        return Device(DeviceType.MPS)

    @staticmethod
    def xpu() -> Device:
        """An Intel GPU."""
        return Device(DeviceType.XPU)

    @staticmethod
    def from_str(string: str) -> Device:
        """The device written ``type`` or ``type:id``, as ``str()`` writes it.

        Raises:
            ValueError: the type is unknown, the id is no integer, or there is more than one colon.
        """
        if not isinstance(string, str):
            raise ValueError(f"A device string is a str, got {string!r}")
        name, colon, id_text = string.partition(":")
        if not colon:
            return Device(DeviceType.from_str(name))
        # int() would also take "+1", " 1" and "1_0"
        if not (id_text.isascii() and id_text.isdigit()):
            raise ValueError(f"Device id must be a non-negative integer, got '{id_text}' in '{string}'")
        return Device(DeviceType.from_str(name), int(id_text))


@dataclass(slots=True)
class DeviceMap:
    """Which device each part of a model is on, keyed by the part's name (``""`` is the whole model).

    Iterating yields ``(name, Device)`` pairs in the order they were given.
    """

    mapping: dict[str, Device] = field(default_factory=dict)

    def __getitem__(self, key: str) -> Device:
        return self.mapping[key]

    def __setitem__(self, key: str, value: Device) -> None:
        self.mapping[key] = value

    def __contains__(self, key: object) -> bool:
        return key in self.mapping

    def __len__(self) -> int:
        return len(self.mapping)

    def __iter__(self) -> Iterator[tuple[str, Device]]:
        return iter(self.mapping.items())

    @property
    def first_device(self) -> Device | None:
        """The first device in the map's order; None for an empty map."""
        return next(iter(self.mapping.values()), None)

    def to_dict(self) -> dict[str, str]:
        """Device strings by name, ready for JSON."""
        return {key: str(device) for key, device in self.mapping.items()}

    @staticmethod
    def from_dict(dict: Mapping[str, str]) -> DeviceMap:
        """The map that ``to_dict`` wrote.

        Raises:
            ValueError: a value is no device string.
        """
        if not isinstance(dict, Mapping):
            raise ValueError(f"Not a device map: {dict!r}")
        return DeviceMap({key: Device.from_str(value) for key, value in dict.items()})

    @staticmethod
    def from_hf(hf_device_map: Mapping[str, int | str | torch.device]) -> DeviceMap:
        """A Hugging Face ``device_map``: an int is a GPU, the rest are device strings or ``torch.device``.

        Raises:
            TypeError: a value is none of these.
            ValueError: a value names no device that can hold weights, such as "meta".
        """
        return DeviceMap({key: _device_from_hf(value) for key, value in hf_device_map.items()})


def _device_from_hf(value: object) -> Device:
    if isinstance(value, int) and not isinstance(value, bool):
        return Device.gpu(value)
    if isinstance(value, str):
        return Device.from_str(value)
    # a torch.device, known by its two attributes so that torch need not be imported
    if type(value).__module__ == "torch" and hasattr(value, "type") and hasattr(value, "index"):
        return Device(DeviceType.from_str(value.type), value.index)
    raise TypeError(
        "A device in a Hugging Face device map is an int, a str or a torch.device: "
        f"unexpected device {value!r} of type {type(value).__name__}"
    )


@dataclass(frozen=True, slots=True)
class ComponentDevice:
    """Where a component runs: on a single device, or spread over several by a device map.

    Make one with `from_str`, `from_single`, `from_multiple` or `resolve_device`.

    Raises:
        ValueError: neither a device nor a map was given, or both.
    """

    _single_device: Device | None = None
    _multiple_devices: DeviceMap | None = None

    def __post_init__(self) -> None:
        if (self._single_device is None) == (self._multiple_devices is None):
            raise ValueError(
                "A component device can neither be empty nor contain both a single device and a device map"
            )

    @staticmethod
    def from_str(device_str: str) -> ComponentDevice:
        """The single device written ``type`` or ``type:id``.

        Raises:
            ValueError: it is no device, or the disk.
        """
        return ComponentDevice.from_single(Device.from_str(device_str))

    @staticmethod
    def from_single(device: Device) -> ComponentDevice:
        """The single ``device``.

        Raises:
            ValueError: it is the disk, which computes nothing.
        """
        if device.type == DeviceType.DISK:
            raise ValueError("The disk device can only be used as a part of device maps")
        return ComponentDevice(_single_device=device)

    @staticmethod
    def from_multiple(device_map: DeviceMap) -> ComponentDevice:
        """The devices of ``device_map``."""
        return ComponentDevice(_multiple_devices=device_map)

    @staticmethod
    def resolve_device(device: ComponentDevice | None = None) -> ComponentDevice:
        """``device`` itself, or if None the best that torch finds on this machine: CUDA, XPU, MPS, then the CPU.

        ``HAYSTACK_XPU_ENABLED=false`` and ``HAYSTACK_MPS_ENABLED=false`` leave those two out.
        """
        if device is not None:
            return device
        return ComponentDevice.from_single(_default_device())

    @property
    def has_multiple_devices(self) -> bool:
        """Whether this is a device map."""
        return self._multiple_devices is not None

    @property
    def first_device(self) -> ComponentDevice:
        """The single device, or the first of the map that is not the disk.

        Raises:
            ValueError: the map is empty or has only the disk.
        """
        if self._single_device is not None:
            return self
        for _, device in self._map:
            if device.type != DeviceType.DISK:
                return ComponentDevice.from_single(device)
        raise ValueError(f"No usable device found in the device map {self._map.to_dict()}")

    def to_torch(self) -> torch.device:
        """The single device for PyTorch.

        Raises:
            ValueError: this is a device map.
        """
        import torch

        return torch.device(self.to_torch_str())

    def to_torch_str(self) -> str:
        """The single device as PyTorch writes it.

        Raises:
            ValueError: this is a device map.
        """
        return str(self._single("PyTorch"))

    def to_spacy(self) -> int:
        """The single device for spaCy: the GPU's id (0 if it has none), -1 for anything else.

        Raises:
            ValueError: this is a device map.
        """
        device = self._single("spaCy")
        return (device.id or 0) if device.type == DeviceType.GPU else -1

    def to_hf(self) -> str | dict[str, int | str]:
        """For Hugging Face: a device string, or a ``device_map`` with GPUs as ints (0 for one without an id)."""
        if self._single_device is not None:
            return str(self._single_device)
        return {key: (d.id or 0) if d.type == DeviceType.GPU else str(d) for key, d in self._map}

    def update_hf_kwargs(self, hf_kwargs: dict[str, Any], *, overwrite: bool) -> dict[str, Any]:
        """Set ``device`` or ``device_map`` in the keyword arguments of a Hugging Face call.

        Args:
            hf_kwargs: changed in place, and returned.
            overwrite: replace a ``device`` or ``device_map`` that is already there; else either of them wins.
        """
        if not overwrite and not hf_kwargs.keys().isdisjoint(("device", "device_map")):
            return hf_kwargs
        hf_kwargs.pop("device", None)
        hf_kwargs.pop("device_map", None)
        hf_kwargs["device_map" if self.has_multiple_devices else "device"] = self.to_hf()
        return hf_kwargs

    def to_dict(self) -> dict[str, Any]:
        """``{"type": "single", "device": …}`` or ``{"type": "multiple", "device_map": …}``, ready for JSON."""
        if self._single_device is not None:
            return {"type": "single", "device": str(self._single_device)}
        return {"type": "multiple", "device_map": self._map.to_dict()}

    @staticmethod
    def from_dict(dict: Mapping[str, Any]) -> ComponentDevice:
        """What ``to_dict`` wrote.

        Raises:
            ValueError: ``type`` is missing or unknown, its key is missing, or a value is no device string.
        """
        if not isinstance(dict, Mapping):
            raise ValueError(f"Not a component device: {dict!r}")
        kind = dict.get("type")
        if kind == "single" and "device" in dict:
            return ComponentDevice.from_str(dict["device"])
        if kind == "multiple" and "device_map" in dict:
            return ComponentDevice.from_multiple(DeviceMap.from_dict(dict["device_map"]))
        raise ValueError(f"Not a component device: {dict!r}")

    @property
    def _map(self) -> DeviceMap:
        assert self._multiple_devices is not None, "__post_init__ lets exactly one be set"
        return self._multiple_devices

    def _single(self, framework: str) -> Device:
        if self._single_device is None:
            raise ValueError(f"Only single devices can be converted to {framework} format, this is a device map")
        return self._single_device


def _default_device() -> Device:
    import torch

    if torch.cuda.is_available():
        return Device.gpu()
    if _enabled("HAYSTACK_XPU_ENABLED") and torch.xpu.is_available():
        return Device.xpu()
    if _enabled("HAYSTACK_MPS_ENABLED") and torch.backends.mps.is_available():
        return Device.mps()
    return Device.cpu()


def _enabled(variable: str) -> bool:
    return os.environ.get(variable, "true").lower() != "false"
