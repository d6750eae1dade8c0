"""An inventory as a JSON document and back: what `devctl list --json` prints, a laptop can plan with."""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from enum import StrEnum
from typing import Any

from devctl.as_json import kind_in_json, shown_as_json, to_json_values
from devctl.devices import Device
from devctl.inventory.records import Inventory

SCHEMA = 1
"""Version of the document; it grows when a key changes its meaning or goes."""

KIND = "devctl.inventory"


def to_document(inventory: Inventory) -> dict[str, Any]:
    """``inventory`` as JSON values: the same keys whatever the hardware, None for unknown. See ``schema.json``."""
    return {"schema": SCHEMA, "kind": KIND, **to_json_values(inventory)}


def from_document(document: Any) -> Inventory:
    """The inventory that ``to_document`` wrote. Keys that are not known are left out: a newer devctl may have more.

    Raises:
        ValueError: it is no such document, or of another schema; the message says where.
    """
    if not isinstance(document, dict) or document.get("kind") != KIND:
        raise ValueError(f'not an inventory: "kind" is not "{KIND}"')
    if document.get("schema") != SCHEMA:
        raise ValueError(f"an inventory of schema {document.get('schema')!r}; this devctl reads schema {SCHEMA}")
    inventory = _record(Inventory, document, "")
    assert isinstance(inventory, Inventory)
    return inventory


def _record(kind: type, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise _wrong(value, "an object", where)
    hints = typing.get_type_hints(kind)
    arguments = {
        field.name: _value(hints[field.name], value[field.name], f"{where}.{field.name}".lstrip("."))
        for field in dataclasses.fields(kind)
        if field.name in value
    }
    try:
        return kind(**arguments)
    except TypeError as error:  # a field without a default is missing
        absent = _NAMES.findall(str(error))
        raise ValueError(f"{where or 'the document'} lacks {', '.join(absent) or 'something'}") from None


_NAMES = re.compile("'([a-z_]+)'")
"""Of the fields that a record's own complaint names."""


def _value(kind: Any, value: Any, where: str) -> Any:
    if isinstance(kind, types.UnionType):
        if value is None:
            return None
        kind = next(option for option in typing.get_args(kind) if option is not types.NoneType)
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, list):
            raise _wrong(value, "a list", where)
        item = typing.get_args(kind)[0]
        return tuple(_value(item, entry, f"{where}[{number}]") for number, entry in enumerate(value))
    if dataclasses.is_dataclass(kind) and kind is not Device:
        assert isinstance(kind, type)
        return _record(kind, value, where)
    return _scalar(kind, value, where)


def _scalar(kind: Any, value: Any, where: str) -> Any:
    if kind is Device or issubclass(kind, StrEnum):
        try:
            return Device.from_str(value) if kind is Device else kind(value)
        except (ValueError, AttributeError):
            raise _wrong(value, f"a {kind.__name__}", where) from None
    accepted = (int, float) if kind is float else (kind,)
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise _wrong(value, kind_in_json(kind.__name__), where)
    if kind is int and value < 0:
        raise _wrong(value, "at least 0", where)
    if isinstance(value, int | float) and not abs(value) < 2**63:
        raise ValueError(f"{where} is larger than anything of a machine")
    return float(value) if kind is float else value


def _wrong(value: Any, expected: str, where: str) -> ValueError:
    return ValueError(f"{where or 'the document'} is {shown_as_json(value)}, not {expected}")
