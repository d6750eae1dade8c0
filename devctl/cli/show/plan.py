"""A plan for people: whether it fits, a bar per device, which layers are there, and what is offloaded."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, TextIO

from devctl.cli.show.streams import can_show, cells, clean, in_lines, room_of, say, to_text
from devctl.devices import DeviceType
from devctl.models.decoding import words
from devctl.placement.budget import is_accelerator
from devctl.placement.placement import SEGMENTS, over_budget, tight
from devctl.units import format_bytes

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from devctl.models.footprint import Workload
    from devctl.placement.document import PlannedModel
    from devctl.placement.parallel.records import Stages
    from devctl.placement.placement import DeviceUse, Placement
    from devctl.placement.plan import Case, Comparison, Plan, Room, WayToRun, WhatIf
    from devctl.planning.fits_on import Fit, FitsOn

_UNCOUNTED = "KV cache and activations are not counted"
"""How the note begins on a workload that was asked for, where the model can't be traced."""

_WITHOUT_IMAGE = "of a text without an image"
"""How what a plan holds for ends, where the model sees and no image is counted."""


def summary_of(plan: Plan, stream: TextIO | None) -> str:
    """The summary of a plan: whether it fits, what is counted, what is where, and what it holds for."""
    stages = plan.stages
    how = "" if stages is None else in_stages(stages)
    return plan_summary(
        plan.model,
        plan.placement,
        verdict_of(plan),
        run_line(plan.run),
        plan.engine,
        how,
        counted=counted(plan.runtime.footprint.workload if plan.runtime is not None else None),
        stream=stream,
    )


def verdict_of(plan: Plan) -> str:
    """Whether the plan fits, and what is left: the first line of all that shows it."""
    verdict = verdict_line(plan.placement, plan.room)
    if verdict.startswith("fits") and plan.engine.endswith(_WITHOUT_IMAGE):
        verdict += f", {_WITHOUT_IMAGE.replace('of', 'for', 1)}"
    return verdict


def in_stages(found: Stages) -> str:
    """How many stages there are, over how many hosts."""
    stages, hosts = len(found.stages), len(found.hosts)
    return f"in {stages} stage{'s' * (stages > 1)} over {hosts} host{'s' * (hosts > 1)}"


def plan_summary(
    model: PlannedModel,
    placement: Placement,
    verdict: str,
    run: str = "",
    engine: str = "",
    how: str = "",
    *,
    counted: str = "",
    stream: TextIO | None = None,
) -> str:
    """The verdict, the model, a bar per device, which layers are there, and the notes.

    Args:
        verdict: whether it fits, in a line.
        run: a line on what is counted beside the weights, or empty.
        engine: what the plan holds for, or empty.
        how: how it is placed, where that is not by a strategy.
        counted: what is counted, or empty.
        stream: where it goes.
    """
    from rich.console import Group

    width = room_of(stream)
    placed = how or (f"placed by {placement.strategy}" if placement.strategy else "placed by the given map")
    lines: list[RenderableType] = [
        *headline(verdict, width),
        *model_lines(model, ", ".join(part for part in (placed, counted) if part), width),
        *device_lines(placement.devices, width, can_show(stream)),
    ]
    if any(use.total > use.used for use in placement.devices):
        lines += memory_lines(placement.devices, width, can_show(stream))
    said = [loading_line(placement), run, f"holds for: {engine}" if engine else ""]
    lines += plain_lines((*(line for line in said if line), *other_notes(placement.notes)), width)
    return to_text(Group(*lines), stream)


_ANSWERS = re.compile("the most tokens|(at least )?[0-9,]+ sequences? fits? at once|not one sequence of ")
"""How notes begin that answer what was asked, with --max-context or --target-context: they are part of the verdict."""


