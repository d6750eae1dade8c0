"""The file that ``export`` takes."""

from __future__ import annotations

from pathlib import Path

from devctl.export.read import exportable
from devctl.export.records import Exportable, Unsayable
from devctl.placement.document import parse_json
from devctl.planning.map_file import read_text


def read_exportable(path: Path, model: str | None = None) -> Exportable | Unsayable:
    """The plan document or map at ``path``, as engines see it; "-" is standard input.

    Raises:
        UsageError: it can't be read, is neither, or names no model.
    """
    text, origin = read_text(path, "the plan", "write one with `devctl plan MODEL > plan.json`")
    return exportable(parse_json(text, origin), origin, model)
