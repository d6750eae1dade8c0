"""How the picture of a plan looks: colours for light and dark, and which labels a width has room for.

The eight colours of accelerators differ with any kind of colour blindness, neighbours most (at least 0.14 in OKLab, all
others 0.05), have three times the page's luminance or a third, and text on them four and a half. A ninth accelerator
begins anew: colour helps the eye, and every device is named in text.
"""

from dataclasses import dataclass

from devctl.devices import Device, DeviceType
from devctl.placement.budget import is_accelerator

_INK, _PAPER = "#14171c", "#ffffff"

# (fill, text on it)
_LIGHT = (
    ("#144073", _PAPER),
    ("#a44c1d", _PAPER),
    ("#7447c8", _PAPER),
    ("#1d97a3", _INK),
    ("#891151", _PAPER),
    ("#8b8c14", _INK),
    ("#8a4148", _PAPER),
    ("#65955a", _INK),
)
_DARK = (
    ("#5680e6", _INK),
    ("#e78c08", _INK),
    ("#adabf2", _INK),
    ("#4ff5ba", _INK),
    ("#b566a5", _INK),
    ("#edd643", _INK),
    ("#e14d28", _INK),
    ("#5ecd97", _INK),
)

_BREAKPOINTS = (360, 420, 480, 540, 600, 680, 760, 840, 920, 1000, 1080, 1150)
_NARROWEST = 320
_INNER = 0.94
"""Of the width that is asked for, what is surely left within the margins and beside a scroll bar."""

FONT = 'system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif'


def css_class(device: Device, devices: tuple[Device, ...]) -> str:
    """The class of what is on ``device``: one of eight for accelerators, in order; cpu and disk have their own."""
    if device.type is DeviceType.DISK:
        return "disk"
    if not is_accelerator(device):
        return "cpu"
    accelerators = [each for each in devices if is_accelerator(each)]
    return f"d{accelerators.index(device) % len(_LIGHT)}"


def text_width(text: str, size: int) -> float:
    """Pixels that ``text`` surely has room in, in a font of ``size``: wide characters count double."""
    return sum(1.0 if ord(c) > 0x2E7F else 0.62 for c in text) * size


def shown_from(pixels: float, percent: float) -> int | None:
    """The width of a window from which on ``percent`` of the picture have ``pixels``.

    0 where any width will do; None where none does.
    """
    needed = pixels / max(percent / 100 * _INNER, 1e-9)
    if needed <= _NARROWEST:
        return 0
    return next((point for point in _BREAKPOINTS if point >= needed), None)


def shown_between(first: int, last: int | None) -> str:
    """The classes of what is shown in windows from ``first`` on, until ``last`` takes its place."""
    return " ".join([*([f"from{first}"] if first else []), *([f"to{last}"] if last else [])])


def stylesheet() -> str:
    """CSS for a picture; no variables, which not every program that shows SVG knows."""
    # where @media is not known, as to librsvg, the labels of a wide window are shown, and not all over each other
    narrow = ",".join(f".devctl .to{point}" for point in _BREAKPOINTS)
    between = f"{narrow}{{display:none}}" + "".join(
        f"@media(max-width:{point - 0.02}px){{.devctl .{kind}{point}{{display:{display}}}}}"
        for kind, display in (("to", "inline"), ("from", "none"))
        for point in _BREAKPOINTS
    )
    return (
        f".devctl text{{font-family:{FONT}}}"
        ".devctl .title{font-size:20px;font-weight:600}.devctl .sub{font-size:13px}"
        ".devctl .head{font-size:12px;font-weight:600;letter-spacing:.03em}"
        ".devctl .name{font-size:13px;font-weight:600}.devctl .num{font-size:13px}.devctl .small{font-size:11px}"
        ".devctl rect,.devctl line{shape-rendering:crispEdges}.devctl .round{shape-rendering:auto}"
        ".devctl .mid{text-anchor:middle}.devctl .end{text-anchor:end}"
        ".devctl .s1{opacity:.75}.devctl .s2{opacity:.55}.devctl .s3{opacity:.4}"
        f"{_theme(_LIGHT, _LIGHT_GREYS)}@media(prefers-color-scheme:dark){{{_theme(_DARK, _DARK_GREYS)}}}"
        f"{between}"
    )


def canvas() -> str:
    """CSS for a picture that is a file of its own: what is around it has its colour."""
    return f":root{{background:{_PAPER}}}@media(prefers-color-scheme:dark){{:root{{background:{_INK}}}}}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Greys:
    """All that has no hue: the page, its text, and what is on the CPU and the disk."""

    page: str
    ink: str
    muted: str
    track: str
    cpu: str
    disk: str
    stripe: str


_LIGHT_GREYS = _Greys(
    page=_PAPER, ink=_INK, muted="#59616e", track="#e6e9ee", cpu="#7f8997", disk="#525b68", stripe="#6b7482"
)
_DARK_GREYS = _Greys(
    page=_INK, ink="#eef0f3", muted="#a3abb8", track="#2b313a", cpu="#8d96a4", disk="#59616e", stripe="#6f7886"
)


def _theme(fills: tuple[tuple[str, str], ...], greys: _Greys) -> str:
    coloured = "".join(
        f".devctl .d{i}{{fill:{fill}}}.devctl .on-d{i}{{fill:{text}}}" for i, (fill, text) in enumerate(fills)
    )
    return (
        f".devctl .page{{fill:{greys.page}}}.devctl .cut{{stroke:{greys.page}}}.devctl .ink{{fill:{greys.ink}}}"
        f".devctl .muted{{fill:{greys.muted}}}.devctl .track{{fill:{greys.track}}}"
        f".devctl .mark{{stroke:{greys.ink}}}{coloured}"
        f".devctl .cpu{{fill:{greys.cpu}}}.devctl .on-cpu{{fill:{_INK}}}"
        f".devctl .disk{{fill:url(#devctl-disk)}}.devctl .on-disk{{fill:{_PAPER}}}"
        f".devctl .weave{{fill:{greys.disk}}}.devctl .stripe{{stroke:{greys.stripe}}}"
    )