def headline(verdict: str, width: int | None, style: str = "") -> list[RenderableType]:
    """The verdict, so that it is seen first; a plan's own style unless one is given."""
    from rich.text import Text

    if not style:
        style = "bold green" if verdict.startswith("fits") else "bold" if verdict.startswith("take") else "bold yellow"
    return [Text(line, style=style) for line in in_lines(clean(verdict), width)]


def model_lines(model: PlannedModel, how: str, width: int | None) -> list[RenderableType]:
    """Which model, and what is done with it."""
    from rich.text import Text

    quantised = f" and {model.quantisation}" if model.quantisation else ""
    text = f"{model.class_name} {format_bytes(model.nbytes)} in {model.dtype}{quantised}"
    first, *rest = in_lines(clean(f"{text}, {how}" if how else text), width)
    line = Text(first)
    line.stylize("bold", 0, len(clean(model.class_name)))
    return [line, *map(Text, rest)]


def plain_lines(lines: Iterable[str], width: int | None) -> list[RenderableType]:
    """Lines, folded where a number stays whole."""
    from rich.text import Text

    return [Text(part) for line in lines for part in in_lines(clean(line), width)]


def counted(workload: Workload | None) -> str:
    """What is counted, in a few words."""
    if workload is None:
        return "weights alone"
    return f"{workload.context_length:,} tokens × {workload.batch_size:,}"


def other_notes(notes: Iterable[str]) -> Iterator[str]:
    """A line for each note that is not part of the verdict."""
    return (f"note: {note}" for note in notes if not _ANSWERS.match(note))


def verdict_line(placement: Placement, room: Room | None = None) -> str:
    """Whether it fits, what is left, and about how long a text that holds; or what is not on what computes.

    Args:
        room: what is left, as far as it is known; of a plan with a workload, None.
    """
    if over := over_budget(placement.devices):
        return f"too much: {over[0]}"
    off = [f"{format_bytes(use.used)} on {use.device}" for use in _offloaded(placement)]
    unlimited = [str(use.device) for use in placement.devices if _is_unlimited(use)]
    asked = answer_of(placement.notes)
    nothing_runs = room is not None and room.tokens is not None and room.tokens < 1
    if off:
        head = ", ".join(off)
    elif unlimited:
        head = f"whether it fits is not known: nothing says what {' and '.join(unlimited)} may hold"
    else:
        is_less = nothing_runs or ": none " in asked or any(note.startswith(_UNCOUNTED) for note in placement.notes)
        head = "the weights fit" if is_less else "fits"
        if not is_less and tight(placement.devices):
            head = f"fits only with {SEGMENTS}"
    free = room.free if room is not None else _free(placement)
    left = "" if free is None else f", {format_bytes(free)} left"
    if asked:
        return f"{head}{left}; {asked}"
    return head + left + ("" if room is None or not left else _for_text(room))


def answer_of(notes: Iterable[str]) -> str:
    """Of the notes, what answers a question that was asked: the longest texts, or the most; empty where none was."""
    return "; ".join(note for note in notes if _ANSWERS.match(note))


def _is_unlimited(use: DeviceUse) -> bool:
    return bool(use.used) and use.budget is None and use.device.type is not DeviceType.DISK


def _free(placement: Placement) -> int | None:
    """Bytes that are left on the devices that compute; None where nothing is known to be."""
    computing = [use for use in placement.devices if is_accelerator(use.device) and use.budget]
    computing = computing or [use for use in placement.devices if use.device.type is DeviceType.CPU]
    left = [use.budget - use.total for use in computing if use.budget is not None]
    return sum(left) if left else None


def _for_text(room: Room) -> str:
    """About how long a text the room holds, as the end of a line."""
    if room.tokens is None:
        return ""
    if room.made_for is not None and room.tokens >= room.made_for:
        return f", enough for the {room.made_for:,} tokens that the model is made for"
    if room.tokens < 1:
        return ", too little to run a text" + ("" if room.full is None else f" on {room.full}")
    full = "" if room.full is None else f" when {room.full} is full"
    return f", about {_two_digits(room.tokens)} tokens{full}"


