"""``optimal``: the placement that offloads least, and leaves the most room everywhere.

Unlike the strategies of transformers, it sees the whole model before it places the first layer. What is best, and how
it is found, is in `row`.
"""

from collections.abc import Sequence
from dataclasses import replace

from devctl.devices import Device
from devctl.models.tree import Block, ModuleTree
from devctl.placement.budget import Budgets, is_accelerator
from devctl.placement.counted import Counted
from devctl.placement.device_map import FrozenMap
from devctl.placement.optimal.latency import Fastest, Speeds, fastest
from devctl.placement.optimal.solve import Best, Row, solve
from devctl.placement.strategy import FoundMap, collapse, in_order
from devctl.units import format_bytes, format_rate

ENDED_EARLY = "the search ended early"
"""How a note begins that says what is not proven to be the best."""


def optimal_map(
    counted: Counted,
    budgets: Budgets,
    speeds: Speeds | None = None,
    most_off: int | None = None,
    *,
    few_moves: bool = True,
) -> FoundMap:
    """The best device map there is: the one with the most headroom, or with ``speeds`` the fastest.

    Args:
        most_off: bytes off the accelerators above which any map will do.
        few_moves: whether to search for an order with the fewest moves.
    """
    limits = limits_of(counted.tree, budgets)
    accelerators = [device for device in limits if is_accelerator(device)]
    blocks = counted.blocks
    moved = tuple(block.nbytes for block in blocks)
    row = Row(
        held=tuple(nbytes + more for nbytes, more in zip(moved, counted.runtime, strict=True)),
        moved=moved,
        brought=tuple(block.brought for block in blocks),
    )
    if not any(row.moved):
        return FoundMap(device_map=FrozenMap((("", next(iter(limits), Device.disk())),)), notes=())
    own, cpu = [limits[device] for device in accelerators], limits.get(Device.cpu())
    least_off = 0
    if speeds is None or not accelerators:
        best = solve(row, own, cpu, most_off, few_moves=few_moves)
        off = sum(nbytes for nbytes, device in zip(moved, best.devices, strict=True) if device >= len(accelerators))
        if off < sum(moved):
            least_off = off if best.off_bound is None else best.off_bound
        devices, notes = best.devices, tuple(_not_proven(best, row.moved, len(accelerators)))
    else:
        memory = [speeds.memory[device] for device in accelerators]
        if speeds.reads is not None:
            own_reads = speeds.reads
            read = tuple(sum(own_reads.of(counted.tree, name) for name in block.names) for block in blocks)
            row = replace(row, read=tuple(map(min, moved, read)))
        quick = fastest(row, own, cpu, memory, speeds.link, speeds.disk)
        devices, notes = quick.devices, _predicted(quick, row, accelerators, speeds)
    places = [*accelerators, Device.cpu(), Device.disk()]
    found = {name: places[at] for block, at in zip(blocks, devices, strict=True) for name in block.names}
    return FoundMap(device_map=in_order(counted.tree, collapse(found)), notes=notes, least_off=least_off)


def limits_of(tree: ModuleTree, budgets: Budgets) -> dict[Device, int]:
    """What may be used of each device.

    As in transformers, every device keeps a share for what quantised weights take while they are loaded and used.
    """
    return {device: int(limit * tree.budget_share) for device, limit in budgets.devices}


def row_of(blocks: Sequence[Block]) -> Row:
    """The blocks as the search takes them."""
    return Row(
        held=tuple(block.nbytes + block.runtime for block in blocks),
        moved=tuple(block.nbytes for block in blocks),
        brought=tuple(block.brought for block in blocks),
    )


def _predicted(quick: Fastest, row: Row, accelerators: Sequence[Device], speeds: Speeds) -> tuple[str, ...]:
    """The time for a token, what it rests on, and what it leaves out."""
    read, whole = row.read or row.moved, sum(row.moved)
    count = len(accelerators)
    rates: dict[str, list[str]] = {}
    for place in sorted(set(quick.devices)):
        if place < count:
            device = accelerators[place]
            told = f"{format_rate(speeds.memory[device])} ({speeds.boards.get(device, 'as given')})"
        else:
            device = Device.cpu() if place == count else Device.disk()
            told = format_rate(speeds.link if place == count else min(speeds.link, speeds.disk))
        rates.setdefault(told, []).append(str(device))
    on = sum(size for size, place in zip(read, quick.devices, strict=True) if place < count)
    off = sum(size for size, place in zip(row.moved, quick.devices, strict=True) if place >= count)
    where = "; ".join(f"{_run_of(names)} at {rate}" for rate, names in rates.items())
    notes = [
        f"about {quick.seconds * 1e3:.3g} ms a token ({1 / quick.seconds:.3g} tokens/s) for one sequence, if nothing "
        f"but weights took time: {format_bytes(on + off)} of {format_bytes(whole)} are read a token, {where}. A real "
        "run takes longer: KV cache, kernels and waiting are not counted",
        f"counted so, no placement takes less than {quick.bound * 1e3:.3g} ms",
    ]
    known = speeds.reads
    if known is not None and known.experts is not None:
        few, every = known.experts
        notes.append(f"{few} of {every} experts of a layer are read for one sequence; several read more of them")
    if known is not None and known.unknown:
        notes.append(
            "it is not known how many of its experts a token is sent to: all are counted as read, and it may be faster"
        )
    return tuple(notes)


def _run_of(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}" if len(names) > 2 else " and ".join(names)


def _not_proven(best: Best, sizes: tuple[int, ...], accelerators: int) -> list[str]:
    notes = []
    if best.off_bound is not None:
        off = sum(size for size, device in zip(sizes, best.devices, strict=True) if device >= accelerators)
        notes.append(
            f"{ENDED_EARLY}: {format_bytes(off)} are offloaded, and it is not known whether it could be less; "
            f"no placement offloads less than {format_bytes(best.off_bound)}"
        )
    if best.fraction_bound is not None:
        notes.append(
            f"{ENDED_EARLY}: it is not known whether the fullest device could be less full; in no placement is "
            f"it below {float(best.fraction_bound):.1%}"
        )
    if best.moves_bound is not None:
        notes.append(
            f"{ENDED_EARLY}: {best.moves} moves between devices, and no placement has fewer than {best.moves_bound}"
        )
    return notes
