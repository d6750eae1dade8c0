"""The longest context that a plan says fits, under a limit: does it run, and does 3 % more not?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

from devctl.loading.run.out_of_memory import is_out_of_memory, release
from devctl.planning.capacity import largest_context
from tests.boards import models
from tests.boards.asking import Ask
from tests.boards.cards import devctl_device
from tests.boards.measuring import Job, Loaded, Make, load, open_subject, run
from tests.boards.records import EDGE, MIB, Cell, Row, Step, Verdict, failed, holds

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


def edge(ask: Ask, name: str, make: Make, *, dtype: str = "bfloat16", beside: int = BESIDE) -> Iterator[Row]:
    """One model: plan its longest context under a limit, run it, run 3 % more, and look for where it ends."""
    card = ask.card
    subject = open_subject(name, ask.folder / f"edge-{name}", make, dtype)
    loaded = load(subject, card)
    limit = loaded.weights + beside
    question = replace(
        subject.question(card, Job(context=1024), room=limit + loaded.base), overhead={devctl_device(card): loaded.base}
    )
    planned = largest_context(question, {"": devctl_device(card)}, most=POSITIONS)
    title = f"{name}, {dtype}, {limit // MIB} MiB"
    if planned < 64:
        yield failed(title, "the edge", f"only {planned} tokens are planned")
        return
    known: dict[int, bool] = {}
    with card.limited(limit + loaded.base):

        def runs(tokens: int) -> bool:
            if tokens not in known:
                known[tokens] = _runs(loaded, tokens)
            return known[tokens]

        exact, more = runs(planned), runs(int(planned * (1 + EDGE)) + 1)
        measured = bisect(runs, planned, known)
    yield from rows(title, planned, measured, exact=exact, more=more)


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
    yield Cell(subject=name, work=partial(edge, ask, name, longer))


STEPS = tuple(
    Step(
        name=f"edge/{name}",
        what=f"{class_name} under a limit: the longest context runs, {EDGE:.0%} more does not",
        seconds=60,
        rank=2 if name == "llama" else 5,
        cells=partial(_cells, name),
    )
    for name, class_name in MODELS.items()
)
