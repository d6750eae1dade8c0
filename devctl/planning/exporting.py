"""The file that ``export`` takes."""

from __future__ import annotations

import json
from pathlib import Path

from devctl.export.read import exportable
from devctl.export.records import Exportable, Unsayable
from devctl.models.files.hub import MOST_CONFIG
from devctl.placement.document import KIND, parse_json
from devctl.planning.map_file import read_text
from devctl.reading import read_document


def read_exportable(path: Path, model: str | None = None) -> Exportable | Unsayable:
    """The plan document or map at ``path``, as engines see it; "-" is standard input.

    Raises:
        UsageError: it can't be read, is neither, or names no model.
    """
    text, origin = read_text(path, "the plan", "write one with `devctl plan MODEL > plan.json`")
    data = parse_json(text, origin)
    found = exportable(data, origin, model)
    if isinstance(found, Unsayable) or found.layers is None or (isinstance(data, dict) and data.get("kind") == KIND):
        return found
    count = _layers_of(found.model)
    if count is None or count == found.layers:
        return found
    return Unsayable((f"the map is of {found.layers} layers, and {found.model} has {count}",))


def _layers_of(model: str) -> int | None:
    """Layers of the decoder in a folder or a config file; None where that is not known, as of what is on a hub."""
    try:
        path = Path(model).expanduser()
        config = json.loads(read_document(path / "config.json" if path.is_dir() else path, MOST_CONFIG))
    except (OSError, RuntimeError, ValueError, RecursionError):
        return None
    text = config.get("text_config", config) if isinstance(config, dict) else None
    if not isinstance(text, dict) or config.get("is_encoder_decoder"):
        return None
    return next((text[key] for key in ("num_hidden_layers", "n_layer") if type(text.get(key)) is int), None)
