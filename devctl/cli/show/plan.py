"""A plan for people: a bar per device, which layers are there, and what is offloaded."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from devctl.cli.show.streams import say, to_text
from devctl.devices import DeviceType
from devctl.models.decoding import words
from devctl.placement.budget import is_accelerator
from devctl.units import format_bytes

if TYPE_CHECKING:
    from rich.console import RenderableType

    from devctl.placement.document import PlannedModel
    from devctl.placement.parallel.records import Stages
    from devctl.placement.placement import DeviceUse, Placement
    from devctl.placement.plan import Comparison, Plan, Room, WayToRun, WhatIf
    from devctl.planning.fits_on import FitsOn


def summary_of(plan: Plan) -> str:
    """The summary of a plan, with what is left, what is counted, and what it holds for."""
    stages = plan.stages
    how = "" if stages is None else in_stages(stages)
    return plan_summary(plan.model, plan.placement, room_line(plan.room), run_line(plan.run), plan.engine, how)


def in_stages(found: Stages) -> str:
    """How many stages there are, over how many hosts."""
    stages, hosts = len(found.stages), len(found.hosts)
    return f"in {stages} stage{'s' * (stages > 1)} over {hosts} host{'s' * (hosts > 1)}"


def plan_summary(
    model: PlannedModel, placement: Placement, room: str = "", run: str = "", engine: str = "", how: str = ""
) -> str:
    """A bar per device, which layers are there, what is offloaded, and the notes.

    Args:
        room: a line on what is left, or empty.
        run: a line on what is counted beside the weights, or empty.
        engine: what the plan holds for, or empty.
        how: how it is placed, where that is not by a strategy.
    """
    from rich.console import Group
    from rich.text import Text

    lines: list[RenderableType] = [
        Text.assemble(
            (model.class_name, "bold"),
            f" {format_bytes(model.nbytes)} in {model.dtype}",
            f" and {model.quantisation}, " if model.quantisation else ", ",
            how or (f"placed by {placement.strategy}" if placement.strategy else "placed by the given map"),
        ),
        device_table(placement.devices),
    ]
    if any(use.total > use.used for use in placement.devices):
        lines.append(memory_table(placement.devices))
    if not how:
        lines.append(Text(offload_line(placement)))
    if loading := loading_line(placement):
        lines.append(Text(loading))
    if run:
        lines.append(Text(run))
    if room:
        lines.append(Text(room))
    if engine:
        lines.append(Text(f"holds for: {engine}"))
    lines += [Text(f"note: {note}") for note in placement.notes]
    return to_text(Group(*lines), sys.stderr)


def say_notes(notes: Iterable[str]) -> None:
    """Print a line for each note, to the reader and not among the answer."""
    from rich.console import Group
    from rich.text import Text

    if lines := [Text(f"note: {note}") for note in notes]:
        say(to_text(Group(*lines), sys.stderr))


def device_table(devices: Iterable[DeviceUse]) -> RenderableType:
    """A bar per device: bytes used of bytes given, and the modules there."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, width=16)
    table.add_column(no_wrap=True, justify="right")
    table.add_column(overflow="fold")
    devices = tuple(devices)
    idle = [use for use in devices if is_accelerator(use.device) and not use.total]
    for use in devices:
        if (use.budget is None and not use.used) or (len(idle) > _MOST_IDLE and use in idle):
            continue
        given = "" if use.budget is None else f" of {format_bytes(use.budget)}"
        table.add_row(str(use.device), _bar(use), format_bytes(use.total) + given, ", ".join(ranges(use.modules)))
    if len(idle) > _MOST_IDLE:
        table.add_row("", "", "nothing", f"on {len(idle)} others, from {idle[0].device} to {idle[-1].device}")
    return table


_MOST_IDLE = 8
"""Accelerators that hold nothing and still have a line each."""

_PARTS = (("weights", "█", "cyan"), ("state", "▓", "magenta"), ("activations", "▒", "yellow"), ("overhead", "░", "dim"))


