"""The ways to place a model, and what each ends with: a device map."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from devctl.devices import Device
from devctl.models.tree import ModuleTree
from devctl.placement.device_map import FrozenMap
from devctl.placement.greedy.decisions import Trail


class Strategy(StrEnum):
    """How to place; all names but ``optimal`` are transformers'."""

    AUTO = "auto"
    BALANCED = "balanced"
    BALANCED_LOW_0 = "balanced_low_0"
    SEQUENTIAL = "sequential"
    OPTIMAL = "optimal"


OF_TRANSFORMERS = (Strategy.AUTO, Strategy.BALANCED, Strategy.BALANCED_LOW_0, Strategy.SEQUENTIAL)
"""The strategies whose maps are equal to transformers' own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundMap:
    """Device by module or tensor name, in the order of definition, and what to tell about it.

    Attributes:
        trail: how a greedy strategy came to it.
        least_off: bytes off the accelerators that no map for these budgets, or for less, is below; where that is known.
    """

    device_map: FrozenMap
    notes: tuple[str, ...]
    trail: Trail | None = None
    least_off: int = 0


def collapse(device_map: Mapping[str, Device], name: str = "") -> dict[str, Device]:
    """Put a prefix in the place of its keys where there are several, all on one device; from the top down."""
    return dict(_collapsed(list(device_map.items()), name))


def _collapsed(pairs: Sequence[tuple[str, Device]], name: str) -> list[tuple[str, Device]]:
    """The same for the keys that are ``name`` or below it; everything is below ""."""
    below = [pair for pair in pairs if pair[0] != name] if name else pairs
    if len(below) > 1:
        first = below[0][1]
        if all(device is first or device == first for _, device in below):
            return [(name, first)]
    collapsed = [pair for pair in pairs if pair[0] == name] if name else []
    start = len(name) + 1 if name else 0
    groups: dict[str, list[tuple[str, Device]]] = {}
    for pair in below:
        dot = pair[0].find(".", start)
        groups.setdefault(pair[0] if dot < 0 else pair[0][:dot], []).append(pair)
    for child, keys in groups.items():
        collapsed += keys if len(keys) == 1 else _collapsed(keys, child)
    return collapsed


def in_order(tree: ModuleTree, device_map: Mapping[str, Device]) -> FrozenMap:
    """``device_map`` in the order in which the model defines its modules and tensors."""
    places = tree.index.places
    return FrozenMap(tuple(sorted(device_map.items(), key=lambda item: places[item[0]])))


def device_of(name: str, device_map: Mapping[str, Device]) -> Device | None:
    """Where ``device_map`` puts the module or tensor ``name``: the longest key above it decides."""
    while name not in device_map:
        if not name:
            return None
        name = name.rpartition(".")[0]
    return device_map[name]
