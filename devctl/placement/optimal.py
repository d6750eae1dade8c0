"""``optimal``: the placement that offloads least, and leaves the most room everywhere.

Unlike the strategies of transformers, it sees the whole model before it places the first layer. What is best, and how
it is found, is in `row`.
"""

from devctl.devices import Device
from devctl.models.tree import ModuleTree
from devctl.placement.blocks import blocks_of
from devctl.placement.budget import Budgets, is_accelerator, less_for_one
from devctl.placement.row import Best, Row, solve
from devctl.placement.strategy import FoundMap, collapse, in_order
from devctl.units import format_bytes

ENDED_EARLY = "the search ended early"
"""How a note begins that says what is not proven to be the best."""


def optimal_map(tree: ModuleTree, budgets: Budgets) -> FoundMap:
    """The best device map there is."""
    limits = limits_of(budgets)
    accelerators = [device for device in limits if is_accelerator(device)]
    blocks = blocks_of(tree)
    sizes = tuple(block.nbytes for block in blocks)
    if not any(sizes):
        return FoundMap(device_map={"": next(iter(limits), Device.disk())}, notes=())
    best = solve(Row(held=sizes, moved=sizes), [limits[device] for device in accelerators], limits.get(Device.cpu()))
    places = [*accelerators, Device.cpu(), Device.disk()]
    found = {name: places[at] for block, at in zip(blocks, best.devices, strict=True) for name in block.names}
    return FoundMap(
        device_map=in_order(tree, collapse(found)), notes=tuple(_not_proven(best, sizes, len(accelerators)))
    )


def limits_of(budgets: Budgets) -> dict[Device, int]:
    """What each device may hold: a lone accelerator whose memory was measured keeps a tenth free."""
    limits = dict(budgets.devices)
    lone = sum(1 for device, limit in limits.items() if is_accelerator(device) and limit > 0) == 1
    return less_for_one(limits) if lone and not budgets.given else limits


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
