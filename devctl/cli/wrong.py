"""A wrong command line in our own words, with what was probably meant."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from devctl.errors import did_you_mean

_WORDS = (
    (re.compile(r"(\S+) is not in the range x>=(\S+)"), r"\1: it is at least \2"),
    (re.compile(r"(\S+) is not in the range x<=(\S+)"), r"\1: it is at most \2"),
    (re.compile(r"(\S+) is not in the range (\S+)<=x<=(\S+)"), r"\1: it is from \2 to \3"),
    (re.compile(r"is not a valid int(eger)?( range)?$"), "is no whole number"),
    (re.compile(r"is not a valid float( range)?$"), "is no number"),
    (re.compile(r"^Got unexpected extra arguments?(?:\(s\))? \((.*)\)$"), r"too many arguments: \1"),
    (re.compile(r"^Option '(.*)' requires an argument$"), r"\1 needs a value behind it"),
)
_CHOICE = re.compile(r": '(.*)' is not one of ", re.DOTALL)
_COMMAND = re.compile(r"^No such command '(.*)'", re.DOTALL)


def explained(error: Any, commands: Iterable[str]) -> str:
    """What Typer found wrong, in a line.

    Args:
        error: as Typer raised it.
        commands: those that there are.
    """
    text: str = error.format_message().rstrip(".")
    choices = getattr(getattr(getattr(error, "param", None), "type", None), "choices", None)
    if type(error).__name__ == "NoSuchOption":
        text = f"No such option: {error.option_name}{did_you_mean(error.option_name, _options(error.ctx))}"
    elif (command := _COMMAND.match(text)) is not None:
        text = f"No such command {command[1]!r}{did_you_mean(command[1], commands)}"
    elif choices and (wrong := _CHOICE.search(text)) is not None:
        text += did_you_mean(wrong[1], [str(getattr(choice, "value", choice)) for choice in choices])
    for theirs, ours in _WORDS:
        text = theirs.sub(ours, text)
    return text


def _options(context: Any) -> list[str]:
    """The options of the command at hand, by their long names."""
    if context is None:
        return []
    return [name for param in context.command.get_params(context) for name in param.opts if name.startswith("--")]
