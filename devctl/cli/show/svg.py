"""A plan as a picture: an SVG that needs nothing beside itself, the same bytes for the same plan.

Positions across are percentages and those down are pixels: text keeps its size in any width, and a label is shown in
the widths that have room for it. The numbers behind a percentage are whole thousandths, so that they add up.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import accumulate, pairwise
from textwrap import wrap

from devctl.cli.show import streams
from devctl.cli.show.colours import canvas, css_class, shown_between, shown_from, stylesheet, text_width
from devctl.cli.show.plan import offload_line, ranges
from devctl.devices import Device
from devctl.placement.budget import is_accelerator
from devctl.placement.document import PlannedModel
from devctl.placement.pieces import Piece
from devctl.placement.placement import DeviceUse, Placement
from devctl.units import format_bytes

WHOLE = 100_000
"""The width of the picture in thousandths of a percent."""

_THINNEST = 350
"""A piece is at least this wide, four pixels of 1200; less where there are very many."""

_STRIP, _TICK, _BAR, _CELL, _CELL_HEIGHT = 58, 12, 16, 7, 34
_GRID_FROM = 13
"""Accelerators from which on they are drawn as a grid of cells."""
_COLUMNS, _GAP = 8, 1_500
_LINE_LETTERS = 68
"""Letters in a line of text that the narrowest windows have room for."""
_NOT_XML = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A part of what a device holds, like its weights."""

    label: str
    nbytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """Lines of SVG, and the pixels down that they take."""

    lines: tuple[str, ...]
    height: int


def plan_svg(
    model: PlannedModel, placement: Placement, pieces: Sequence[Piece], counted: str = "", verdict: str = ""
) -> str:
    """The picture as a file of its own: a title, the layers, the devices and the notes.

    Args:
        counted: the workload that is counted, in a few words, or empty.
        verdict: whether it fits, as the summary says it, or empty.
    """
    title = [(line, "title ink", 26) for line in wrapped(_in_letters([model.name], 132), 38)]
    facts = [
        (line, "sub muted", 18)
        for fact in facts_of(model, placement, counted, verdict)
        for line in wrapped(fact, _LINE_LETTERS - 8)
    ]
    notes = [(line, "small muted", 16) for note in placement.notes for line in wrapped(f"note: {note}", _LINE_LETTERS)]
    parts = [_text_lines([*title, *facts]), figure(placement, pieces)]
    parts += [_text_lines(notes)] if notes else []
    return ascii_only(svg(_stacked(parts), model, placement, page=True, counted=counted, verdict=verdict))


def svg(
    drawing: Drawing, model: PlannedModel, placement: Placement, *, page: bool, counted: str = "", verdict: str = ""
) -> str:
    """``drawing`` as an SVG element that says in words what it shows."""
    height = drawing.height + 16
    said = [f"{use.device} holds {_used_of(use)}" for use in placement.devices if use.used]
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="devctl" width="100%" height="{height}" role="img" '
        'aria-labelledby="devctl-title devctl-desc">',
        f'<title id="devctl-title">{clean(title_of(model, counted))}</title>',
        f'<desc id="devctl-desc">{clean("; ".join((*facts_of(model, placement, counted, verdict), *said)))}.</desc>',
        f"<style>{canvas() if page else ''}{stylesheet()}</style>",
        '<defs><pattern id="devctl-disk" width="8" height="8" patternUnits="userSpaceOnUse" '
        'patternTransform="rotate(45)"><rect class="weave" width="8" height="8"/>'
        '<path class="stripe" stroke-width="3" d="M2 0V8"/></pattern></defs>',
        *(['<rect class="page" width="100%" height="100%"/>'] if page else []),
        f'<svg x="2%" width="96%" height="{height}" overflow="visible">',
        *drawing.lines,
        "</svg>",
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def figure(placement: Placement, pieces: Sequence[Piece]) -> Drawing:
    """The layers as a strip, and a bar for each device."""
    devices = tuple(use.device for use in placement.devices)
    uses = [use for use in placement.devices if use.used or use.budget is not None]
    accelerators = [use for use in uses if is_accelerator(use.device)]
    computing = any(use.used for use in accelerators)
    total = sum(use.used for use in placement.devices)
    gridded = accelerators if len(accelerators) >= _GRID_FROM else []
    parts = [_heading("layers, in the order of the model"), _strip(pieces, devices), _heading("devices")]
    if any(use.total > use.used for use in uses):
        parts.append(_legend())
    parts += [_grid(gridded, devices)] if gridded else []
    for use in uses:
        if use not in gridded:
            offloaded = use.device == Device.disk() or (computing and not is_accelerator(use.device))
            parts.append(_device(use, devices, total, offloaded=offloaded and use.used > 0))
    return _stacked(parts)


