"""The entry from a shell: `_DEVCTL_COMPLETE` in the environment says that a shell asks, and how."""

from __future__ import annotations

import json
import os
import sys
from functools import cache
from pathlib import Path

from devctl.completion import shells
from devctl.completion.offers import Table, offers
from devctl.completion.values import MOST, look

VARIABLE = "_DEVCTL_COMPLETE"
_TABLE = Path(__file__).with_name("commands.json")
_NAMES = {"powershell": "pwsh"}


def complete_if_asked() -> None:
    """Answer a shell and end, where one asks: ``complete_bash`` for candidates, ``source_bash`` for its script.

    Raises:
        SystemExit: always where a shell asks.
    """
    asked = os.environ.get(VARIABLE)
    if not asked:
        return
    instruction, _, name = asked.partition("_")
    shell = _NAMES.get(name, name)
    if shell not in shells.SCRIPTS or instruction not in ("complete", "source"):
        sys.exit(f"devctl: {VARIABLE} is none of complete_SHELL and source_SHELL, of {', '.join(shells.SCRIPTS)}")
    text = shells.script(shell) if instruction == "source" else _candidates(shell)
    if sys.stdout is None:  # closed, as by `>&-`
        sys.exit(1)
    # a shell reads bytes, and a name of a file that is no text has to come back as it is
    try:
        sys.stdout.buffer.write(text.encode("utf-8", "surrogateescape"))
        sys.stdout.flush()
    except OSError:  # whoever asked has gone: nothing is left to say, at the interpreter's end either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    sys.exit(0)


def _candidates(shell: str) -> str:
    typed = shells.begun(shell, sys.argv[1:], os.environ)
    if typed is None:  # a script of an older devctl, which runs what it is answered
        return ""
    found = offers(table(), typed.words, typed.current, look)
    text = shells.answer(shell, found._replace(offers=found.offers[:MOST]), typed, os.environ)
    if "_DEVCTL_LINE" not in os.environ and shell == "bash":
        return text.partition("\n")[2]  # Typer's script reads candidates alone
    return text


@cache
def table() -> Table:
    """The command line as data."""
    found: Table = json.loads(_TABLE.read_text(encoding="utf-8"))
    return found
