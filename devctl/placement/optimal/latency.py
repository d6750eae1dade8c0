"""``optimal`` for speed: the least predicted time for a token, on devices that are not equally fast.

To decode one token of one sequence, weights are read once: from the memory of the accelerator that holds them, over the
link from the CPU, or from the disk. Which of them are read is in `reads`: an accelerator reads the experts that the
router picks, and not the others; what is offloaded is brought whole, as accelerate does it. What else takes time, the
KV cache, kernels and waiting, is not counted, but for a move between devices: a token takes longer than predicted here.
"""

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import accumulate

from devctl.devices import Device
from devctl.placement.optimal.bounded import TooMuchWorkError, Work
from devctl.placement.optimal.fewest_moves import moves
from devctl.placement.optimal.reads import Reads
from devctl.placement.optimal.solve import Best, Row, solve

MOVE = 20e-6
"""Seconds to hand the hidden states of one token to another accelerator: the bytes are few, so it is what a copy takes
to start and be waited for. A round figure that keeps moves from being free; it is not measured."""

LINK = 25 * 10**9
"""What is taken for a link whose speed is neither given, measured nor in the catalogue, about PCIe 4 x16."""

DISK = 2 * 10**9
"""What is taken for a disk whose speed is neither given nor measured: that of an NVMe drive."""

_STEPS = 300_000
_TICKS = 10**12
"""Times are counted in whole picoseconds, so that equal ones are equal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speeds:
    """Bytes a second.

    Attributes:
        memory: of each accelerator's own memory.
        link: from the host's memory to the accelerator that runs what is offloaded.
        disk: reading from the disk.
        boards: what each accelerator's figure rests on: a board's name, or "as given".
        reads: which bytes are read; None for all.
    """

    memory: Mapping[Device, int]
    link: int
    disk: int
    boards: Mapping[Device, str] = field(default_factory=dict)
    reads: Reads | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fastest:
    """A placement, the seconds that it is predicted to take for a token, and the least that any is predicted to."""

    devices: tuple[int, ...]
    seconds: float
    bound: float


@dataclass(frozen=True, slots=True)
class _Way:
    """The best way to a block: its time, the runs that lead there, and how many moves they are."""

    ticks: int
    devices: tuple[tuple[int, int], ...]  # (device, the block after its run)


def fastest(row: Row, budgets: Sequence[int], cpu: int | None, memory: Sequence[int], link: int, disk: int) -> Fastest:
    """The placement of a row with the least time for a token: one run a device, or that with the most headroom.

    Args:
        budgets: bytes that each accelerator may hold.
        memory: bytes a second of each accelerator.
    """
    rates = [*memory, link, min(link, disk)]
    best = solve(row, budgets, cpu)
    ways = [(_ticks(row, best.devices, rates), best.devices)]
    try:
        ways += [
            (_ticks(row, devices, rates), devices) for devices in _runs(row, budgets, cpu, rates, Work(_STEPS), best)
        ]
    except TooMuchWorkError:
        filled = _by_speed(row, budgets, memory)
        ways += [] if filled is None else [(_ticks(row, filled, rates), filled)]
    ticks, devices = min(ways)
    return Fastest(devices=devices, seconds=ticks / _TICKS, bound=_bound(row, budgets, cpu, rates) / _TICKS)


def _ticks(row: Row, devices: Sequence[int], rates: Sequence[int]) -> int:
    on, off = row.read or row.moved, row.moved
    gpus = len(rates) - 2
    read = sum(_read((on if device < gpus else off)[at], rates[device]) for at, device in enumerate(devices))
    return read + moves(devices) * int(MOVE * _TICKS)


def _read(size: int, rate: int) -> int:
    return size * _TICKS // rate


def _runs(
    row: Row, budgets: Sequence[int], cpu: int | None, rates: Sequence[int], work: Work, known: Best
) -> Iterator[tuple[int, ...]]:
    """The fastest ways to give each device one run: all on the accelerators, or where that can't be, the rest off."""
    gpus = len(budgets)
    whole = _shortest(row, list(budgets), [], rates, work)
    if whole is not None:
        yield whole
        return
    if all(device < gpus for device in known.devices):
        return
    for main, budget in enumerate(budgets):
        for largest in sorted(set(row.brought)):
            if largest < budget:
                limits = [0] * main + [budget - largest, *budgets[main + 1 :]]
                off = [gpus + 1] if cpu is None else [gpus, gpus + 1]
                found = _shortest(row, limits, off, rates, work, main=main, largest=largest, cpu=cpu or 0)
                if found is not None:
                    yield found


