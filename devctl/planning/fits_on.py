"""Plan turned round: on how many of each board does a model run? Nothing is left off the boards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from devctl.devices import Device
from devctl.errors import UsageError
from devctl.inventory.catalogue import boards as catalogue
from devctl.inventory.hypothetical import parse_board
from devctl.inventory.records import Vendor
from devctl.models.footprint import Workload, state_bytes
from devctl.models.tree import sizes
from devctl.placement import Budgets, Placement, Strategy, place_whole
from devctl.placement.budget import is_accelerator, parse_max_memory
from devctl.placement.document import SCHEMA, PlannedModel
from devctl.placement.placement import tight
from devctl.placement.plan import WayToRun, way_to_run
from devctl.placement.runtime import Runtime
from devctl.planning.gguf import refuse_gguf
from devctl.planning.machine import open_machine
from devctl.planning.model import Model
from devctl.planning.plan import runtime_of
from devctl.planning.progress import reporter
from devctl.planning.question import question_of
from devctl.planning.request import MachineRequest, WorkloadRequest
from devctl.planning.unpacked import as_held, is_unpacked

MOST = 8
"""Boards of a kind that are tried, at most: as many as a common host has."""

ALL = "all"
"""Stands for every board of the catalogue."""


WEIGHTS_ALONE = "these hold the weights: to run, it needs more, which --context-length counts"
"""What is said where no workload is counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """How many of a board hold the model.

    Attributes:
        board: its name, or the size that was given.
        vendor: its maker; None of one that is only a size.
        memory: bytes that one of them has for a process.
        estimated: whether those were not read on a board.
        most: how many were tried: one, where a machine has no more of them.
        count: the least that hold all; None where ``most`` do not.
        fullest: how full the fullest of them is then (1 is full).
        count_by_default: the least that hold the gaps, too, that torch's allocator leaves by default; None where
            ``most`` do not.
    """

    board: str
    vendor: Vendor | None
    memory: int
    estimated: bool
    most: int
    count: int | None
    fullest: float | None
    count_by_default: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FitsOn:
    """On how many of each board a model runs.

    Attributes:
        model: which model it is.
        strategy: how it is placed.
        workload: what is counted beside the weights; None where only they are.
        run: how that is run.
        boards: in the order in which they were asked for.
        notes: what a reader should know.
    """

    model: PlannedModel
    strategy: Strategy
    workload: Workload | None
    boards: tuple[Fit, ...]
    notes: tuple[str, ...] = ()
    run: WayToRun | None = None

    def to_document(self) -> dict[str, Any]:
        """The same as JSON values; see ``fits_on.schema.json``. Sizes are bytes."""
        return {
            "schema": SCHEMA,
            "kind": "devctl.fits_on",
            "model": self.model.to_document(),
            "strategy": str(self.strategy),
            "workload": None if self.workload is None else self.workload.to_document(),
            "boards": [asdict(fit) for fit in self.boards],
            "notes": list(self.notes),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kind:
    """A board as it is asked for, and how many of it a machine may have."""

    name: str
    vendor: Vendor | None
    memory: int
    estimated: bool
    most: int


def find_boards(text: str) -> tuple[_Kind, ...]:
    """The boards that ``text`` names, once each: "all", or names and sizes as ``--devices`` takes them.

    Raises:
        UsageError: an entry is no board, or names several.
    """
    if text.strip().casefold() == ALL:
        return tuple(_kind(board.name) for board in catalogue())
    return tuple(dict.fromkeys(_kind(entry.strip()) for entry in text.split(",")))


def _kind(entry: str) -> _Kind:
    try:
        found = parse_board(entry)
    except ValueError as error:
        raise UsageError(f"--fits-on: {error}", hint="`devctl plan --devices help` lists the boards") from None
    if isinstance(found, int):
        return _Kind(name=entry, vendor=None, memory=found, estimated=False, most=MOST)
    return _Kind(
        name=found.name,
        vendor=found.vendor,
        memory=found.memory_usable,
        estimated=found.estimated,
        most=1 if found.shares_ram and not found.several else MOST,
    )


def fits_on(
    model: Model,
    boards: Sequence[_Kind],
    workload: WorkloadRequest,
    *,
    strategy: Strategy = Strategy.AUTO,
    max_memory: tuple[str, ...] | None = None,
    reserve: tuple[str, ...] | None = None,
) -> FitsOn:
    """On how many of each of ``boards`` the model runs, with nothing on CPU or disk.

    The numbers are tried one after another: more boards may hold less, as transformers' strategies go. A number whose
    boards together have too little for weights, state and what the libraries take holds by no strategy, and is not
    placed.

    Args:
        max_memory, reserve: entries as in `MachineRequest`. A number of boards that lacks one of the devices in
            ``max_memory`` is left out.

    Raises:
        UsageError: the workload is none for this model, or an entry can't be read.
    """
    refuse_gguf(model.gguf, "--fits-on")
    named = _least_named(max_memory)
    known: dict[tuple[Budgets, tuple[tuple[Device, int], ...], bool], Placement | None] = {}
    forms: dict[bool, Model] = {}
    notes: dict[str, None] = {}
    asked: WayToRun | None = None

    def placed(kind: _Kind, count: int) -> Placement | None:
        """The placement on so many; None where it does not fit."""
        nonlocal asked
        request = MachineRequest(devices=f"{count}x{kind.name}", max_memory=max_memory, reserve=reserve)
        machine = open_machine(request)
        unpacks = is_unpacked(model.tree, machine.inventory)
        if unpacks not in forms:
            forms[unpacks] = as_held(model, machine)
        there = forms[unpacks]
        question = question_of(there, machine, workload, counts=workload.context_length is not None)
        runtime, told = (None, ()) if workload.context_length is None else runtime_of(question)
        notes.update(dict.fromkeys(told))
        asked = None if runtime is None else way_to_run(runtime.footprint, there.tree)
        key = replace(machine.budgets, notes=()), tuple(question.overhead.items()), unpacks
        if key not in known:
            if _have_enough(there, machine.budgets, runtime):
                found = place_whole(there.tree, machine.budgets, strategy, runtime, there.installed)
                known[key] = found if found.fits and not found.offloaded else None
            else:
                known[key] = None
        return known[key]

    def fit(kind: _Kind) -> Fit:
        least: tuple[int, Placement] | None = None
        for count in range(max(1, named), kind.most + 1):
            if (found := placed(kind, count)) is not None:
                least = least or (count, found)
                if not tight(found.devices):
                    return _fit(kind, least, count)
        return _fit(kind, least, None)

    found = []
    with reporter().status(f"placing it on {len(boards)} boards, 1 to 8 of each"):
        for kind in boards:
            found.append(fit(kind))
    return FitsOn(
        model=model.planned,
        strategy=strategy,
        workload=None if asked is None else asked.workload,
        run=asked,
        boards=tuple(found),
        notes=tuple(dict.fromkeys((*model.tree.notes, *notes, *([] if asked is not None else [WEIGHTS_ALONE])))),
    )


def _fit(kind: _Kind, least: tuple[int, Placement] | None, by_default: int | None) -> Fit:
    count, placement = least or (None, None)
    return Fit(
        board=kind.name,
        vendor=kind.vendor,
        memory=kind.memory,
        estimated=kind.estimated,
        most=kind.most,
        count=count,
        fullest=None if placement is None else float(placement.fullest),
        count_by_default=by_default,
    )


def _have_enough(model: Model, budgets: Budgets, runtime: Runtime | None) -> bool:
    """Whether all devices together have what the model takes at least: weights and state, which no split makes less."""
    needed = sizes(model.tree)[""] + (0 if runtime is None else state_bytes(runtime.footprint))
    overhead = {} if runtime is None else runtime.overhead
    return sum(max(0, size - overhead.get(device, 0)) for device, size in _accelerators(budgets)) >= needed


def _accelerators(budgets: Budgets) -> Iterator[tuple[Device, int]]:
    return ((device, size) for device, size in budgets.devices if is_accelerator(device))


def _least_named(max_memory: tuple[str, ...] | None) -> int:
    """How many boards there have to be, for each device that is named to be there."""
    try:
        named = {} if max_memory is None else parse_max_memory(max_memory)
    except ValueError as error:
        raise UsageError(f"--max-memory: {error}") from None
    return max(((device.id or 0) + 1 for device in named if device.id is not None), default=1)
