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
from devctl.inventory.subset import parse_ids, show_only, variable
from devctl.models.cache import load_tree, store_tree, tree_key
from devctl.models.resolve import ModelSource, resolve
from devctl.models.tree import ModuleTree, sizes
from devctl.placement import Budgets, Placement, Strategy, place
from devctl.placement.budget import (
    as_here,
    from_inventory,
    from_max_memory,
    is_accelerator,
    keep_free,
    override,
    parse_max_memory,
    parse_reserve,
    parse_speeds,
)
from devctl.placement.document import PlannedModel, normal
from devctl.placement.latency import DISK, LINK, Speeds
from devctl.placement.placement import find_faults, make_placement, over_budget, validate
from devctl.placement.ways_out import fits, ways_out
from devctl.units import format_bytes

if TYPE_CHECKING:
    from devctl.models.skeleton import Skeleton


_OFF = (Device.cpu(), Device.disk())


def budgets(max_memory: list[str] | None, inventory: Inventory, *, given: bool = False) -> Budgets:
    """What ``--max-memory`` says, else what the machine has free; of a machine that is ``given``, one beside the other.

    Raises:
        UsageError: it is malformed.
    """
    if max_memory is None:
        return from_inventory(inventory, given=given)
    try:
        sizes = parse_max_memory(max_memory)
        if given:
            return override(from_inventory(inventory, given=True), sizes, inventory)
        return from_max_memory(sizes, inventory)
    except ValueError as error:
        raise UsageError(f"--max-memory: {error}") from None


def hardware(devices: str | None, file: str | None) -> Inventory:
    """What to plan for: the ``--devices`` that are named, the ``--machine`` of a file, or else this machine, now.

    Raises:
        UsageError: both are given, or one can't be read.
    """
    if devices is None:
        return machine(file)
    if file is not None:
        raise UsageError("--devices and --machine both say what to plan for: leave out one")
    from devctl.inventory.hypothetical import parse_devices  # the catalogue, which no other plan needs

    try:
        return parse_devices(devices)
    except ValueError as error:
        raise UsageError(f"--devices: {error}", hint="`devctl plan --devices help` lists the boards") from None


def visible(ids: str | None, inventory: Inventory) -> tuple[Inventory, tuple[str, ...]]:
    """The accelerators that ``--visible`` leaves of the machine, and a note on how to start a process that has them.

    Raises:
        UsageError: they are malformed, or not there.
    """
    if ids is None:
        return inventory, ()
    try:
        chosen = parse_ids(ids)
        return show_only(inventory, chosen), (f"run with {variable(inventory, chosen)}",)
    except ValueError as error:
        raise UsageError(f"--visible: {error}") from None


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
    source = _resolve(model, revision)
    return source, _read(source, model, dtype=dtype, model_class=model_class, trust_remote_code=trust_remote_code)


def tree(
    model: str, *, dtype: str, model_class: str | None, trust_remote_code: bool, revision: str | None, cache: bool
) -> tuple[ModelSource, ModuleTree]:
    """The model's modules, and where it is read from; a tree that was kept needs no torch."""
    source = _resolve(model, revision)
    key = tree_key(source, dtype=dtype, model_class=model_class, trust_remote_code=trust_remote_code) if cache else None
    if key is not None and (kept := load_tree(key)) is not None:
        return source, kept
    built = _read(source, model, dtype=dtype, model_class=model_class, trust_remote_code=trust_remote_code).tree
    if key is not None:
        store_tree(key, built)
    return source, built


def _resolve(model: str, revision: str | None) -> ModelSource:
    with render.status(f"looking for {model}"):
        return resolve(model, revision=revision)


def _read(source: ModelSource, model: str, *, dtype: str, model_class: str | None, trust_remote_code: bool) -> Skeleton:
    with render.status("importing torch and transformers"):
        from devctl.models.skeleton import read_skeleton
    with render.status(f"reading the config of {model}"):
        return read_skeleton(source, dtype=dtype, model_class=model_class, trust_remote_code=trust_remote_code)


