"""Why ``optimal`` placed as it did: what the accelerators can hold, and what that leaves."""

from collections.abc import Container, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

from devctl.devices import Device
from devctl.models.tree import Block, ModuleTree
from devctl.placement.budget import Budgets, is_accelerator
from devctl.placement.optimal.find import ENDED_EARLY, limits_of
from devctl.placement.pieces import Piece, pieces_of
from devctl.placement.placement import Placement
from devctl.placement.reason import Reason, joined
from devctl.units import format_bytes


@dataclass(frozen=True, slots=True)
class _Sums:
    """What the placement comes to.

    Attributes:
        blocks: (block, device), in the order of the model.
        limits: bytes that each device that computes may hold: the accelerators that are used, or else the CPU.
        used: bytes that each of them holds.
        main: which of them runs what is offloaded, and keeps ``kept`` bytes free for that.
        kept_for: the block of which most is brought at once.
        off_limits: bytes that each device which does not compute may hold.
    """

    blocks: tuple[tuple[Block, Device], ...]
    limits: dict[Device, int]
    used: dict[Device, int]
    main: Device | None
    kept: int
    kept_for: str
    off_limits: dict[Device, int]
    is_proven: bool

    @property
    def off(self) -> list[Block]:
        return [block for block, device in self.blocks if device not in self.limits]

    def left(self, device: Device) -> int:
        """Bytes that ``device`` could still take."""
        return self.limits[device] - self.used[device] - (self.kept if device == self.main else 0)

    def fraction(self, device: Device, more: int = 0) -> Fraction:
        return Fraction(self.used[device] + more, max(1, self.limits[device]))


def _sums(tree: ModuleTree, budgets: Budgets, placement: Placement) -> _Sums:
    device_map = placement.device_map
    blocks = tuple((block, device_map.device_of(block.names[0]) or Device.cpu()) for block in tree.index.blocks)
    limits = limits_of(tree, budgets)
    computing = {device: limit for device, limit in limits.items() if is_accelerator(device)}
    if not any(device in computing for _, device in blocks):
        computing = {device: limit for device, limit in limits.items() if device == Device.cpu()}
    used = {device: sum(b.nbytes for b, at in blocks if at == device) for device in computing}
    main = next((device for device, nbytes in used.items() if nbytes), None)
    offloaded = [block for block, device in blocks if device not in computing]
    largest = max(offloaded, key=lambda block: block.brought) if main is not None and offloaded else None
    return _Sums(
        blocks=blocks,
        limits=computing,
        used=used,
        main=main,
        kept=0 if largest is None else largest.brought,
        kept_for="" if largest is None else largest.names[0],
        off_limits={device: limit for device, limit in limits.items() if device not in computing},
        is_proven=not any(note.startswith(ENDED_EARLY) for note in placement.notes),
    )


def optimal_rules(tree: ModuleTree, budgets: Budgets, placement: Placement) -> tuple[str, ...]:
    """What is offloaded, and why it can't be less; the order of the blocks; the fullest device."""
    sums = _sums(tree, budgets, placement)
    return tuple(
        said
        for said in (_offloaded(sums), _main(sums), _no_room(sums), _runs(sums), _fullest(sums))
        if said is not None
    )


def _offloaded(sums: _Sums) -> str:
    total, held = sum(block.nbytes for block, _ in sums.blocks), sum(sums.used.values())
    holders = _holders(sums)
    if not sums.off:
        return f"all of the {format_bytes(total)} are on {holders}, and nothing is offloaded"
    if sums.main is None:
        return f"{holders} can hold none of the {format_bytes(total)}"
    at_most = "at most" if sums.is_proven else "in what the search found,"
    budget = format_bytes(sum(sums.limits.values()))
    return f"{holders} may hold {budget}, and can hold {at_most} {format_bytes(held)} of these {format_bytes(total)}"


def _holders(sums: _Sums) -> str:
    if not any(is_accelerator(device) for device in sums.limits):
        return "the CPU"
    return "the accelerators" if len(sums.limits) > 1 else str(next(iter(sums.limits)))


def _have(sums: _Sums) -> str:
    return "have" if _holders(sums) == "the accelerators" else "has"


def _main(sums: _Sums) -> str | None:
    if not sums.kept:
        return None
    return f"{format_bytes(sums.kept)} of {sums.main} are kept free for what is brought to it to run {sums.kept_for}"


def _no_room(sums: _Sums) -> str | None:
    if not sums.off or sums.main is None:
        return None
    roomiest = max(sums.limits, key=sums.left)
    smallest = min(sums.off, key=lambda block: block.nbytes)
    if smallest.nbytes <= sums.left(roomiest):
        return None
    most = format_bytes(max(0, sums.left(roomiest)))
    return (
        f"the most room left is {most}, on {roomiest}; the smallest offloaded block has {format_bytes(smallest.nbytes)}"
    )