def _bar(use: DeviceUse) -> RenderableType:
    """What is used of the budget; with a workload, of what kind."""
    from rich.progress_bar import ProgressBar
    from rich.text import Text

    if use.budget is None:
        return ""
    if use.total == use.used:
        return ProgressBar(total=max(use.budget, 1), completed=use.used, width=16)
    bar = Text()
    sizes = (use.used, use.state, use.activations, use.overhead)
    for width, (_, mark, style) in zip(_cells(sizes, max(use.budget, use.total)), _PARTS, strict=True):
        bar.append(mark * width, style)
    return bar


def _cells(sizes: Sequence[int], of: int, width: int = 16) -> list[int]:
    """Cells of a bar for each part, in all as many as their sum takes; whatever is there has one."""
    total = max(-(-width * sum(sizes) // of), sum(1 for size in sizes if size))
    cells = [min(1, size) for size in sizes]
    while sum(cells) < total:  # to the part that is furthest from its share
        cells[max(range(len(sizes)), key=lambda part: sizes[part] * total - cells[part] * sum(sizes))] += 1
    return cells


def memory_table(devices: Iterable[DeviceUse]) -> RenderableType:
    """What each device holds: weights, KV cache, activations, overhead, and what is free."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="")
    for title in ("", "█ weights", "▓ KV cache", "▒ activations", "░ overhead", "free"):
        table.add_column(title, justify="right" if title else "left", no_wrap=True)
    for use in devices:
        if use.total:
            free = "" if use.budget is None else format_bytes(use.budget - use.total)
            parts = (use.used, use.state, use.activations, use.overhead)
            table.add_row(str(use.device), *(format_bytes(size) if size else "" for size in parts), free)
    return table


def offload_line(placement: Placement) -> str:
    """What is not on the devices that compute."""
    off = [DeviceType.DISK, DeviceType.CPU] if placement.offloaded > placement.on_disk else [DeviceType.DISK]
    parts = [f"{format_bytes(u.used)} on {u.device}" for u in placement.devices if u.device.type in off and u.used]
    return f"offloaded: {', '.join(parts)}" if parts else "offloaded: nothing"


def loading_line(placement: Placement) -> str:
    """What devices hold while the model is loaded, where that is more than it ever is later; else nothing."""
    more = [
        f"{format_bytes(use.loading)} on {use.device}"
        for use in placement.devices
        if use.loading > use.total and use.device.type is not DeviceType.DISK
    ]
    return f"while loading: {', '.join(more)}" if more else ""


def ranges(names: Iterable[str]) -> list[str]:
    """Names with runs of numbered siblings drawn together: layers.0, layers.1, layers.2 -> layers.0-2."""
    runs: list[tuple[str, int, int] | str] = []
    for name in names:
        stem, _, last = name.rpartition(".")
        if not last.isdecimal():
            runs.append(name or "(everything)")
            continue
        number, previous = int(last), runs[-1] if runs else ""
        if isinstance(previous, tuple) and previous[0] == stem and previous[2] == number - 1:
            runs[-1] = (stem, previous[1], number)
        else:
            runs.append((stem, number, number))
    return [
        run if isinstance(run, str) else f"{run[0]}.{run[1]}" + (f"-{run[2]}" if run[2] > run[1] else "")
        for run in runs
    ]


def comparison(found: Comparison) -> str:
    """All placements side by side, and which one to take: a table."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    placements = found.placements
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("")
    for each in placements:
        table.add_column(each.strategy or "", justify="right", no_wrap=True)
    shown = [u.device for u in placements[0].devices]
    for device in shown:
        uses: list[DeviceUse | None] = [
            next((u for u in each.devices if u.device == device), None) for each in placements
        ]
        if any(use is not None and (use.used or use.budget) for use in uses):
            table.add_row(str(device), *(format_bytes(use.total) if use is not None else "" for use in uses))
    table.add_row("offloaded", *(format_bytes(each.offloaded) for each in placements))
    table.add_row("fullest", *(f"{float(each.fullest):.1%}" for each in placements))
    table.add_row("crossings", *(str(each.crossings) for each in placements))
    if not all(map(found.fits, placements)):
        table.add_row("fits", *("yes" if found.fits(each) else "no" for each in placements))
    model = found.model
    head = Text.assemble((model.class_name, "bold"), f" {format_bytes(model.nbytes)} in {model.dtype}")
    lines = [Text(line) for line in (run_line(found.run), f"take {found.chosen.strategy}: {found.why}") if line]
    return to_text(Group(head, table, *lines), sys.stdout)


def what_if_table(found: WhatIf) -> str:
    """Which contexts and batch sizes fit: a table."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    batches = list(dict.fromkeys(case.batch_size for case in found.cases))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="")
    table.add_column("tokens \\ batch", justify="right", no_wrap=True)
    for batch in batches:
        table.add_column(str(batch), justify="right", no_wrap=True)
    for context in dict.fromkeys(case.context_length for case in found.cases):
        row = [
            f"{case.fullest:.0%}" if case.fullest is not None else "–"
            for case in found.cases
            if case.context_length == context
        ]
        table.add_row(str(context), *row)
    model = found.model
    head = Text.assemble((model.class_name, "bold"), f" {format_bytes(model.nbytes)} in {model.dtype}")
    percent = f"percent: how full the fullest device is, {found.placed}; – does not fit"
    lines = [Text(line) for line in (run_line(found.run, batches=True), percent) if line]
    return to_text(Group(head, table, *lines), sys.stdout)


def fits_on_table(found: FitsOn) -> str:
    """On how many of each board the model runs: a row a board."""
    from devctl.cli.show.inventory import columns
    from devctl.cli.show.streams import answer_style

    model, workload = found.model, found.workload
    asked = "weights alone" if workload is None else f"{workload.context_length:,} tokens × {workload.batch_size}"
    head = f"{model.class_name} {format_bytes(model.nbytes)} in {model.dtype}"
    head += f" and {model.quantisation}" if model.quantisation else ""
    rows = [
        [
            fit.board,
            str(fit.count) if fit.count is not None else "none" if fit.most == 1 else f"none up to {fit.most}",
            ("~" if fit.estimated else "") + format_bytes(fit.memory),
            "" if fit.fullest is None else f"{fit.fullest:.0%}",
        ]
        for fit in found.boards
    ]
    width, styled = answer_style()
    table = columns(("BOARD", "LEAST", "EACH", "FULLEST"), rows, left=1, width=width, styled=styled)
    tail = "LEAST: boards that hold all of it, nothing on CPU or disk; ~ is estimated"
    run = f"{line}\n" if (line := run_line(found.run)) else ""
    return f"{head}, placed by {found.strategy}: {asked}\n{table}{run}{tail}\n"


def run_line(run: WayToRun | None, *, batches: bool = False) -> str:
    """How the workload is run that is counted; empty without one.

    Args:
        batches: whether it is of several, of more and of fewer sequences.
    """
    if run is None:
        return ""
    asked, parts = run.workload, []
    if batches:
        parts.append("batches padded" if asked.padded else "batches unpadded")
    elif asked.batch_size > 1:
        parts.append(
            f"a padded batch of {asked.batch_size}" if asked.padded else f"a batch of {asked.batch_size}, unpadded"
        )
    if run.decodes:
        parts.append(words(asked.generation))
    if asked.prefill_chunk is not None:
        parts.append(f"the prompt in chunks of {asked.prefill_chunk}")
    if run.attention is not None:
        parts.append(f"attention {run.attention}")
    return f"run: {', '.join(parts)}" if parts else ""


def room_line(room: Room | None) -> str:
    """What is left, and about how long a text it holds; empty where there is no room to speak of."""
    if room is None:
        return ""
    text = f"room: {format_bytes(room.free)}"
    if room.tokens is None:
        return text
    if room.made_for is not None and room.tokens >= room.made_for:
        return f"{text}, enough for the {room.made_for:,} tokens that the model is made for"
    if room.tokens < 1:
        return f"{text}, too little to run a text" + ("" if room.full is None else f" on {room.full}")
    full = "" if room.full is None else f", when {room.full} is full"
    return f"{text}, about {_two_digits(room.tokens)} tokens{full}"


def _two_digits(tokens: float) -> str:
    """As much of it as is known."""
    return f"{int(float(f'{tokens:.2g}')):,}"
