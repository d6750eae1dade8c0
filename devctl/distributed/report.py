"""What a run over several ranks found, as values and as JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from devctl.as_json import to_json_values

SCHEMA = 1
KIND = "devctl.distributed_load"


class Compared(StrEnum):
    """What came of the comparison with the same model in one process."""

    EQUAL = "equal"
    DIFFERENT = "different"
    NOT_RUN = "not_run"
    """Nothing is proven: that all ranks agree says nothing, as the last one sends its logits to all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankRow:
    """A rank.

    Attributes:
        planned: its accelerator in the plan.
        device: what it ran on.
        layers: (first, one past the last).
        used: bytes of weights and buffers that the plan has for it.
        measured: those that it holds.
        total: all bytes that the plan has for it.
        peak: the most that torch's allocator gave out; None where nobody counts.
        tensors: how many it holds.
        load_seconds: of loading.
        seconds: of the smoke inference.
        ids: tokens that were made, of each sequence.
    """

    rank: int
    host: str
    stage: int
    planned: str
    device: str
    layers: tuple[int, int]
    used: int
    measured: int
    total: int
    peak: int | None
    tensors: int
    load_seconds: float
    seconds: float
    ids: tuple[tuple[int, ...], ...]

    @classmethod
    def parse(cls, data: dict[str, Any]) -> RankRow:
        """The row that `to_json_values` made."""
        ids = tuple(tuple(row) for row in data["ids"])
        first, end = data["layers"]
        return cls(**{**data, "layers": (first, end), "ids": ids})


@dataclass(frozen=True, slots=True, kw_only=True)
class DistributedReport:
    """All of them.

    Attributes:
        tensor_parallel: ranks that share each layer.
        inputs: where the prompt came from: "tokenizer" or "random".
        prompt: tokens of each sequence.
        reference: the comparison with the same model in one process.
        reference_said: the outcome in a few words.
        weights: files whose digests were compared among hosts; None where that was not asked for.
        text: of the first sequence; None without a tokenizer.
        ok: whether everything is proven.
    """

    model: str
    model_class: str
    dtype: str
    backend: str
    tensor_parallel: int
    batch_size: int
    inputs: str
    prompt: int
    ranks: tuple[RankRow, ...]
    reference: Compared
    reference_said: str
    weights: int | None
    text: str | None
    ok: bool
    notes: tuple[str, ...] = ()

    def to_document(self) -> dict[str, Any]:
        """The same as JSON values."""
        return {"schema": SCHEMA, "kind": KIND, **to_json_values(self)}


def parse_report(text: str) -> tuple[dict[str, Any] | None, tuple[str, ...]]:
    """The report in what rank 0 wrote, and the lines beside it, as a login's banners are; None where there is none."""
    decoder, at = json.JSONDecoder(), 0
    for line in text.splitlines(keepends=True):
        if line.startswith("{"):
            try:
                found, end = decoder.raw_decode(text, at)
            except (ValueError, RecursionError):
                found, end = None, at
            if isinstance(found, dict) and (found.get("schema"), found.get("kind")) == (SCHEMA, KIND):
                return found, _lines(text[:at] + text[end:])
        at += len(line)
    return None, _lines(text)


def _lines(text: str) -> tuple[str, ...]:
    return tuple(line.rstrip() for line in text.splitlines() if line.strip())
