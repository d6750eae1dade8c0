"""A plan as a page: the picture, its notes, and a table of all blocks. It needs nothing beside itself."""

from collections.abc import Sequence

from devctl.cli.show.colours import FONT, css_class
from devctl.cli.show.svg import ascii_only, clean, facts_of, figure, svg, title_of
from devctl.placement.document import PlannedModel
from devctl.placement.pieces import Piece
from devctl.placement.placement import Placement
from devctl.units import format_bytes

_STYLE = (
    ":root{color-scheme:light dark}"
    f"body{{margin:0 auto;max-width:1200px;background:#fff;color:#14171c;font:14px/1.45 {FONT}}}"
    "header,footer,main{padding:0 2%}svg.devctl{display:block}"
    "h1{font-size:20px;line-height:1.25;margin:20px 0 4px;overflow-wrap:anywhere}"
    "h2{font-size:12px;letter-spacing:.03em;margin:8px 0}"
    "p{margin:0;overflow-wrap:anywhere}p,h2,li,i,td.n,th{color:#59616e}ul{margin:0;padding-left:18px}"
    "table{border-collapse:collapse;width:100%;max-width:860px;margin-bottom:32px;font-size:13px}"
    "th{text-align:left;font-weight:600;font-size:12px}th,td{padding:3px 12px 3px 0;vertical-align:top}"
    "td{border-top:1px solid #e6e9ee;overflow-wrap:anywhere}"
    "td.b,th.b,td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}"
    "td.n{width:1%}td.n,td.b,td.d{white-space:nowrap}th.d,td.d{width:1%;padding-right:0}"
    "svg.devctl.chip{display:inline-block;width:10px;height:10px;margin-right:6px}"
    "@media(prefers-color-scheme:dark){body{background:#14171c;color:#eef0f3}p,h2,li,i,td.n,th{color:#a3abb8}"
    "td{border-color:#2b313a}}"
)


def plan_html(
    model: PlannedModel, placement: Placement, pieces: Sequence[Piece], counted: str = "", verdict: str = ""
) -> str:
    """The page as a file of its own.

    Args:
        counted: the workload that is counted, in a few words, or empty.
        verdict: whether it fits, as the summary says it, or empty.
    """
    devices = tuple(use.device for use in placement.devices)
    rows = [
        f'<tr><td class="n">{number}</td><td>{_name(piece)}</td>'
        f'<td class="b">{format_bytes(piece.nbytes)}</td>'
        f'<td class="d"><svg class="devctl chip" aria-hidden="true"><rect class="{css_class(piece.device, devices)}" '
        f'width="100%" height="100%" rx="2"/></svg>{clean(str(piece.device))}</td></tr>'
        for number, piece in enumerate(pieces, 1)
    ]
    facts = "".join(f"<p>{clean(fact)}</p>" for fact in facts_of(model, placement, counted, verdict))
    notes = [f"<li>{clean(note)}</li>" for note in placement.notes]
    lines = [
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width,initial-scale=1">',
        f"<title>{clean(title_of(model, counted))}</title>",
        f"<style>{_STYLE}</style>\n</head>\n<body>",
        f"<header><h1>{clean(model.name)}</h1>{facts}</header>",
        svg(figure(placement, pieces), model, placement, page=False, counted=counted, verdict=verdict).rstrip(),
        "<main>",
        *(["<h2>notes</h2>", "<ul>", *notes, "</ul>"] if notes else []),
        f"<h2>all {len(pieces)} blocks, in the order of the model</h2>",
        '<table>\n<thead><tr><th class="n">#</th><th>block</th><th class="b">bytes</th><th class="d">device</th></tr>'
        "</thead>\n<tbody>",
        *rows,
        "</tbody>\n</table>\n</main>\n</body>\n</html>",
    ]
    return ascii_only("\n".join(lines) + "\n")


def _name(piece: Piece) -> str:
    tied = "" if piece.tied is None else f" <i>tied to {clean(piece.tied)}</i>"
    return clean(piece.name or "(everything)") + tied
