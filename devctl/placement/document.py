"""Maps and plans as JSON: what ``plan`` writes, and ``load`` and ``check`` read."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from devctl.devices import Device, DeviceMap
from devctl.errors import RefusedError, UsageError, first_line
from devctl.placement.budget import MOST_ID, NUMBERED
from devctl.placement.engines.records import title_of
from devctl.placement.parallel.records import Stages, is_staged, parse_stages

SCHEMA = 1
KIND = "devctl.plan"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedAdapter:
    """An adapter that a plan counts.

    Attributes:
        name: the folder or id, as it was asked for.
        revision: the hub's commit; None for files.
        nbytes: bytes that it holds beside the model.
    """

    name: str
    revision: str | None
    nbytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedModel:
    """Which model a plan is for.

    Attributes:
        name: the MODEL argument.
        revision: the hub's commit; None for files.
        nbytes: bytes of all weights and buffers, and of adapters beside them.
        quantisation: how the weights are quantised; None where they are not.
        adapters: those that PEFT loads beside it.
    """

    name: str
    revision: str | None
    class_name: str
    dtype: str
    nbytes: int
    quantisation: str | None = None
    adapters: tuple[PlannedAdapter, ...] = ()

    def to_document(self) -> dict[str, Any]:
        """What documents say of it."""
        return {
            "name": self.name,
            "revision": self.revision,
            "class": self.class_name,
            "dtype": self.dtype,
            "quantisation": self.quantisation,
            "bytes": self.nbytes,
            "adapters": [
                {"name": each.name, "revision": each.revision, "bytes": each.nbytes} for each in self.adapters
            ],
        }


def parse_map(text: str, origin: str) -> dict[str, Device]:
    """Read a device map, plain or within a plan document.

    Args:
        text: JSON.
        origin: where it came from, for messages.

    Raises:
        UsageError: it is no JSON, no map, empty, or a value is no device.
    """
    return map_of(parse_json(text, origin), origin)


def parse_json(text: str, origin: str) -> Any:
    """The JSON of a map or plan document.

    Raises:
        UsageError: it is none, or has a key twice.
    """
    try:
        data = json.loads(text, object_pairs_hook=_no_duplicates, parse_constant=_no_number)
    except json.JSONDecodeError as error:
        raise UsageError(
            f"{origin} is broken JSON: {error.msg} at line {error.lineno}, column {error.colno}",
            hint='a map looks like {"model.embed_tokens": 0, "lm_head": "cpu"}, as `devctl plan` writes it',
        ) from None
    except _DuplicateKeyError as error:
        raise UsageError(f"{origin} has the key {error.args[0]!r} twice") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; nested too deeply
        raise UsageError(f"{origin} has no device map in it: {first_line(error)}") from None
    return data


def map_of(data: Any, origin: str) -> dict[str, Device]:
    """The device map in ``data``, plain or within a plan document.

    Raises:
        UsageError: there is none, it is empty, or a value is no device.
        RefusedError: it is of a plan for several processes, or for another engine.
    """
    if isinstance(data, dict) and data.get("kind") == KIND:
        require_of_transformers(data, origin)
        if is_staged(data):  # a plain map may have a module of that name
            raise of_several(parse_stages(data, origin), origin)
        data = data.get("device_map")
    if not isinstance(data, dict) or not data:
        raise UsageError(
            f"{origin} has no device map in it",
            hint='a map looks like {"model.embed_tokens": 0, "lm_head": "cpu"}, as `devctl plan` writes it',
        )
    found = {}
    known: dict[tuple[type, object], Device] = {}  # a map has far fewer devices than keys
    for key, value in data.items():
        try:
            kind = type(value), value
            if kind not in known:
                known[kind] = normal(DeviceMap.from_hf({key: value})[key])
            found[key] = known[kind]
        except (TypeError, ValueError):
            if isinstance(value, str) and ("," in value or "/" in value):
                raise RefusedError(
                    f"{origin} is a map for several processes, and this is one",
                    hint="its plan document says how it is run: `devctl load MODEL --map FILE --launch print`",
                ) from None
            raise UsageError(
                f"{origin} puts {key!r} on {json.dumps(value)}, which is no device",
                hint='a device is a GPU\'s id, or "cuda:0", "cpu", "disk", "mps", "xpu:0"',
            ) from None
    return found


def require_of_transformers(document: Mapping[str, Any], origin: str) -> None:
    """Refuse a plan document of another engine, which has no map that transformers takes.

    Raises:
        RefusedError: it is one.
    """
    engine = document.get("engine")
    if isinstance(engine, dict):
        file = origin if "/" in origin or "." in origin else "FILE"
        raise RefusedError(
            f"{origin} is a plan for {title_of(engine.get('name'))} {engine.get('release')}, and this is transformers",
            hint=f"`devctl export {file} --to vllm` gives its lines",
        )


def of_several(stages: Stages, origin: str) -> RefusedError:
    """Why a plan for several processes is not run by one, and what runs it.

    Args:
        origin: where the plan came from.
    """
    where = f" on {len(stages.hosts)} hosts ({', '.join(stages.hosts)})" if len(stages.hosts) > 1 else ""
    file = origin if "/" in origin or "." in origin else "FILE"  # and no words for what is no file
    run = (
        engines_that_can(file)
        if stages.is_for_engines
        else f"run it with `devctl load MODEL --map {file} --launch print`"
    )
    return RefusedError(f"{origin} is a plan for {len([*stages.ranks()])} processes{where}, and this is one", hint=run)


def engines_that_can(file: str) -> str:
    """What runs a plan in stages that ranks share, as a hint."""
    return f"vLLM and SGLang can: `devctl export {file} --to vllm` writes their lines"


def of_gguf(origin: str) -> RefusedError:
    """Why the plan of a GGUF file is not loaded as a map, and what works.

    Args:
        origin: where the plan came from.
    """
    file = origin if "/" in origin or "." in origin else "FILE"  # and no words for what is no file
    return RefusedError(
        f"{origin} is a plan of a GGUF file, whose layers no device_map of transformers names",
        hint=f"`devctl export {file} --to llama.cpp` says how it is run",
    )


def normal(device: Device) -> Device:
    """The one spelling of a device: numbered kinds have an id, the others have none.

    Raises:
        ValueError: its number is larger than any machine's.
    """
    if (device.id or 0) > MOST_ID:
        raise ValueError(f"no machine has a device with so large a number as {str(device)[:20]}…")
    if device.type in NUMBERED:
        return Device(device.type, device.id or 0)
    return Device(device.type)


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


class _DuplicateKeyError(ValueError):
    pass


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _DuplicateKeyError(key)
        found[key] = value
    return found
