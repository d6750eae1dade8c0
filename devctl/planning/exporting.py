"""The plan or map that is said in other engines' words, beside what its model's config says where that is here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from devctl.export.read import exportable
from devctl.export.records import Exportable, Unsayable
from devctl.models.files.hub import CONFIG, MOST_CONFIG, in_cache
from devctl.placement.document import KIND, parse_json
from devctl.planning.map_file import read_text
from devctl.reading import read_document


def read_exportable(path: Path, model: str | None = None) -> Exportable | Unsayable:
    """The plan document or map at ``path``, as engines see it; "-" is standard input.

    Raises:
        UsageError: it can't be read, is neither, or names no model.
    """
    text, origin = read_text(path, "the plan", "write one with `devctl plan MODEL > plan.json`")
    return as_exportable(parse_json(text, origin), origin, model)


def as_exportable(data: Any, origin: str, model: str | None = None) -> Exportable | Unsayable:
    """As `exportable`, held against the config of the model where that is on this machine.

    Raises:
        UsageError: it is no plan or map, or names no model.
    """
    found = exportable(data, origin, model)
    if isinstance(found, Unsayable):
        return found
    config = _config_of(found)
    is_map = not isinstance(data, dict) or data.get("kind") != KIND
    count = next((config[key] for key in ("num_hidden_layers", "n_layer") if type(config.get(key)) is int), None)
    if is_map and found.layers is not None and count is not None and count != found.layers:
        return Unsayable((f"the map is of {found.layers} layers, and {found.model} has {count}",))
    # of windows in all layers, each layer keeps as much, which is less than vLLM wants room for
    return replace(found, kept_alike=False) if _has_windows(config, found.context_length) else found


def _config_of(found: Exportable) -> Mapping[str, Any]:
    """What the config of a model says of its decoder; nothing where it is not on this machine, or is of two."""
    try:
        path: Path | None = Path(found.model).expanduser()
        if path is not None and not path.exists():
            path = in_cache(found.model, CONFIG, found.revision)
        elif path is not None and path.is_dir():
            path = path / CONFIG
        if path is None or path.suffix != ".json":
            return {}
        config = json.loads(read_document(path, MOST_CONFIG))
    except (OSError, RuntimeError, ValueError, RecursionError):
        return {}
    if not isinstance(config, dict) or config.get("is_encoder_decoder"):
        return {}
    text = config.get("text_config", config)
    return text if isinstance(text, dict) else {}


def _has_windows(config: Mapping[str, Any], context: int | None) -> bool:
    """Whether layers keep no more than a window, which a text of ``context`` tokens is longer than."""
    window, kinds = config.get("sliding_window"), config.get("layer_types")
    if type(window) is not int or config.get("use_sliding_window") is False or context is None:
        return False
    return context > window and not (isinstance(kinds, list) and set(map(str, kinds)) == {"full_attention"})
