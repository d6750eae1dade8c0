"""``optimal``: the placement that offloads least, and leaves the most room everywhere.

Unlike the strategies of transformers, it sees the whole model before it places the first layer. What is best, and how
it is found, is in `row`.
"""

from collections.abc import Sequence

from devctl.devices import Device
from devctl.models.tree import Block, ModuleTree
from devctl.placement.budget import Budgets, is_accelerator
from devctl.placement.counted import Counted
from devctl.placement.device_map import FrozenMap
from devctl.placement.optimal.latency import Fastest, Speeds, fastest
from devctl.placement.optimal.solve import Best, Row, solve
from devctl.placement.strategy import FoundMap, collapse, in_order
from devctl.units import format_bytes

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
        quick = fastest(row, own, cpu, memory, speeds.link, speeds.disk)
        devices, notes = quick.devices, (_predicted(quick),)
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


def _predicted(quick: Fastest) -> str:
    return (
        f"about {quick.seconds * 1e3:.3g} ms a token ({1 / quick.seconds:.3g} tokens/s) for one sequence, by the "
        f"speeds of memories and links alone; no placement is below {quick.bound * 1e3:.3g} ms"
    )


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
