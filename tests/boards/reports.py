"""What ``devctl load --json`` and plans say of themselves, as rows."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from tests.boards.outside import Done, NoAnswerError
from tests.boards.records import MIB, Row, equal, holds, near_peak


def report_of(done: Done) -> Mapping[str, Any]:
    """The document of a load.

    Raises:
        NoAnswerError: it wrote none.
    """
    found = done.document()
    if not isinstance(found, dict) or found.get("kind") != "devctl.load":
        raise NoAnswerError(f"no report of a load came: {done.said}")
    return found


def of_load(title: str, done: Done, *, workspaces: int = 0) -> Iterator[Row]:
    """Its exit code, its proofs, and its bytes as it predicted and measured them itself.

    Args:
        workspaces: bytes that torch allocates for libraries with the first product of matrices. They are in the peak
            that torch counts, and a plan counts them to the libraries, not to the peak of tensors.
    """
    yield equal(title, "exit code", 0, done.code, why="" if done.code == 0 else done.said)
    if not done.out:
        return
    report = report_of(done)
    for proof in report["proofs"]:
        yield holds(title, f"proof: {proof['name']}", bool(proof["passed"]), why=str(proof["said"]))
    for device in report["devices"]:
        at = str(device["device"])
        yield equal(title, "weights of a load", device["predicted"], device["measured"], unit="B", why=at)
        if device["predicted_peak"] is not None and device["peak"] is not None:
            libraries = workspaces if at.startswith("cuda") else 0
            why = f"{at}, less {libraries / MIB:.0f} MiB of workspaces" if libraries else at
            yield near_peak(title, "peak of a load", device["predicted_peak"], device["peak"] - libraries, why)


def decode_rate(report: Mapping[str, Any]) -> float | None:
    """Tokens a second after the first one; None where nothing was generated."""
    generated = report["smoke"]["generated"]
    rate = None if generated is None else generated["decode_tokens_per_second"]
    return None if rate is None else float(rate["median"])


def predicted_rate(notes: list[str]) -> float | None:
    """Tokens a second that a plan for the objective latency foretells, from its notes; None where it does not."""
    for note in notes:
        if found := re.search(r"about [\d.e+-]+ ms a token \(([\d.e+-]+) tokens/s\)", note):
            return float(found[1])
    return None
