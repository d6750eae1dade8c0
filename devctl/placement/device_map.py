"""A device map that does not change, as all of placement hands it on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field

from devctl.devices import Device


@dataclass(frozen=True, slots=True)
class FrozenMap:
    """Which device each part of a model is on, by the part's name (``""`` is the whole model).

    Iterating yields ``(name, Device)`` pairs in their order, as with the public ``DeviceMap``.
    """

    pairs: tuple[tuple[str, Device], ...]
    devices: tuple[Device, ...] = field(init=False, repr=False, compare=False)
    """Each device that the map names, in the order of their first keys."""
    _device: Mapping[str, Device] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_device", dict(self.pairs))
        # objects that are one are told apart without asking what they are equal to, which takes far longer
        distinct = {id(device): device for device in self._device.values()}
        object.__setattr__(self, "devices", tuple(dict.fromkeys(distinct.values())))

    @staticmethod
    def of(device_map: AnyMap) -> FrozenMap:
        """``device_map`` itself if it is one, else one with its pairs."""
        return device_map if isinstance(device_map, FrozenMap) else FrozenMap(tuple(device_map.items()))

    @property
    def cut(self) -> Set[str]:
        """Names above keys, so that what is within them may be on several devices."""
        found: set[str] = set()
        for name in self._device:
            at = name
            while at:
                at = at.rpartition(".")[0]
                if at in found:
                    break
                found.add(at)
        return found

    def device_of(self, name: str) -> Device | None:
        """Where the module or tensor ``name`` is: the longest key above it decides. None where there is none."""
        found, device = name, self._device
        while found not in device:
            if not found:
                return None
            found = found.rpartition(".")[0]
        return device[found]

    def above(self, name: str) -> str | None:
        """The longest key above ``name`` that is not ``name`` itself; None where there is none."""
        while name:
            name = name.rpartition(".")[0]
            if name in self._device:
                return name
        return None

    def get(self, name: str, default: Device | None = None) -> Device | None:
        """The device of the key ``name``, not looking above it."""
        return self._device.get(name, default)

    def items(self) -> Iterable[tuple[str, Device]]:
        """(name, device), in their order."""
        return self.pairs

    def values(self) -> Iterable[Device]:
        """The device of each key, in their order."""
        return self._device.values()

    def __getitem__(self, name: str) -> Device:
        return self._device[name]

    def __contains__(self, name: object) -> bool:
        return name in self._device

    def __iter__(self) -> Iterator[tuple[str, Device]]:
        return iter(self.pairs)

    def __len__(self) -> int:
        return len(self.pairs)


AnyMap = Mapping[str, Device] | FrozenMap
"""What may be asked about: a map as somebody wrote it, or as placement made it."""
