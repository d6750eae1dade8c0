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


def optimal_map(tree: ModuleTree, budgets: Budgets) -> FoundMap:
    """The best device map there is."""
    limits = dict(budgets.devices)
    accelerators = [device for device in limits if is_accelerator(device)]
    if not budgets.given and sum(1 for device in accelerators if limits[device] > 0) == 1:
        limits = less_for_one(limits)
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


def _not_proven(best: Best, sizes: tuple[int, ...], accelerators: int) -> list[str]:
    notes = []
    if best.off_bound is not None:
        off = sum(size for size, device in zip(sizes, best.devices, strict=True) if device >= accelerators)
        notes.append(
            f"the search ended early: {format_bytes(off)} are offloaded, and it is not known whether it could be less; "
            f"no placement offloads less than {format_bytes(best.off_bound)}"
        )
    if best.fraction_bound is not None:
        notes.append(
            "the search ended early: it is not known whether the fullest device could be less full; in no placement is "
            f"it below {float(best.fraction_bound):.1%}"
        )
    if best.moves_bound is not None:
        notes.append(
            f"the search ended early: {best.moves} moves between devices, and no placement has fewer than "
            f"{best.moves_bound}"
        )
    return notes
