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
from devctl.placement.budget import as_here, from_inventory, from_max_memory, parse_max_memory
from devctl.placement.document import PlannedModel, normal
from devctl.placement.placement import validate
from devctl.units import format_bytes

if TYPE_CHECKING:
    from devctl.models.quantisation import Quantize
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
    model: str,
    *,
    dtype: str,
    model_class: str | None,
    trust_remote_code: bool,
    revision: str | None,
    random_weights: bool,
) -> tuple[ModelSource, Skeleton]:
    """The model without its weights, as it is loaded here, and where it is read from."""
    source = _resolve(model, revision)
    with render.status("importing torch and transformers"):
        from devctl.models.skeleton import Purpose, read_skeleton
    with render.status(f"reading the config of {model}"):
        return source, read_skeleton(
            source,
            dtype=dtype,
            model_class=model_class,
            trust_remote_code=trust_remote_code,
            purpose=Purpose.RANDOM if random_weights else Purpose.LOAD,
        )


def tree(
    model: str,
    *,
    dtype: str,
    model_class: str | None,
    trust_remote_code: bool,
    revision: str | None,
    cache: bool,
    quantize: Quantize | None = None,
) -> tuple[ModelSource, ModuleTree]:
    """The model's modules, and where it is read from; a tree that was kept needs no torch."""
    source = _resolve(model, revision)
    key = None
    if cache:
        key = tree_key(
            source, dtype=dtype, model_class=model_class, trust_remote_code=trust_remote_code, quantize=quantize
        )
    if key is not None and (kept := load_tree(key)) is not None:
        return source, kept
    with render.status("importing torch and transformers"):
        from devctl.models.skeleton import read_skeleton
    with render.status(f"reading the config of {model}"):
        built = read_skeleton(
            source, dtype=dtype, model_class=model_class, trust_remote_code=trust_remote_code, quantize=quantize
        ).tree
    if key is not None:
        store_tree(key, built)
    return source, built


def _resolve(model: str, revision: str | None) -> ModelSource:
    with render.status(f"looking for {model}"):
        return resolve(model, revision=revision)


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


def require_memory(placement: Placement, inventory: Inventory, *, random_weights: bool) -> None:
    """Refuse what can't be held: more than an accelerator has free, or than the RAM has for weights that are made up.

    A checkpoint's weights on the CPU are mapped from their files, which the system can read again as it needs them.

    Raises:
        RefusedError: with every device that has too little.
    """
    free = {a.device: a.memory_free for a in inventory.accelerators if a.device is not None}
    if random_weights:
        free[Device.cpu()] = inventory.host.ram_available
    findings = [
        f"{use.device} would hold {format_bytes(use.used)}, and has {format_bytes(available)} free"
        for use in placement.devices
        if (available := free.get(use.device)) is not None and use.used > available
    ]
    if findings:
        raise RefusedError(
            "the map does not fit this machine as it is now",
            findings=tuple(findings),
            hint="`devctl plan` makes one that does",
        )


def read_map(argument: str, inventory: Inventory) -> dict[str, Device]:
    """The map that ``--map`` names: a file, "-" for stdin, or a bare device for the whole model.

    A number is the accelerator that ``inventory`` has by it.

    Raises:
        UsageError: it can't be read, or is no map.
    """
    if argument in (*Strategy, "disk"):
        hint = f"use --strategy {argument}" if argument != "disk" else 'a file with {"": "disk"} puts all on disk'
        raise UsageError(f"--map {argument} is neither a file nor a device that computes", hint=hint)
    try:
        found = {"": bare_device(argument)}
    except ValueError:
        found = dict(read_map_file(Path(argument)).device_map)
    return {name: as_here(device, inventory) for name, device in found.items()}


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
        quantisation=tree.quantisation,
    )


def versions() -> dict[str, str]:
    """The versions that decide what a plan says."""
    from importlib.metadata import version

    return {name: version(name) for name in ("devctl", "transformers", "accelerate", "torch")}
