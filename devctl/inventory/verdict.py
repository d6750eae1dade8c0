"""What was asked for beside what was found."""

from dataclasses import dataclass
from typing import Any

from devctl.as_json import to_json_values
from devctl.inventory.records import Accelerator
from devctl.units import format_bytes

SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One requirement, and whether it is met.

    Attributes:
        requirement: the option that asks for it, or the device of a map.
        said: what was found, as a person reads it.
        wanted, found: the same in numbers: bytes and counts as integers, versions as text; None where there is none,
            or it is unknown.
    """

    requirement: str
    met: bool
    said: str
    wanted: int | str | None = None
    found: int | str | None = None

    def __str__(self) -> str:
        return f"{self.requirement}: {self.said}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Every finding, and the accelerators that were selected, best first: none unless all is met."""

    findings: tuple[Finding, ...]
    selected: tuple[Accelerator, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every requirement is met."""
        return all(finding.met for finding in self.findings)

    @property
    def reasons(self) -> tuple[str, ...]:
        """What is not met, one line each."""
        return tuple(str(finding) for finding in self.findings if not finding.met)

    def to_document(self) -> dict[str, Any]:
        """The verdict as JSON values."""
        return {
            "schema": SCHEMA,
            "kind": "devctl.check",
            "ok": self.ok,
            "requirements": to_json_values(self.findings),
            "selected": to_json_values(self.selected),
        }


def at_least(requirement: str, wanted: int, found: int | None, word: str) -> Finding:
    """Bytes that are there, held against those that are ``wanted``."""
    said = "unknown" if found is None else f"{format_bytes(found)} {word}"
    met = found is not None and found >= wanted
    return Finding(requirement=requirement, met=met, said=said, wanted=wanted, found=found)
