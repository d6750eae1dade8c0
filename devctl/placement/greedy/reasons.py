"""Why the greedy strategies placed as they did: the decisions of the walk, in words."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import groupby

from devctl.devices import Device
from devctl.models.tree import ModuleTree
from devctl.placement.budget import Budgets, is_accelerator
from devctl.placement.greedy.decisions import Decision, Step, Trail
from devctl.placement.judge import shorten
from devctl.placement.placement import Placement
from devctl.placement.reason import Reason, joined
from devctl.units import format_bytes

_TOLD = 3
"""Devices passed over in a row that are told of one by one."""


def greedy_rules(budgets: Budgets, trail: Trail) -> tuple[str, ...]:
    """What the strategy lets each device hold."""
    own, limits = dict(budgets.devices), dict(trail.limits)
    accelerators = [device for device in limits if is_accelerator(device)]
    others = [device for device in limits if not is_accelerator(device) and device != Device.disk()]
    order = [*([_list(accelerators)] if accelerators else []), *map(str, others), "disk"]
    found = [f"filled in this order, with no going back: {', '.join(order)}"]
    share = trail.share
    for device, limit in limits.items():
        if limit < own[device] and share is None:
            found.append(f"{device} keeps a tenth of the {format_bytes(own[device])} that it has free")
        elif share is not None and share.nbytes != limit < own[device]:
            found.append(f"{device} is to hold what the others can't: {format_bytes(limit)}")
    sharing = [d for d, limit in limits.items() if share is not None and limit == share.nbytes < own[d]]
    if share is not None and sharing:
        found.append(
            f"no more than an even share for {_list(sharing)}: {format_bytes(share.nbytes)}, which is "
            f"{format_bytes(share.total)} / {share.parts} + 1.25 × the largest block's {format_bytes(share.largest)}"
        )
    keeping = [device for device in trail.main if device in limits]
    if keeping:
        what = "room for the largest layer still to come is kept"
        found.append(f"{what} on {' and '.join(map(str, keeping))}, to run it if it is offloaded")
    return tuple(found)


def greedy_reasons(tree: ModuleTree, placement: Placement, trail: Trail) -> tuple[Reason, ...]:
    """Why each part is where it is, in the order of the model."""
    size, order = tree.index.nbytes, tree.index.places
    share = None if trail.share is None else trail.share.nbytes
    found = [*_decided(trail.decisions, size, share), *_undecided(tree, placement, trail.decisions, size)]
    return joined(sorted(found, key=lambda reason: order[reason.names[0]]))


def _decided(decisions: Iterable[Decision], size: Mapping[str, int], share: int | None) -> Iterator[Reason]:
    """A reason for each module or tensor that was placed: it has all that was decided since the one before."""
    pending: list[Decision] = []
    last = None  # what was placed before
    for decision in decisions:
        if decision.step not in (Step.PLACED, Step.JOINED):
            pending.append(decision)
            continue
        because = list(_before(pending, share))
        if decision.step is Step.JOINED:
            because.append(f"tied to {shorten(decision.tied)} on {decision.device}, so beside it")
        elif decision.limit is None and any(each.step is Step.NEXT for each in pending):
            because.append("the disk holds all that is left")
        elif last is None and not because:
            because.append(_fits(decision, share))
        if decision.step is Step.PLACED and decision.tied:
            because.append(f"{shorten(decision.tied)} {_is_are(decision.tied)} tied to it, and beside it")
        yield Reason(names=(decision.name,), device=decision.device, nbytes=size[decision.name], because=tuple(because))
        if decision.step is Step.PLACED:
            for owner in decision.tied:
                tied = (f"tied to {decision.name}, so beside it",)
                yield Reason(names=(owner,), device=decision.device, nbytes=size[owner], because=tied)
        pending, last = [], decision


def _undecided(
    tree: ModuleTree, placement: Placement, decisions: Iterable[Decision], size: Mapping[str, int]
) -> Iterator[Reason]:
    """What the walk did not come by: buffers that upstream drops, and what stays out of the map."""
    covered = {name for d in decisions for name in _placed_names(d)}
    for tensor in tree.index.tensors:
        if _is_covered(tensor.name, covered):
            continue
        at = placement.device_map.device_of(tensor.name)
        beside = "directly in a module that was split, so beside the first of its parts"
        because = beside if at is not None else "left out of the map, as in transformers: it stays on the CPU"
        yield Reason(names=(tensor.name,), device=at or Device.cpu(), nbytes=size[tensor.name], because=(because,))


def _placed_names(decision: Decision) -> tuple[str, ...]:
    if decision.step is Step.PLACED:
        return (decision.name, *decision.tied)
    return (decision.name,) if decision.step is Step.JOINED else ()


def _is_covered(name: str, names: Collection[str]) -> bool:
    while name:
        if name in names:
            return True
        name = name.rpartition(".")[0]
    return False


def _before(pending: Iterable[Decision], share: int | None) -> Iterator[str]:
    """What was split on the way, and which devices were left; of many left in a row, the first few."""
    for is_left, group in groupby(pending, lambda decision: decision.step is Step.NEXT):
        decisions = list(group)
        if not is_left:
            yield from (_split(decision) for decision in decisions)
            continue
        yield from (_left(decision, share) for decision in decisions[:_TOLD])
        if more := decisions[_TOLD:]:
            yield f"{_list([decision.device for decision in more])} had no room either"


def _left(decision: Decision, share: int | None) -> str:
    left, needs = format_bytes(decision.left or 0), format_bytes(decision.needs)
    had = f"{decision.device} had {left} left of {_limit(decision, share)}{_kept(decision)}"
    return f"{had}; {needs} are needed → next device"


def _fits(decision: Decision, share: int | None) -> str:
    if decision.limit is None:
        return "the disk holds it all"
    return f"room for it on {decision.device}, in {_limit(decision, share)}{_kept(decision)}"


def _split(decision: Decision) -> str:
    name, device = decision.name, decision.device
    if decision.step is Step.SPLIT_TO_JOIN:
        return f"{name} was split: a part of it is tied to {shorten(decision.tied)}, which is on {device}"
    if decision.step is Step.SPLIT_TO_BRING:
        return f"{name} was split: a part of it is tied to {shorten(decision.tied)}, and not all of it fits beside that"
    left = format_bytes(decision.left or 0)
    if decision.step is Step.LEFT_OUT:
        return (
            f"{name} needs {format_bytes(decision.needs)}, {device} has {left} left, and the next device no room either"
        )
    return f"{name} was split: whole it needs {format_bytes(decision.needs)}, and {device} had {left} left"


def _limit(decision: Decision, share: int | None) -> str:
    assert decision.limit is not None
    return f"its {'share of ' if decision.limit == share else ''}{format_bytes(decision.limit)}"


def _kept(decision: Decision) -> str:
    if not decision.kept:
        return ""
    what = f" for {decision.kept_for}" if decision.kept_for else ""
    return f", {format_bytes(decision.kept)} of it kept{what}"


def _list(devices: Collection[Device]) -> str:
    """Devices by name; of many, the first and the last."""
    said = [str(device) for device in devices]
    if len(said) > _TOLD + 1:
        return f"{said[0]} to {said[-1]}"
    return ", ".join(said)


def _is_are(many: Collection[str]) -> str:
    return "is" if len(many) == 1 else "are"
