"""A wrong command line in our own words, with what was probably meant."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from devctl.cli.helps import value_of
from devctl.completion.entry import table
from devctl.errors import did_you_mean

_WORDS = (
    (re.compile(r"(\S+) is not in the range x>=(\S+)"), r"\1: it is at least \2"),
    (re.compile(r"(\S+) is not in the range x<=(\S+)"), r"\1: it is at most \2"),
    (re.compile(r"(\S+) is not in the range (\S+)<=x<=(\S+)"), r"\1: it is from \2 to \3"),
    (re.compile(r"is not a valid int(eger)?( range)?$"), "is no whole number"),
    (re.compile(r"is not a valid float( range)?$"), "is no number"),
    (re.compile(r"^Got unexpected extra arguments?(?:\(s\))? \((.*)\)$"), r"too many arguments: \1"),
    (re.compile(r"^Option '(.*)' requires an argument$"), r"\1 needs a value behind it"),
    (re.compile(r"^Option '(.*)' does not take a value$"), r"\1 takes no value"),
)
_ELSEWHERE = {
    "--context-length": ("-c", "--ctx", "--ctx-size", "--n-ctx", "--max-model-len", "--max-seq-len", "--seq-len"),
    "--devices": ("-d", "--gpu", "--gpus", "--board", "--boards", "--hardware"),
    "--map": ("--device", "--devices", "--device-map"),
    "--gpu-memory": ("--vram", "--memory"),
    "--batch-size": ("-b", "--batch", "--parallel"),
    "--tp": ("--tensor-parallel-size", "--tp-size"),
    "--ep": ("--expert-parallel-size", "--enable-expert-parallel", "--ep-size"),
    "--kv-dtype": ("--kv-cache-dtype", "--cache-type-k", "--cache-type-v"),
    "--max-num-seqs": ("--max-running-requests",),
    "--gpu-memory-utilization": ("--mem-fraction-static",),
    "--version": ("-V", "-v", "version"),
    "--help": ("-?", "help"),
}
"""What other tools call ours."""
_INVALID = re.compile(r"^Invalid value for (?:'-\w' / )?'?([^':]*)'?: (?=(\S+: it is)?)")
_CHOICE = re.compile(r""": ['"](.*)['"] is not one of """, re.DOTALL)
_COMMAND = re.compile(r"^No such command '(.*)'", re.DOTALL)


def explained(error: Any, commands: Iterable[str]) -> str:
    """What Typer found wrong, in a line.

    Args:
        error: as Typer raised it.
        commands: those that there are.
    """
    text: str = error.format_message().rstrip(".")
    if type(error).__name__ == "MissingParameter" and error.param is not None:
        return _missing(error.param)
    choices = getattr(getattr(getattr(error, "param", None), "type", None), "choices", None)
    if type(error).__name__ == "NoSuchOption":
        text = _no_option(error.option_name, error.ctx, commands)
    elif (command := _COMMAND.match(text)) is not None:
        text = f"No such command {command[1]!r}{_called_here(command[1], _options(error.ctx), commands)}"
    elif choices and (wrong := _CHOICE.search(text)) is not None:
        known = [str(getattr(choice, "value", choice)) for choice in choices]
        text = f"{text[: wrong.start()]}: {wrong[1]!r} is not one of {', '.join(known)}{did_you_mean(wrong[1], known)}"
    for theirs, ours in _WORDS:
        text = theirs.sub(ours, text)
    return _INVALID.sub(lambda found: found[1] + (" " if found[2] else ": "), text)


def _missing(param: Any) -> str:
    """What the command line lacks, and what may be given."""
    name = value_of(param)
    if param.param_type_name == "option":
        name = f"{param.opts[0]} {name}"
    said = (param.help or "").rstrip(".")
    return f"{name} is missing" + (f": {said[0].lower()}{said[1:]}" if said else "")


def _no_option(option: str, context: Any, commands: Iterable[str]) -> str:
    """That there is no such option, with what was meant, or with the command that has it."""
    here = _options(context)
    if context is not None and context.parent is None and option not in here:
        takers = (
            n for n, each in table()["commands"].items() if any(option in one["names"] for one in each["options"])
        )
        if (taker := next(takers, None)) is not None:
            return f"{option} stands in front of the command; write it behind, like `devctl {taker} {option}`"
        here += [option.lstrip("-")] if option.lstrip("-") in commands else []
    return f"No such option: {option}{_called_here(option, here, here)}"


def _called_here(word: str, options: Iterable[str], like: Iterable[str]) -> str:
    """Which of ``options`` other tools call so, else which words of ``like`` it is like, as the end of a sentence."""
    options = list(options)
    for ours, theirs in _ELSEWHERE.items():
        if word in theirs and ours in options:
            return f"; did you mean {ours}?"
    return did_you_mean(word, like)


def _options(context: Any) -> list[str]:
    """The options of the command at hand, by their long names."""
    if context is None:
        return []
    return [name for param in context.command.get_params(context) for name in param.opts if name.startswith("--")]
