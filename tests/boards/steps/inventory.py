"""What devctl lists beside what nvidia-smi and torch tell, field by field: equal, or explained."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from devctl.devices import Device
from devctl.inventory import Accelerator, Inventory
from devctl.inventory.document import from_document
from devctl.inventory.records import Vendor
from tests.boards.asking import Ask
from tests.boards.outside import NoAnswerError, ask, ask_devctl, ask_python
from tests.boards.records import MIB, Cell, Row, Step, equal, explained, holds, skipped, told

FIELDS = (
    "uuid",
    "name",
    "pci.bus_id",
    "driver_version",
    "memory.total",
    "memory.free",
    "memory.used",
    "compute_cap",
    "mig.mode.current",
    "ecc.errors.uncorrected.volatile.total",
)
"""What nvidia-smi is asked for of each board."""

APPS = ("gpu_uuid", "pid")
"""What it is asked for of each process that computes."""

MOVES = 64 * MIB
"""By how much free memory may differ between two answers, of which one comes after the other."""

KEPT = 0.06
"""The share of a board that a driver may keep from CUDA: ECC on boards without memory for it takes a sixteenth."""

FACTS = """
import json, torch
found = []
for index in range(torch.cuda.device_count()):
    facts = torch.cuda.get_device_properties(index)
    told = {"name": facts.name, "total": facts.total_memory, "capability": f"{facts.major}.{facts.minor}"}
    told["uuid"] = str(getattr(facts, "uuid", "")) or None
    bus = getattr(facts, "pci_bus_id", None)
    told["bus"] = None if bus is None else f"{getattr(facts, 'pci_domain_id', 0):x}:{bus:02x}"
    free, total = torch.cuda.mem_get_info(index)
    found.append({**told, "free": free, "total of mem_get_info": total})
