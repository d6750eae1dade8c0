"""Which architectures transformers' pipeline runs exactly: the table that a sweep keeps."""

from __future__ import annotations

import json
from enum import StrEnum
from functools import cache
from importlib import resources
from typing import Any


class Outcome(StrEnum):
    """What the sweep found."""

    EXACT = "exact"
    """Tokens and logits of all cuts and prompts are those of one process."""
    WRONG = "wrong"
    """It runs, and makes other tokens."""
    ERROR = "error"
    """It does not run."""


@cache
def table() -> dict[str, dict[str, dict[str, dict[str, str]]]]:
    """By release of transformers, class and way (stages, shared): its outcome, and why where it is not exact."""
    text = resources.files("devctl.models").joinpath("over_ranks.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found["transformers"]  # type: ignore[no-any-return]


def objection(class_name: str, release: str, *, shared: bool = False) -> str | None:
    """Why a model of this class is not run so by this release of transformers; None where it was exact.

    Args:
        shared: on ranks that share its layers, instead of in stages.
    """
    known, how = table(), "on ranks that share its layers" if shared else "in stages"
    if release not in known:
        return f"transformers {release} was not tried, only {', '.join(sorted(known))}"
    row = known[release].get(class_name, {}).get("shared" if shared else "stages")
    if row is None:
        return f"{class_name} was not tried {how} with transformers {release}"
    if row["outcome"] == Outcome.EXACT:
        return None
    what = "makes other tokens" if row["outcome"] == Outcome.WRONG else "does not run"
    return f"{class_name} {what} {how} with transformers {release}: {row['why']}"
