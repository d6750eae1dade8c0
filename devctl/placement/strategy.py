"""The ways to place a model, and what each ends with: a device map."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from devctl.devices import Device
from devctl.models.tree import ModuleTree, names
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
    """

    device_map: dict[str, Device]
    notes: tuple[str, ...]
    trail: Trail | None = None


def collapse(device_map: Mapping[str, Device], name: str = "") -> dict[str, Device]:
    """Put a prefix in the place of its keys where there are several, all on one device; from the top down."""
    prefix = f"{name}." if name else ""
    below = {key: device for key, device in device_map.items() if key.startswith(prefix)}
    if len(below) > 1 and len(set(below.values())) == 1:
        return {name: next(iter(below.values()))}
    collapsed = {name: device_map[name]} if name in device_map else {}
    depth = name.count(".") + 2 if name else 1
    groups: dict[str, dict[str, Device]] = {}
    for key, device in below.items():
        groups.setdefault(".".join(key.split(".")[:depth]), {})[key] = device
    for child, keys in groups.items():
        collapsed |= keys if len(keys) == 1 else collapse(keys, child)
    return collapsed


def in_order(tree: ModuleTree, device_map: Mapping[str, Device]) -> dict[str, Device]:
    """``device_map`` in the order in which the model defines its modules and tensors."""
    order = {name: place for place, name in enumerate(names(tree.root))}
    return dict(sorted(device_map.items(), key=lambda item: order[item[0]]))


def device_of(name: str, device_map: Mapping[str, Device]) -> Device | None:
    """Where ``device_map`` puts the module or tensor ``name``: the longest key above it decides."""
    while name not in device_map:
        if not name:
            return None
        name = name.rpartition(".")[0]
    return device_map[name]
