"""Frozen records as JSON values."""

from __future__ import annotations

import dataclasses
from enum import Enum
from typing import Any

from devctl.devices import Device


def to_json_values(value: Any) -> Any:
    """Records as dicts, tuples as lists, devices and enums as their strings; the rest as it is."""
    if isinstance(value, Device):
        return str(value)
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, tuple):
        return [to_json_values(item) for item in value]
    if isinstance(value, dict):
        return {str(key): to_json_values(item) for key, item in value.items()}
    if dataclasses.is_dataclass(value):
        return {name: to_json_values(getattr(value, name)) for name in value.__dataclass_fields__}
    return value


_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a text",
    "dict": "an object",
    "list": "a list",
    "tuple": "a list",
    "NoneType": "null",
}


def kind_in_json(name: str) -> str:
    """What JSON calls the values of the Python type of that ``name``; empty where it has none of the kind."""
    return _KINDS.get(name, "")


def shown_as_json(value: object, most: int = 60) -> str:
    """A value as JSON writes it, cut off behind ``most`` characters."""
    import json  # 5 ms that tables do not need

    text = json.dumps(value, default=str)
    return text if len(text) <= most else f"{text[: most - 1]}…"
