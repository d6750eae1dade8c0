"""Other ways to run a workload that does not fit, each traced and placed: none is guessed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace

from devctl.errors import UntracedError, UsageError
from devctl.models import attention
from devctl.models.footprint import peak_bytes
from devctl.placement.budget import accelerators_of
from devctl.placement.counted import common_need
from devctl.placement.runtime import Runtime
from devctl.planning.question import Question, require_flash
from devctl.units import format_need

Holds = Callable[[Runtime], bool]
"""Whether there is a placement that is what was asked for, with this beside the weights."""

OPTIMAL = ", by --strategy optimal"
"""How a way that fits is placed."""


def need(runtime: Runtime) -> int:
    """Bytes that each device that computes holds, whatever else it does, while a block executes."""
    footprint = runtime.footprint
    return common_need(footprint) + footprint.rounded + max(runtime.overhead.values(), default=0)


def in_chunks(question: Question, runtime: Runtime, holds: Holds, by: str = OPTIMAL) -> Iterator[str]:
    """The longest chunks, of a power of two tokens, in which the prompt can be read for it to fit.

    Where none do, what the shortest leave. Nothing where chunks change little, or the model can't read in any.
    """
    workload = runtime.footprint.workload
    prompt = workload.context_length - workload.new_tokens
    if workload.prefill_chunk is not None and workload.prefill_chunk <= _SHORTEST:
        return
    sizes = [2**n for n in range(21) if _SHORTEST <= 2**n < min(prompt, workload.prefill_chunk or prompt)]
    if not sizes or (shortest := _in_chunks_of(question, runtime, sizes[0])) is None:
        return
    if need(shortest) > _MUCH * need(runtime):
        return
    if not holds(shortest):
        yield f"--prefill-chunk-size {sizes[0]} needs {_instead(shortest, runtime)}"
        return
    low, high = 0, len(sizes)  # the first fits; what is shorter fits where what is longer does
    best = shortest
    while high - low > 1:
        middle = (low + high) // 2
        found = _in_chunks_of(question, runtime, sizes[middle])
        if found is not None and holds(found):
            low, best = middle, found
        else:
            high = middle
    yield f"--prefill-chunk-size {sizes[low]} fits{by}: {_instead(best, runtime)}"


_SHORTEST = 64
"""Tokens of the shortest chunk that is tried: it is slow to read a prompt in shorter ones."""
_MUCH = 0.9
"""The share of what is needed now that is still worth being told."""


def _in_chunks_of(question: Question, runtime: Runtime, tokens: int) -> Runtime | None:
    try:
        found = question.runtime(replace(runtime.footprint.workload, prefill_chunk=tokens))
    except UntracedError:
        return None
    return found if found.footprint.workload.prefill_chunk is not None else None


def other_attention(question: Question, runtime: Runtime, holds: Holds, by: str = OPTIMAL) -> Iterator[str]:
    """The attention of the class that needs least, where it computes all scores now; nothing where that is no less."""
    now = runtime.footprint.workload.attention or question.tree.attention
    if now != attention.EAGER:
        return
    found = [(name, other) for name in _without_scores(question) if (other := _runs(question, runtime, name))]
    if not found:
        return
    name, best = min(found, key=lambda each: peak_bytes(each[1].footprint))
    if peak_bytes(best.footprint) >= peak_bytes(runtime.footprint):
        return
    does = f"fits{by}:" if holds(best) else "needs"
    yield f"eager keeps scores of tokens²: --attn-implementation {name} {does} {_instead(best, runtime)}"


def _without_scores(question: Question) -> Iterator[str]:
    """What the class has besides eager: one flash attention stands for all, as they hold the same."""
    flash = [name for name in question.tree.attentions if attention.is_flash(name)][:1]
    on_gpu = bool(accelerators_of(question.budgets))
    for name in question.tree.attentions:
        if name == attention.EAGER or (attention.is_flash(name) and name not in flash):
            continue
        with suppress(UsageError):  # its kernels do not run here
            if attention.is_flash(name):
                require_flash(name, question.tree, on_gpu=on_gpu)
            yield name


def _runs(question: Question, runtime: Runtime, name: str) -> Runtime | None:
    try:
        return question.runtime(replace(runtime.footprint.workload, attention=name))
    except UntracedError:
        return None


def _instead(other: Runtime, now: Runtime) -> str:
    return f"{format_need(need(other))} on each device beside weights and cache instead of {format_need(need(now))}"
