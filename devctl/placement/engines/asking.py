"""A question to vLLM: a model on stages of accelerators, what each holds, and what its cache holds then."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from devctl.placement.engines import vllm
from devctl.placement.engines.records import EngineDevice, EngineFit, Serving
from devctl.placement.engines.text_model import TextModel
from devctl.placement.engines.vllm_cache import Cache, cache_of
from devctl.placement.engines.vllm_weights import TIED
from devctl.placement.parallel.stages import Board, even_by_vllm

HERE = "localhost"
"""The host of a plan for one machine."""

BEFORE, BEHIND, TOWERS = "before", "behind", "towers"
"""Parts of a model beside its layers, whose parts are their numbers: what it sees with is on every stage."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """The accelerators of a stage, and its layers."""

    board: Board
    totals: tuple[int, ...]
    layers: range


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A question to vLLM.

    Attributes:
        text: the model as vLLM sees it.
        weights: bytes of a rank's, by the number of the layer, and before, behind and beside all.
        by_layer: of all layers before each, and of all.
        ranks: accelerators that share a stage.
        kept_in: bytes of a number of keys and values; None for the model's.
        context, batch: tokens of a sequence, and sequences at once.
    """

    text: TextModel
    container: str
    weights: Mapping[str, int]
    by_layer: tuple[int, ...]
    serving: Serving
    ranks: int
    kept_in: int | None
    context: int
    batch: int

    @property
    def cache(self) -> Cache:
        return cache_of(self.text, self.ranks, self.kept_in)

    def held(self, layers: range, stages: int, stage: int) -> tuple[int, int, int]:
        """Weights, activations, and what is not torch's, of a rank of that stage."""
        among = vllm.Ranks(tensor=self.ranks, stages=stages, stage=stage, experts_whole=self.serving.expert_parallel)
        weights = self.text.rope_bytes + vllm.buffers(self.text, self.serving.batched_tokens)
        weights += self.by_layer[layers.stop] - self.by_layer[layers.start]
        weights += self.weights.get(TOWERS, 0)
        if stage == 0:
            weights += self.weights.get(BEFORE, 0)
        if among.is_last:
            # a head that is tied to the embeddings is a copy of theirs on another stage
            weights += self.weights.get(BEHIND, 0) + (self.weights.get(TIED, 0) if stages > 1 else 0)
        step = self.serving.batched_tokens
        needed = vllm.activations(self.text, among, step, self.serving.sequences, self.context)
        return weights, needed, vllm.non_torch(self.text, among)

    def fit(self, parts: Sequence[Part]) -> EngineFit:
        """What fits on these accelerators."""
        devices: list[EngineDevice] = []
        fewest: int | None = None
        for number, part in enumerate(parts):
            weights, needed, grown = self.held(part.layers, len(parts), number)
            among = vllm.Ranks(tensor=self.ranks, stages=len(parts), stage=number)
            block = self.cache.block(part.layers)
            for device, total in zip(part.board.devices, part.totals, strict=True):
                requested = int(total * self.serving.utilisation)
                pool = requested - weights - needed - grown
                devices.append(
                    EngineDevice(
                        device=device if part.board.host == HERE else f"{part.board.host}/{device}",
                        total=total,
                        requested=requested,
                        weights=weights,
                        activations=needed,
                        non_torch=grown,
                        pool=pool,
                        context=vllm.context(self.text, among),
                        graphs=vllm.graphs(self.text, len(part.layers), among),
                    )
                )
                if block:
                    blocks = max(0, pool) // block
                    fewest = blocks if fewest is None else min(fewest, blocks)
        blocks = fewest or 0
        return EngineFit(
            name="vllm",
            release=vllm.RELEASE,
            serving=self.serving,
            devices=tuple(devices),
            block_size=self.cache.block_size,
            blocks=blocks,
            kv_bytes_per_token=max(self.cache.per_token(part.layers) for part in parts),
            kv_tokens=self.cache.tokens(blocks),
            concurrency=self.concurrency(blocks, self.context),
            max_sequences=self.whole(blocks, self.context),
        )

    def concurrency(self, blocks: int, context: int) -> float:
        """Sequences of ``context`` tokens in so many pages, as vLLM tells them."""
        return blocks / max(1, self.cache.blocks_of(context, self.serving.batched_tokens))

    def whole(self, blocks: int, context: int) -> int:
        """Whole sequences in so many pages, of which vLLM keeps one that is never given away (``null_block``): one more
        would wait for ever.
        """
        return max(0, blocks - 1) // max(1, self.cache.blocks_of(context, self.serving.batched_tokens))

    def longest(self, blocks: int) -> int:
        """Tokens of the longest sequences that as many as asked for fit of."""
        low, high = 0, self.context
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.whole(blocks, middle) >= self.batch else (low, middle - 1)
        return low


def cut(asked: Asked, groups: Sequence[tuple[Board, tuple[int, ...]]]) -> tuple[Part, ...]:
    """The layers of each stage: as vLLM cuts where all boards are alike, else so that the cache holds most."""
    count, stages = len(asked.text.layers), len(groups)
    even = even_by_vllm(count, stages)
    totals = [min(totals) for _, totals in groups]
    counts = even if len(set(totals)) == 1 else _most_pages(asked, totals) or even
    parts, at = [], 0
    for (board, own), number in zip(groups, counts, strict=True):
        parts.append(Part(board=board, totals=own, layers=range(at, at + number)))
        at += number
    return tuple(parts)


def _most_pages(asked: Asked, totals: Sequence[int]) -> tuple[int, ...] | None:
    """Layers of each stage with which every one has room for most pages; None where no cut has room for one."""
    stages, count = len(totals), len(asked.text.layers)
    known: dict[tuple[int, int, int], int] = {}

    def pages(stage: int, first: int, end: int) -> int:
        key = stage, first, end
        if key not in known:
            layers = range(first, end)
            left = int(totals[stage] * asked.serving.utilisation) - sum(asked.held(layers, stages, stage))
            known[key] = left // max(1, asked.cache.block(layers)) if left >= 0 else -1
        return known[key]

    # the most that the first stages can have each, by how many layers they have in all
    best: list[dict[int, tuple[int, int]]] = [{0: (2**62, 0)}]
    for stage in range(stages):
        found: dict[int, tuple[int, int]] = {}
        later = stages - 1 - stage
        ends = [count] if not later else range(stage + 1, count - later + 1)
        for end in ends:
            ways = [
                (min(least, pages(stage, first, end)), first) for first, (least, _) in best[-1].items() if first < end
            ]
            if ways:
                found[end] = max(ways)
        best.append(found)
    if best[-1][count][0] < 1:
        return None
    ends_of, at = [count], count
    for stage in range(stages, 0, -1):
        at = best[stage][at][1]
        ends_of.append(at)
    ends_of.reverse()
    return tuple(end - first for first, end in pairwise(ends_of))


def rows(parts: Sequence[Part], fit: EngineFit) -> Iterator[tuple[Part, EngineDevice]]:
    """Each accelerator with its part."""
    return zip((part for part in parts for _ in part.board.devices), fit.devices, strict=True)
