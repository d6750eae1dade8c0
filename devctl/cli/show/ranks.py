"""A plan of a model that ranks share, for people: a row a rank, and what each style of its plan does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TextIO

from devctl.cli.show.plan import (
    answer_of,
    counted,
    headline,
    in_stages,
    model_lines,
    other_notes,
    plain_lines,
    run_line,
)
from devctl.cli.show.plan import verdict_line as of_devices
from devctl.cli.show.streams import cells, clean, in_lines, room_of, to_text
from devctl.placement.placement import SEGMENTS, over_budget, tight
from devctl.units import format_bytes

if TYPE_CHECKING:
    from rich.console import RenderableType

    from devctl.placement.document import PlannedModel
    from devctl.placement.parallel.records import Stage, Stages
    from devctl.placement.parallel.tensor import StyleBytes, TensorParallel
    from devctl.placement.placement import DeviceUse, Placement
    from devctl.placement.plan import Plan


def summary_of(plan: Plan, stream: TextIO | None) -> str:
    """The summary of a plan of ranks."""
    assert plan.tensor_parallel is not None, "asked of plans of ranks"
    return ranks_summary(
        plan.model,
        plan.placement,
        plan.tensor_parallel,
        run_line(plan.run),
        plan.engine,
        counted=counted(None if plan.runtime is None else plan.runtime.footprint.workload),
        stream=stream,
    )


def ranks_summary(
    model: PlannedModel,
    placement: Placement,
    shared: TensorParallel,
    run: str = "",
    engine: str = "",
    *,
    counted: str = "",
    stream: TextIO | None = None,
) -> str:
    """The verdict, a row for each rank, equal ones folded, what is cut and what is on every rank, and the notes.

    Args:
        run: a line on what is counted beside the weights, or empty.
        engine: what the plan holds for, or empty.
        counted: what is counted, or empty.
        stream: where it goes.
    """
    from rich.console import Group

    width = room_of(stream)
    experts = ", experts shared out" if shared.ranks.dispatches else ""
    how = f"shared by {shared.ranks.size} ranks{experts}"
    lines: list[RenderableType] = [
        *headline(verdict_line(placement), width),
        *model_lines(model, f"{how}, {counted}" if counted else how, width),
        rank_table(placement.devices),
        style_table(shared.sharded, width),
    ]
    said = [loading_line(placement.devices), run]
    said += [f"holds for: {engine}, in {shared.ranks.size} processes" if engine else ""]
    lines += plain_lines((*(line for line in said if line), *other_notes(placement.notes)), width)
    return to_text(Group(*lines), stream)


def verdict_line(placement: Placement) -> str:
    """Whether it fits, and what is left on each rank."""
    devices, asked = placement.devices, answer_of(placement.notes)
    if over := over_budget(devices):
        return f"too much: {over[0]}"
    left = [use.budget - use.total for use in devices if use.budget is not None]
    if not left or len(left) < len(devices):
        return "whether it fits is not known: nothing says what every rank may hold"
    least = format_bytes(min(left)) if min(left) == max(left) else f"at least {format_bytes(min(left))}"
    head = "the weights fit" if asked.endswith(": none") else "fits"
    if tight(devices):
        head = f"{head} only with {SEGMENTS}"
    return f"{head}, {least} left on each rank" + (f"; {asked}" if asked else "")


def stages_summary(plan: Plan, stream: TextIO | None) -> str:
    """The summary of a plan in stages that ranks share: a row a stage, or for each of its ranks that differ, then as
    `ranks_summary`."""
    from rich.console import Group

    stages, shared = plan.stages, plan.tensor_parallel
    assert stages is not None and shared is not None, "asked of such plans"
    width = room_of(stream)
    experts = " and experts" if shared.ranks.dispatches else ""
    how = f"{in_stages(stages)}, each shared by {shared.ranks.size} ranks{experts}"
    what = counted(plan.runtime.footprint.workload if plan.runtime is not None else None)
    lines: list[RenderableType] = [
        *headline(of_devices(plan.placement, plan.room), width),
        *model_lines(plan.model, f"{how}, {what}", width),
        stage_table(stages, plan.placement.devices),
        style_table(shared.sharded, width, ("all layers", "a rank's part")),
    ]
    told = (loading_line(plan.placement.devices), run_line(plan.run), f"holds for: {plan.engine}")
    lines += plain_lines((*(line for line in told if line), *other_notes(plan.notes)), width)
    return to_text(Group(*lines), stream)


def stage_table(stages: Stages, devices: Sequence[DeviceUse]) -> RenderableType:
    """What the ranks of each stage hold, and what is free there; those of a stage that hold as much are one row."""
    from rich.table import Table

    beside = any(use.total > use.used for use in devices)
    titles = ("weights", "KV cache", "activations", "overhead", "free") if beside else ("weights", "free")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="")
    table.add_column("layers", no_wrap=True)
    table.add_column("devices", overflow="fold")
    for title in titles:
        table.add_column(title, justify="right", no_wrap=True)
    by_name = {str(use.device): use for use in devices}
    for stage in stages.stages:
        uses = [by_name[f"{stage.host}/{device}"] for device in stage.devices]
        for first, last in folded(uses):
            use = uses[first]
            parts = (use.used, use.state, use.activations, use.overhead) if beside else (use.used,)
            free = "" if use.budget is None else format_bytes(use.budget - use.total)
            names = str(use.device) if first == last else f"{use.device} to {stage.devices[last]}"
            table.add_row("" if first else _layers(stage), names, *map(format_bytes, parts), free)
    return table


def _layers(stage: Stage) -> str:
    first, end = stage.layers
    return f"{first}-{end - 1}" if end - first > 1 else str(first)


def rank_table(devices: Sequence[DeviceUse]) -> RenderableType:
    """What each rank holds on its device, and what is free there; ranks that hold as much are one row."""
    from rich.table import Table

    beside = any(use.total > use.used for use in devices)
    titles = ("weights", "KV cache", "activations", "overhead", "free") if beside else ("weights", "free")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="")
    for title in ("rank", "device", *titles):
        table.add_column(title, justify="left" if title in ("rank", "device") else "right", no_wrap=True)
    for first, last in folded(devices):
        use = devices[first]
        parts = (use.used, use.state, use.activations, use.overhead) if beside else (use.used,)
        free = "" if use.budget is None else format_bytes(use.budget - use.total)
        names = f"{use.device}" if first == last else f"{use.device} to {devices[last].device}"
        table.add_row(str(first) if first == last else f"{first}-{last}", names, *map(format_bytes, parts), free)
    return table


def loading_line(devices: Sequence[DeviceUse]) -> str:
    """What ranks hold while the model is loaded, where that is more than they ever do later; else nothing."""
    more = [use.loading for use in devices if use.loading > use.total]
    if not more:
        return ""
    where = "each rank" if len(more) == len(devices) else f"{len(more)} of the ranks"
    return f"while loading: {format_bytes(max(more))} on {where}"


def folded(devices: Sequence[DeviceUse]) -> Iterator[tuple[int, int]]:
    """Runs of ranks, first and last, that hold as much and may hold as much."""
    start = 0
    for at in range(1, len(devices) + 1):
        if at == len(devices) or _figures(devices[at]) != _figures(devices[start]):
            yield start, at - 1
            start = at


def _figures(use: DeviceUse) -> tuple[int | None, ...]:
    return use.used, use.state, use.activations, use.overhead, use.budget, use.loading


def style_table(
    styles: Sequence[StyleBytes], width: int | None, titles: tuple[str, str] = ("model", "a rank")
) -> RenderableType:
    """What each style does: bytes in the model, bytes on a rank, and of which tensors."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="")
    for title in ("style", *titles):
        table.add_column(title, justify="left" if title == "style" else "right", no_wrap=True)
    table.add_column("of")
    rows = []
    for each in styles:
        name = each.style or "not in the plan"
        rows.append((name if each.is_cut else f"{name}: whole", format_bytes(each.nbytes), format_bytes(each.on_each)))
    taken = sum(max(map(cells, column)) + 2 for column in zip(("style", *titles), *rows, strict=True))
    for row, each in zip(rows, styles, strict=True):
        first, *more = in_lines(clean(_tensors(each.rules)), None if width is None else max(16, width - taken))
        table.add_row(*row, first)
        for line in more:  # a row each: a cell is one line, whatever it names
            table.add_row(*("" for _ in row), line)
    return table


_MOST_NAMED = 4
"""Tensors of a style that are named."""


def _tensors(rules: Sequence[str]) -> str:
    """The last parts of the names of tensors."""
    short = list(dict.fromkeys(".".join(rule.removesuffix(".weight").split(".")[-2:]) for rule in rules))
    more = f", {len(short) - _MOST_NAMED} more" if len(short) > _MOST_NAMED else ""
    return ", ".join(short[:_MOST_NAMED]) + more
