"""Why vLLM would not start, or would not hold what is asked for, and what would help."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from devctl.placement.engines import vllm
from devctl.placement.engines.asking import Asked, Part
from devctl.placement.engines.records import EngineFit
from devctl.units import format_bytes

_HIGHEST = 0.97
"""The largest utilisation that is advised."""


def findings(asked: Asked, parts: Sequence[Part], free: Sequence[int], *, is_said: bool) -> tuple[str, ...]:
    """Every reason why it does not fit, and what would help, a line each; none where it fits.

    Args:
        free: bytes of each accelerator that may be held.
        is_said: whether the context is asked for, and not just what the model is made for.
    """
    fit = asked.fit(parts)
    found = (*_outside(fit, free), *_short(asked, fit, is_said=is_said))
    return (*found, *_would_help(asked, parts, free)) if found else ()


def _outside(fit: EngineFit, free: Sequence[int]) -> Iterator[str]:
    """Accelerators on which vLLM would run out of memory after its cache is in place."""
    for device, left in zip(fit.devices, free, strict=True):
        if device.outside + vllm.least_free() > min(device.total, left):
            of = "free" if left < device.total else "all"
            taken = ((device.requested, "requested"), (device.context, "of context"), (device.graphs, "of graphs"))
            told = ", ".join(f"{format_bytes(size)} {what}" for size, what in taken)
            least, there = format_bytes(vllm.least_free()), format_bytes(min(device.total, left))
            yield f"{device.device}: {told} leave less than {least} of the {there} that are {of}"


def _short(asked: Asked, fit: EngineFit, *, is_said: bool) -> Iterator[str]:
    """Why the cache does not hold what is asked for."""
    if fit.max_sequences >= asked.batch:
        return
    least = min(fit.devices, key=lambda device: device.pool)
    held = f"weights {format_bytes(least.weights)}, activations {format_bytes(least.activations)}, beside torch "
    held += format_bytes(least.non_torch)
    share = f"{fit.serving.utilisation:g} of {format_bytes(least.total)} is {format_bytes(least.requested)}"
    if least.pool <= 0:
        yield f"{least.device}: {share}, and vLLM needs more for itself: {held}"
        return
    yield f"{least.device}: {share}: {held}; the cache gets {format_bytes(least.pool)}"
    each = f"one sequence of {asked.context:,}" if asked.batch == 1 else f"{asked.batch} sequences of {asked.context:,}"
    why = "asked for" if is_said else "needed: without --context-length vLLM takes all that the model is made for"
    held = f"it holds {fit.kv_tokens:,} tokens, {fit.concurrency:.2f} sequences of that length"
    held += ", less the page that vLLM keeps for itself" if fit.concurrency >= asked.batch else ""
    yield f"{held}, and {each} tokens is {why}"


def _would_help(asked: Asked, parts: Sequence[Part], free: Sequence[int]) -> Iterator[str]:
    """What of the settings would make it fit: each by itself, tried."""

    def works(changed: Asked) -> bool:
        fit = changed.fit(parts)
        return fit.max_sequences >= changed.batch and not [*_outside(fit, free)]

    def using(share: float) -> Asked:
        return replace(asked, serving=replace(asked.serving, utilisation=share))

    now = asked.serving.utilisation
    shares = sorted((share / 100 for share in range(10, int(_HIGHEST * 100) + 1)), key=lambda share: abs(share - now))
    if (share := next((each for each in shares if works(using(each))), None)) is not None:
        yield f"--gpu-memory-utilization {share:g} fits"
    if asked.kept_in is None and asked.text.item > 1 and works(replace(asked, kept_in=1)):
        yield "--kv-dtype fp8 fits"
    longest = asked.longest(asked.fit(parts).blocks)
    if longest and works(replace(asked, context=longest)):
        yield f"--context-length {longest} fits"
    if asked.batch > 1:
        most = asked.fit(parts).max_sequences
        if most and works(replace(asked, batch=most)):
            yield f"--batch-size {most} fits"
    for sequences in (256, 64):
        fewer = replace(asked, serving=replace(asked.serving, sequences=sequences))
        if sequences < asked.serving.sequences and sequences >= asked.batch and works(fewer):
            yield f"--max-num-seqs {sequences} fits"
            return
