"""A plan of a model that ranks share, for people: a row a rank, and what each style of its plan does."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from devctl.cli.show.plan import in_stages, room_line, run_line
from devctl.cli.show.streams import to_text
from devctl.units import format_bytes

if TYPE_CHECKING:
    from rich.console import RenderableType

    from devctl.placement.document import PlannedModel
    from devctl.placement.parallel.records import Stage, Stages
    from devctl.placement.parallel.tensor import StyleBytes, TensorParallel
    from devctl.placement.placement import DeviceUse, Placement
    from devctl.placement.plan import Plan


def summary_of(plan: Plan) -> str:
    """The summary of a plan of ranks."""
    assert plan.tensor_parallel is not None, "asked of plans of ranks"
    return ranks_summary(plan.model, plan.placement, plan.tensor_parallel, run_line(plan.run), plan.engine)


def ranks_summary(
    model: PlannedModel, placement: Placement, shared: TensorParallel, run: str = "", engine: str = ""
) -> str:
    """A row for each rank, equal ones folded, then what is cut and what is on every rank, and the notes.

    Args:
        run: a line on what is counted beside the weights, or empty.
        engine: what the plan holds for, or empty.
    """
    from rich.console import Group
    from rich.text import Text

    head = f" {format_bytes(model.nbytes)} in {model.dtype}, shared by {shared.ranks.size} ranks"
    experts = ", experts shared out" if shared.ranks.dispatches else ""
    lines: list[RenderableType] = [
        Text.assemble((model.class_name, "bold"), head + experts),
        rank_table(placement.devices),
        style_table(shared.sharded),
    ]
    lines += [Text(line) for line in (loading_line(placement.devices), run) if line]
    if engine:
        lines.append(Text(f"holds for: {engine}, in {shared.ranks.size} processes"))
    lines += [Text(f"note: {note}") for note in placement.notes]
    return to_text(Group(*lines), sys.stderr)


def stages_summary(plan: Plan) -> str:
    """The summary of a plan in stages that ranks share: a row a stage, or for each of its ranks that differ, then as
    `ranks_summary`."""
    from rich.console import Group
    from rich.text import Text

    stages, shared, model = plan.stages, plan.tensor_parallel, plan.model
    assert stages is not None and shared is not None, "asked of such plans"
    experts = " and experts" if shared.ranks.dispatches else ""
    head = f" {format_bytes(model.nbytes)} in {model.dtype}, {in_stages(stages)}, "
    lines: list[RenderableType] = [
        Text.assemble((model.class_name, "bold"), f"{head}each shared by {shared.ranks.size} ranks{experts}"),
        stage_table(stages, plan.placement.devices),
        style_table(shared.sharded, ("all layers", "a rank's part")),
    ]
    told = (loading_line(plan.placement.devices), run_line(plan.run), room_line(plan.room), f"holds for: {plan.engine}")
    lines += [Text(line) for line in told if line]
    lines += [Text(f"note: {note}") for note in plan.notes]
    return to_text(Group(*lines), sys.stderr)


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


def style_table(styles: Sequence[StyleBytes], titles: tuple[str, str] = ("model", "a rank")) -> RenderableType:
    """What each style does: bytes in the model, bytes on a rank, and of which tensors."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="")
    for title in ("style", *titles):
        table.add_column(title, justify="left" if title == "style" else "right", no_wrap=True)
    table.add_column("of", overflow="fold")
    for each in styles:
        name = each.style or "not in the plan"
        what = name if each.is_cut else f"{name}: whole"
        table.add_row(what, format_bytes(each.nbytes), format_bytes(each.on_each), _tensors(each.rules))
    return table


_MOST_NAMED = 4
"""Tensors of a style that are named."""


def _tensors(rules: Sequence[str]) -> str:
    """The last parts of the names of tensors."""
    short = list(dict.fromkeys(".".join(rule.removesuffix(".weight").split(".")[-2:]) for rule in rules))
    more = f", {len(short) - _MOST_NAMED} more" if len(short) > _MOST_NAMED else ""
    return ", ".join(short[:_MOST_NAMED]) + more
