"""What a model's files say of its image processor, without building that: it needs packages that may not be here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from devctl.models.files.hub import MOST_CONFIG
from devctl.models.files.resolve import ModelSource, file_of
from devctl.models.images import MOST_SETTING, Images
from devctl.reading import read_document

_COUNTS = ("min_patches", "max_patches", "max_soft_tokens")
_FLAGS = ("do_image_splitting", "resize_to_max_canvas", "do_pan_and_scan")
_FILES = ("preprocessor_config.json", "processor_config.json")


def limited(images: Images, source: ModelSource | None) -> Images:
    """The same with the least and most pixels that the processor of ``source`` scales an image to."""
    settings = None if source is None or not images.count else _settings(source)
    found = None if settings is None else tuple(sorted(_of_tiles(settings).items()))
    settings = settings or {}
    size = settings.get("size")
    named = {**(size if isinstance(size, dict) else {}), **settings}
    least = _pixels(named.get("min_pixels")) or _pixels(named.get("shortest_edge"))
    most = _pixels(named.get("max_pixels")) or _pixels(named.get("longest_edge"))
    return replace(images, least=least, most=most, processor=found)


def _of_tiles(settings: Mapping[str, Any]) -> dict[str, int]:
    """What of ``settings`` decides how an image is cut, by name."""
    size, tile = settings.get("size"), settings.get("max_image_size")
    named = {name: settings.get(name) for name in (*_COUNTS, *_FLAGS)}
    if isinstance(size, dict):
        named |= {"height": size.get("height"), "longest_edge": size.get("longest_edge")}
    if isinstance(tile, dict):
        named["tile"] = tile.get("longest_edge")
    found = {name: int(value) for name in _FLAGS if isinstance(value := named[name], bool)}
    counts = {name: size for name, value in named.items() if name not in _FLAGS and (size := _pixels(value))}
    return found | {name: size for name, size in counts.items() if size <= MOST_SETTING}


def _settings(source: ModelSource) -> Mapping[str, Any] | None:
    """What the files of ``source`` say of its image processor; None where there are none."""
    for name in _FILES:
        path = file_of(source, name)
        try:
            found = None if path is None else json.loads(read_document(path, MOST_CONFIG))
        except (OSError, ValueError, RecursionError):  # as transformers does with one that it can't read
            continue
        if isinstance(found, dict):
            inner = found.get("image_processor")
            if name == _FILES[0] or isinstance(inner, dict):
                return inner if isinstance(inner, dict) else found
    return None


def _pixels(value: object) -> int | None:
    return value if type(value) is int and value > 0 else None