print(json.dumps(found))
"""


def parse_smi(text: str, fields: Sequence[str]) -> list[dict[str, str | None]]:
    """The lines of ``nvidia-smi --format=csv,noheader,nounits``; None for what it does not tell."""
    found = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) == len(fields):
            known = [None if cell.startswith("[") or cell in ("", "N/A") else cell for cell in cells]
            found.append(dict(zip(fields, known, strict=True)))
    return found


def ask_smi() -> list[dict[str, str | None]]:
    """What nvidia-smi tells of each board; a field that this one does not know is None.

    Raises:
        NoAnswerError: it is not there, or tells nothing.
    """

    def query(fields: Sequence[str]) -> list[dict[str, str | None]]:
        done = ask(["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"], seconds=60)
        return parse_smi(done.out, fields) if done.code == 0 else []

    if whole := query(FIELDS):
        return whole
    boards = query(FIELDS[:1])
    if not boards:
        raise NoAnswerError("nvidia-smi lists no board")
    for field in FIELDS[1:]:
        answers = query((field,))
        for number, board in enumerate(boards):
            board[field] = answers[number][field] if number < len(answers) else None
    return boards


def listed(environment: Mapping[str, str] | None = None) -> Inventory:
    """What ``devctl list --json`` lists, with these variables besides.

    Raises:
        NoAnswerError: it lists nothing.
    """
    done = ask_devctl("list", "--json", environment=environment)
    if done.code:
        raise NoAnswerError(f"devctl list: {done.said}")
    return from_document(done.document())


def beside_smi(inventory: Inventory, boards: Sequence[Mapping[str, str | None]]) -> Iterator[Row]:
    """Every field of every board that both tell."""
    ours = [each for each in inventory.accelerators if each.vendor is Vendor.NVIDIA and each.mig is None]
    yield equal("all boards", "boards", len(ours), len(boards))
    driver = next((each.version for each in inventory.drivers if each.vendor is Vendor.NVIDIA), None)
    yield equal("all boards", "driver", driver, next((board["driver_version"] for board in boards), None))
    by_uuid = {each.uuid: each for each in ours}
    for number, board in enumerate(boards):
        title, found = f"board {number}", by_uuid.get(board["uuid"])
        yield holds(title, "UUID", found is not None, why="one of those that devctl lists has it")
        if found is not None:
            yield from _fields(title, found, board)


def processes(inventory: Inventory, told_: Sequence[Mapping[str, str | None]]) -> Iterator[Row]:
    """Every process that computes, by nvidia-smi: is it among those that devctl lists on that board?"""
    ours = {each.uuid: {process.pid for process in each.processes or ()} for each in inventory.accelerators}
    by_board: dict[str | None, set[int]] = {}
    for each in told_:
        if (pid := each["pid"]) is not None and pid.isdecimal():
            by_board.setdefault(each["gpu_uuid"], set()).add(int(pid))
    for number, uuid in enumerate(ours):
        theirs = by_board.get(uuid, set())
        why = f"{len(theirs)} by nvidia-smi, {len(ours[uuid])} by devctl"
        yield holds(f"board {number}", "processes", theirs <= ours[uuid], why=why)


def _fields(title: str, found: Accelerator, board: Mapping[str, str | None]) -> Iterator[Row]:
    yield equal(title, "name", found.name, board["name"])
    yield equal(title, "bus", _bus(found.pci_bus_id), _bus(board["pci.bus_id"]))
    yield equal(title, "compute capability", found.compute_capability, board["compute_cap"])
    total = _mib(board["memory.total"])
    yield equal(title, "memory in all", _whole_mib(found.memory_total), total, unit="MiB")
    for claim, ours, theirs in (
        ("memory free", found.memory_free, board["memory.free"]),
        ("memory used", found.memory_used, board["memory.used"]),
    ):
        yield _moving(title, claim, ours, _mib(theirs))
    mode = {"Enabled": True, "Disabled": False}.get(board["mig.mode.current"] or "")
    yield equal(title, "MIG", found.mig_mode, mode)
    errors = None if found.health is None else found.health.ecc_uncorrected
    counted = board["ecc.errors.uncorrected.volatile.total"]
    yield equal(title, "uncorrected ECC errors", errors, None if counted is None else int(counted))


def _moving(title: str, claim: str, ours: int | None, theirs: int | None) -> Row:
    """Bytes that change while they are asked for, beside MiB."""
    if ours is None or theirs is None or abs(ours - theirs * MIB) > MOVES:
        return equal(title, claim, _whole_mib(ours), theirs, unit="MiB")
    why = f"asked for one after the other: {MOVES // MIB} MiB may be apart"
    return explained(title, claim, _whole_mib(ours), theirs, why, unit="MiB")


def _mib(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() else None


def _whole_mib(nbytes: int | None) -> int | None:
    return None if nbytes is None else nbytes // MIB


def _bus(text: str | None) -> str | None:
    """A PCI address without the zeros before its domain: "0:17:00.0"."""
    if text is None:
        return None
    domain, _, rest = text.lower().partition(":")
    return f"{domain.lstrip('0') or '0'}:{rest}"


def beside_torch(title: str, inventory: Inventory, facts: Sequence[Mapping[str, Any]]) -> Iterator[Row]:
    """What torch calls by each number, beside what devctl says that it does."""
    ours = {
        each.device.id or 0: each
        for each in inventory.accelerators
        if each.device is not None and each.device == Device.gpu(each.device.id or 0)
    }
    yield equal(title, "boards that torch can use", len(ours), len(facts))
    for number, told_ in enumerate(facts):
        at, found = f"{title}, cuda:{number}", ours.get(number)
        if found is None:
            yield holds(at, "the same board", False, why="devctl lists none by this number")
            continue
        yield _same(at, found, told_)
        yield equal(at, "name", found.name, told_["name"])
        yield equal(at, "compute capability", found.compute_capability, told_["capability"])
        yield _total(at, found.memory_total, told_["total"])
        yield equal(at, "mem_get_info's total", told_["total"], told_.get("total of mem_get_info"), unit="B")


def _same(title: str, found: Accelerator, facts: Mapping[str, Any]) -> Row:
    uuid = facts.get("uuid")
    if uuid and found.uuid:
        return holds(title, "the same board", found.uuid.removeprefix("GPU-") == str(uuid).removeprefix("GPU-"))
    bus, ours = facts.get("bus"), _bus(found.pci_bus_id)
    if bus and ours:
        return holds(title, "the same board", ours.startswith(f"{bus}:"), why="by its bus")
    return skipped(title, "the same board", "this torch tells neither UUID nor bus")


def _total(title: str, ours: int | None, theirs: int) -> Row:
    if ours is None or ours == theirs or not 0 <= ours - theirs <= KEPT * ours:
        return equal(title, "memory in all", ours, theirs, unit="B")
    return explained(title, "memory in all", ours, theirs, "the driver keeps the rest from CUDA", unit="B")


def settings(inventory: Inventory) -> Iterator[tuple[str, dict[str, str]]]:
    """Variables that change what torch calls which board: none, and two settings of both."""
    shown = [each for each in inventory.accelerators if each.device is not None and each.uuid is not None]
    shown.sort(key=lambda each: (each.device is not None and each.device.id) or 0)
    yield "as it is", {}
    uuids = [each.uuid or "" for each in shown]
    backwards = ",".join(reversed(uuids))
    yield "PCI order, backwards", {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": backwards}
    yield "fastest first, the last", {"CUDA_DEVICE_ORDER": "FASTEST_FIRST", "CUDA_VISIBLE_DEVICES": "".join(uuids[-1:])}


def _beside_torch(title: str, environment: dict[str, str]) -> Iterator[Row]:
    done = ask_python(FACTS, environment=environment)
    if done.code:
        raise NoAnswerError(f"torch: {done.said}")
    yield from beside_torch(title, listed(environment), done.document())


def _beside_smi() -> Iterator[Row]:
    if shutil.which("nvidia-smi") is None:
        yield skipped("all boards", "beside nvidia-smi", "there is no nvidia-smi here")
        return
    inventory = listed()
    yield from beside_smi(inventory, ask_smi())
    done = ask(["nvidia-smi", f"--query-compute-apps={','.join(APPS)}", "--format=csv,noheader,nounits"], seconds=60)
    if done.code:
        yield skipped("all boards", "processes", f"nvidia-smi: {done.said}")
        return
    yield from processes(inventory, parse_smi(done.out, APPS))


def _boards(_: Ask) -> Iterator[Cell]:
    yield Cell(subject="beside nvidia-smi", work=_beside_smi)
    for title, environment in settings(listed()):
        yield Cell(subject=f"beside torch, {title}", work=partial(_beside_torch, title, environment))


def checks(boards: int) -> Iterator[Row]:
    """``devctl check`` of what is there, and of what can't be; and ``devctl doctor``."""
    if boards:
        yield from _check("as many boards as torch has", ("--gpus", str(boards)), 0)
    yield from _check("a board more", ("--gpus", str(boards + 1)), 3)
    yield from _check("a board of 64 TiB", ("--gpus", "1", "--gpu-memory", "65536GiB"), 3)
    healthy = ask_devctl("check", "--gpus", str(max(1, boards)), "--healthy")
    yield holds("devctl check", "--healthy answers", healthy.code in (0, 3), why=healthy.said)
    yield told("devctl check", "healthy", healthy.code == 0, why=healthy.said)
    doctor = ask_devctl("doctor")
    if doctor.code == 2 and "No such command" in doctor.err:
        yield skipped("devctl doctor", "answers", "this devctl has no doctor")
    else:
        lines: Iterable[str] = (line.strip() for line in (doctor.out + doctor.err).splitlines() if line.strip())
        yield holds("devctl doctor", "answers", doctor.code in (0, 3), why="; ".join(lines)[:600])


def _check(claim: str, arguments: tuple[str, ...], code: int) -> Iterator[Row]:
    done = ask_devctl("check", *arguments)
    yield equal("devctl check", claim, code, done.code, why=done.said)


def _checks(asked: Ask) -> Iterator[Cell]:
    there = 0 if asked.card.simulated else len(asked.cards)
    yield Cell(subject="check and doctor", work=lambda: checks(there))


STEPS = (
    Step(
        name="inventory/boards",
        what="devctl list beside nvidia-smi, and beside torch under three settings of CUDA's variables",
        seconds=45,
        rank=0,
        cells=_boards,
    ),
    Step(name="inventory/checks", what="devctl check and doctor on this box", seconds=20, rank=4, cells=_checks),
)
