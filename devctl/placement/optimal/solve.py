"""The best placement of a row of blocks, exactly: the most on the accelerators, and the most room left on each.

In this order: the fewest bytes off the accelerators, the fewest bytes on disk, the smallest largest used fraction of an
accelerator, the fewest moves between devices, the lowest numbers of devices first. One run of blocks a device wherever
that is as good in the first two, any packing otherwise.

An accelerator runs what is offloaded: the lowest that is used, as with accelerate. Only when something is offloaded, it
keeps room for the most that accelerate brings to it at once.

The searches count their steps. One that runs out of them leaves a placement that holds, and says what is not proven.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import accumulate, pairwise

from devctl.placement.optimal.bounded import (
    TooMuchWorkError,
    Work,
    largest_fraction,
    limits_at,
    smallest_fraction,
)
from devctl.placement.optimal.fewest_moves import FewestMoves, arrange, moves
from devctl.placement.optimal.one_run_each import Hole, Partition
from devctl.placement.optimal.packing import Kind, Packer, Packing

_STEPS = 200_000
"""What each search may take: a part of a second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Blocks in the order in which they run.

    Attributes:
        held: bytes of each on an accelerator, with what it needs beside its weights.
        moved: bytes of each elsewhere, no more than ``held``.
        brought: bytes of each that are on the accelerator at once which runs it from elsewhere.
        read: bytes of each that an accelerator reads of its own memory for a token, no more than ``moved``; None where
            that is all of them.
    """

    held: tuple[int, ...]
    moved: tuple[int, ...]
    brought: tuple[int, ...]
    read: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Best:
    """A placement of a row.

    Attributes:
        devices: for each block the number of an accelerator, or after those the CPU's, or after that the disk's.
        off_bound: bytes off the accelerators that none is below, where it is not known that this is the best in them.
        fraction_bound: the same for the largest used fraction.
        moves_bound: the same for the moves.
    """

    devices: tuple[int, ...]
    off_bound: int | None = None
    fraction_bound: Fraction | None = None
    moves_bound: int | None = None

    @property
    def moves(self) -> int:
        """How often execution goes from one device to another."""
        return moves(self.devices)


def solve(
    row: Row, budgets: Sequence[int], cpu: int | None, most_off: int | None = None, *, few_moves: bool = True
) -> Best:
    """Place a row.

    Args:
        budgets: bytes that each accelerator may hold, in the order of their numbers.
        cpu: bytes that the CPU may hold; None where nothing may be there. The disk holds all the rest.
        most_off: bytes off the accelerators above which nothing is worth a search. Where every way takes more, the
            answer is one of them, with a bound that says so.
        few_moves: whether to search for an order with the fewest moves, where a device has more than one run. It takes
            most of the time, and whether all fits hardly depends on it.
    """
    if not budgets:
        return _without_accelerators(row, 0, cpu)
    whole = _one_run_each(row.held, budgets)
    if whole is not None:
        return whole
    found = _packed(row, budgets, cpu, most_off, few_moves=few_moves)
    if found is None:
        return _without_accelerators(row, len(budgets), cpu)
    return found


def _without_accelerators(row: Row, count: int, cpu: int | None) -> Best:
    """The CPU is what runs then, and the disk what is offloaded."""
    if cpu is None:
        return Best(devices=(count + 1,) * len(row.moved))
    alone = replace(row, held=row.moved)
    best = _one_run_each(alone.held, [cpu]) or _packed(alone, [cpu], None)
    if best is None:
        return Best(devices=(count + 1,) * len(row.moved))
    # one accelerator, its CPU and its disk have become the CPU, nothing, and the disk
    return Best(
        devices=tuple(count if device == 0 else count + 1 for device in best.devices),
        off_bound=best.off_bound,
        moves_bound=best.moves_bound,
    )


def _used(sizes: Sequence[int], devices: Sequence[int], count: int) -> list[int]:
    used = [0] * count
    for size, device in zip(sizes, devices, strict=True):
        if device < count:
            used[device] += size
    return used


def _one_run_each(held: Sequence[int], budgets: Sequence[int]) -> Best | None:
    """All on the accelerators, in one run each; None where there is no way, or none was found in time."""
    work = Work(_STEPS)

    def fraction_of(devices: list[int]) -> Fraction:
        return largest_fraction(budgets, _used(held, devices, len(budgets)))

    def cut(limits: list[int]) -> list[int] | None:
        return _filled(held, limits) or Partition(sizes=held, limits=limits, work=work).first()

    least = max(Fraction(sum(held), max(1, sum(budgets))), Fraction(max(held, default=0), max(1, *budgets)))
    if least > 1:
        return None
    try:
        first = cut(list(budgets))
    except TooMuchWorkError:
        return None
    if first is None:
        return None
    found, bound = smallest_fraction(budgets, first, least, fraction_of, cut)
    moves_bound = None
    try:
        # of all that are as even: the fewest devices, the lowest first
        limits = limits_at(budgets, fraction_of(found))
        found = Partition(sizes=held, limits=limits, work=Work(_STEPS)).first() or found
    except TooMuchWorkError:
        moves_bound = _fewest_devices(sum(held), budgets) - 1
    return Best(devices=tuple(found), fraction_bound=bound, moves_bound=moves_bound)


def _filled(sizes: Sequence[int], limits: Sequence[int]) -> list[int] | None:
    """Device after device filled to its limit, in the order of their numbers; None where that does not hold all."""
    found: list[int] = []
    device, room = 0, limits[0]
    for size in sizes:
        while size > room:
            device += 1
            if device == len(limits):
                return None
            room = limits[device]
        room -= size
        found.append(device)
    return found


def _fewest_devices(total: int, budgets: Sequence[int]) -> int:
    filled = accumulate(sorted(budgets, reverse=True))
    return next((count for count, room in enumerate(filled, 1) if room >= total), len(budgets))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    """A guess at what is offloaded, and where it runs.

    Attributes:
        main: the accelerator that runs it; those before hold nothing. None: nothing is offloaded.
        largest: the most bytes that may be brought at once of what is offloaded.
    """

    main: int | None
    largest: int

    def limits(self, limits: Sequence[int], budgets: Sequence[int]) -> list[int]:
        """``limits``, less what is kept free, from the main accelerator on."""
        if self.main is None:
            return list(limits)
        room = max(0, budgets[self.main] - self.largest)
        return [min(limits[self.main], room), *limits[self.main + 1 :]]


def _cases(row: Row, budgets: Sequence[int]) -> Iterator[_Case]:
    """All that can be the best: an accelerator behind one that is as large gains nothing by running the offloaded."""
    yield _Case(main=None, largest=0)
    for main, budget in enumerate(budgets):
        if budget > max(budgets[:main], default=0):
            for largest in sorted(set(row.brought)):
                if largest < budget:
                    yield _Case(main=main, largest=largest)


def _packed(
    row: Row, budgets: Sequence[int], cpu: int | None, most_off: int | None = None, *, few_moves: bool = True
) -> Best | None:
    """Any packing, offloading what must be; None where no accelerator can hold anything."""
    if most_off is not None and (least := sum(row.moved) - sum(budgets)) > most_off:
        return _worthless(row, budgets, cpu, least)
    kinds, kind_of = _kinds(row)
    try:
        packer = Packer(kinds, Work(6 * _STEPS))
        found, bound = _fewest_off(row, budgets, cpu, packer)
    except TooMuchWorkError:
        return _by_filling(row, budgets, cpu)
    if not found or found[0][1].off == sum(row.moved):
        return None
    off, disk = found[0][1].off, found[0][1].disk
    if most_off is not None and (least := off if bound is None else bound) > most_off:
        return _worthless(row, budgets, cpu, least)
    best = _runs_around(row, budgets, off, disk) or _spread(
        row, budgets, cpu, packer, kind_of, found, few_moves=few_moves
    )
    return best if bound is None else replace(best, off_bound=bound)


def _fewest_off(
    row: Row, budgets: Sequence[int], cpu: int | None, packer: Packer
) -> tuple[list[tuple[_Case, Packing]], int | None]:
    """The packings with the fewest bytes off the accelerators, then on disk; and a bound, where it is not proven.

    Raises:
        TooMuchWorkError: none was found in time.
    """
    total = sum(row.moved)
    least = {
        case: max(0, total - sum(packer.most(limit) for limit in case.limits(budgets, budgets)))
        for case in _cases(row, budgets)
    }
    found: list[tuple[_Case, Packing]] = []
    for case in sorted(least, key=least.__getitem__):
        if found and least[case] > found[0][1].off:
            break
        if case.main is None and least[case]:
            continue
        try:
            packing = packer.best(
                case.limits(budgets, budgets), cpu, needs_first=case.main is not None, all_of=case.largest
            )
        except TooMuchWorkError:
            if not found:
                raise
            return found, least[case] if least[case] < found[0][1].off else None
        if packing is None:
            continue
        if found and (packing.off, packing.disk) < (found[0][1].off, found[0][1].disk):
            found = []
        if not found or (packing.off, packing.disk) == (found[0][1].off, found[0][1].disk):
            found.append((case, packing))
    return found, None


def least_factor(row: Row, budgets: Sequence[int]) -> Fraction:
    """How many times as large all ``budgets`` would have to be to hold the row, as far as could be searched."""
    scale = sum(row.held) // min(budgets) + 1
    large = [budget * scale for budget in budgets]
    first = _used(row.held, solve(row, large, None).devices, len(budgets))
    kinds, _ = _kinds(row)

    def pack(limits: list[int]) -> list[int] | None:
        packing = packer.best(limits, None)
        return None if packing is None or packing.off else [packer.held_by(counts) for counts in packing.counts]

    try:
        packer = Packer(kinds, Work(_STEPS))
    except TooMuchWorkError:
        return largest_fraction(large, first) * scale
    least = max(Fraction(sum(row.held), sum(large)), Fraction(max(row.held), max(large)))
    used, _ = smallest_fraction(large, first, least, lambda used: largest_fraction(large, used), pack)
    return largest_fraction(large, used) * scale


def _spread(
    row: Row,
    budgets: Sequence[int],
    cpu: int | None,
    packer: Packer,
    kind_of: Sequence[int],
    found: Sequence[tuple[_Case, Packing]],
    *,
    few_moves: bool,
) -> Best:
    """The packing with the smallest largest fraction, and its blocks in an order with few moves."""
    off, disk = found[0][1].off, found[0][1].disk
    packer.work.left = _STEPS
    evened: list[tuple[Fraction, Fraction | None, _Case, Packing]] = []
    for case, first in found:
        own = budgets[case.main or 0 :]

        def fraction_of(packing: Packing, own: Sequence[int] = own) -> Fraction:
            return largest_fraction(own, [packer.held_by(counts) for counts in packing.counts])

        def pack(limits: list[int], case: _Case = case, own: Sequence[int] = own) -> Packing | None:
            limits = _Case(main=None if case.main is None else 0, largest=case.largest).limits(limits, own)
            packing = packer.best(limits, cpu, needs_first=case.main is not None, all_of=case.largest)
            return packing if packing is not None and (packing.off, packing.disk) == (off, disk) else None

        least = Fraction(sum(row.moved) - off, sum(own))
        packing, bound = smallest_fraction(own, first, least, fraction_of, pack)
        evened.append((fraction_of(packing), bound, case, packing))
    smallest = min(fraction for fraction, _, _, _ in evened)
    bounds = [fraction if bound is None else bound for fraction, bound, _, _ in evened]

    ways: list[tuple[int, list[int], int]] = []
    for fraction, _, case, packing in evened:
        if fraction > smallest:
            continue
        shift = case.main or 0
        own = budgets[shift:]
        limits = _Case(main=None if case.main is None else 0, largest=case.largest).limits(
            limits_at(own, smallest), own
        )
        search = FewestMoves(
            held=row.held,
            moved=row.moved,
            brought=row.brought,
            limits=limits,
            on_cpu=off - disk,
            on_disk=disk,
            most_brought=case.largest,
            needs_first=case.main is not None,
            work=Work(_STEPS // 4),
        )
        known = arrange(kind_of, packing)
        devices, fewest = search.find(known) if few_moves else (known, search.least())
        ways.append((moves(devices), [device + shift for device in devices], fewest))
    count, devices, _ = min(ways)
    moves_bound = min(bound for _, _, bound in ways)
    return Best(
        devices=tuple(devices),
        fraction_bound=min(bounds) if min(bounds) < smallest else None,
        moves_bound=moves_bound if moves_bound < count else None,
    )


def _kinds(row: Row) -> tuple[list[Kind], list[int]]:
    """The kinds of a row's blocks, and for each block its kind's number."""
    alike = list(zip(row.held, row.moved, row.brought, strict=True))
    count = Counter(alike)  # in the order in which they come
    number = {kind: at for at, kind in enumerate(count)}
    kinds = [Kind(held=held, moved=moved, brought=brought, count=n) for (held, moved, brought), n in count.items()]
    return kinds, [number[kind] for kind in alike]


def _runs_around(row: Row, budgets: Sequence[int], off: int, disk: int) -> Best | None:
    """One run a device, with ``off`` bytes off the accelerators and ``disk`` on disk; None where there is none."""
    if not off:
        return None  # one run each was tried before
    work = Work(_STEPS // 4)
    best: tuple[Fraction, int, list[int]] | None = None
    try:
        for holes in _holes(row.moved, len(budgets), off - disk, disk, work):
            largest = max(max(row.brought[hole.start : hole.stop]) for hole in holes)
            for case in _cases(row, budgets):
                if case.main is None or case.largest != largest:
                    continue
                found = _cut_around(row, budgets, case, holes, None if best is None else best[0], work)
                if found is not None and (best is None or found < best):
                    best = found
    except TooMuchWorkError:
        return None
    return None if best is None else Best(devices=tuple(best[2]))


def _cut_around(
    row: Row, budgets: Sequence[int], case: _Case, holes: Sequence[Hole], most: Fraction | None, work: Work
) -> tuple[Fraction, int, list[int]] | None:
    """(largest fraction, moves, devices) of the best way around ``holes``; None where none is within ``most``."""
    assert case.main is not None
    shift, own = case.main, budgets[case.main :]
    here = [Hole(start=h.start, stop=h.stop, device=h.device - shift) for h in holes]
    first_case = _Case(main=0, largest=case.largest)

    def cut(limits: list[int]) -> list[int] | None:
        limits = first_case.limits(limits, own)
        return Partition(sizes=row.held, limits=limits, needs_first=True, holes=here, work=work).first()

    def fraction_of(devices: list[int]) -> Fraction:
        return largest_fraction(own, _used(row.held, devices, len(own)))

    first = cut(limits_at(own, Fraction(1) if most is None else most))
    if first is None:
        return None
    found, bound = smallest_fraction(own, first, Fraction(0), fraction_of, cut)
    if bound is not None:
        raise TooMuchWorkError
    fraction = fraction_of(found)
    found = cut(limits_at(own, fraction)) or found
    return fraction, moves(found), [device + shift for device in found]


def _holes(moved: Sequence[int], cpu: int, on_cpu: int, on_disk: int, work: Work) -> Iterator[tuple[Hole, ...]]:
    """Every way to take one run with ``on_cpu`` bytes and one with ``on_disk``, where those are more than 0."""
    for first in _runs_of(moved, on_cpu, cpu) if on_cpu else (None,):
        for second in _runs_of(moved, on_disk, cpu + 1) if on_disk else (None,):
            work.take(1)
            holes = sorted((hole for hole in (first, second) if hole is not None), key=lambda hole: hole.start)
            if all(a.stop <= b.start for a, b in pairwise(holes)):
                yield tuple(holes)


def _runs_of(sizes: Sequence[int], total: int, device: int) -> Iterator[Hole]:
    """The runs of ``total`` bytes."""
    start = {place: index for index, place in enumerate(accumulate(sizes, initial=0))}
    for end, index in start.items():
        if end - total in start:
            yield Hole(start=start[end - total], stop=index, device=device)


def _worthless(row: Row, budgets: Sequence[int], cpu: int | None, least: int) -> Best | None:
    """A way that is soon found, where every way takes ``least`` bytes off the accelerators, which are too many."""
    quick = _by_filling(row, budgets, cpu)
    return None if quick is None else replace(quick, off_bound=least)


def _by_filling(row: Row, budgets: Sequence[int], cpu: int | None) -> Best | None:
    """Device after device filled with what comes next, then gaps with what is left: where there are too many kinds."""
    ways: list[tuple[int, int, list[int]]] = []
    first = next((main for main, budget in enumerate(budgets) if budget), 0)
    largest_first = max(range(len(budgets)), key=lambda device: (budgets[device], -device))
    for largest in (0, *sorted(set(row.brought), reverse=True)[:8]):
        for main in {first, largest_first}:
            case = _Case(main=main, largest=largest)
            devices = _fill(row, [*([0] * main), *case.limits(budgets, budgets)], cpu)
            off = [place for place, device in enumerate(devices) if device >= len(budgets)]
            if max((row.brought[place] for place in off), default=0) <= largest and (not off or main in devices):
                disk = sum(row.moved[place] for place in off if devices[place] > len(budgets))
                ways.append((sum(row.moved[place] for place in off), disk, devices))
    if not ways:
        return None
    off_bytes, _, devices = min(ways)
    used = _used(row.held, devices, len(budgets))
    bound = max(0, sum(row.moved) - sum(budgets))
    return Best(
        devices=tuple(devices),
        off_bound=bound if bound < off_bytes else None,
        fraction_bound=Fraction(sum(used), sum(budgets)) if any(used) else None,
        moves_bound=max(0, len(set(devices)) - 1) if moves(devices) >= len(set(devices)) else None,
    )


def _fill(row: Row, limits: Sequence[int], cpu: int | None) -> list[int]:
    """One run after another while they fit, then the rest, largest first, where it fits closest."""
    count = len(limits)
    room = [*limits, 0 if cpu is None else cpu]
    found: list[int] = []
    at = 0
    for size in row.held:
        while at < count and size > room[at]:
            at += 1
        found.append(at)
        if at < count:
            room[at] -= size
    for place in sorted((p for p, device in enumerate(found) if device == count), key=lambda p: -row.held[p]):
        gaps = [device for device in range(count) if row.held[place] <= room[device]]
        if gaps:
            found[place] = min(gaps, key=lambda device: room[device])
            room[found[place]] -= row.held[place]
        elif row.moved[place] <= room[count]:
            room[count] -= row.moved[place]
        else:
            found[place] = count + 1
    return found
