"""What can go wrong, as facts: a message, the next step to try, and the exit code.

Raised anywhere, caught in one place (``devctl.cli``), which prints and exits.
"""

import re
from collections.abc import Iterable
from enum import IntEnum


class ExitCode(IntEnum):
    """What a command's exit code means; the same for every command."""

    DONE = 0
    """Done; it fits; requirements are met."""
    BUG = 1
    """Unexpected failure."""
    USAGE = 2
    """Wrong usage: an option, a value, a malformed file given to us."""
    NO = 3
    """The honest no: does not fit, requirement not met, map not valid on this machine."""
    MODEL = 4
    """The model can't be read: not found, gated, offline, corrupt."""
    LOAD = 5
    """Loading or the smoke inference failed: out of memory, NaN, wrong device."""
    INTERRUPTED = 130
    """Interrupted."""


class DevctlError(Exception):
    """A failure that the user can act on.

    Args:
        message: what was wrong, with the value; one line.
        hint: what to do next; one line, or empty.
    """

    exit_code = ExitCode.BUG

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(DevctlError):
    """An option, a value or a file given to us is malformed."""

    exit_code = ExitCode.USAGE


class TooFewTokensError(UsageError):
    """A context is too short for the images that are asked for.

    Args:
        message, hint: as of any error.
        needed: tokens of the shortest context that is not.
    """

    def __init__(self, message: str, *, needed: int, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.needed = needed


class OutputError(DevctlError):
    """The answer could not be written: the disk is full, the folder is missing or not ours."""

    exit_code = ExitCode.BUG


class ModelError(DevctlError):
    """The model can't be read: not found, gated, offline, corrupt or of an unknown architecture.

    Args:
        message, hint: as of any error.
        findings: what can be said of it all the same, one line each.
    """

    exit_code = ExitCode.MODEL

    def __init__(self, message: str, *, findings: tuple[str, ...] = (), hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.findings = findings


class UntracedError(ModelError):
    """What the model holds beside its weights can't be found by tracing it."""


class LoadError(DevctlError):
    """Loading or the smoke inference failed."""

    exit_code = ExitCode.LOAD


class RefusedError(DevctlError):
    """The honest no.

    Args:
        message: what is refused; one line.
        findings: every reason, one line each.
        hint: what to do next.
    """

    exit_code = ExitCode.NO

    def __init__(self, message: str, *, findings: tuple[str, ...] = (), hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.findings = findings


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """What of ``known`` was probably meant by ``word``, as the end of a sentence; empty where nothing is near it."""
    from difflib import SequenceMatcher  # for those who mistype

    matcher = SequenceMatcher(autojunk=False, b=word.casefold()[:_LONGEST_WORD])
    near = []
    for name in dict.fromkeys(known):
        matcher.set_seq1(name.casefold())
        if _may_be_number(_DIGITS.findall(word), _DIGITS.findall(name)):
            near.append((matcher.ratio(), name))
    near.sort(key=lambda each: -each[0])
    meant = [name for ratio, name in near if ratio >= max(_NEAR, near[0][0] - _AS_NEAR)][:_MOST_MEANT]
    if not meant or not word:
        return ""
    return f"; did you mean {' or '.join(filter(None, (', '.join(meant[:-1]), meant[-1])))}?"


def _may_be_number(wrong: list[str], right: list[str]) -> bool:
    """Whether numbers in a name may be those that were meant: another number is another thing, and no slip."""
    return not wrong or not right or any(theirs.startswith(ours) for ours in wrong for theirs in right)


_DIGITS = re.compile("[0-9]+")
_NEAR, _AS_NEAR = 0.65, 0.1
"""How alike names are from which on one is told, and by how much less alike than the best others may be."""
_MOST_MEANT = 3
_LONGEST_WORD = 100


_ERRNO = re.compile(r"\[Errno -?[0-9]+\] ")


def first_line(error: BaseException) -> str:
    """What an exception says, on one line (two joined where the first only announces); its class if it says nothing.

    The number of an operating system's error is left out, which tells nothing beside its words.
    """
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - that of a library in C may hold what is no text
        text = ""
    lines = [_ERRNO.sub("", line.strip(), count=1) for line in text.splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
