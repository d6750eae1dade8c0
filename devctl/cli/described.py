"""The command line as data, for completion: ``python -m devctl.cli.described`` writes what ``commands.json`` has.

What an option takes is told by its type, its name, or its metavar; one of another kind takes what nobody can offer.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from typing import Any

import typer

from devctl.inventory.catalogue import boards
from devctl.inventory.hypothetical import parse_board, parse_devices

_VALUES = {
    "--attn-implementation": (
        "sdpa",
        "eager",
        "flex_attention",
        "flash_attention_2",
        "flash_attention_3",
        "flash_attention_4",
    ),
    "--decode": ("config", "greedy", "sample", "beam:"),
    "--model-class": (
        "AutoModel",
        "AutoModelForCausalLM",
        "AutoModelForImageTextToText",
        "AutoModelForMaskedLM",
        "AutoModelForSeq2SeqLM",
        "AutoModelForSequenceClassification",
    ),
    "ENGINE": ("vllm", "sglang", "llama.cpp"),
}
"""What is offered for options that take more than that, by name or metavar."""

_KINDS = {
    "--devices": "devices",
    "--hosts": "hosts",
    "--fits-on": "boards",
    "--visible": "ids",
    "--max-memory": "budgets",
    "--reserve": "budgets",
    "--speed": "speeds",
    "--map": "maps",
    "--machine": "json",
    "--baseline": "json",
    "MODEL": "models",
    "PLAN": "json",
    "DEVICE,…": "devices",
    "DEVICE=SIZE,…": "budgets",
    "FILE|-|DEVICE": "maps",
    "ID,…": "ids",
    "FOLDER": "folders",
    "FOLDER|ID": "folders",
    "PATH": "folders",
    "PATH=SIZE": "folders",
}
"""What is looked up, by an option's name, or its metavar; see `devctl.completion.values`."""


def describe() -> dict[str, Any]:
    """The commands with their options and arguments, the boards that can be named, and those that take none beside."""
    from devctl.cli import COMMANDS, app

    root = typer.main.get_command(app)
    context = root.make_context("devctl", ["--help"], resilient_parsing=True)
    found = {"": _command(root, context)}
    for name in COMMANDS:
        command = root.get_command(context, name)  # type: ignore[attr-defined]
        found[name] = _command(command, command.make_context(name, [], parent=context, resilient_parsing=True))
    names = list(_boards())
    return {"commands": found, "boards": names, "alone": [name for name in names if not _goes_with_others(name)]}


def _command(command: Any, context: Any) -> dict[str, Any]:
    params = command.get_params(context)
    visible = [param for param in params if not getattr(param, "hidden", False)]
    return {
        "help": _first_sentence(command.help or ""),
        "options": [_option(param, context) for param in visible if param.param_type_name == "option"],
        "arguments": [_takes(param, context) for param in visible if param.param_type_name == "argument"],
    }


def _option(param: Any, context: Any) -> dict[str, Any]:
    takes = not (param.is_flag or param.count)
    values = _takes(param, context) if takes else {"kind": None, "values": []}
    return {
        # in an order of our own: that of --help and -h comes out of a set
        "names": sorted([*param.opts, *param.secondary_opts], key=lambda name: (name.startswith("--"), name)),
        "help": _first_sentence(param.help or ""),
        "takes": takes,
        "repeated": bool(param.multiple),
        **values,
    }


def _takes(param: Any, context: Any) -> dict[str, Any]:
    """What may be offered for an option or argument: ``values``, or a ``kind`` that is looked up."""
    names = (*param.opts, param.metavar or (param.name or "").upper())
    if param.param_type_name == "option":  # `--engine` takes not all that ENGINE is
        names = (*param.opts, param.metavar or "")
    for name in names:
        if name in _VALUES:
            return {"kind": None, "values": list(_VALUES[name])}
        if name in _KINDS:
            return {"kind": _KINDS[name], "values": []}
    # a closed set is offered by its type, or by what is attached to the option
    values = [item.value for item in param.shell_complete(context, "")]
    if values:
        return {"kind": None, "values": values}
    is_file = "FILE" in (param.metavar or "") or type(param.type).__name__.endswith("Path")
    return {"kind": "files" if is_file else None, "values": []}


def _first_sentence(text: str) -> str:
    line = " ".join(text.partition("\n\n")[0].split())
    return re.split(r"(?<=[a-z0-9`)])\. (?=[A-Z`])| \[default", line, maxsplit=1)[0].rstrip(".")


def _boards() -> Iterable[str]:
    """Names that ``--devices`` takes for one board each, without blanks, which would have to be quoted."""
    found: dict[str, None] = {}
    for board in boards():
        for name in (board.name, *(n for n in board.names if re.fullmatch(r"[A-Z0-9]{2,8}", n))):
            word = name.replace(" ", "-")
            if re.fullmatch(r"[A-Za-z0-9.+-]+", word) and _is_board(word):
                found[word] = None
    return sorted(found, key=lambda word: [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", f"a{word}")])


def _is_board(word: str) -> bool:
    try:
        return not isinstance(parse_board(word), int)
    except ValueError:
        return False


def _goes_with_others(word: str) -> bool:
    try:
        parse_devices(f"2x{word}")
    except ValueError:
        return False
    return True


def dump() -> str:
    """``commands.json``, a line an option, so that two changes of it rarely meet."""
    table = describe()
    lines = ['{"commands": {']
    for number, (name, command) in enumerate(table["commands"].items()):
        lines.append(f" {_json(name)}: {{")
        lines.append(f'  "help": {_json(command["help"])},')
        for part in ("options", "arguments"):
            rows = [f"   {_json(row)}" for row in command[part]]
            lines.append(f'  "{part}": [')
            lines += [f"{row}," for row in rows[:-1]] + rows[-1:]
            lines.append("  ]" + ("," if part == "options" else ""))
        lines.append(" }" + ("," if number + 1 < len(table["commands"]) else ""))
    lines.append("},")
    lines.append(f'"boards": {_json(table["boards"])},')
    lines.append(f'"alone": {_json(table["alone"])}')
    return "\n".join([*lines, "}"]) + "\n"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


if __name__ == "__main__":
    sys.stdout.write(dump())