def say_notes(notes: Iterable[str]) -> None:
    """Print a line for each note, to the reader and not among the answer."""
    from rich.console import Group

    if lines := plain_lines((f"note: {note}" for note in notes), room_of(sys.stderr)):
        say(to_text(Group(*lines), sys.stderr))


_BAR = 16
_GAP = 2
_LEAST_NAMES = 24
"""Columns below which names of modules get lines of their own."""
_MOST_IDLE = 8
"""Accelerators that hold nothing and still have a line each."""


def device_lines(devices: Iterable[DeviceUse], width: int | None, drawn: bool = True) -> list[RenderableType]:
    """A bar per device: bytes used of bytes given, and the modules there.

    Args:
        width: columns that the lines keep to; None for any.
        drawn: whether the stream can show what bars are drawn with.
    """
    from rich.text import Text

    devices = tuple(devices)
    idle = [use for use in devices if is_accelerator(use.device) and not use.total]
    rows: list[tuple[str, Text, str, list[str]]] = []
    for use in devices:
        if (use.budget is None and not use.used) or (len(idle) > _MOST_IDLE and use in idle):
            continue
        given = "" if use.budget is None else f" of {format_bytes(use.budget)}"
        rows.append((clean(str(use.device)), _bar(use, drawn), format_bytes(use.total) + given, ranges(use.modules)))
    if len(idle) > _MOST_IDLE:
        others = f"on {len(idle)} others, from {idle[0].device} to {idle[-1].device}"
        rows.append(("", Text(" " * _BAR), "nothing", [others]))
    if not rows:
        return []
    widest, size = (max(cells(row[column]) for row in rows) for column in (0, 2))  # type: ignore[arg-type]
    lead = widest + _BAR + size + 3 * _GAP
    beside = None if width is None else width - lead
    lines: list[RenderableType] = []
    for name, bar, used, modules in rows:
        named = Text(name + " " * (widest - cells(name) + _GAP))
        if beside is not None and beside < 0:  # the name of a host may be as long as a line
            lines += map(Text, in_lines(name, width))
            named = Text("  ")
        first = Text.assemble(named, bar, " " * (_GAP + size - cells(used)), used)
        if beside is None or beside >= _LEAST_NAMES:
            texts = name_lines(modules, beside)
            lines.append(Text.assemble(first, " " * _GAP, texts[0]) if texts else first)
            lines += [Text(" " * lead + text) for text in texts[1:]]
        else:
            assert width is not None, "there is a width where it is short"
            lines += [first, *(Text(f"  {text}") for text in name_lines(modules, width - 2))]
    return lines


def name_lines(names: Sequence[str], width: int | None) -> list[str]:
    """Names in lines; where they are more than one, each without what it has in common with the one before."""
    whole = clean(", ".join(names))
    if not whole or width is None or cells(whole) <= width:
        return [whole] if whole else []
    short = [name if not number else _elided(names[number - 1], name) for number, name in enumerate(names)]
    return in_lines(clean(", ".join(short)), width)


def _elided(before: str, name: str) -> str:
    """``name`` without the parents that it shares with the one ``before``, but for that of a number."""
    ours, theirs = name.split("."), before.split(".")
    shared = next((at for at, (one, other) in enumerate(zip(ours, theirs, strict=False)) if one != other), 0)
    shared = min(shared, len(ours) - 1, len(theirs) - 1)
    while shared and ours[shared][:1].isdecimal():
        shared -= 1
    return "…" + ".".join(ours[shared:]) if shared else name


_PARTS = (("weights", "█", "cyan"), ("state", "▓", "magenta"), ("activations", "▒", "yellow"), ("overhead", "░", "dim"))
_PLAIN = "#=+-"
"""The same where a stream has no such characters."""


