"""What a plan counts beside the weights, and how much of a workload fits."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

from devctl.cli.footprints import Footprints, longest
from devctl.cli.show import plan as show_plan
from devctl.devices import Device, DeviceType
from devctl.errors import RefusedError, UsageError
from devctl.models.footprint import Kernels, Workload
from devctl.models.tree import ModuleTree
from devctl.placement import Placement, Strategy, place
from devctl.placement.budget import Budgets, is_accelerator
from devctl.placement.placement import make_placement
from devctl.placement.runtime import Runtime, brought_weights, main_of, needs
from devctl.units import format_bytes, parse_size

if TYPE_CHECKING:
    from devctl.placement.document import PlannedModel

OVERHEAD: Mapping[DeviceType, int] = {DeviceType.GPU: 512 * 2**20, DeviceType.XPU: 512 * 2**20}
"""What is taken for the context of CUDA, HIP or Level Zero and for the workspaces of their libraries.

A context is some 250 to 600 MB, by the board, the driver and the kernels that are loaded; cuBLAS adds a workspace of 8
MiB, on Hopper 32 MiB (``CUBLAS_WORKSPACE_CONFIG``). `--overhead` says better where it is known.
"""

REFERENCE = 4096
"""Tokens at which what a token takes is looked at, where none are asked for."""

BATCHES = (1, 2, 4, 8, 16, 32, 64)
"""The batch sizes of ``--what-if``."""

_MOST_BATCH = 4096
"""The most sequences that ``--target-context`` looks for."""

_LONGEST = 2**22
"""Tokens, where the config does not say how many the model is made for."""


def libraries(given: str | None, budgets: Budgets) -> dict[Device, int]:
    """What each accelerator's libraries take: what ``--overhead`` says, or what is usual.

    Raises:
        UsageError: it is no size.
    """
    try:
        size = None if given is None else parse_size(given)
    except ValueError as error:
        raise UsageError(f"--overhead: {error}") from None
    return {
        device: OVERHEAD.get(device.type, 0) if size is None else size
        for device, _ in budgets.devices
        if is_accelerator(device)
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is planned, all but the workload."""

    tree: ModuleTree
    budgets: Budgets
    overhead: Mapping[Device, int]
    footprints: Footprints
    workload: Workload

    def runtime(self, workload: Workload) -> Runtime:
        """What ``workload`` adds to the weights."""
        return Runtime(footprint=self.footprints.of(workload), overhead=self.overhead)

    def placed(self, strategy: Strategy, workload: Workload) -> Placement:
        """The placement by ``strategy`` for ``workload``."""
        return place(self.tree, self.budgets, strategy, None, self.runtime(workload))

    def scaled(self, workload: Workload) -> Placement:
        """The best placement for ``workload``, whose batch is not traced but scaled."""
        runtime = Runtime(footprint=self.footprints.scaled(workload), overhead=self.overhead)
        return place(self.tree, self.budgets, Strategy.OPTIMAL, None, runtime)

    def on(self, device_map: dict[str, Device], workload: Workload) -> Placement:
        """The given map, with what ``workload`` adds."""
        return make_placement(self.tree, device_map, self.budgets, strategy=None, runtime=self.runtime(workload))


def question(
    tree: ModuleTree,
    budgets: Budgets,
    footprints: Footprints,
    *,
    context_length: int | None,
    batch_size: int,
    new_tokens: int | None,
    kv_dtype: str | None,
    overhead: str | None,
) -> Question:
    """What is planned, from the options.

    Raises:
        UsageError: they make no workload.
    """
    context = context_length or min(REFERENCE, longest(footprints.source) or REFERENCE)
    new = new_tokens if new_tokens is not None else min(1, context - 1)
    if context > _LONGEST:
        raise UsageError(f"{context} tokens are more than devctl counts", hint=f"it counts up to {_LONGEST}")
    made_for = longest(footprints.source)
    if made_for is not None and new >= max(made_for, context_length or 0):
        raise UsageError(f"--new-tokens {new}: the model is made for {made_for} tokens in all", hint="give fewer")
    if context <= new:
        raise UsageError(f"--new-tokens {new} leaves no prompt of --context-length {context}", hint="give fewer")
    return Question(
        tree=tree,
        budgets=budgets,
        overhead=libraries(overhead, budgets),
        footprints=footprints,
        workload=Workload(
            context_length=context,
            batch_size=batch_size,
            new_tokens=new,
            kv_dtype=None if kv_dtype is None else str(kv_dtype),
            kernels=kernels(budgets),
        ),
    )


