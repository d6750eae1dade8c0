"""How much of a workload fits: the longest context, the most sequences, and the room that a plan leaves. Numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Self

from devctl.devices import Device
from devctl.models.footprint import Workload
from devctl.placement import Placement, Strategy, place
from devctl.placement.budget import is_accelerator
from devctl.placement.document import PlannedModel
from devctl.placement.placement import DeviceUse, Load, tight
from devctl.placement.plan import Case, MostTokens, Room, WayToRun
from devctl.placement.runtime import brought_weights, main_of, needs, unallocated
from devctl.planning.question import Question
from devctl.planning.request import MOST_TOKENS

BATCHES = (1, 2, 4, 8, 16, 32, 64)
"""The batch sizes that are tried with each context."""

MOST_SEQUENCES = 4096
"""The most sequences at once that are looked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """How much fits on the best placement.

    Attributes:
        context_length: tokens that ``max_batch`` is of.
        batch_size: sequences at once that ``max_context`` is of.
        max_context: tokens of the longest sequences that fit; 0 where none do.
        max_batch: the most sequences that fit at once; 0 where not one does, and never told above `MOST_SEQUENCES`.
        what_if: which contexts and batch sizes fit.
        run: how the workload is run that all of it is of.
        notes: what is to be known of it, like why accelerators of the machine are missing.
    """

    model: PlannedModel
    context_length: int
    batch_size: int
    max_context: int
    max_batch: int
    what_if: tuple[Case, ...]
    run: WayToRun
    notes: tuple[str, ...] = ()


