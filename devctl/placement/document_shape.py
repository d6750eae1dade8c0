"""Whether a plan document has the shape that its schema describes: every key of its own kind, and none torn out."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from devctl.as_json import shown_as_json
from devctl.errors import UsageError

_BY_HAND = {"schema", "kind", "model", "device_map", "devices"}
"""A document of these keys alone is one that somebody wrote, who need not say all; what it says counts."""

MOST = 2**63
"""No machine has as many of anything."""

_KINDS = {
    "object": "an object",
    "array": "a list",
    "string": "a text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "null": "null",
}


def require_shape(document: Mapping[str, Any], origin: str, *, may_lack: bool = False) -> None:
    """Refuse a plan document with a value of another kind than ``plan`` writes there, or without one of its keys.

    Keys that are not known are left alone: a newer devctl may have more. How names, devices and other words are
    spelled is for who reads them.

    Args:
        origin: where it came from, for messages.
        may_lack: whether a key may be missing, as in a plan of an earlier devctl, where the reader does without.

    Raises:
        UsageError: it is malformed; the message says where.
    """
    schema = _schema()
    complete = not (may_lack or document.keys() <= _BY_HAND)
    problem = next(_problems(document, schema, "", schema["$defs"], complete=complete), None)
    if problem is not None:
        raise UsageError(f"{origin}: {problem}", hint="write it anew with `devctl plan MODEL --report FILE`")


@cache
def _schema() -> dict[str, Any]:
    schema: dict[str, Any] = json.loads(Path(__file__).with_name("schema.json").read_text(encoding="utf-8"))
    return schema


def _problems(
    value: Any, schema: Mapping[str, Any], where: str, defs: Mapping[str, Any], *, complete: bool
) -> Iterator[str]:
    """What of ``value`` is not as ``schema`` has it, of the words of JSON Schema that the plan's uses."""
    if "$ref" in schema:
        schema = defs[schema["$ref"].rpartition("/")[2]]
    if "anyOf" in schema:
        # of the options for null, a text or an object one is of the value's own kind, which says more of it
        options = [list(_problems(value, each, where, defs, complete=complete)) for each in schema["anyOf"]]
        if all(options):
            yield from max(options, key=lambda found: 0 if found[0].startswith(f'"{where}" is ') else 1)
        return
    kinds = _kinds_of(schema)
    kind = _kind(value)
    if kinds and kind not in kinds and not (kind == "integer" and "number" in kinds):
        yield f'"{where}" is {shown_as_json(value)}, not {" or ".join(_KINDS[each] for each in kinds)}'
    elif kind == "object":
        yield from _problems_of_object(value, schema, where, defs, complete=complete)
    elif kind == "array":
        if len(value) < schema.get("minItems", 0) or len(value) > schema.get("maxItems", len(value)):
            yield f'"{where}" has {len(value)} entries'
        for number, each in enumerate(value):
            yield from _problems(each, schema.get("items", {}), f"{where}[{number}]", defs, complete=complete)
    elif kind in ("integer", "number"):
        yield from _problems_of_number(value, schema, where)


def _problems_of_number(value: float, schema: Mapping[str, Any], where: str) -> Iterator[str]:
    if value < schema.get("minimum", value):
        yield f'"{where}" is {shown_as_json(value)}, not at least {schema["minimum"]}'
    elif not abs(value) < MOST:
        yield f'"{where}" is larger than anything of a machine'


def _problems_of_object(
    value: Mapping[str, Any], schema: Mapping[str, Any], where: str, defs: Mapping[str, Any], *, complete: bool
) -> Iterator[str]:
    if complete:
        absent = [f'"{key}"' for key in schema.get("required", ()) if key not in value]
        if absent:
            what = f'"{where}"' if where else "the plan"
            yield f"{what} lacks {', '.join(absent)}"
    known, others = schema.get("properties", {}), schema.get("additionalProperties")
    for key, each in value.items():
        described = known.get(key, others if isinstance(others, dict) else None)
        if described is not None:
            yield from _problems(each, described, f"{where}.{key}".lstrip("."), defs, complete=complete)


def _kinds_of(schema: Mapping[str, Any]) -> list[str]:
    """The kinds of value that ``schema`` takes; of a list of words, text. Which word it is is for who reads it."""
    if "enum" in schema or "const" in schema:
        return list(dict.fromkeys(map(_kind, schema.get("enum", [schema.get("const")]))))
    kinds = schema.get("type", [])
    return [kinds] if isinstance(kinds, str) else list(kinds)


def _kind(value: Any) -> str:
    """What JSON Schema calls the kind of a JSON value; a number that is none (NaN) has no kind."""
    if isinstance(value, float):
        return "number" if math.isfinite(value) else ""
    kinds = ((bool, "boolean"), (str, "string"), (int, "integer"), ((list, tuple), "array"), (dict, "object"))
    return next((name for kind, name in kinds if isinstance(value, kind)), "null")
