"""Architectures that the releases of engines know, from whose source the rules are: ``architectures.json``.

A slow test reads the engines' wheels and holds the file against them; ``python -m tests.export.registries`` writes it.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from devctl.placement.engines.records import title_of

_FILE = Path(__file__).with_name("architectures.json")


def unknown(engine: str, class_name: str) -> str | None:
    """Why ``engine`` does not serve a model of that class; None where it knows it, or where no list of it is kept.

    transformers may write a class otherwise than the config that the engine reads: ``Kimi_K25…`` for ``KimiK25…``.
    """
    found = _lists().get(engine)
    if found is None or _plain(class_name) in found[1]:
        return None
    return f"{title_of(engine)} {found[0]} does not know the architecture {class_name}"


@cache
def _lists() -> dict[str, tuple[str, frozenset[str]]]:
    data = json.loads(_FILE.read_text(encoding="utf-8"))
    return {name: (each["release"], frozenset(map(_plain, each["architectures"]))) for name, each in data.items()}


def _plain(name: str) -> str:
    return name.replace("_", "").lower()