def _bar(use: DeviceUse, drawn: bool) -> Text:
    """What is used of the budget, of what kind, and what is left of it."""
    from rich.text import Text

    bar = Text()
    if use.budget is None:
        return Text(" " * _BAR)
    sizes = (use.used, use.state, use.activations, use.overhead)
    taken = _cells(sizes, max(use.budget, use.total, 1))
    for width, (_, mark, style), plain in zip(taken, _PARTS, _PLAIN, strict=True):
        bar.append((mark if drawn else plain) * width, style)
    bar.append(("·" if drawn else ".") * (_BAR - sum(taken)), "dim")
    return bar


def _cells(sizes: Sequence[int], of: int, width: int = _BAR) -> list[int]:
    """Cells of a bar for each part, in all as many as their sum takes; whatever is there has one."""
    total = max(-(-width * sum(sizes) // of), sum(1 for size in sizes if size))
    cells = [min(1, size) for size in sizes]
    while sum(cells) < total:  # to the part that is furthest from its share
        cells[max(range(len(sizes)), key=lambda part: sizes[part] * total - cells[part] * sum(sizes))] += 1
    return cells


def memory_lines(devices: Iterable[DeviceUse], width: int | None, drawn: bool = True) -> list[RenderableType]:
    """What each device holds: weights, KV cache, activations, overhead, and what is free."""
    marks = [mark for _, mark, _ in _PARTS] if drawn else list(_PLAIN)
    titles = ("weights", "KV cache", "activations", "overhead", "free")
    header = [f"{mark} {title}" for mark, title in zip((*marks, "·" if drawn else "."), titles, strict=True)]
    rows = []
    for use in devices:
        if use.total:
            free = "" if use.budget is None else format_bytes(use.budget - use.total)
            parts = (use.used, use.state, use.activations, use.overhead)
            rows.append((str(use.device), [*(format_bytes(size) if size else "" for size in parts), free]))
    return list(figures(header, rows, width))


def figures(
    header: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]], width: int | None
) -> Iterator[RenderableType]:
    """A table of figures by name; a name that leaves them no room has a line of its own."""
    from rich.text import Text

    sizes = [max(map(cells, column)) for column in zip(header, *(row for _, row in rows), strict=True)]
    widest = max((cells(clean(name)) for name, _ in rows), default=0)
    is_long = width is not None and widest + sum(sizes) + _GAP * len(sizes) > width
    widest = 0 if is_long else widest

    def line(name: str, texts: Sequence[str]) -> Text:
        right = (" " * (size - cells(text)) + text for size, text in zip(sizes, texts, strict=True))
        return Text((" " * _GAP).join((name + " " * (widest - cells(name)), *right)))

    yield line("", header)
    for name, texts in rows:
        if is_long:
            yield from map(Text, in_lines(clean(name), width))
        yield line("" if is_long else clean(name), texts)


def _offloaded(placement: Placement) -> Iterator[DeviceUse]:
    """What is not on the devices that compute."""
    off = [DeviceType.DISK, DeviceType.CPU] if placement.offloaded > placement.on_disk else [DeviceType.DISK]
    return (use for use in placement.devices if use.device.type in off and use.used)


def offload_line(placement: Placement) -> str:
    """What is not on the devices that compute, in a line."""
    parts = [f"{format_bytes(use.used)} on {use.device}" for use in _offloaded(placement)]
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


def comparison(found: Comparison, stream: TextIO | None) -> str:
    """Which placement to take, and all of them side by side: a table."""
    from rich.console import Group
    from rich.table import Table

    placements = found.placements
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("", no_wrap=True)
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
    gaps = any(found.fits(each) and not found.fits_by_default(each) for each in placements)
    if gaps:
        table.add_row("by default", *("yes" if found.fits_by_default(each) else "no" for each in placements))
    width = room_of(stream)
    head = [
        *headline(f"take {found.chosen.strategy}: {found.why}", width),
        *model_lines(found.model, counted(None if found.run is None else found.run.workload), width),
    ]
    run = run_line(found.run)
    told = f"by default: with the gaps that torch's allocator leaves without {SEGMENTS}"
    lines = [line for line in (run, told if gaps else "") if line]
    return to_text(Group(*head, table, *plain_lines(lines, width)), stream)


