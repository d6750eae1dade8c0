"""One thing that was looked at, and what it came to."""

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How a thing is."""

    OK = "ok"
    NOTE = "note"
    """It works, and differs from what a person may expect of it."""
    BROKEN = "broken"
    """Something does not work, or not as it is written, until somebody repairs it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        subject: what was looked at: a package, "driver", "cuda:0", a variable.
        text: how it is, in words.
        next_step: what to do about it; None where nothing is to be done.
    """

    level: Level
    subject: str
    text: str
    next_step: str | None = None


def ok(subject: str, text: str) -> Finding:
    """A finding of what is as it should be."""
    return Finding(level=Level.OK, subject=subject, text=text)


def note(subject: str, text: str, next_step: str | None = None) -> Finding:
    """A finding of what works, and a person should know."""
    return Finding(level=Level.NOTE, subject=subject, text=text, next_step=next_step)


def broken(subject: str, text: str, next_step: str) -> Finding:
    """A finding of what is to be repaired, which always says how."""
    return Finding(level=Level.BROKEN, subject=subject, text=text, next_step=next_step)
