"""What a plan is for: a machine, what it may hold, and how fast it is."""

from __future__ import annotations

import json
from pathlib import Path

from devctl.cli.map_file import read_text
from devctl.devices import Device
from devctl.errors import UsageError, first_line
from devctl.inventory import Inventory, take_inventory
from devctl.inventory.document import from_document
from devctl.inventory.subset import parse_ids, show_only, variable
from devctl.placement import Budgets
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
from devctl.placement.optimal.latency import DISK, LINK, Speeds


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
