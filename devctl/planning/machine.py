"""The machine that a request means: what is there, what each device may hold, and how fast it is."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from devctl.devices import Device
from devctl.errors import UsageError, first_line
from devctl.inventory import Inventory, take_inventory
from devctl.inventory.document import from_document
from devctl.inventory.missing import missing
from devctl.inventory.records import HOST_POOL
from devctl.inventory.subset import parse_ids, show_only, variable
from devctl.models.whose_kernels import Build, parse_release, shuns_cudnn
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
from devctl.planning.map_file import read_text
from devctl.planning.request import MachineRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What is planned for.

    Attributes:
        inventory: what is there, of the accelerators those that are planned with.
        budgets: bytes that each device may hold.
        speeds: of memory, link and disk, where they were asked for.
        named_whole: whether a request names all that there is, so that what it doesn't name, like a disk, is not there.
        missing: why accelerators that it has can't be planned with, a line for each reason.
        build: what torch is there; None of a machine that is not this one.
    """

    inventory: Inventory
    budgets: Budgets
    speeds: Speeds | None
    named_whole: bool
    missing: tuple[str, ...] = ()
    build: Build | None = None

    @property
    def of_host(self) -> frozenset[Device]:
        """Accelerators whose memory is the host's RAM: Apple's, and those in a processor."""
        gpus = self.inventory.accelerators
        return frozenset(gpu.device for gpu in gpus if gpu.device is not None and gpu.memory_pool == HOST_POOL)

    @property
    def lacks_disk(self) -> bool:
        """Whether nothing may be left on a disk, as none is named."""
        return self.named_whole and not self.inventory.disks


def open_machine(request: MachineRequest) -> Machine:
    """The machine of ``request``.

    Raises:
        UsageError: it can't be read, names what is not there, has no device of known memory, or none of known speed.
    """
    whole = _inventory(request)
    why_missing = missing(whole)
    inventory, notes = _visible(request.visible, whole)
    named_whole = request.devices is not None
    limits = _budgets(request, inventory)
    limits = _reserved(replace(limits, notes=(*why_missing, *limits.notes, *notes)), request.reserve, inventory)
    if not limits.devices:
        why = f" ({'; '.join(why_missing)})" if why_missing else ""
        raise UsageError(
            f"no device has a known amount of memory{why}", hint="give it with --max-memory, like cpu=30GiB"
        )
    return Machine(
        inventory=inventory,
        budgets=limits,
        speeds=None if request.speed is None else _speeds(request.speed, limits, inventory, why_missing),
        named_whole=named_whole,
        missing=why_missing,
        build=_build_here() if inventory.accelerators and request.is_here else None,
    )


def _build_here() -> Build:
    import os

    from devctl.planning.examining.packages import version_of

    cudnn = next(filter(None, map(version_of, ("nvidia-cudnn-cu13", "nvidia-cudnn-cu12"))), None)
    return Build(
        torch=parse_release(version_of("torch")),
        cudnn=parse_release(cudnn),
        shuns_cudnn=shuns_cudnn(os.environ),
    )


def _inventory(request: MachineRequest) -> Inventory:
    if request.inventory is not None:
        return request.inventory
    if request.file is not None:
        return read_machine(str(request.file))
    if request.devices is None:
        return take_inventory(accelerators=_asks_of_gpus(request))
    from devctl.inventory.hypothetical import parse_devices  # the catalogue, which no other plan needs

    try:
        return parse_devices(request.devices)
    except ValueError as error:
        raise UsageError(f"--devices: {error}", hint="`devctl plan --devices help` lists the boards") from None


def _asks_of_gpus(request: MachineRequest) -> bool:
    """Whether anything of ``request`` rests on the GPUs here: not where all that may be used is named, and none is."""
    if request.max_memory is None or {request.visible, request.reserve, request.speed} != {None}:
        return True
    try:
        return any(is_accelerator(device) for device in parse_max_memory(request.max_memory))
    except ValueError:  # which is told where it is used
        return False


def read_machine(path: str) -> Inventory:
    """The machine that a file describes, as ``list --json`` wrote it; "-" is standard input.

    Raises:
        UsageError: it can't be read, or is no inventory.
    """
    hint = "write one with `devctl list --json > box.json`, on that machine"
    text, origin = read_text(Path(path), "the machine", hint)
    try:
        return from_document(json.loads(text))
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise UsageError(f"{origin} describes no machine: it is broken JSON at {where}", hint=hint) from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{origin} describes no machine: {first_line(error)}", hint=hint) from None


def _visible(ids: str | None, inventory: Inventory) -> tuple[Inventory, tuple[str, ...]]:
    """The accelerators that ``ids`` leave of the machine, and a note on how to start a process that has them."""
    if ids is None:
        return inventory, ()
    try:
        chosen = parse_ids(ids)
        return show_only(inventory, chosen), (f"run with {variable(inventory, chosen)}",)
    except ValueError as error:
        raise UsageError(f"--visible: {error}") from None


def _budgets(request: MachineRequest, inventory: Inventory) -> Budgets:
    """What is said, else what the machine has free; of one that is named as a whole, one beside the other."""
    given = request.devices is not None
    if request.max_memory is None:
        return from_inventory(inventory, given=given)
    try:
        sizes = parse_max_memory(request.max_memory)
        if given or request.keeps_others:
            return override(from_inventory(inventory, given=given), sizes, inventory)
        return from_max_memory(sizes, inventory)
    except ValueError as error:
        raise UsageError(f"--max-memory: {error}") from None


def _reserved(budgets: Budgets, reserve: tuple[str, ...] | None, inventory: Inventory) -> Budgets:
    if reserve is None:
        return budgets
    try:
        return keep_free(budgets, parse_reserve(reserve), inventory)
    except ValueError as error:
        raise UsageError(f"--reserve: {error}") from None


def _speeds(said: tuple[str, ...], budgets: Budgets, inventory: Inventory, why_missing: tuple[str, ...] = ()) -> Speeds:
    """What is ``said``, else what was measured, else what the catalogue has of the board."""
    from devctl.inventory.catalogue import find

    try:
        parsed = parse_speeds(said)
    except ValueError as error:
        raise UsageError(f"--speed: {error}") from None
    named = {as_here(key, inventory) if isinstance(key, Device) else key: rate for key, rate in parsed.items()}
    gpus = [device for device, _ in budgets.devices if is_accelerator(device)]
    if not gpus:
        why = f": {'; '.join(why_missing)}" if why_missing else ""
        raise UsageError(f"--objective latency compares GPUs, and there is none{why}", hint="leave it out")
    here = {gpu.device: gpu for gpu in inventory.accelerators if gpu.device is not None}
    boards = {device: find(gpu.name, gpu.memory_total) for device, gpu in here.items() if gpu.name}
    memory, rests_on = {}, {}
    for device in gpus:
        board = boards.get(device)
        rests_on[device] = board.name if board and not named.get(device) else "as given"
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
    return Speeds(memory=memory, link=link or LINK, disk=disk_rate or DISK, boards=rests_on)
