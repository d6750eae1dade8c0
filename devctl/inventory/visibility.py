"""Which boards CUDA shows a process, and how it counts them. Pure: boards and variables in, ordinals out.

Rules: NVIDIA's CUDA programming guide, "CUDA Environment Variables", and the MIG user guide, "Device Enumeration";
where those say nothing (leading digits, duplicates), what torch's ``torch.cuda._parse_visible_devices`` does.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from devctl.inventory.records import Hidden


@dataclass(frozen=True, slots=True, kw_only=True)
class CudaBoard:
    """A board as CUDA can name it.

    Attributes:
        speed: what CUDA's order is guessed from, larger is faster; None when unknown.
        model: equal for boards that are the same to CUDA.
        mig: whether MIG is on, so that the instances stand for the board.
        instances: the names that each is known by: "MIG-…", and "MIG-GPU-…/1/0" as before driver 470.
    """

    uuid: str | None
    model: str | None = None
    speed: float | None = None
    mig: bool = False
    instances: tuple[tuple[str, ...], ...] = ()


class Seat(NamedTuple):
    """A board by its place in the PCI order, or one of its instances by its place on the board."""

    board: int
    instance: int | None = None


class View(NamedTuple):
    """What CUDA shows.

    Attributes:
        order: boards in CUDA's own order.
        certain: whether ``order`` is known, or guessed.
        ordinals: what each visible device is counted as.
        hidden: why the others are not visible.
    """

    order: tuple[int, ...]
    certain: bool
    ordinals: Mapping[Seat, int]
    hidden: Mapping[Seat, Hidden]


def view(boards: Sequence[CudaBoard], environment: Mapping[str, str], known: Sequence[int] | None = None) -> View:
    """What CUDA shows a process that has ``environment``.

    Args:
        boards: the working ones, in PCI order.
        known: CUDA's own order of them, where it is known.
    """
    order, certain = cuda_order(boards, environment.get("CUDA_DEVICE_ORDER"))
    if known is not None:
        order, certain = tuple(known), True
    chosen = seats(boards, order, environment.get("CUDA_VISIBLE_DEVICES"))
    # one MIG instance a process, and no whole GPU beside it
    first_instance = next((seat for seat in chosen if seat.instance is not None), None)
    shown = chosen if first_instance is None else (first_instance,)

    hidden: dict[Seat, Hidden] = {}
    for place, board in enumerate(boards):
        if board.mig:
            hidden[Seat(place)] = Hidden.MIG_PARENT
        for seat in _seats(boards, place):
            if seat not in shown:
                hidden[seat] = Hidden.MIG_LIMIT if seat in chosen else Hidden.ENVIRONMENT
    return View(
        order=order, certain=certain, ordinals={seat: number for number, seat in enumerate(shown)}, hidden=hidden
    )


def cuda_order(boards: Sequence[CudaBoard], device_order: str | None) -> tuple[tuple[int, ...], bool]:
    """The boards in CUDA's own order, and whether that order is certain.

    With CUDA_DEVICE_ORDER=PCI_BUS_ID, and for boards of one model, it is the PCI order. Else CUDA puts the board it
    takes for the fastest first and leaves the rest unspecified: guessed here from ``speed``, fastest first.
    """
    pci_order = tuple(range(len(boards)))
    if device_order == "PCI_BUS_ID":
        return pci_order, True
    models = {board.model for board in boards}
    if len(boards) < 2 or (len(models) == 1 and None not in models):
        return pci_order, True
    return tuple(sorted(pci_order, key=lambda place: -(boards[place].speed or 0.0))), False


def seats(boards: Sequence[CudaBoard], order: Sequence[int], variable: str | None) -> tuple[Seat, ...]:
    """The devices that CUDA_VISIBLE_DEVICES=``variable`` names, in its order; all of them where it is not set (None).

    An entry is an index into ``order``, a UUID ("GPU-…", "MIG-…", "MIG-GPU-…/1/0") or the first part of one that fits
    a single device. One that names nothing hides itself and all that follow, and one that comes twice hides everything.
    A board in MIG mode stands for its instances, of which CUDA takes the first.
    """
    if variable is None:
        return tuple(seat for place in order for seat in _seats(boards, place))
    by_uuid = variable.strip().startswith(("GPU-", "MIG-"))
    chosen: list[Seat] = []
    for entry in variable.split(","):
        seat = _by_uuid(boards, entry.strip()) if by_uuid else _by_index(boards, order, entry)
        if seat is None:
            break
        if seat in chosen:
            return ()
        chosen.append(seat)
    return tuple(chosen)


def unnamed(boards: Sequence[CudaBoard], order: Sequence[int], variable: str | None) -> str | None:
    """What is wrong with the devices that ``variable`` names, in words; None where each entry names one, or all show.

    Args:
        boards, order, variable: as in `seats`.
    """
    if variable is None:
        return None
    if not variable.strip():
        return "it is empty, which hides every GPU"
    by_uuid = variable.strip().startswith(("GPU-", "MIG-"))
    before: list[Seat] = []
    for entry in variable.split(","):
        seat = _by_uuid(boards, entry.strip()) if by_uuid else _by_index(boards, order, entry)
        told = repr(entry.strip()[:_MOST_TOLD])
        if (
            seat is None
            and not entry.strip()
            and variable.rstrip().endswith(",")
            and len(before) == variable.count(",")
        ):
            return None  # a comma at the end hides nothing
        if seat is None:
            there = "fits no GPU here, or several" if by_uuid else f"names no GPU: there are {len(boards)}, from 0 on"
            return f"its entry {told} {there if boards else 'names no GPU: none here works'}; it hides all behind it"
        if seat in before:
            return f"its entry {told} names a GPU for the second time, which hides every GPU"
        before.append(seat)
    return None


_MOST_TOLD = 48
"""Characters of an entry that are told: a UUID has 40."""


def _seats(boards: Sequence[CudaBoard], place: int) -> tuple[Seat, ...]:
    board = boards[place]
    return tuple(Seat(place, number) for number in range(len(board.instances))) if board.mig else (Seat(place),)


def _by_index(boards: Sequence[CudaBoard], order: Sequence[int], entry: str) -> Seat | None:
    # digits are read as C's strtoul does: "1st" is 1. No machine has a board for ten digits, and int() has a limit
    digits = re.match(r"\s*([+-]?)0*([0-9]{1,9})(?![0-9])", entry)
    if digits is None or int(digits[2]) >= len(order) or (digits[1] == "-" and int(digits[2]) > 0):
        return None
    return next(iter(_seats(boards, order[int(digits[2])])), None)


def _by_uuid(boards: Sequence[CudaBoard], entry: str) -> Seat | None:
    if not entry.startswith(("GPU-", "MIG-")) or len(entry) == len("GPU-"):
        return None
    found = []
    for place, board in enumerate(boards):
        if board.uuid and board.uuid.startswith(entry):
            found.append(next(iter(_seats(boards, place)), None))
        for number, names in enumerate(board.instances if board.mig else ()):
            if any(entry == name if "/" in name else name.startswith(entry) for name in names):
                found.append(Seat(place, number))
    return found[0] if len(found) == 1 else None
