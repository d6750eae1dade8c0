"""Caches that hold their states elsewhere, or packed: worked out from a trace of the plain one."""

from __future__ import annotations

from dataclasses import replace

from devctl.models.decoding import CACHE_BITS
from devctl.models.footprint import BlockFootprint, Footprint, Kernels, state_bytes
from devctl.units import format_bytes

TRACED = {"static": "static", "offloaded_static": "static"}
"""Kinds of caches that are traced as a kind that is here; all others as the plain one."""

_GROUP, _RESIDUAL = 64, 128
"""Values that share a scale and a shift, and tokens that are not packed yet."""


def with_cache(footprint: Footprint, itemsize: int) -> Footprint:
    """``footprint`` with the kind of cache that its workload asks for.

    Args:
        itemsize: bytes of a key's value where it is not packed.
    """
    told = dict(footprint.workload.generation)
    kind = told.get("cache_implementation")
    if kind == "quantized":
        return _packed(footprint, itemsize, int(told.get(CACHE_BITS, 4)))
    if footprint.workload.kernels is not Kernels.ACCELERATOR:
        return footprint  # it is in RAM already
    if kind == "offloaded":
        return _offloaded(footprint)
    if kind == "offloaded_static":
        note = "the cache is counted as if all of it stayed on the GPU"
        return replace(footprint, exact=False, notes=(*footprint.notes, note))
    return footprint


def _offloaded(footprint: Footprint) -> Footprint:
    """With the states of a block there while it runs, and those of the next one, which are fetched meanwhile."""
    keeping = [block for block in footprint.blocks if block.state or block.prompt_state]
    following = {block.name: keeping[(at + 1) % len(keeping)] for at, block in enumerate(keeping)}

    def moved(block: BlockFootprint) -> BlockFootprint:
        then = following.get(block.name)
        if then is None:
            return block
        first, last = block.prompt_state + then.prompt_state, block.state + then.state
        return replace(
            block,
            prompt_state=0,
            state=0,
            prefill=block.prefill + first,
            decode=block.decode + last if block.decode else 0,
            again=block.again + first if block.again else 0,
        )

    note = f"the cache is kept in RAM, {format_bytes(state_bytes(footprint))} that are not counted there"
    blocks = tuple(moved(block) for block in footprint.blocks)
    return replace(footprint, blocks=blocks, most=0, exact=False, notes=(*footprint.notes, note))


def _packed(footprint: Footprint, itemsize: int, bits: int) -> Footprint:
    """With states of so many ``bits`` a value. A step unpacks those of a layer, and hands on another copy of them."""
    context = footprint.workload.context_length
    share = min(1.0, (bits / 8 + 2 * itemsize / _GROUP) / itemsize + min(_RESIDUAL, context) / context)

    def packed(block: BlockFootprint) -> BlockFootprint:
        return replace(
            block,
            prompt_state=int(block.prompt_state * share),
            state=int(block.state * share),
            prefill=block.prefill + 2 * block.prompt_state,
            decode=block.decode + 2 * block.state if block.decode else 0,
            again=block.again + 2 * block.prompt_state if block.again else 0,
        )

    note = (
        f"a cache of {bits} bits is estimated, and what packing it takes bounded by two more copies of a layer's states"
    )
    blocks = tuple(packed(block) for block in footprint.blocks)
    return replace(footprint, blocks=blocks, most=0, exact=False, notes=(*footprint.notes, note))
