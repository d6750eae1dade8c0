"""Finds hardware that would hold a model that does not fit. ``optimal`` computes each answer; none is guessed."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from fractions import Fraction

from devctl.devices import Device
from devctl.models.tree import ModuleTree
from devctl.placement.budget import Budgets, is_accelerator
from devctl.placement.optimal.find import limits_of, row_of
from devctl.placement.optimal.solve import Row, least_factor, solve
from devctl.units import format_bytes, format_need

MOST_MORE = 64
"""More boards than these, or than four times those that are there, are no way out that anybody would take."""
TIMES_MORE = 4
_BY = ", by --strategy optimal"


def fits(tree: ModuleTree, budgets: Budgets, *, cpu_may_hold: bool) -> bool:
    """Whether ``optimal`` can place the model without the disk.

    Args:
        cpu_may_hold: whether the CPU may hold weights beside accelerators. Where it may not, a placement that leaves
            weights on the CPU does not fit either.
    """
    limits = limits_of(tree, budgets)
    gpus = [limit for device, limit in limits.items() if is_accelerator(device)]
    return _fits(row_of(tree.index.blocks), gpus, limits.get(Device.cpu()), cpu_may_hold=cpu_may_hold)


def ways_out(
    tree: ModuleTree,
    budgets: Budgets,
    *,
    cpu_may_hold: bool,
    beside: int = 0,
    of_host: Collection[Device] = (),
) -> tuple[str, ...]:
    """Hardware that would hold the model: one line for each way.

    Args:
        cpu_may_hold: whether the CPU may hold weights beside accelerators, so that only the disk has to be avoided.
        beside: bytes that are taken on each accelerator, whatever it holds. ``budgets`` do not include them; the sizes
            in the lines do, and also what a device keeps free of a budget.
        of_host: accelerators whose memory is the host's RAM. None can be added to them, and the CPU has no other RAM
            that could hold the rest: a machine with more memory would.
    """
    row = row_of(tree.index.blocks)
    limits = limits_of(tree, budgets)
    gpus = {device: limit for device, limit in limits.items() if is_accelerator(device) and limit}
    cpu = limits.get(Device.cpu())
    share = Fraction(tree.budget_share).limit_denominator(1000)
    may_hold = _MayHold(limits=limits, budgets=dict(budgets.devices), beside=beside, share=share)
    found = []
    unified = [device for device in gpus if device in of_host]
    if (not gpus or cpu_may_hold) and not unified:
        needed = _cpu_needed(row, list(gpus.values()))
        found.append(may_hold.told(Device.cpu(), "would have to hold", needed))
    if gpus:
        found.append(_larger(row, gpus, may_hold) + (", on a machine with more memory" if unified else ""))
        size = max((limit for device, limit in gpus.items() if device not in of_host), default=0)
        if size and (more := _how_many_more(row, gpus, size, cpu, cpu_may_hold=cpu_may_hold)):
            alike = next(device for device, limit in gpus.items() if limit == size and device not in of_host)
            found.append(f"{more} of {format_bytes(may_hold.whole(alike, size))} would hold the rest{_BY}")
    return tuple(found)


def _fits(row: Row, gpus: list[int], cpu: int | None, *, cpu_may_hold: bool) -> bool:
    best = solve(row, gpus, cpu)
    computing = len(gpus) if any(gpus) and not cpu_may_hold else len(gpus) + 1
    return all(device < computing for device in best.devices)


def _cpu_needed(row: Row, gpus: list[int]) -> int:
    best = solve(row, gpus, sum(row.moved))
    return sum(size for size, device in zip(row.moved, best.devices, strict=True) if device == len(gpus))


@dataclass(frozen=True, slots=True, kw_only=True)
class _MayHold:
    """What devices may hold of a model, and how large they are for it.

    Attributes:
        limits: bytes that each may hold: a share of its budget, where the model is quantised or a GPU is alone.
        budgets: those budgets.
        beside: bytes that are taken on each accelerator, and are not in them.
        share: of its budget that a device may hold which there is not.
    """

    limits: Mapping[Device, int]
    budgets: Mapping[Device, int]
    beside: int
    share: Fraction

    def whole(self, device: Device, size: int) -> int:
        """Bytes that a device like ``device`` has to have, so that it may hold ``size``."""
        limit, budget = self.limits.get(device, 0), self.budgets.get(device, 0)
        share = Fraction(limit, budget) if limit else self.share
        return -(-size * share.denominator // share.numerator) + (self.beside if is_accelerator(device) else 0)

    def told(self, device: Device, what: str, size: int, who: str = "") -> str:
        """That it has to have more, for ``size``."""
        needed, given = self.whole(device, size), self.limits.get(device)
        more = (
            ""
            if not given or given >= size
            else f", {format_need(needed - self.whole(device, given))} more than it may"
        )
        return f"{who or device} {what} {format_need(needed)}{more}"


def _larger(row: Row, gpus: Mapping[Device, int], may_hold: _MayHold) -> str:
    """A line that says how large the accelerators would have to be if all of them grew by one factor."""
    factor = least_factor(row, list(gpus.values()))
    sizes = {device: -(-limit * factor.numerator // factor.denominator) for device, limit in gpus.items()}
    if len(set(gpus.values())) == 1:
        device, each = next(iter(sizes.items()))
        who = str(device) if len(gpus) == 1 else f"each of the {len(gpus)} GPUs"
        # the needs of blocks are counted for the worst case: a little less memory might do as well
        return may_hold.told(device, "would do with" if may_hold.beside else "would have to hold", each, who) + _BY
    told = [f"{device} {format_need(may_hold.whole(device, size))}" for device, size in sizes.items()]
    more = f" and {len(told) - 4} more" if len(told) > 4 else ""
    return f"GPUs {float(factor):.3g} times as large would hold it: {', '.join(told[:4])}{more}{_BY}"


def _how_many_more(
    row: Row, gpus: Mapping[Device, int], size: int, cpu: int | None, *, cpu_may_hold: bool
) -> str | None:
    """How many more GPUs of a ``size`` are enough, in words; None where nobody would buy them."""
    here = list(gpus.values())

    def enough(count: int) -> bool:
        return _fits(row, here + [size] * count, cpu, cpu_may_hold=cpu_may_hold)

    high = 1
    while not enough(high):
        high *= 2
        if high > 2 * MOST_MORE:
            return None
    low = high // 2  # not enough
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    if high > min(MOST_MORE, TIMES_MORE * len(gpus)):
        return None
    return f"{high} more {'GPU' if high == 1 else 'GPUs'}"