def margin(placement: Placement) -> int:
    """Bytes that are left on the device that has least; negative where one is given too much."""
    left = [
        u.budget - u.total for u in placement.devices if u.budget and (is_accelerator(u.device) or u.total > u.used)
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


def largest(left: Callable[[int], int], most: int) -> int:
    """The largest number from 1 to ``most`` with nothing missing, to a part in a thousand below; 0 for none.

    Args:
        left: bytes left for a number, negative where some are missing; more of it always needs more.
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

    None where the weights alone need none offloaded, else as many as the shortest text needs.
    """
    if not place(question.tree, question.budgets, Strategy.OPTIMAL).offloaded:
        return Allowed()
    shortest = replace(question.workload, context_length=question.workload.new_tokens + 1, batch_size=1)
    return Allowed.by(question.placed(Strategy.OPTIMAL, shortest))


def largest_context(
    question: Question, device_map: dict[str, Device] | None, *, most: int | None = None, like: Placement | None = None
) -> int:
    """Tokens of the longest sequences that fit: on the given map, or on the best one for each length.

    Args:
        like: what this offloads may be offloaded in any case.
    """
    most = most or longest(question.footprints.source) or _LONGEST
    new = question.workload.new_tokens
    allowed = Allowed() if device_map is not None else may_offload(question)
    if like is not None:
        allowed = allowed.or_by(like)

    def left(context: int) -> int:
        workload = _with_context(question.workload, context + new)
        if device_map is not None:
            return margin(question.on(device_map, workload))
        return spare(question.placed(Strategy.OPTIMAL, workload), allowed)

    found = largest(left, max(1, most - new))
    return found + new if found else 0


def largest_batch(question: Question) -> int:
    """The most sequences at once for which there is a placement that offloads no more than it may."""
    allowed = may_offload(question)

    def left(batch: int) -> int:
        return spare(question.scaled(replace(question.workload, batch_size=batch)), allowed)

    return largest(left, _MOST_BATCH)


def at_most(question: Question) -> tuple[Question, tuple[str, ...]]:
    """The question with the most sequences of its context that fit; where not one does, the longest that does.

    Raises:
        RefusedError: nothing fits.
    """
    wanted = question.workload.context_length
    if batch := largest_batch(question):
        found = replace(question, workload=replace(question.workload, batch_size=batch))
        most = "at least " if batch == _MOST_BATCH else ""
        each = "sequence fits" if batch == 1 else "sequences fit"
        return found, (f"{most}{batch} {each} at once, of {wanted} tokens",)
    one = replace(question, workload=replace(question.workload, batch_size=1))
    context = largest_context(one, None, most=wanted)
    if not context:
        raise RefusedError(
            f"not one sequence fits, of {wanted} tokens or fewer", hint="more memory, or --quantize, may help"
        )
    found = replace(one, workload=_with_context(one.workload, context))
    return found, (f"not one sequence of {wanted} tokens fits: planned for {context}, the longest that does",)


def most_tokens(question: Question, placement: Placement) -> dict[str, int]:
    """The answer to ``--max-context``: tokens that fit on this map, and on the best one; 0 where none do."""
    question.footprints.of(question.workload)  # kept, it tells later plans how many tokens their room holds
    here = largest_context(question, dict(placement.device_map))
    best = largest_context(question, None, like=placement)
    return {"this_map": here, "optimal": max(here, best)}


def told_tokens(question: Question, most: dict[str, int]) -> str:
    """The same as a note."""
    limit = longest(question.footprints.source)
    batch = question.workload.batch_size
    each = "" if batch == 1 else f" for each of {batch} sequences"
    here, best = (
        ("none" if not tokens else str(tokens)) + (" (all that the model is made for)" if tokens == limit else "")
        for tokens in (most["this_map"], most["optimal"])
    )
    return f"the most tokens{each}: {here} on this map, {best} by --strategy optimal"


def room(question: Question, placement: Placement) -> str:
    """How much room is left on the devices that compute, and, where that is known, about how many tokens it holds."""
    device_map = dict(placement.device_map)
    left = {
        use.device: use.budget - use.used
        for use in placement.devices
        if use.budget and (is_accelerator(use.device) or use.device == main_of(device_map))
    }
    if not left or min(left.values()) < 0:
        return ""
    text = f"room: {format_bytes(sum(left.values()))}"
    footprint = question.footprints.at_hand(question.workload)
    if footprint is None:
        return text
    whole = needs(question.tree, device_map, footprint)
    beside = needs(question.tree, device_map, footprint, weights=False)
    square = footprint.square
    names = [block.name for block in footprint.blocks]
    largest_brought = max(brought_weights(question.tree, device_map, names).values(), default=0)
    tokens = {}
    for device, need in beside.items():
        if device in left and need.state:
            # offloaded weights, which no text makes larger, are brought when they are used
            brought = whole[device].activations - need.activations
            free = left[device] - question.overhead.get(device, 0)
            has_room = device != main_of(device_map) or free >= largest_brought
            times = _times(free - brought, need.state + need.activations - square, square) if has_room else 0
            tokens[device] = times * footprint.workload.context_length
    if not tokens:
        return text
    made_for = longest(question.footprints.source)
    first = min(tokens, key=lambda device: tokens[device])
    if made_for is not None and tokens[first] >= made_for:
        return f"{text}, enough for the {made_for:,} tokens that the model is made for"
    if tokens[first] < 1:
        return f"{text}, too little to run a text"
    full = f", when {first} is full" if len(tokens) > 1 else ""
    return f"{text}, about {_round(tokens[first])} tokens{full}"


def _times(room: int, line: int, square: int) -> float:
    """How many times the text can be as long, when ``line`` bytes grow with it and ``square`` bytes with its square."""
    if room <= 0:
        return 0
    return 2 * room / (line + math.sqrt(line * line + 4 * square * room))


def _round(tokens: float) -> str:
    """Two digits of it, which is as much as is known."""
    return f"{int(float(f'{tokens:.2g}')):,}"


def what_if(model: PlannedModel, question: Question, *, json: bool) -> str:
    """Which contexts and batch sizes fit on the best placement, as a table or a document."""
    limit = longest(question.footprints.source) or 2**17
    contexts = [c for c in (2**n for n in range(10, 23)) if c < limit] + [limit]
    allowed = may_offload(question)
    found = []
    for context in contexts[-8:]:
        for batch in BATCHES:
            workload = replace(question.workload, context_length=context, batch_size=batch)
            placement = question.scaled(workload)
            found.append((context, batch, spare(placement, allowed) >= 0, float(placement.fullest)))
    return show_plan.what_if_table(model, found, json=json)


def _with_context(workload: Workload, context: int) -> Workload:
    return replace(workload, context_length=context)


def kernels(budgets: Budgets) -> Kernels:
    """Whose kernels run on these devices."""
    return Kernels.ACCELERATOR if any(is_accelerator(d) and size for d, size in budgets.devices) else Kernels.CPU
