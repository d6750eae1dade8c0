"""How much of a workload fits in stages over hosts: the longest context, the most sequences, and which of both."""

from __future__ import annotations

from dataclasses import replace

from devctl.models.footprint import Footprint
from devctl.placement.parallel.places import devices_of
from devctl.placement.parallel.stages import Cut, Found, find_stages, fits_within
from devctl.placement.placement import Load
from devctl.placement.plan import Case, MostTokens, Refusal, Room
from devctl.planning import capacity
from devctl.planning.hosts_question import HostsQuestion
from devctl.planning.request import MOST_TOKENS


def longest(asked: HostsQuestion, cut: Cut) -> MostTokens:
    """Tokens of the longest sequences in these stages, and in the best ones for each length."""
    question = asked.question

    def left(context: int) -> int:
        of = asked.costs(question.footprints.of(capacity.with_context(question.workload, context)))
        return min(board.budget - of.most(first, end) - board.overhead for board, first, end in cut)

    here, best = _most_tokens(asked, left), longest_context(asked)
    return MostTokens(this_map=here, optimal=max(here, best))


def longest_context(asked: HostsQuestion, most: int | None = None) -> int:
    """Tokens of the longest sequences, no more than ``most``, for which there are stages; 0 where none fit."""
    question = asked.question

    def left(context: int) -> int:
        return 1 if _fit(asked, question.footprints.of(capacity.with_context(question.workload, context))) else -1

    return _most_tokens(asked, left, most)


def _most_tokens(asked: HostsQuestion, left: capacity.Left, most: int | None = None) -> int:
    """The most tokens, no more than ``most``, for which ``left`` says of no byte that it is missing."""
    question = asked.question
    most = most or question.made_for or MOST_TOKENS
    less = question.footprints.least_context(question.workload) - 1
    if less >= most and question.workload.images is not None:
        return 0
    found = capacity.largest(lambda tokens: left(tokens + less), max(1, most - less))
    return found + less if found else 0


def largest_batch(asked: HostsQuestion) -> int:
    """The most sequences at once for which there are stages; 0 where not one fits."""
    question = asked.question

    def fits(batch: int) -> bool:
        return _fit(asked, question.footprints.of(replace(question.workload, batch_size=batch)))

    def near(batch: int) -> int:
        return 1 if _fit(asked, question.footprints.scaled(replace(question.workload, batch_size=batch))) else -1

    # what is on a line is not below what is traced: the last steps are traced
    return capacity.nearest(fits, capacity.largest(near, capacity.MOST_SEQUENCES), capacity.MOST_SEQUENCES)


def filled(asked: HostsQuestion) -> tuple[HostsQuestion, tuple[str, ...], Refusal | None]:
    """The question with the most sequences of its context that fit; where not one does, the longest that does."""
    wanted = asked.question.workload.context_length
    batch = largest_batch(asked)
    if batch:
        most = "at least " if batch == capacity.MOST_SEQUENCES else ""
        each = "sequence fits" if batch == 1 else "sequences fit"
        return _of(asked, wanted, batch), (f"{most}{batch} {each} at once, of {wanted} tokens",), None
    context = longest_context(_of(asked, wanted, 1), wanted)
    if not context:
        refusal = Refusal(f"not one sequence fits, of {wanted} tokens or fewer", hint="more hosts may help")
        return _of(asked, wanted, 1), (), refusal
    told = f"not one sequence of {wanted} tokens fits: planned for {context}, the longest that does"
    return _of(asked, context, 1), (told,), None


def what_if(asked: HostsQuestion) -> tuple[Case, ...]:
    """Which contexts and batch sizes fit in the best stages for each."""
    question = asked.question

    def staged(footprint: Footprint) -> tuple[Found, list[tuple[int, Load]]]:
        costs = asked.costs(footprint)
        found = find_stages(costs, asked.hosts)
        cut = found.cut if found.fullest <= 1 else ()
        return found, [(board.budget, costs.load(first, end, board.overhead)) for board, first, end in cut]

    def fullest(context: int, batch: int) -> tuple[float, bool] | None:
        workload = replace(question.workload, context_length=context, batch_size=batch)
        found, loads = staged(question.footprints.scaled(workload))
        if any(capacity.is_close(load, budget) for budget, load in loads):
            found, loads = staged(question.footprints.of(workload))
        if found.fullest > 1:
            return None
        return float(found.fullest), all(load.with_gaps <= budget for budget, load in loads)

    return tuple(capacity.cases(question, fullest))


def room(asked: HostsQuestion, cut: Cut) -> Room:
    """What the stages leave, and about how long a text fits beside the weights."""
    plain = asked.rank_costs(None)
    free = sum(
        budget - costs.most(first, end)
        for board, first, end in cut
        for budget, costs in zip(board.budgets, plain, strict=True)
    )
    found = Room(free=free, made_for=asked.question.made_for)
    footprint = asked.question.footprints.of_prefill(asked.question.workload)
    if footprint is None:
        return found
    costs = asked.costs(footprint)
    tokens = []
    for board, first, end in cut:
        load = costs.load(first, end)
        if load.state:
            left = board.budget - plain[0].most(first, end) - board.overhead
            line, square = capacity.growth(load.state, load.activations, load.unallocated, footprint.square)
            tokens.append((capacity.times(left, line, square) * footprint.workload.context_length, board))
    if not tokens:
        return found
    least, board = min(tokens, key=lambda each: each[0])
    return replace(found, tokens=least, full=devices_of(board)[0] if len(cut) > 1 else None)


def _fit(asked: HostsQuestion, footprint: Footprint) -> bool:
    return fits_within(asked.costs(footprint), asked.hosts)


def _of(asked: HostsQuestion, context: int, batch: int) -> HostsQuestion:
    """The same question of another text, as if it had been asked so."""
    question = asked.question
    return replace(
        asked,
        question=replace(question, workload=replace(question.workload, context_length=context, batch_size=batch)),
        workload=replace(asked.workload, context_length=context, batch_size=batch),
    )