def margin(placement: Placement) -> int:
    """Bytes that are left on the device that has least; negative where one is given too much."""
    left = [
        u.budget - u.total
        for u in placement.devices
        # one that may hold nothing is given too much where it has to run something
        if u.budget is not None and (u.total > u.used or (u.budget and is_accelerator(u.device)))
    ]
    return min(left, default=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowed:
    """Bytes that a placement may leave off the devices that compute, and those among them on disk."""

    offloaded: int = 0
    on_disk: int = 0

    @classmethod
    def by(cls, placement: Placement) -> Self:
        """As many as ``placement`` does."""
        return cls(offloaded=placement.offloaded, on_disk=placement.on_disk)

    def or_by(self, placement: Placement) -> Self:
        """As many as this or ``placement``."""
        return replace(
            self,
            offloaded=max(self.offloaded, placement.offloaded),
            on_disk=max(self.on_disk, placement.on_disk),
        )


def spare(placement: Placement, allowed: Allowed) -> int:
    """The `margin`, or what is missing where more bytes are offloaded than are ``allowed``."""
    left = min(allowed.offloaded - placement.offloaded, allowed.on_disk - placement.on_disk)
    return left if left < 0 else margin(placement)


Left = Callable[[int], int]
"""Bytes left for a number, negative where some are missing; more of it always needs more."""


def largest(left: Left, most: int) -> int:
    """The largest number from 1 to ``most`` with nothing missing, to a part in a thousand below; 0 for none.

    Args:
        left: what a number leaves.
    """
    at, value = 1, left(1)
    if value < 0:
        return 0
    over, missing = min(most, 1024), 0
    while (missing := left(over)) >= 0:
        if over == most:
            return most
        at, value, over = over, missing, min(most, 4 * over)
    turn = 0
    while over - at > max(1, at // 1000):
        # where a line between both ends says, which is a little too low for what grows faster; then the middle
        line = at + (over - at) * value // (value - missing)
        guess = min(max((line, (at + over) // 2)[turn % 2], at + 1), over - 1)
        found = left(guess)
        if found >= 0:
            at, value = guess, found
        else:
            over, missing = guess, found
        turn += 1
    return at


def may_offload(question: Question) -> Allowed:
    """What may be offloaded for a workload to fit.

    None where the weights alone need none offloaded, else as many as the shortest text needs; and none on a disk that
    the machine does not have.
    """
    if not place(question.tree, question.budgets, Strategy.OPTIMAL).offloaded:
        return Allowed()
    least = question.footprints.least_context(question.workload)
    shortest = replace(question.workload, context_length=least, batch_size=1)
    allowed = Allowed.by(question.best(shortest))
    return replace(allowed, on_disk=0) if question.lacks_disk else allowed


def largest_context(
    question: Question, device_map: dict[str, Device] | None, *, most: int | None = None, like: Placement | None = None
) -> int:
    """Tokens of the longest sequences that fit: on the given map, or on the best one for each length.

    Args:
        like: what this offloads may be offloaded in any case.
    """
    most = most or question.made_for or MOST_TOKENS
    less = question.footprints.least_context(question.workload) - 1
    allowed = Allowed() if device_map is not None else may_offload(question)
    if like is not None:
        allowed = allowed.or_by(like)

    def left(context: int) -> int:
        workload = with_context(question.workload, context + less)
        if device_map is not None:
            return margin(question.on(device_map, workload))
        return spare(question.best(workload, allowed.offloaded), allowed)

    if less >= most and question.workload.images is not None:
        return 0
    found = largest(left, max(1, most - less))
    return found + less if found else 0


def largest_batch(question: Question) -> int:
    """The most sequences at once for which there is a placement that offloads no more than it may."""
    allowed = may_offload(question)

    def left(batch: int, *, scaled: bool) -> int:
        workload = replace(question.workload, batch_size=batch)
        return spare(question.best(workload, allowed.offloaded, scaled=scaled), allowed)

    # what is on a line is not below what is traced: the last steps are traced
    near = largest(partial(left, scaled=True), MOST_SEQUENCES)
    return nearest(lambda batch: left(batch, scaled=False) >= 0, near, MOST_SEQUENCES)


def nearest(fits: Callable[[int], bool], near: int, most: int) -> int:
    """The largest number from 0 to ``most`` that fits, looked for from ``near`` on; 0 always does.

    Args:
        fits: whether a number does; none above one that does not.
    """
    low, high, step = 0, most + 1, 1
    at = max(1, near)
    while low < at < high:
        if fits(at):
            low, at = at, min(at + step, most)
        else:
            high, at = at, max(at - step, 1)
        step *= 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def longest_contexts(question: Question, placement: Placement) -> MostTokens:
    """Tokens that fit on this map, and on the best one."""
    here = largest_context(question, dict(placement.device_map))
    best = largest_context(question, None, like=placement)
    return MostTokens(this_map=here, optimal=max(here, best), by_default=_by_default(question, placement, here))


_TRIES = 8
"""Contexts that are tried to find one that leaves room for gaps."""


def _by_default(question: Question, placement: Placement, tokens: int) -> int | None:
    """About the longest context on this map that also has room for the gaps that torch's allocator leaves by default.

    It is ``tokens``, the longest without them, where that has the room too, and else at most a part in a hundred below
    the longest, where the tries suffice for that; None where none was found.
    """
    least = question.footprints.least_context(question.workload)
    fits, left, at, over = 0, 0, tokens, tokens + 1
    for _ in range(_TRIES if tokens else 0):
        uses = question.on(dict(placement.device_map), with_context(question.workload, at)).devices
        fullest = max((u for u in uses if u.budget is not None), key=_missing, default=None)
        missing = 0 if fullest is None else _missing(fullest)
        if fullest is None or missing <= 0:
            fits, left = at, -missing
        else:
            over = at
        if over - fits <= max(1, fits // 100):
            break
        if fits and missing > 0:
            guess = fits + (over - fits) * left // (left + missing)
        elif fits:
            guess = (fits + over) // 2
        else:
            grows = fullest.state + fullest.activations + fullest.unallocated if fullest is not None else 1
            guess = at * max(0, grows - missing) // grows
        at = min(max(guess, fits + 1, least), over - 1)
        if at < least:
            break
    return fits or (None if tokens else 0)


def _missing(use: DeviceUse) -> int:
    return use.with_gaps - (use.budget or 0)


def room(question: Question, placement: Placement) -> Room | None:
    """What is left on the devices that compute; None where there is none, or too much is given to one."""
    device_map = dict(placement.device_map)
    left = {
        use.device: use.budget - use.used
        for use in placement.devices
        if use.budget and (is_accelerator(use.device) or use.device == main_of(device_map))
    }
    if not left or min(left.values()) < 0:
        return None
    found = Room(free=sum(left.values()), made_for=question.made_for)
    footprint = question.footprints.of_prefill(question.workload)
    if footprint is None:
        return found
    whole = needs(question.tree, device_map, footprint)
    beside = needs(question.tree, device_map, footprint, weights=False)
    names = [block.name for block in footprint.blocks]
    largest_brought = max(brought_weights(question.tree, device_map, names).values(), default=0)
    tokens = {}
    for device, need in beside.items():
        if device in left and need.state:
            # offloaded weights, which no text makes larger, are brought when they are used
            brought = whole[device].activations - need.activations
            free = left[device] - question.overhead.get(device, 0)
            has_room = device != main_of(device_map) or free >= largest_brought
            line, squares = growth(need.state, need.activations, unallocated(footprint, device), footprint.square)
            factor = times(free - brought, line, squares) if has_room else 0
            tokens[device] = factor * footprint.workload.context_length
    if not tokens:
        return found
    first = min(tokens, key=lambda device: tokens[device])
    return replace(found, tokens=tokens[first], full=first if len(left) > 1 else None)


def growth(state: int, activations: int, gaps: int, square: int) -> tuple[int, int]:
    """Bytes that grow with the text, and with its square; gaps are taken to grow as the activations that leave them."""
    with_square = gaps * square // activations if activations else 0
    return state + activations - square + gaps - with_square, square + with_square


def times(room: int, line: int, square: int) -> float:
    """How many times the text can be as long, when ``line`` bytes grow with it and ``square`` bytes with its square."""
    if room <= 0:
        return 0
    return 2 * room / (line + math.sqrt(line * line + 4 * square * room))


def what_if(question: Question) -> tuple[Case, ...]:
    """Which contexts and batch sizes fit on the best placement."""
    allowed = may_offload(question)

    def fullest(context: int, batch: int) -> tuple[float, bool] | None:
        workload = replace(question.workload, context_length=context, batch_size=batch)
        placement = question.best(workload, allowed.offloaded, scaled=True)
        if any(use.budget is not None and is_close(use, use.budget) for use in placement.devices):
            placement = question.best(workload, allowed.offloaded)
        fits = spare(placement, allowed) >= 0
        return (float(placement.fullest), not tight(placement.devices)) if fits else None

    return tuple(cases(question, fullest))


_OF_PEAK, _OF_GAPS = 500, 2
"""Parts by which a peak on a line may be below the traced one, and gaps, as a part of what runs beside the weights."""


def is_close(load: Load, budget: int) -> bool:
    """Whether a batch that was not traced fits, and one that takes what it may really take would not."""
    left, by_default = budget - load.total, budget - load.with_gaps
    return 0 <= left < load.total // _OF_PEAK or 0 <= by_default < (load.state + load.activations) // _OF_GAPS


def cases(question: Question, fullest: Callable[[int, int], tuple[float, bool] | None]) -> Iterator[Case]:
    """Each context with each batch size.

    Args:
        fullest: of both, how full the fullest device is, and whether there is room for gaps, too; None where they do
            not fit.
    """
    too_many: float = math.inf
    for context in contexts(question):
        for batch in BATCHES:
            # longer texts and more of them need more: where some do not fit, more do not, and are not placed
            found = fullest(context, batch) if batch < too_many else None
            too_many = batch if found is None and batch < too_many else too_many
            full, by_default = found or (None, False)
            yield Case(context_length=context, batch_size=batch, fullest=full, fits_by_default=by_default)


def contexts(question: Question) -> list[int]:
    """Those that are tried with each batch size: powers of two, and what the model is made for."""
    limit = question.made_for or 2**17
    least = question.footprints.least_context(question.workload)
    return ([c for c in (2**n for n in range(10, 23)) if least <= c < limit] + [max(least, limit)])[-8:]


def with_context(workload: Workload, context: int) -> Workload:
    """The same with other tokens in all."""
    return replace(workload, context_length=context)
