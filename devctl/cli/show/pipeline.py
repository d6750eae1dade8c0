"""A pipeline for people: a row a component, and in which ways its weights fit."""

from __future__ import annotations

from typing import TYPE_CHECKING, TextIO

from devctl.cli.show.streams import to_text
from devctl.models.pipelines import Kind
from devctl.placement.components import Fit, Way
from devctl.units import format_bytes

if TYPE_CHECKING:
    from devctl.planning.pipelines import PipelinePlan

_CALLS = {
    Way.ONE: "pipeline.to(device)",
    Way.BALANCED: 'device_map="balanced"',
    Way.MODEL_OFFLOAD: "enable_model_cpu_offload()",
}


def pipeline_table(plan: PipelinePlan, stream: TextIO | None) -> str:
    """The components, then the ways to run it, and whether the weights fit."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="")
    for column in ("component", "class", "dtype"):
        table.add_column(column, no_wrap=True)
    table.add_column("bytes", justify="right", no_wrap=True)
    for each in plan.components:
        if each.component.kind is not Kind.NOTHING:
            size = "–" if each.nbytes is None else format_bytes(each.nbytes)
            table.add_row(each.component.name, each.component.class_name, ", ".join(each.dtypes), size)
    size = "" if plan.nbytes is None else f" {format_bytes(plan.nbytes)}"
    head = Text.assemble((plan.pipeline.class_name, "bold"), f"{size}, a pipeline of diffusers")
    return to_text(Group(head, table, *(Text(way_line(fit)) for fit in plan.fits)), stream)


def way_line(fit: Fit) -> str:
    """Whether the weights fit in a way, in a line."""
    if not fit.fits:
        return f"{_CALLS[fit.way]}: no, as {fit.why}"
    devices = dict.fromkeys(map(str, fit.devices.values()))
    where = f"on {', '.join(devices)}"
    if fit.way is Way.BALANCED:
        where = ", ".join(f"{name} on {device}" for name, device in fit.devices.items())
    return f"{_CALLS[fit.way]}: the weights fit, {where}, with {format_bytes(fit.left)} left"