def _shortest(
    row: Row,
    limits: Sequence[int],
    off: Sequence[int],
    rates: Sequence[int],
    work: Work,
    *,
    main: int | None = None,
    largest: int = 0,
    cpu: int = 0,
) -> tuple[int, ...] | None:
    """The fastest cover of the row by one run a device; alike devices are taken in the order of their numbers."""
    held = list(accumulate(row.held, initial=0))
    moved = list(accumulate(row.moved, initial=0))
    read = list(accumulate(row.read or row.moved, initial=0))
    size = len(row.moved)
    kinds: dict[tuple[int, int, bool], list[int]] = {}
    for device, limit in enumerate(limits):
        if limit:
            kinds.setdefault((limit, rates[device], device == main), []).append(device)
    groups = [*kinds.values(), *([device] for device in off)]
    ways: list[dict[tuple[int, ...], _Way]] = [{} for _ in range(size + 1)]
    ways[0][(0,) * len(groups)] = _Way(0, ())
    for at in range(size):
        for counts, way in ways[at].items():
            for kind, group in enumerate(groups):
                if counts[kind] == len(group):
                    continue
                device = group[counts[kind]]
                last = _last(row, held, moved, at, device, limits, largest, cpu)
                work.take(1 + last - at)
                more = (*counts[:kind], counts[kind] + 1, *counts[kind + 1 :])
                taken = read if device < len(limits) else moved
                for end in range(at + 1, last + 1):
                    ticks = way.ticks + _read(taken[end] - taken[at], rates[device]) + bool(at) * int(MOVE * _TICKS)
                    known = ways[end].get(more)
                    if known is None or ticks < known.ticks:
                        ways[end][more] = _Way(ticks, (*way.devices, (device, end)))
    good = [
        way for counts, way in ways[size].items() if main is None or any(device == main for device, _ in way.devices)
    ]
    if not good:
        return None
    found: list[int] = []
    for device, end in min(good, key=lambda way: (way.ticks, way.devices)).devices:
        found += [device] * (end - len(found))
    return tuple(found)


def _last(
    row: Row,
    held: Sequence[int],
    moved: Sequence[int],
    at: int,
    device: int,
    limits: Sequence[int],
    largest: int,
    cpu: int,
) -> int:
    """The end of the longest run from ``at`` on that ``device`` can hold."""
    if device < len(limits):
        return bisect_right(held, held[at] + limits[device]) - 1
    end = bisect_right(moved, moved[at] + cpu) - 1 if device == len(limits) else len(row.moved)
    return next((place for place in range(at, end) if row.brought[place] > largest), end)


def _by_speed(row: Row, budgets: Sequence[int], memory: Sequence[int]) -> tuple[int, ...] | None:
    """The fastest devices filled first, one run after another; None where they do not hold all."""
    found: list[int] = []
    for device in sorted(range(len(budgets)), key=lambda device: (-memory[device], device)):
        room = budgets[device]
        while len(found) < len(row.held) and row.held[len(found)] <= room:
            room -= row.held[len(found)]
            found.append(device)
    return tuple(found) if len(found) == len(row.held) else None


def _bound(row: Row, budgets: Sequence[int], cpu: int | None, rates: Sequence[int]) -> int:
    """No placement takes less: blocks as fine as dust, of which most is read in the fastest places; no moves."""
    whole = sum(row.moved)
    places = [*budgets, whole if cpu is None else cpu, whole]
    free = [[rate, room] for rate, room in sorted(zip(rates, places, strict=True), reverse=True)]
    pairs = zip(row.moved, row.read or row.moved, strict=True)
    ticks = 0
    for size, read in sorted(pairs, key=lambda pair: Fraction(pair[1], max(1, pair[0])), reverse=True):
        left = size
        while left:
            rate, room = free[0]
            if not (taken := min(left, room)):
                del free[0]
                continue
            ticks += read * taken // size * _TICKS // rate  # rounded down, twice: no more than it is
            free[0][1] -= taken
            left -= taken
    return ticks
