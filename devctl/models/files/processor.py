"""What a model's files say of its image processor, without building that: it needs packages that may not be here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from devctl.models.files.hub import MOST_CONFIG
from devctl.models.files.resolve import ModelSource, file_of
from devctl.models.images import Images
from devctl.reading import read_document

_FILES = ("preprocessor_config.json", "processor_config.json")


def limited(images: Images, source: ModelSource | None) -> Images:
    """The same with the least and most pixels that the processor of ``source`` scales an image to."""
    settings = {} if source is None or not images.count else _settings(source)
    size = settings.get("size")
    named = {**(size if isinstance(size, dict) else {}), **settings}
    least = _pixels(named.get("min_pixels")) or _pixels(named.get("shortest_edge"))
    most = _pixels(named.get("max_pixels")) or _pixels(named.get("longest_edge"))
    return replace(images, least=least, most=most)


def _settings(source: ModelSource) -> Mapping[str, Any]:
    """What the files of ``source`` say of its image processor."""
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
    return {}


def _pixels(value: object) -> int | None:
    return value if type(value) is int and value > 0 else None