def _runs(sums: _Sums) -> str | None:
    if len({device for _, device in sums.blocks}) < 2:
        return None
    if _is_one_run_each(sums):
        return "each device has one run of blocks that follow each other"
    return "blocks are packed as they fit, not in one run a device: no such cut was found that offloads as little"


def _is_one_run_each(sums: _Sums) -> bool:
    devices = [device for _, device in sums.blocks]
    return sum(1 for here, there in pairwise(devices) if here != there) + 1 == len(set(devices))


def _fullest(sums: _Sums) -> str | None:
    if sum(1 for nbytes in sums.used.values() if nbytes) < 2:
        return None
    fullest = max(sums.limits, key=sums.fraction)
    least = "; it can't be less" if sums.is_proven else ""
    if least and _is_one_run_each(sums):
        least += " with one run a device"
    return (
        f"the fullest device is {fullest}: {format_bytes(sums.used[fullest])} of {format_bytes(sums.limits[fullest])}, "
        f"{float(sums.fraction(fullest)):.1%}{least}"
    )


def optimal_reasons(tree: ModuleTree, budgets: Budgets, placement: Placement) -> tuple[Reason, ...]:
    """Why each part is where it is, in the order of the model."""
    return joined(_reasons(tree, _sums(tree, budgets, placement), pieces_of(tree, placement)))


def _reasons(tree: ModuleTree, sums: _Sums, pieces: tuple[Piece, ...]) -> Iterator[Reason]:
    sources = _tied_before(tree, pieces)
    fullest = max((sums.fraction(device) for device in sums.limits), default=Fraction(0))
    bytes_with = {name: block.nbytes for block, _ in sums.blocks for name in block.names}
    seen: set[Device] = set()
    before: Device | None = None
    for piece in pieces:
        device, nbytes = piece.device, bytes_with.get(piece.name, piece.nbytes)
        because = []
        if (other := sources.get(piece.name)) is not None:
            because.append(f"tied to {other}, so beside it")
        elif device != before:
            if before in sums.limits and device in sums.limits:
                because += _left(sums, before, nbytes, fullest)
            elif device not in sums.limits:
                because += _off(sums, device, nbytes)
            if device in sums.limits and device not in seen:
                because.append(f"{device} is {float(sums.fraction(device)):.1%} full with all that is there")
        yield Reason(names=(piece.name,), device=device, nbytes=piece.nbytes, because=tuple(because))
        seen.add(device)
        before = device


def _left(sums: _Sums, device: Device, nbytes: int, fullest: Fraction) -> list[str]:
    """Why what follows is not on ``device`` any more."""
    if nbytes > sums.left(device):
        return [
            f"{format_bytes(nbytes)} do not fit into the {format_bytes(max(0, sums.left(device)))} left on {device}"
        ]
    if (with_it := sums.fraction(device, nbytes)) > fullest:
        return [f"with it {device} would be {float(with_it):.1%} full, more than the fullest device"]
    return []


def _off(sums: _Sums, device: Device, nbytes: int) -> list[str]:
    """Why a block is on ``device``, which does not compute."""
    left = max((sums.left(other) for other in sums.limits), default=0)
    found = []
    if nbytes > left:
        found.append(f"{_holders(sums)} {_have(sums)} no room for {format_bytes(nbytes)}")
    cpu = sums.off_limits.get(Device.cpu())
    if device == Device.disk() and cpu is not None:
        room = cpu - sum(block.nbytes for block, at in sums.blocks if at == Device.cpu())
        if nbytes > room:
            found.append(f"nor has cpu: {format_bytes(room)} of its {format_bytes(cpu)} are left")
    return found


def _tied_before(tree: ModuleTree, pieces: tuple[Piece, ...]) -> dict[str, str]:
    """For each piece with a tensor that is one with an earlier piece's, the name of that piece."""
    names = {piece.name: place for place, piece in enumerate(pieces)}
    found: dict[str, str] = {}
    for target, source in tree.index.same:
        there, here = _holder(target, names), _holder(source, names)
        if there is not None and here is not None and there != here:
            first, second = sorted((there, here), key=names.__getitem__)
            found.setdefault(second, first)
    return found


def _holder(name: str, names: Container[str]) -> str | None:
    """The piece that a tensor is in; None for one that the model does not have."""
    while name not in names:
        if not name:
            return None
        name = name.rpartition(".")[0]
    return name
