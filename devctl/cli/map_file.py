"""Reading the two files that say where layers go: a plain Hugging Face device map, and a plan document."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from devctl.devices import Device, DeviceMap
from devctl.errors import UsageError

PLAN_KIND = "devctl.plan"
PLAN_SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class MapFile:
    """What the file says; ``used`` is the bytes on each device, None for a plain map, which does not say."""

    device_map: DeviceMap
    used: dict[Device, int] | None

    @property
    def devices(self) -> tuple[Device, ...]:
        """The devices of the map, each once, in the map's order."""
        return tuple(dict.fromkeys(device for _, device in self.device_map))


def read_map(path: Path) -> MapFile:
    """The map or plan document at ``path``; "-" is standard input.

    Raises:
        UsageError: it can't be read, is no JSON, or is neither a map nor a plan document of this schema.
    """
    name = "standard input" if str(path) == "-" else str(path)
    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UsageError(f"cannot read the map {name}: {reason}") from None
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{name} is no JSON: {error}", hint="write one with `devctl plan MODEL > map.json`") from None
    return parse_map(document, name)


def parse_map(document: Any, name: str = "the map") -> MapFile:
    """The map in a JSON document.

    Raises:
        UsageError: it is neither a map nor a plan document of this schema.
    """
    if not isinstance(document, dict):
        raise UsageError(f"{name} is no device map: it holds {_kind(document)}, not an object")
    if "schema" not in document and "kind" not in document:
        return MapFile(device_map=_device_map(document, name), used=None)
    if document.get("kind") != PLAN_KIND:
        raise UsageError(f"{name} is a document of kind {document.get('kind')!r}, not {PLAN_KIND!r} or a device map")
    if document.get("schema") != PLAN_SCHEMA:
        raise UsageError(
            f"{name} is a plan of schema {document.get('schema')!r}; this devctl reads schema {PLAN_SCHEMA}"
        )
    return MapFile(device_map=_device_map(document.get("device_map"), name), used=_used(document.get("devices"), name))


def _device_map(value: Any, name: str) -> DeviceMap:
    if not isinstance(value, dict) or not value:
        raise UsageError(f"{name} has no device map: it must name at least one module")
    try:
        return DeviceMap.from_hf(value)
    except (ValueError, TypeError) as error:
        raise UsageError(f"{name} is no device map: {error}") from None


def _used(value: Any, name: str) -> dict[Device, int]:
    used: dict[Device, int] = {}
    for entry in value if isinstance(value, list) else [value]:
        size = entry.get("used") if isinstance(entry, dict) else None
        if not isinstance(size, int) or isinstance(size, bool) or size < 0:
            raise UsageError(f'{name}: "devices" must be a list of objects with "device" and "used", in bytes')
        try:
            device = Device.from_str(entry.get("device", ""))
        except (ValueError, AttributeError) as error:
            raise UsageError(f'{name}: in "devices": {error}') from None
        used[device] = used.get(device, 0) + size
    return used


def _kind(value: Any) -> str:
    return {list: "a list", str: "a string", type(None): "null"}.get(type(value), "a number")
