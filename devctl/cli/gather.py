"""What several commands gather before they compute."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from devctl.cli import render
from devctl.cli.map_file import read_map_file, read_text
from devctl.devices import Device
from devctl.errors import RefusedError, UsageError, first_line
from devctl.inventory import Inventory, take_inventory
from devctl.inventory.document import from_document
from devctl.models.cache import load_tree, store_tree, tree_key
from devctl.models.resolve import ModelSource, resolve
from devctl.models.tree import ModuleTree, sizes
from devctl.placement import Budgets, Placement, Strategy, place
from devctl.placement.budget import from_inventory, from_max_memory, parse_max_memory
from devctl.placement.document import PlannedModel, normal
from devctl.placement.placement import validate

if TYPE_CHECKING:
    from devctl.models.skeleton import Skeleton


def budgets(max_memory: list[str] | None, inventory: Inventory) -> Budgets:
    """What ``--max-memory`` says, else what the machine has free.

    Raises:
        UsageError: it is malformed.
    """
    if max_memory is None:
        return from_inventory(inventory)
    try:
        return from_max_memory(parse_max_memory(max_memory), inventory)
    except ValueError as error:
        raise UsageError(f"--max-memory: {error}") from None


def machine(argument: str | None) -> Inventory:
    """The machine that ``--machine`` describes, as ``list --json`` wrote it; None is this one, now.

    Raises:
        UsageError: it can't be read, or is no inventory.
    """
    if argument is None:
        return take_inventory()
    hint = "write one with `devctl list --json > box.json`, on that machine"
    text, origin = read_text(Path(argument), "the machine", hint)
    try:
        return from_document(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{origin} describes no machine: {first_line(error)}", hint=hint) from None


def skeleton(
    model: str, *, dtype: str, model_class: str | None, trust_remote_code: bool, revision: str | None
) -> tuple[ModelSource, Skeleton]:
    """The model without its weights, and where it is read from."""
    source = resolve(model, revision=revision)
    return source, _read(source, model, dtype=dtype, model_class=model_class, trust_remote_code=trust_remote_code)


def tree(
    model: str, *, dtype: str, model_class: str | None, trust_remote_code: bool, revision: str | None, cache: bool
) -> tuple[ModelSource, ModuleTree]:
    """The model's modules, and where it is read from; a tree that was kept needs no torch."""
    source = resolve(model, revision=revision)
    key = tree_key(source, dtype=dtype, model_class=model_class, trust_remote_code=trust_remote_code) if cache else None
    if key is not None and (kept := load_tree(key)) is not None:
        return source, kept
    built = _read(source, model, dtype=dtype, model_class=model_class, trust_remote_code=trust_remote_code).tree
    if key is not None:
        store_tree(key, built)
    return source, built


def _read(source: ModelSource, model: str, *, dtype: str, model_class: str | None, trust_remote_code: bool) -> Skeleton:
    with render.status("importing torch and transformers"):
        from devctl.models.skeleton import read_skeleton
    with render.status(f"reading the config of {model}"):
        return read_skeleton(source, dtype=dtype, model_class=model_class, trust_remote_code=trust_remote_code)


def placement(tree: ModuleTree, limits: Budgets, strategy: Strategy) -> Placement:
    """The placement, once there is something to place on."""
    if not limits.devices:
        raise UsageError("no device has a known amount of memory", hint="give it with --max-memory, like cpu=30GiB")
    return place(tree, limits, strategy)


def require_valid(tree: ModuleTree, placement: Placement, inventory: Inventory) -> None:
    """Refuse a placement that does not hold for this model on this machine.

    Raises:
        RefusedError: with every finding.
    """
    here = [*(a.device for a in inventory.accelerators if a.device), Device.cpu(), Device.disk()]
    if findings := validate(tree, dict(placement.device_map), here):
        raise RefusedError(
            "the map does not hold for this model on this machine",
            findings=findings,
            hint="`devctl plan` makes a map that does",
        )


def read_map(argument: str) -> dict[str, Device]:
    """The map that ``--map`` names: a file, "-" for stdin, or a bare device for the whole model.

    Raises:
        UsageError: it can't be read, or is no map.
    """
    if argument in (*Strategy, "disk"):
        hint = f"use --strategy {argument}" if argument != "disk" else 'a file with {"": "disk"} puts all on disk'
        raise UsageError(f"--map {argument} is neither a file nor a device that computes", hint=hint)
    try:
        return {"": bare_device(argument)}
    except ValueError:
        return dict(read_map_file(Path(argument)).device_map)


def bare_device(text: str) -> Device:
    """A device as ``from_pretrained(device_map=…)`` takes it: "cpu", "cuda:1", or a GPU's id.

    "cuda" is the GPU of this process, ``LOCAL_RANK``, as in transformers.

    Raises:
        ValueError: ``text`` is no device.
    """
    if text == "cuda":
        return Device.gpu(int(os.environ.get("LOCAL_RANK", "0")))
    return normal(Device.gpu(int(text)) if text.isascii() and text.isdigit() else Device.from_str(text))


def planned_model(name: str, source: ModelSource, tree: ModuleTree) -> PlannedModel:
    """What a plan document says of the model."""
    return PlannedModel(
        name=name,
        revision=source.revision,
        class_name=tree.class_name,
        dtype=tree.dtype,
        nbytes=sizes(tree)[""],
    )


def versions() -> dict[str, str]:
    """The versions that decide what a plan says."""
    from importlib.metadata import version

    return {name: version(name) for name in ("devctl", "transformers", "accelerate", "torch")}
