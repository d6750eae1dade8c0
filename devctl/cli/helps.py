"""What ``--help`` says: panels of options, a line each where it can be said in one, examples and exit codes."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Iterator
from enum import Enum
from typing import Any, NamedTuple

from devctl.cli.show import streams
from devctl.errors import ExitCode

_MOST_COLUMNS = 110
_PIPED = 80
_LEAST = 50
_HARD = "\u00a0"
"""A blank at which no line is broken."""
_LONGEST_NAME = 28
"""Columns of an option and what it takes; what is longer has a line of its own."""


class Example(NamedTuple):
    """A command line to copy, and what it does."""

    line: str
    does: str


EXAMPLES: dict[str, tuple[Example, ...]] = {
    "devctl": (
        Example("devctl list", "what is here?"),
        Example("devctl plan org/model --devices 2xH100", "would it fit there, and how?"),
        Example("devctl load org/model --verify", "does it run here, and rightly?"),
    ),
    "list": (
        Example("devctl list", "GPUs, CPU and disks, and what is free"),
        Example("devctl list --watch 2", "the same, every two seconds"),
        Example(
            "devctl list --hosts 'node[01-04]' --json > cluster.json", "of four hosts, for plan --hosts @cluster.json"
        ),
    ),
    "check": (
        Example("devctl check --gpus 2 --gpu-memory 40GiB", "are there two GPUs with 40 GiB free each?"),
        Example("devctl check --select 2 --idle", "the two best GPUs that nobody uses"),
        Example("devctl check --map plan.json", "does this plan still fit here?"),
    ),
    "plan": (
        Example("devctl plan org/model --devices 2xH100 --context-length 32k", "does it fit with 32k tokens?"),
        Example("devctl plan org/model --strategy optimal -o map.json", "the best map for this machine"),
        Example("devctl plan org/model --fits-on all --context-length 8k", "how many of which board?"),
    ),
    "load": (
        Example("devctl load org/model --map map.json", "does it run as planned?"),
        Example("devctl load config.json --load-format dummy", "try it before anything is downloaded"),
        Example("devctl load org/model --baseline old.json --json > new.json", "is it slower than before?"),
    ),
    "export": (
        Example("devctl export plan.json --to vllm", "the command that serves it"),
        Example("devctl plan org/model --json | devctl export - --to llama.cpp", "plan and export in one go"),
        Example("devctl export plan.json --to sglang --host node01", "what one of its hosts is to run"),
    ),
    "doctor": (
        Example("devctl doctor", "what is wrong here, and what to do next"),
        Example("devctl doctor --json > doctor.json", "the same for a bug report; nothing private is in it"),
        Example("devctl doctor --timeout 10min", "on a file system that is slow to import torch from"),
    ),
    "completion": (
        Example("source <(devctl completion bash)", "in this shell; zsh takes the same line"),
        Example(
            "devctl completion fish > ~/.config/fish/completions/devctl.fish",
            "for good, in fish; `| source` does it at once",
        ),
        Example("devctl completion zsh > ~/.zfunc/_devctl", "for good, in zsh, where ~/.zfunc is in fpath"),
    ),
}
"""Of each command, by its name."""

_CODES = {
    ExitCode.DONE: "done",
    ExitCode.BUG: "unexpected failure",
    ExitCode.USAGE: "wrong usage",
    ExitCode.NO: "the honest no: does not fit, requirement not met, map not valid here",
    ExitCode.MODEL: "the model can't be read",
    ExitCode.LOAD: "loading or the smoke inference failed",
    ExitCode.INTERRUPTED: "interrupted",
}
_CODES_OF: dict[str, dict[ExitCode, str]] = {
    "list": {
        ExitCode.NO: "a host gives no inventory, with --require-all, or none does",
        ExitCode.INTERRUPTED: "Ctrl-C",
    },
    "check": {
        ExitCode.DONE: "all is met",
        ExitCode.NO: "refused: something is not met",
        ExitCode.MODEL: "the model of a map can't be read",
    },
    "plan": {
        ExitCode.DONE: "it is planned",
        ExitCode.NO: "it does not fit as asked",
        ExitCode.MODEL: "the model can't be read",
    },
    "load": {
        ExitCode.DONE: "it runs, and all is proved",
        ExitCode.NO: "it does not fit here, or is worse than its baseline",
        ExitCode.MODEL: "the model can't be read",
        ExitCode.LOAD: "loading or running failed, or a proof did",
    },
    "export": {
        ExitCode.DONE: "the commands are printed",
        ExitCode.NO: "the engine can't run the plan",
        ExitCode.MODEL: "the model of a plain map can't be read",
    },
    "doctor": {
        ExitCode.DONE: "nothing is broken",
        ExitCode.NO: "something is broken",
    },
    "completion": {},
}
_ALWAYS = (ExitCode.DONE, ExitCode.BUG, ExitCode.USAGE, ExitCode.INTERRUPTED)


def help_of(context: Any, command: Any) -> str:
    """The help of one command."""
    width = _width()
    params = [param for param in command.get_params(context) if not getattr(param, "hidden", False)]
    arguments = [param for param in params if _is_argument(param)]
    usage = " ".join([context.command_path, *map(_in_usage, arguments), "[OPTIONS]"])
    lines = [f"Usage: {usage}", "", *_text(command.help, width), ""]
    lines += _panels(params, width)
    return "\n".join([*lines, *_ending(command.name, width)])


def help_of_all(context: Any, group: Any) -> str:
    """The help of ``devctl`` itself: its commands, each with all of what it is for in short."""
    width = _width()
    lines = [f"Usage: {context.command_path} COMMAND [OPTIONS]", "", *_text(group.help, width), "", "Commands:"]
    commands = [(name, group.get_command(context, name)) for name in group.list_commands(context)]
    lines += _table([(name, _short(command.help)) for name, command in commands if command is not None], width)
    lines += ["", *_panels(group.get_params(context), width), *_ending("devctl", width)]
    more = streams.in_lines("`devctl COMMAND --help` says what a command takes, with examples.", width)
    return "\n".join([*lines, "", *more])


def _width() -> int:
    """As wide as the terminal, within reason."""
    return max(_LEAST, min(streams.width_of(sys.stdout) or _PIPED, _MOST_COLUMNS))


def _short(text: str | None) -> str:
    """The first sentence or two of a help, whole."""
    return " ".join(inspect.cleandoc(text or "").split("\n\n")[0].split())


def _text(text: str | None, width: int) -> Iterator[str]:
    """Paragraphs, indented."""
    for number, paragraph in enumerate(inspect.cleandoc(text or "").split("\n\n")):
        if number:
            yield ""
        yield from (f"  {line}" for line in streams.in_lines(" ".join(paragraph.split()), width - 2))


def _panels(params: Iterable[Any], width: int) -> Iterator[str]:
    """A table a panel, in the order in which they come first; what has none is under "Options"."""
    found: dict[str, list[tuple[str, str]]] = {}
    for param in params:
        if not getattr(param, "hidden", False):
            panel = "Arguments" if _is_argument(param) else getattr(param, "rich_help_panel", None) or "Options"
            found.setdefault(panel, []).append((_name(param), _said(param)))
    for panel in sorted(found, key=lambda each: each == "Options"):
        yield from (f"{panel}:", *_table(found[panel], width), "")


def _ending(name: str, width: int) -> Iterator[str]:
    """Examples and exit codes."""
    if examples := EXAMPLES.get(name, ()):
        yield "Examples:"
        beside = all(len(line) + len(does) + 6 <= width for line, does in examples)
        widest = max(len(line) for line, _ in examples)
        beside = beside and all(widest + len(does) + 6 <= width for _, does in examples)
        for line, does in examples:
            yield from (f"  {line:<{widest}}  # {does}",) if beside else (f"  # {does}", f"  {line}")
        yield ""
    own = _CODES_OF.get(name, {})
    codes = _CODES if name == "devctl" else {code: _CODES[code] for code in sorted({*_ALWAYS, *own})}
    yield "Exit codes:"
    for code, meaning in codes.items():
        first, *rest = streams.in_lines(own.get(code, meaning), width - 6)
        yield f"  {code.value:>3} {first}"
        yield from (f"      {line}" for line in rest)


def _table(rows: Iterable[tuple[str, str]], width: int) -> Iterator[str]:
    """Names beside what is said of them."""
    rows = list(rows)
    column = _LONGEST_NAME if any(name.startswith("-") for name, _ in rows) else max(len(name) for name, _ in rows)
    for name, said in rows:
        lines = [""]
        if said:  # a default is kept together
            parted = streams.in_lines(said.replace("[default: ", f"[default:{_HARD}"), width - column - 4)
            lines = [line.replace(_HARD, " ") for line in parted]
        is_long = len(name) > column
        if is_long:
            yield f"  {name}"
        yield f"  {'' if is_long else name:<{column}}  {lines[0]}".rstrip()
        yield from (f"{'':<{column + 4}}{line}" for line in lines[1:])


def _is_argument(param: Any) -> bool:
    return bool(param.param_type_name == "argument")


def _in_usage(argument: Any) -> str:
    name = value_of(argument)
    return name if argument.required else f"[{name}]"


def _name(param: Any) -> str:
    """How an option is written, short names first, and what it takes."""
    if _is_argument(param):
        return value_of(param)
    names = ", ".join([*sorted(param.opts, key=len), *param.secondary_opts])
    return names if param.is_flag or param.count else f"{names} {value_of(param)}"


def value_of(param: Any) -> str:
    """What stands for the value of ``param``."""
    if param.metavar:
        return str(param.metavar)
    choices = getattr(param.type, "choices", None)
    if choices and len(listed := "|".join(map(_value, choices))) <= _LONGEST_NAME - len(max(param.opts, key=len)):
        return listed
    if param.type.name.split()[0] in ("integer", "float", "int"):
        return "N"
    return str(param.name).upper().strip("_")


def _said(param: Any) -> str:
    """What is said of ``param``, with its default where that is a value."""
    said, default = param.help or "", param.default
    if not getattr(param, "show_default", False) or _is_argument(param) or "[default: " in said:
        return said
    if default is None or isinstance(default, bool) or callable(default) or default in ((), [], ""):
        return said
    return f"{said}  [default: {_value(default)}]"


def _value(value: Any) -> str:
    return str(value.value if isinstance(value, Enum) else value)
