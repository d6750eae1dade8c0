"""What frameworks will call NVIDIA's boards: records without numbers in, records with numbers out."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from devctl.devices import Device
from devctl.inventory import visibility
from devctl.inventory.records import Accelerator, Hidden


def number(
    accelerators: Sequence[Accelerator],
    speeds: Mapping[int, float | None],
    environment: Mapping[str, str],
    known: Sequence[str] | None = None,
) -> tuple[tuple[Accelerator, ...], bool]:
    """``accelerators`` with the device, CUDA index and reason to be hidden of each, and whether that is certain.

    Args:
        speeds: what CUDA's order is guessed from, by the board's index.
        known: the boards' UUIDs in CUDA's own order, where CUDA could be asked.

    A board at fault is not counted: CUDA leaves it out, or does not start at all.
    """
    working = _working(accelerators)
    places = {board.uuid: place for place, board in enumerate(working)}
    order = [places[uuid] for uuid in known or () if uuid in places]
    seen = visibility.view(
        [_as_cuda_names_it(board, accelerators, speeds.get(board.index)) for board in working],
        environment,
        order if working and sorted(order) == list(range(len(working))) else None,
    )
    seats: dict[int, visibility.Seat] = {}
    for place, board in enumerate(working):
        seats[id(board)] = visibility.Seat(place)
        for n, instance in enumerate(_instances(board, accelerators)):
            seats[id(instance)] = visibility.Seat(place, n)

    def numbered(accelerator: Accelerator) -> Accelerator:
        seat = seats.get(id(accelerator))
        if seat is None:
            return accelerator
        ordinal = seen.ordinals.get(seat)
        return replace(
            accelerator,
            device=None if ordinal is None else Device.gpu(ordinal),
            cuda_index=seen.order.index(seat.board) if seat.instance is None else None,
            hidden=seen.hidden.get(seat),
        )

    faults = len(working) < len([a for a in accelerators if a.mig is None])
    return tuple(numbered(a) for a in accelerators), seen.certain and not faults


def _working(accelerators: Sequence[Accelerator]) -> list[Accelerator]:
    return [a for a in accelerators if a.mig is None and a.fault is None]


def _instances(board: Accelerator, accelerators: Sequence[Accelerator]) -> list[Accelerator]:
    return [a for a in accelerators if a.mig and a.index == board.index and a.fault is None]


def _as_cuda_names_it(
    board: Accelerator, accelerators: Sequence[Accelerator], speed: float | None = None
) -> visibility.CudaBoard:
    return visibility.CudaBoard(
        uuid=board.uuid,
        model=f"{board.name} {board.compute_capability}" if board.name else None,
        speed=speed,
        mig=bool(board.mig_mode),
        instances=tuple(_names(instance) for instance in _instances(board, accelerators)),
    )


def _names(instance: Accelerator) -> tuple[str, ...]:
    mig = instance.mig
    old = f"MIG-{mig.parent}/{mig.gpu_instance}/{mig.compute_instance}" if mig else ""
    return tuple(name for name in (instance.uuid, old) if name)


def notes(
    accelerators: Sequence[Accelerator], certain: bool, environment: Mapping[str, str] | None = None
) -> tuple[str, ...]:
    """What a person should know before trusting the numbers, which ``accelerators`` have already."""
    found = []
    variable = (environment or {}).get("CUDA_VISIBLE_DEVICES")
    working = _working(accelerators)
    order = sorted(range(len(working)), key=lambda place: working[place].cuda_index or 0)
    boards = [_as_cuda_names_it(board, accelerators) for board in working]
    if wrong := visibility.unnamed(boards, order, variable):
        found.append(f"CUDA_VISIBLE_DEVICES: {wrong}")
    faults = any(a.fault for a in accelerators)
    if faults:
        found.append(
            "an NVIDIA board is at fault: CUDA may count the others differently, or not start; name GPUs by UUID"
        )
    if not certain and not faults:
        found.append(
            "the NVIDIA boards are not alike, and CUDA's default order puts the one it takes for the fastest first: "
            "the order here is a guess; set CUDA_DEVICE_ORDER=PCI_BUS_ID"
        )
    if any(a.hidden is Hidden.MIG_LIMIT for a in accelerators):
        found.append("CUDA shows a process one MIG instance and nothing beside it: choose with CUDA_VISIBLE_DEVICES")
    return tuple(found)
