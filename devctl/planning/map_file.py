"""The file that ``--map`` takes: a Hugging Face device map, or a plan document, which knows the bytes too."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from devctl.devices import Device
from devctl.errors import RefusedError, UsageError
from devctl.placement.document import KIND, SCHEMA, map_of, normal, of_gguf, parse_json
from devctl.placement.document_shape import require_shape
from devctl.placement.strategy import Strategy
from devctl.planning.plan_facts import PlanFacts, parse_facts
from devctl.planning.planned_run import Run, parse_run
from devctl.reading import MOST_TEXT, read_document


@dataclass(frozen=True, slots=True, kw_only=True)
class MapFile:
    """What the file says.

    Attributes:
        facts: what a plan document knows beyond its map; None for a plain map.
        run: the run that is planned, as far as a plan document says.
    """

    device_map: Mapping[str, Device]
    facts: PlanFacts | None = None
    run: Run | None = None


def read_map_file(path: Path) -> MapFile:
    """The map or plan document at ``path``; "-" is standard input.

    Raises:
        UsageError: it can't be read, or is no map and no plan document.
        RefusedError: it is a plan over several hosts.
    """
    return parse_map_file(*read_text(path, "the map", "write one with `devctl plan MODEL > map.json`"))


def read_text(path: Path, what: str, hint: str) -> tuple[str, str]:
    """The text at ``path``, and what to call it; "-" is standard input.

    Raises:
        UsageError: it can't be read, or is no text; with ``hint``.
    """
    origin = "standard input" if str(path) == "-" else str(path)
    try:
        if str(path) != "-":
            text = read_document(path)
            if not text.strip():
                raise UsageError(f"cannot read {what} {origin}: it is empty", hint=hint)
            return text, origin
        if sys.stdin is None:  # how Python shows one that was closed
            raise UsageError(f"cannot read {what}: standard input is closed", hint=hint)
        text = sys.stdin.read(MOST_TEXT + 1).removeprefix("\ufeff")
        if len(text) > MOST_TEXT:
            raise UsageError(f"cannot read {what}: standard input has more than {MOST_TEXT:,} characters", hint=hint)
        if not text.strip():
            raise UsageError(
                f"cannot read {what}: standard input is empty, nothing came through the pipe",
                hint="the command before it may have failed, or have written its answer elsewhere",
            )
        return text, origin
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UsageError(f"cannot read {what} {origin}: {reason}", hint=hint) from None


def parse_map_file(text: str, origin: str) -> MapFile:
    """The map or plan document in ``text``.

    Raises:
        UsageError: it is neither, or a plan of another schema.
        RefusedError: it is a plan over several hosts, and no machine runs it alone.
    """
    document = parse_json(text, origin)
    device_map = map_of(document, origin)
    if document.get("kind") != KIND:
        return MapFile(device_map=device_map)
    if document.get("schema") != SCHEMA:
        raise UsageError(f"{origin} is a plan of schema {document.get('schema')!r}; this devctl reads schema {SCHEMA}")
    run, facts = parse_run(document.get("workload"), origin), parse_facts(document, origin)
    require_shape(document, origin)
    return MapFile(device_map=device_map, facts=facts, run=run)


def read_map(argument: str) -> dict[str, Device]:
    """The map that ``--map`` names: a file, "-" for stdin, or a bare device for the whole model.

    Raises:
        UsageError: it can't be read, or is no map.
        RefusedError: it is the plan of a GGUF file.
    """
    return dict(_read_map(argument).device_map)


def read_loadable(argument: str) -> MapFile:
    """The same to be loaded, and what a plan document says beside it.

    Raises:
        UsageError: as `read_map`.
        RefusedError: it is the plan of a GGUF file, or one that counts what a load does not load.
    """
    found = _read_map(argument)
    if found.facts is not None:
        require_loadable(found.facts.model, argument)
    return found


def require_loadable(model: Mapping[str, Any], origin: str) -> None:
    """Refuse a plan that counts adapters, which a load would neither load nor prove.

    Args:
        model: what the plan says of its model.
        origin: what to call the plan.

    Raises:
        RefusedError: it does.
    """
    if counted := model.get("adapters"):
        named = [each.get("name") for each in counted if isinstance(each, dict)] if isinstance(counted, list) else []
        which = f"the adapter {named[0]}" if named else "an adapter"
        raise RefusedError(
            f"{origin} counts {which}, and a load loads only the model: that would prove nothing of the plan",
            hint="load a plan made without --adapter; PEFT loads the adapter onto that model in your program",
        )


def _read_map(argument: str) -> MapFile:
    if argument in (*Strategy, "disk"):
        hint = f"use --strategy {argument}" if argument != "disk" else 'a file with {"": "disk"} puts all on disk'
        raise UsageError(f"--map {argument} is neither a file nor a device that computes", hint=hint)
    try:
        return MapFile(device_map={"": bare_device(argument)})
    except ValueError:
        found = read_map_file(Path(argument))
    if found.facts is not None and found.facts.is_of_gguf:
        raise of_gguf(argument if argument != "-" else "standard input")
    return found


def bare_device(text: str) -> Device:
    """A device as ``from_pretrained(device_map=…)`` takes it: "cpu", "cuda:1", or a GPU's id.

    "cuda" is the GPU of this process, ``LOCAL_RANK``, as in transformers.

    Raises:
        ValueError: ``text`` is no device.
    """
    if text == "cuda":
        return Device.gpu(int(os.environ.get("LOCAL_RANK", "0")))
    return normal(Device.gpu(int(text)) if text.isascii() and text.isdigit() else Device.from_str(text))
