"""The run that a plan document is for, as far as it says: what a load follows, and what it does otherwise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from devctl.errors import UsageError
from devctl.models.attention import checked
from devctl.models.decoding import Settings, parse_settings, words
from devctl.models.images import Images, images_of_document

_Found = TypeVar("_Found")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """How a model is run; None where that is not said.

    Attributes:
        context_length: tokens of a sequence at its end.
        new_tokens: how many of those are generated.
        batch_size: sequences at once.
        kv_dtype: what keys and values are kept in; None is the model's own.
        attention: how the model attends, as transformers calls it.
        padded: whether sequences of a batch are of mixed lengths; of one sequence it says nothing.
        generation: what generate is told.
        prefill_chunk: tokens of the prompt that are read at once; None is all.
        images: of each sequence; None is what the model's config has.
    """

    context_length: int | None = None
    new_tokens: int | None = None
    batch_size: int | None = None
    kv_dtype: str | None = None
    attention: str | None = None
    padded: bool | None = None
    generation: Settings | None = None
    prefill_chunk: int | None = None
    images: Images | None = field(default=None)


def parse_run(workload: Any, origin: str) -> Run:
    """The run that the "workload" of a plan document is; one of which nothing is said, where there is none.

    Raises:
        UsageError: it is malformed, naming what of it.
    """
    said = workload if isinstance(workload, dict) else {}

    def get(key: str, parse: Callable[[Any], _Found]) -> _Found | None:
        value = said.get(key)
        if value is None:
            return None
        try:
            return parse(value)
        except (TypeError, ValueError):
            raise UsageError(f'{origin}: "{key}" is {str(value)[:80]!r}, which is none') from None

    attention = get("attention", _text)
    padded, batch_size = get("padded", _flag), get("batch_size", _count)
    return Run(
        context_length=get("context_length", _count),
        new_tokens=get("new_tokens", _number),
        batch_size=batch_size,
        kv_dtype=get("kv_dtype", _text),
        attention=None if attention is None else checked(attention, f"{origin}: attention"),
        padded=None if batch_size is None or batch_size < 2 else padded,
        generation=get("generation", parse_settings),
        prefill_chunk=get("prefill_chunk", _count),
        images=get("images", images_of_document),
    )


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("no text")
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("no flag")
    return value


def _number(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**31:
        raise ValueError("no number")
    return value


def _count(value: Any) -> int:
    if not _number(value):
        raise ValueError("none")
    return int(value)


def not_followed(planned: Run, ran: Run) -> tuple[str, ...]:
    """One note on all in which what is ``ran`` is not what is ``planned``; none where it is."""
    parts = list(_otherwise(planned, ran))
    return (f"what is run is not the whole workload of the plan: {'; '.join(parts)}",) if parts else ()


def _otherwise(planned: Run, ran: Run) -> Iterator[str]:
    if planned.context_length is not None and ran.context_length is not None:
        here, there = ((run.context_length, run.new_tokens or 0) for run in (ran, planned))
        if here != there:
            yield f"{here[0]:,} tokens with {here[1]:,} new ones (in the plan {there[0]:,} with {there[1]:,})"
    if planned.batch_size is not None and planned.batch_size != ran.batch_size:
        yield f"a batch of {ran.batch_size} ({planned.batch_size})"
    if planned.kv_dtype is not None:
        yield f"keys and values in the model's dtype ({planned.kv_dtype})"
    if planned.attention not in (None, ran.attention):
        yield f"attention {ran.attention} ({planned.attention})"
    if planned.padded is not None and ran.padded is not None and planned.padded != ran.padded:
        padded, unpadded = "padded", "unpadded"
        yield f"{padded if ran.padded else unpadded} ({padded if planned.padded else unpadded})"
    if planned.generation is not None and ran.generation is not None and planned.generation != ran.generation:
        yield f"{words(ran.generation)} ({words(planned.generation)})"
    if planned.prefill_chunk is not None and planned.prefill_chunk != ran.prefill_chunk:
        here_read = "the prompt whole" if ran.prefill_chunk is None else f"the prompt in chunks of {ran.prefill_chunk}"
        yield f"{here_read} (in chunks of {planned.prefill_chunk})"
    if planned.images is not None and str(planned.images) != str(ran.images):
        yield f"{'other images' if ran.images is None else f'images {ran.images}'} ({planned.images})"
