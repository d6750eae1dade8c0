"""A plan for another engine, for people: a row a GPU, what its cache holds, and what it is started with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TextIO

from devctl.cli.show.plan import headline, model_lines, other_notes, plain_lines
from devctl.cli.show.streams import room_of, to_text
from devctl.units import format_bytes

if TYPE_CHECKING:
    from rich.console import RenderableType

    from devctl.placement.engines.records import EngineDevice, EngineFit
    from devctl.placement.plan import Plan


def summary_of(plan: Plan, stream: TextIO | None) -> str:
    """The summary of a plan for an engine."""
    from rich.console import Group

    fit, stages, served = plan.fit_in, plan.stages, plan.served
    assert fit is not None and stages is not None and served is not None, "asked of plans for an engine"
    width = room_of(stream)
    ranks = [f"{len(stages.stages)} stages"] * (len(stages.stages) > 1)
    ranks += [f"{stages.tensor_parallel} ranks that share layers"] * (stages.tensor_parallel > 1)
    how = (" of ".join(ranks), f"{served.context_length:,} tokens × {served.batch_size:,}")
    verdict = f"fits, {fit.concurrency:,.2f} sequences of {served.context_length:,} tokens at once"
    lines: list[RenderableType] = [
        *headline(verdict, width),
        *model_lines(plan.model, ", ".join(part for part in how if part), width),
        pool_table(fit.devices),
        board_table(fit.devices),
        *plain_lines((_cache(fit), f"holds for: {plan.engine}, {started_with(fit)}", *other_notes(plan.notes)), width),
    ]
    return to_text(Group(*lines), stream)


def started_with(fit: EngineFit) -> str:
    """The engine's options that its figures rest on."""
    serving = fit.serving
    return (
        f"--gpu-memory-utilization {serving.utilisation:g} --max-num-batched-tokens {serving.batched_tokens} "
        f"--max-num-seqs {serving.sequences}"
    )


def pool_table(devices: Sequence[EngineDevice]) -> RenderableType:
    """What the engine requests of each GPU, and what that is for; equal ones in a row."""
    titles = ("requested", "weights", "activations", "not torch", "cache")
    return _table(
        titles, devices, lambda each: (each.requested, each.weights, each.activations, each.non_torch, each.pool)
    )


def board_table(devices: Sequence[EngineDevice]) -> RenderableType:
    """What the process takes of each GPU in the end; equal ones in a row."""
    titles = ("requested", "context", "graphs", "left", "of")
    return _table(
        titles,
        devices,
        lambda each: (each.requested, each.context, each.graphs, max(0, each.total - each.outside), each.total),
    )


def _table(
    titles: Sequence[str], devices: Sequence[EngineDevice], sizes: Callable[[EngineDevice], Sequence[int]]
) -> RenderableType:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="")
    table.add_column("", overflow="fold")
    for title in titles:
        table.add_column(title, justify="right", no_wrap=True)
    for first, last in _folded(devices):
        name = devices[first].device if first == last else f"{devices[first].device} to {devices[last].device}"
        table.add_row(name, *map(format_bytes, sizes(devices[first])))
    return table


def _cache(fit: EngineFit) -> str:
    each = format_bytes(fit.kv_bytes_per_token)
    return f"cache: {fit.kv_tokens:,} tokens, {each} each on a GPU, in pages of {fit.block_size}"


def _folded(devices: Sequence[EngineDevice]) -> Iterator[tuple[int, int]]:
    """Runs of GPUs, first and last, that hold as much."""
    start = 0
    for at in range(1, len(devices) + 1):
        if at == len(devices) or devices[at].figures != devices[start].figures:
            yield start, at - 1
            start = at