def reserved(budgets: Budgets, reserve: list[str] | None, inventory: Inventory) -> Budgets:
    """``budgets``, less what ``--reserve`` keeps free.

    Raises:
        UsageError: it is malformed, or names a device that is not there.
    """
    if reserve is None:
        return budgets
    try:
        return keep_free(budgets, parse_reserve(reserve), inventory)
    except ValueError as error:
        raise UsageError(f"--reserve: {error}") from None


def speeds(given: list[str] | None, budgets: Budgets, inventory: Inventory) -> Speeds:
    """What ``--speed`` says, else what was measured, else what the catalogue has of the board.

    Raises:
        UsageError: it is malformed, or something is not known.
    """
    from devctl.inventory.catalogue import find

    try:
        said = parse_speeds(given or [])
    except ValueError as error:
        raise UsageError(f"--speed: {error}") from None
    named = {as_here(key, inventory) if isinstance(key, Device) else key: rate for key, rate in said.items()}
    gpus = [device for device, _ in budgets.devices if is_accelerator(device)]
    if not gpus:
        raise UsageError("--objective latency compares GPUs, and there is none", hint="leave it out")
    here = {gpu.device: gpu for gpu in inventory.accelerators if gpu.device is not None}
    boards = {device: find(gpu.name, gpu.memory_total) for device, gpu in here.items() if gpu.name}
    memory = {}
    for device in gpus:
        board = boards.get(device)
        rate = named.get(device) or (board.bandwidth if board else None)
        if rate is None:
            raise UsageError(
                f"the speed of {device}'s memory is not known",
                hint=f"give it with --speed {device.id if device.id is not None else device}=900GB, in bytes a second",
            )
        memory[device] = rate
    first = boards.get(gpus[0])
    measured = here[gpus[0]].host_to_device if gpus[0] in here else None
    link = named.get("link") or measured or (first.link.bandwidth if first and first.link else None)
    disks = [disk.read_speed for disk in inventory.disks if disk.read_speed]
    disk_rate = named.get("disk") or min(disks, default=None)
    return Speeds(memory=memory, link=link or LINK, disk=disk_rate or DISK)


def placement(tree: ModuleTree, limits: Budgets, strategy: Strategy, speeds: Speeds | None = None) -> Placement:
    """The placement, once there is something to place on."""
    if not limits.devices:
        raise UsageError("no device has a known amount of memory", hint="give it with --max-memory, like cpu=30GiB")
    return place(tree, limits, strategy, speeds)


def judged(tree: ModuleTree, device_map: dict[str, Device], budgets: Budgets) -> Placement:
    """The placement of a map that somebody wrote, once nothing is wrong with it.

    Raises:
        RefusedError: with every finding.
    """
    here = [*(device for device, _ in budgets.devices), Device.disk()]
    placement = make_placement(tree, device_map, budgets, strategy=None)
    findings = (
        *validate(tree, device_map, here),
        *find_faults(tree, device_map),
        *over_budget(placement.devices),
    )
    if findings:
        raise RefusedError("the map does not hold", findings=findings, hint="`devctl plan` makes a map that does")
    return placement


def require_room(tree: ModuleTree, placement: Placement, budgets: Budgets, *, offload: bool, hint: str) -> None:
    """Refuse a placement that leaves bytes off the accelerators, or with ``offload`` bytes on disk.

    Raises:
        RefusedError: with what would make it fit.
    """
    missing = placement.on_disk if offload else placement.offloaded
    if not missing:
        return
    if fits(tree, budgets, cpu_may_hold=offload):
        ways: tuple[str, ...] = ("--strategy optimal fits",)
    else:
        ways = ways_out(tree, budgets, cpu_may_hold=offload)
    where = "disk" if offload else " and ".join(str(u.device) for u in placement.devices if u.device in _OFF and u.used)
    raise RefusedError(f"it does not fit: {format_bytes(missing)} would be left on {where}", findings=ways, hint=hint)


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
    )


def versions() -> dict[str, str]:
    """The versions that decide what a plan says."""
    from importlib.metadata import version

    return {name: version(name) for name in ("devctl", "transformers", "accelerate", "torch")}