def title_of(model: PlannedModel, counted: str) -> str:
    """What the picture is of, with the workload."""
    return f"{model.name}: where its layers go" + (f", {counted}" if counted else "")


def facts_of(model: PlannedModel, placement: Placement, counted: str = "", verdict: str = "") -> tuple[str, ...]:
    """Whether it fits, what is planned, the workload that is counted, and what is left off the devices that compute."""
    how = f"placed by {placement.strategy}" if placement.strategy else "placed by the given map"
    first = f"{model.class_name}, {format_bytes(model.nbytes)} in {model.dtype}, {how}"
    said = (verdict, first, f"counted: {counted}" if counted else "", offload_line(placement))
    return tuple(fact for fact in said if fact)


def edges(pieces: Sequence[Piece]) -> list[int]:
    """Where each piece begins, and the last one ends: by its bytes, but none too thin to be seen."""
    if not pieces:
        return [0]
    total = sum(piece.nbytes for piece in pieces)
    thinnest = min(_THINNEST, WHOLE // (2 * len(pieces)))
    share = [max(thinnest, piece.nbytes * WHOLE // max(1, total)) for piece in pieces]
    whole = sum(share)
    return [0, *(until * WHOLE // whole for until in accumulate(share))]


def _strip(pieces: Sequence[Piece], devices: tuple[Device, ...]) -> Drawing:
    """The pieces side by side; above them what they are, and in them where they are."""
    at, top = edges(pieces), 22
    lines = []
    for piece, (left, right) in zip(pieces, pairwise(at), strict=True):
        said = f"{piece.name or '(everything)'}: {_piece_bytes(piece)} on {piece.device}"
        lines.append(
            f'<rect class="{css_class(piece.device, devices)}" x="{_percent(left)}" y="{top}" '
            f'width="{_percent(right - left)}" height="{_STRIP}"><title>{clean(said)}</title></rect>'
        )
    runs = _runs(pieces, by_name=False)
    groups = _runs(pieces, by_name=True)
    ends = {stop for _, stop in runs}
    inner = {stop for _, stop in groups} - ends
    for stop in range(1, len(pieces)):
        # layers that are alike are told apart by a tick, below the text
        start = 0 if stop in ends or stop in inner else _STRIP - _TICK
        thin = min(at[stop + 1] - at[stop], at[stop] - at[stop - 1])
        width = 2 if stop in ends and thin > 1_000 else 1
        classes = f"cut{'' if thin > 1_000 else ' from840'}"
        lines.append(_line(at[stop], top + start, _STRIP - start, f'class="{classes}" stroke-width="{width}"'))
    for start, stop in runs:
        kind = css_class(pieces[start].device, devices)
        device = pieces[start].device
        names = [str(device)] if device.id is None else [str(device), str(device.id)]
        nbytes = format_bytes(sum(piece.nbytes for piece in pieces[start:stop]))
        lines += _fitting(names, at[start], at[stop], top + 20, f"name mid on-{kind}", 13)
        lines += _fitting([nbytes], at[start], at[stop], top + 36, f"small mid on-{kind}", 11)
    slivers: list[str] = []
    for start, stop in groups:
        (full,) = ranges(piece.name for piece in pieces[start:stop])
        shorter = [full.split(".", cut)[-1] for cut in range(full.count(".") + 1)]
        labels = list(_fitting(shorter, at[start], at[stop], top - 7, "small mid muted", 11))
        lines += labels
        if not any(_always(label) for label in labels):
            nbytes = format_bytes(sum(piece.nbytes for piece in pieces[start:stop]))
            slivers.append(f"{full} ({nbytes}, {pieces[start].device})")
    height = top + _STRIP + 12
    if slivers:
        slivers[0] = f"too narrow for a name, in order: {slivers[0]}"
        lines += _listed(slivers, height + 2)
        height += 12
    return Drawing(lines=tuple(lines), height=height)


def _runs(pieces: Sequence[Piece], *, by_name: bool) -> list[tuple[int, int]]:
    """(start, stop) of pieces in a row that are on one device; by name, only of numbered siblings."""
    starts = [
        place
        for place, piece in enumerate(pieces)
        if not place
        or piece.device != pieces[place - 1].device
        or (by_name and len(ranges([pieces[place - 1].name, piece.name])) > 1)
    ]
    return list(pairwise([*starts, len(pieces)]))


def _device(use: DeviceUse, devices: tuple[Device, ...], model_bytes: int, *, offloaded: bool) -> Drawing:
    """A device's name and numbers, its bar, and what is there."""
    name = f"{use.device}, offloaded" if offloaded else str(use.device)
    fraction = ", no limit" if use.budget is None else f", {_fraction(use)}"
    kind = css_class(use.device, devices)
    numbers = f"{_used_of(use)}{fraction}"
    lines = [
        *_beside(name, numbers),
        f'<text class="num muted end" x="100%" y="14">{numbers}</text>',
        *bar(_segments(use), use.budget, model_bytes, top=21, kind=kind),
        *_listed(ranges(use.modules), 49),
    ]
    return Drawing(lines=tuple(lines), height=64)


def _legend() -> Drawing:
    """What the shades of a bar are: a part of it may be too thin for its name."""
    lines, x = [], 0
    for number, label in enumerate(("weights", "KV cache", "activations", "overhead")):
        lines.append(f'<rect class="cpu s{number}" x="{x}" y="1" width="10" height="10" rx="2"/>')
        lines.append(f'<text class="small muted" x="{x + 14}" y="10">{label}</text>')
        x += 14 + int(text_width(label, 11)) + 12
    return Drawing(lines=tuple(lines), height=22)


def _segments(use: DeviceUse) -> tuple[Segment, ...]:
    """What a device holds: weights, and beside them what a workload needs."""
    parts = {"KV cache": use.state, "activations": use.activations, "overhead": use.overhead}
    beside = (Segment(label=label, nbytes=nbytes) for label, nbytes in parts.items() if nbytes)
    return (Segment(label="weights", nbytes=use.used), *beside)


def bar(segments: Sequence[Segment], budget: int | None, otherwise: int, *, top: int, kind: str) -> list[str]:
    """What a device holds, of what it may hold.

    Args:
        segments: what it holds, side by side.
        budget: bytes that it may hold; None where nothing limits it.
        otherwise: bytes that the whole bar stands for then.
        kind: the class of the device's colour.
    """
    used = sum(segment.nbytes for segment in segments)
    scale = max(used, otherwise if budget is None else budget, 1)
    at = [until * WHOLE // scale for until in accumulate((s.nbytes for s in segments), initial=0)]
    free = 0 if budget is None else max(0, budget - used)
    lines = [
        f'<rect class="track round" x="0" y="{top}" width="100%" height="{_BAR}" rx="2">'
        f"<title>{format_bytes(free)} free</title></rect>"
    ]
    for number, (segment, (left, right)) in enumerate(zip(segments, pairwise(at), strict=True)):
        if segment.nbytes:
            lines.append(
                f'<rect class="{kind} round s{number}" x="{_percent(left)}" y="{top}" width="{_percent(right - left)}" '
                f'height="{_BAR}" rx="2"><title>{clean(segment.label)}: {format_bytes(segment.nbytes)}</title></rect>'
            )
        if len(segments) > 1:
            lines += _fitting([segment.label], left, right, top + _BAR - 3, f"small mid on-{kind}", 11)
    if free:
        lines += _fitting([f"{format_bytes(free)} free"], at[-1], WHOLE, top + _BAR - 3, "small mid muted", 11)
    if budget is not None and used > budget:
        lines.append(_line(budget * WHOLE // scale, top - 3, _BAR + 6, 'class="mark" stroke-width="2"'))
    return lines


def _grid(uses: Sequence[DeviceUse], devices: tuple[Device, ...]) -> Drawing:
    """A small bar for each of many devices."""
    lines = []
    width = (WHOLE - (_COLUMNS - 1) * _GAP) // _COLUMNS
    for place, use in enumerate(uses):
        row, column = divmod(place, _COLUMNS)
        top, left = row * _CELL_HEIGHT, column * (width + _GAP)
        said = f"{use.device}: {_used_of(use)}, {_fraction(use)}; {', '.join(ranges(use.modules)) or 'nothing'}"
        filled = use.total * WHOLE // max(1, use.total, use.budget or 0)
        lines += [
            f'<svg x="{_percent(left)}" y="{top}" width="{_percent(width)}" height="{_CELL_HEIGHT}">',
            f"<title>{clean(said)}</title>",
            f'<rect class="track" y="17" width="100%" height="{_CELL}"/>',
            f'<rect class="{css_class(use.device, devices)}" y="17" width="{_percent(filled)}" height="{_CELL}"/>',
            "</svg>",
        ]
        names = [str(use.device)] if use.device.id is None else [str(use.device), str(use.device.id)]
        for text, between in _by_width([(name, text_width(name, 11)) for name in names], width / 1000):
            lines.append(f'<text class="small ink{between}" x="{_percent(left)}" y="{top + 12}">{clean(text)}</text>')
        both = text_width(names[0], 11) + text_width(_fraction(use), 11) + 8
        if (first := shown_from(both, width / 1000)) is not None:
            hidden = f" {between}" if (between := shown_between(first, None)) else ""
            right = _percent(left + width)
            lines.append(f'<text class="small muted end{hidden}" x="{right}" y="{top + 12}">{_fraction(use)}</text>')
    budgets = sorted({use.budget for use in uses if use.budget is not None})
    said = " to ".join(format_bytes(size) for size in dict.fromkeys(budgets[:1] + budgets[-1:]))
    height = -(-len(uses) // _COLUMNS) * _CELL_HEIGHT
    total = f"{len(uses)} accelerators of {said}: {format_bytes(sum(use.used for use in uses))} in all"
    lines.append(f'<text class="small muted" x="0" y="{height + 10}">{clean(total)}</text>')
    return Drawing(lines=tuple(lines), height=height + 26)


def _beside(name: str, numbers: str) -> Iterator[str]:
    """A name to the left of numbers: in each width of the window as much of it as does not run into them."""
    texts = [name, *(_in_letters([name], letters) for letters in (48, 32, 20, 12) if letters < len(name))]
    taken = text_width(numbers, 13) + 8
    for text, between in _by_width([(text, text_width(text, 13) + taken) for text in texts], 100):
        yield f'<text class="name ink{between}" x="0" y="14">{clean(text)}</text>'


def _by_width(texts: Sequence[tuple[str, float]], percent: float) -> Iterator[tuple[str, str]]:
    """The first of the texts that has its pixels in ``percent`` of the picture, and for which windows; the last in any.

    Args:
        texts: each with the pixels that it needs.
    """
    until: int | None = None
    for number, (text, pixels) in enumerate(texts):
        first = 0 if number == len(texts) - 1 else shown_from(pixels, percent)
        if first is None or (until is not None and first >= until):
            continue
        between = shown_between(first, until)
        yield text, f" {between}" if between else ""
        if not first:
            return
        until = first


def _always(label: str) -> bool:
    """Whether a label is shown in every width of the window, or others that are together."""
    return " from" not in label


def _listed(names: Sequence[str], y: int) -> list[str]:
    """Names in one line, as many as there is room for, and how many more there are."""
    found: list[str] = []
    until, widths = None, (1150, 760, 480, 0)
    texts = [_in_letters(names, int(max(width, 320) * 0.92 / text_width("x", 11))) for width in widths]
    for place, (width, text) in enumerate(zip(widths, texts, strict=True)):
        if text not in texts[place + 1 :]:  # else it is still the same in narrower windows
            found.append(f'<text class="small muted {shown_between(width, until)}" x="0" y="{y}">{clean(text)}</text>')
            until = width
    return found


def _in_letters(names: Sequence[str], most: int) -> str:
    """As many names as fit into so many letters, and how many more there are; a lone one loses its middle."""
    shown = len(names)
    while shown > 1 and len(_and_more(names, shown)) > most:
        shown -= 1
    text = _and_more(names, shown)
    return text if len(text) <= most else f"{text[: most // 3]}…{text[len(text) - (most - most // 3 - 1) :]}"


def _and_more(names: Sequence[str], shown: int) -> str:
    more = f" and {len(names) - shown} more" if shown < len(names) else ""
    return ", ".join(names[:shown]) + more


def _fitting(texts: Iterable[str], left: int, right: int, y: int, classes: str, size: int) -> Iterator[str]:
    """The first of ``texts`` that has room from ``left`` to ``right``, in each width of the window."""
    until: int | None = None
    for text in texts:
        first = shown_from(text_width(text, size) + 8, (right - left) / 1000)
        if first is None or (until is not None and first >= until):
            continue
        between = shown_between(first, until)
        yield (
            f'<text class="{classes}{" " if between else ""}{between}" x="{_percent((left + right) // 2)}" y="{y}">'
            f"{clean(text)}</text>"
        )
        if not first:
            return
        until = first


def _heading(text: str) -> Drawing:
    return Drawing(lines=(f'<text class="head muted" x="0" y="20">{clean(text)}</text>',), height=32)


def _text_lines(lines: Iterable[tuple[str, str, int]]) -> Drawing:
    """(text, classes, height) below each other."""
    found, y = [], 4
    for text, classes, height in lines:
        y += height
        found.append(f'<text class="{classes}" x="0" y="{y}">{clean(text)}</text>')
    return Drawing(lines=tuple(found), height=y + 10)


def _stacked(parts: Iterable[Drawing]) -> Drawing:
    lines: list[str] = []
    y = 0
    for part in parts:
        lines += [f'<svg y="{y}" width="100%" height="{part.height}" overflow="visible">', *part.lines, "</svg>"]
        y += part.height
    return Drawing(lines=tuple(lines), height=y)


def _line(at: int, top: int, height: int, how: str) -> str:
    x = _percent(at)
    return f'<line {how} x1="{x}" x2="{x}" y1="{top}" y2="{top + height}"/>'


def _percent(thousandths: int) -> str:
    return f"{thousandths // 1000}.{thousandths % 1000:03}%"


def _used_of(use: DeviceUse) -> str:
    return format_bytes(use.total) + (f" of {format_bytes(use.budget)}" if use.budget is not None else "")


def _fraction(use: DeviceUse) -> str:
    if not use.budget:
        return "–"
    rounded = f"{use.total / use.budget:.0%}"
    return rounded if rounded != "100%" or use.total == use.budget else f"{use.total / use.budget:.1%}"


def _piece_bytes(piece: Piece) -> str:
    """Its bytes, or what it is tied to."""
    return format_bytes(piece.nbytes) + ("" if piece.tied is None else f" (tied to {piece.tied})")


def wrapped(text: str, letters: int, most: int = 4) -> list[str]:
    """``text`` in at most ``most`` lines of so many letters; a word that is longer is cut."""
    lines = wrap(" ".join(text.split()), letters) or [""]
    return lines if len(lines) <= most else [*lines[: most - 1], f"{lines[most - 1][: letters - 1]}…"]


def clean(text: str) -> str:
    """``text`` as XML and HTML have it: escaped, without what they do not know, or what a terminal obeys."""
    return escape(streams.clean(_NOT_XML.sub("\ufffd", text)))


def ascii_only(document: str) -> str:
    """The same in any encoding."""
    return document.encode("ascii", "xmlcharrefreplace").decode("ascii")
