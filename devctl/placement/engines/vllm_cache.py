"""How vLLM shares out its pool to layers, in pages.

Rules from vLLM 0.33.0 (``v1/core/kv_cache_planning.py``, ``kv_cache_interface.py``), which are those of 0.19.0 for the
models of its logs: layers that keep alike are parted into groups of as many, a page of a group holds ``block_size``
tokens of all of its layers, and all groups take pages of the one pool. The tokens that 0.19.0 tells are those of the
pages of one group, if all have as many.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from devctl.placement.engines.text_model import LATENT_PAGE, Kept, TextModel

_PAGE = 16
"""Tokens of a page of most backends."""
_PACKED_LATENT = 656
"""Bytes of a latent in 8 bits, of sparse attention: with scales, and what is rotated in 16 bits (``fp8_ds_mla``)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Layers that take pages together.

    Attributes:
        kept: what each of them keeps.
        layers: their numbers.
    """

    kept: Kept
    layers: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cache:
    """The cache of a model on each of the ranks that share it.

    Attributes:
        block_size: tokens of a page.
        page: bytes of the page of one layer.
        groups: all layers that keep anything.
    """

    block_size: int
    page: int
    groups: tuple[Group, ...]

    def block(self, layers: range) -> int:
        """Bytes of a page of all layers of a group, on the stage that has these layers: of the group with the most."""
        return self.page * max((sum(at in layers for at in group.layers) for group in self.groups), default=0)

    def tokens(self, blocks: int) -> int:
        """Tokens that vLLM says so many pages hold."""
        return blocks // max(1, len(self.groups)) * self.block_size

    def per_token(self, layers: range) -> int:
        """Bytes of the pool of the stage that has these layers, for each token of all groups."""
        return self.block(layers) * len(self.groups) // self.block_size

    def blocks_of(self, context: int, batched: int) -> int:
        """Pages that one sequence of ``context`` tokens takes, read ``batched`` tokens at a time."""
        return sum(self._of_group(group.kept, context, batched) for group in self.groups)

    def _of_group(self, kept: Kept, context: int, batched: int) -> int:
        if kept.kind == "recurrent":
            return 2  # with a cache of prefixes; without one, 1
        if kept.kind == "sliding":
            # where a window begins within a page, it ends within one more
            return math.ceil(min(kept.span - 1 + batched, context) / self.block_size) + 1
        tokens = min(kept.span + batched, context) if kept.kind == "chunked" else context
        return math.ceil(tokens / self.block_size)


def cache_of(model: TextModel, ranks: int, kept_in: int | None) -> Cache:
    """The cache of ``model`` on each of ``ranks``.

    Args:
        kept_in: bytes of a number of keys and values; None for the model's.
    """
    item = kept_in or model.item
    if model.latent:
        # every rank has it whole
        latent = _PACKED_LATENT if item == 1 and model.beside_latent else model.latent * item
        size, block_size = latent + model.beside_latent, LATENT_PAGE
    else:
        size, block_size = 2 * max(1, model.kv_heads // ranks) * model.head_dim * item, _PAGE
    state = -(-model.recurrent // ranks)
    if state:
        # a page of keys and values is as large as the state of a recurrent layer
        block_size *= max(1, math.ceil(state / (size * block_size)))
    return Cache(block_size=block_size, page=size * block_size, groups=_groups(model.layers))


def _groups(layers: Sequence[Kept]) -> tuple[Group, ...]:
    """Layers that keep alike, in groups of as many: of the kind that has fewest, or of that which has most where those
    are not half as many again (``_get_kv_cache_groups_uniform_page_size``).
    """
    alike: dict[Kept, list[int]] = {}
    for at, kept in enumerate(layers):
        if kept.kind != "none":
            alike.setdefault(kept, []).append(at)
    if not alike:
        return ()
    counts = [len(each) for each in alike.values()]
    size = max(counts) if max(counts) < min(counts) * 1.5 else min(counts)
    found = []
    for kept, numbers in alike.items():
        several = math.ceil(len(numbers) / size)
        found += [Group(kept=kept, layers=tuple(numbers[at::several])) for at in range(several)]
    return tuple(found)