def what_if_table(found: WhatIf, stream: TextIO | None) -> str:
    """Which contexts and batch sizes fit: a table."""
    from rich.console import Group
    from rich.table import Table

    batches = list(dict.fromkeys(case.batch_size for case in found.cases))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="")
    table.add_column("tokens \\ batch", justify="right", no_wrap=True)
    for batch in batches:
        table.add_column(f"{batch:,}", justify="right", no_wrap=True)
    for context in dict.fromkeys(case.context_length for case in found.cases):
        row = [_case(case) for case in found.cases if case.context_length == context]
        table.add_row(f"{context:,}", *row)
    width = room_of(stream)
    percent = f"percent: how full the fullest device is, {found.placed}; – does not fit"
    gaps = any(case.fits and not case.fits_by_default for case in found.cases)
    told = f"*: only with {SEGMENTS}; by default torch's allocator leaves gaps" if gaps else ""
    lines = plain_lines([line for line in (run_line(found.run, batches=True), percent, told) if line], width)
    return to_text(Group(*model_lines(found.model, "", width), table, *lines), stream)


def _case(case: Case) -> str:
    if case.fullest is None:
        return "–"
    return f"{case.fullest:.0%}{'' if case.fits_by_default else '*'}"


def fits_on_table(found: FitsOn, stream: TextIO | None) -> str:
    """On how many of each board the model runs: a row a board."""
    from devctl.cli.show.inventory import columns
    from devctl.cli.show.streams import answer_style

    model, workload = found.model, found.workload
    asked = counted(workload)
    head = f"{model.class_name} {format_bytes(model.nbytes)} in {model.dtype}"
    head += f" and {model.quantisation}" if model.quantisation else ""
    gaps = any(fit.count != fit.count_by_default for fit in found.boards)
    rows = [
        [
            fit.board,
            _boards(fit, fit.count),
            *([_boards(fit, fit.count_by_default)] if gaps else []),
            ("~" if fit.estimated else "") + format_bytes(fit.memory),
            "" if fit.fullest is None else f"{fit.fullest:.0%}",
        ]
        for fit in found.boards
    ]
    width, styled = answer_style(stream)
    header = ("BOARD", "LEAST", *(["BY DEFAULT"] if gaps else []), "EACH", "FULLEST")
    table = columns(header, rows, left=1, width=width, styled=styled)
    tail = "LEAST: boards that hold all of it, nothing on CPU or disk; ~ is estimated\n"
    if gaps:
        tail += f"BY DEFAULT: with the gaps, too, that torch's allocator leaves without\n{SEGMENTS}\n"
    run = f"{line}\n" if (line := run_line(found.run)) else ""
    return f"{head}, placed by {found.strategy}: {asked}\n{table}{run}{tail}"


def _boards(fit: Fit, count: int | None) -> str:
    if count is not None:
        return str(count)
    return "none" if fit.most == 1 else f"none up to {fit.most}"


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
            f"a padded batch of {asked.batch_size:,}" if asked.padded else f"a batch of {asked.batch_size:,}, unpadded"
        )
    if run.decodes:
        parts.append(words(asked.generation))
    if asked.prefill_chunk is not None:
        parts.append(f"the prompt in chunks of {asked.prefill_chunk:,}")
    if run.attention is not None:
        parts.append(f"attention {run.attention}")
    return f"run: {', '.join(parts)}" if parts else ""


def _two_digits(tokens: float) -> str:
    """As much of it as is known."""
    return f"{int(float(f'{tokens:.2g}')):,}"
