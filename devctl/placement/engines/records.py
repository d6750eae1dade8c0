"""What an engine makes of a model and its accelerators, as records and as what a plan document says."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class Engine(StrEnum):
    """Whose memory a plan counts."""

    TRANSFORMERS = "transformers"
    VLLM = "vllm"


_TITLES = {"vllm": "vLLM", "sglang": "SGLang"}


def title_of(engine: object) -> str:
    """An engine as sentences have it, by the name that options and documents have."""
    return _TITLES.get(str(engine), str(engine))


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """What an engine is started with.

    Attributes:
        utilisation: the share of an accelerator's memory that it may take.
        batched_tokens: tokens of all sequences that one step reads, at most.
        sequences: sequences that one step runs, at most.
        expert_parallel: whether the ranks share experts out whole.
        quantised_while_loading: whether the engine makes 8 bits of the weights while it loads them.
    """

    utilisation: float
    batched_tokens: int
    sequences: int
    expert_parallel: bool = False
    quantised_while_loading: bool = False

    def to_document(self) -> dict[str, Any]:
        """What documents say of it."""
        return {
            "utilisation": self.utilisation,
            "max_num_batched_tokens": self.batched_tokens,
            "max_num_seqs": self.sequences,
            "expert_parallel": self.expert_parallel,
            "quantised_while_loading": self.quantised_while_loading,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineDevice:
    """What one accelerator holds; all in bytes.

    Attributes:
        device: as the plan calls it.
        total: what CUDA says it has.
        requested: the share of it that the engine takes.
        weights: of the rank.
        activations: the most that a step needs beside them, as the engine finds by running its largest one.
        non_torch: what communicators and kernels take after the start.
        pool: what is left of ``requested`` for keys and values; below zero where nothing is.
        context: what the process takes before it has a model, beside ``requested``.
        graphs: CUDA's graphs, beside ``requested``.
    """

    device: str
    total: int
    requested: int
    weights: int
    activations: int
    non_torch: int
    pool: int
    context: int
    graphs: int

    @property
    def figures(self) -> tuple[int, ...]:
        """All of it but the name."""
        return (
            self.total,
            self.requested,
            self.weights,
            self.activations,
            self.non_torch,
            self.pool,
            self.context,
            self.graphs,
        )

    @property
    def outside(self) -> int:
        """All that the process takes in the end."""
        return self.requested + self.context + self.graphs

    def to_document(self) -> dict[str, Any]:
        """What documents say of it."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFit:
    """What fits in an engine.

    Attributes:
        name, release: of the engine, and of the release that its figures were measured with.
        serving: what it is started with.
        devices: one for each rank, in their order.
        block_size: tokens of a page of the cache.
        blocks: pages that every rank has.
        kv_bytes_per_token: what the fullest rank's pool gives a token, over all groups of layers.
        kv_tokens: tokens that the engine says its cache holds.
        concurrency: sequences of the asked length that the cache holds, as the engine says.
        max_sequences: whole ones that it holds beside the page that it keeps for itself.
    """

    name: str
    release: str
    serving: Serving
    devices: tuple[EngineDevice, ...]
    block_size: int
    blocks: int
    kv_bytes_per_token: int
    kv_tokens: int
    concurrency: float
    max_sequences: int

    def to_document(self) -> dict[str, Any]:
        """What a plan document says of it."""
        return {
            "name": self.name,
            "release": self.release,
            **self.serving.to_document(),
            "devices": [device.to_document() for device in self.devices],
            "block_size": self.block_size,
            "blocks": self.blocks,
            "kv_bytes_per_token": self.kv_bytes_per_token,
            "kv_tokens": self.kv_tokens,
            "max_concurrency": round(self.concurrency, 4),
            "max_sequences": self.max_sequences,
        }
