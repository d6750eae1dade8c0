"""The longest context that a plan says fits, under a limit: does it run, and does 3 % more not?

A plan has two answers: by default, with room for what torch's allocator reserves beside what it gives out, and with
expandable segments, with which it counts no such gaps. Each is tried as it is meant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

from devctl.loading.run.out_of_memory import is_out_of_memory, release
from devctl.placement.plan import MostTokens
from devctl.planning.capacity import longest_contexts
from tests.boards import models
from tests.boards.asking import Ask
from tests.boards.cards import NoSegmentsError, devctl_device
from tests.boards.measuring import Job, Loaded, Make, load, open_subject, run
from tests.boards.records import EDGE, MIB, Cell, Row, Step, Verdict, failed, holds, skipped

MODELS = {"llama": "LlamaForCausalLM", "mixtral": "MixtralForCausalLM", "gemma3": "Gemma3ForCausalLM"}
BESIDE = 768 * MIB
"""What the limit leaves beside the weights."""

POSITIONS = 131_072
FINE = 0.002
"""How near to the edge it is looked for, as a share."""

_LOWEST = 0.5
"""Below this share of what is planned nobody looks for the edge."""


def bisect(runs: Callable[[int], bool], planned: int, known: dict[int, bool]) -> int | None:
    """The most tokens that run, to a part in five hundred; None where not even half of what is planned does.

    Args:
        known: what was tried already, by tokens.
    """
    low = max((tokens for tokens, ran in known.items() if ran), default=0)
    high = min((tokens for tokens, ran in known.items() if not ran and tokens > low), default=0)
    step = 0.06
    while not high:  # all ran so far
        at = int(low * (1 + step))
        if at >= POSITIONS:
            return low
        low, high = (at, 0) if runs(at) else (low, at)
        step *= 2
    step, lowest = 0.06, int(planned * _LOWEST)
    while not low:
        if high <= lowest:
            return None
        at = max(lowest, int(high * (1 - step)))
        low, high = (at, high) if runs(at) else (0, at)
        step *= 2
    while high - low > max(1, int(planned * FINE)):
        middle = (low + high) // 2
        low, high = (middle, high) if runs(middle) else (low, middle)
    return low


BY_DEFAULT, EXPANDABLE = "by default", "expandable segments"


def answer(most: MostTokens, *, expandable: bool) -> int | None:
    """What a plan says of one way to allocate; None where it does not know."""
    return most.this_map if expandable else most.by_default


def rows(title: str, planned: int, measured: int | None, *, exact: bool, more: bool) -> Iterator[Row]:
    """What became of the answer.

    Args:
        measured: the most tokens that ran.
        exact: the answer ran.
        more: 3 % more ran.
    """
    yield holds(title, "the longest context runs", exact, target="edge")
    yield holds(title, f"{EDGE:.0%} more does not", not more, target="edge")
    if measured is None:
        yield failed(title, "the edge", f"not even {_LOWEST:.0%} of {planned} tokens run")
        return
    error = planned / measured - 1
    yield Row(
        subject=title,
        claim="the edge",
        verdict=Verdict.MET if -EDGE <= error <= 0 else Verdict.MISSED,
        predicted=planned,
        measured=measured,
        unit="tokens",
        target="edge",
        error=error,
        why="under a limit of what the process may reserve",
    )


def edge(
    ask: Ask, name: str, make: Make, *, expandable: bool, dtype: str = "bfloat16", beside: int = BESIDE
) -> Iterator[Row]:
    """One model: plan its longest context under a limit, run it, run 3 % more, and look for where it ends."""
    card, how = ask.card, EXPANDABLE if expandable else BY_DEFAULT
    subject = open_subject(name, ask.folder / f"edge-{name}", make, dtype)
    with ExitStack() as stack:
        try:
            stack.enter_context(card.segments(expandable=expandable))
        except NoSegmentsError as error:
            yield skipped(f"{name}, {dtype}, {how}", "the edge", error.message)
            return
        loaded = load(subject, card)
        limit = loaded.weights + beside
        title = f"{name}, {dtype}, {limit // MIB} MiB, {how}"
        planned = _planned(loaded, limit, expandable=expandable)
        if planned is None or planned < 64:
            said = "none that leaves room for gaps" if planned is None else f"only {planned} tokens"
            yield failed(title, "the edge", f"the plan has {said}")
            return
        known: dict[int, bool] = {}

        def runs(tokens: int) -> bool:
            if tokens not in known:
                known[tokens] = _runs(loaded, tokens)
            return known[tokens]

        with card.limited(limit + loaded.kept):
            exact, more = runs(planned), runs(int(planned * (1 + EDGE)) + 1)
            measured = bisect(runs, planned, known)
        yield from rows(title, planned, measured, exact=exact, more=more)


def _planned(loaded: Loaded, limit: int, *, expandable: bool) -> int | None:
    """Tokens that a plan says fit where tensors may have ``limit`` bytes, beside what libraries hold of torch's."""
    subject, card = loaded.subject, loaded.card
    device, job = devctl_device(card), Job(context=1024)
    question = replace(
        subject.question(card, job, room=limit + loaded.kept), overhead={device: loaded.kept}, made_for=POSITIONS
    )
    placement = question.on({"": device}, question.workload)
    return answer(longest_contexts(question, placement), expandable=expandable)


def _runs(loaded: Loaded, tokens: int) -> bool:
    try:
        run(loaded, Job(context=tokens))
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        release(error)
        return False
    return True


def _cells(name: str, ask: Ask) -> Iterator[Cell]:
    make = next(models.small(f)[MODELS[name]] for f, of_family in models.FAMILIES.items() if MODELS[name] in of_family)
    longer = partial(make, max_position_embeddings=POSITIONS)
    for expandable, how in ((False, BY_DEFAULT), (True, EXPANDABLE)):
        yield Cell(subject=f"{name}, {how}", work=partial(edge, ask, name, longer, expandable=expandable))


STEPS = tuple(
    Step(
        name=f"edge/{name}",
        what=f"{class_name} under a limit: the longest context runs, {EDGE:.0%} more does not; {BY_DEFAULT}, and with "
        f"{EXPANDABLE}",
        seconds=100,
        rank=2 if name == "llama" else 5,
        cells=partial(_cells, name),
    )
    for name, class_name in MODELS.items()
)
