"""``devctl list``: what is here."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from devctl.cli.groups import Json
from devctl.cli.show import inventory as show_inventory
from devctl.cli.show import streams
from devctl.errors import ExitCode, UsageError
from devctl.inventory import Inventory, Part, take_inventory
from devctl.writing import expanded

_SHORTEST_TICK = 0.1
"""Seconds. Asking a driver more often keeps it from the work it is asked about."""

_LONGEST_TICK = 86_400.0


def list_(
    json: Json = False,
    only: Annotated[Part | None, typer.Option(help="Look at one part of the machine.")] = None,
    watch: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="Look again every SECONDS, until Ctrl-C; with --json a line each."),
    ] = None,
    benchmark: Annotated[
        bool,
        typer.Option("--benchmark", help="Measure how fast the disks read and the GPUs take data: a few seconds each."),
    ] = False,
    offload_folder: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Look at the disk under this folder too.")
    ] = None,
) -> None:
    """Show the GPUs, CPU and disks of this machine, with the memory that can be used.

    Imports no framework, and takes no memory on any GPU but for --benchmark.
    """
    if watch is not None and not _SHORTEST_TICK <= watch <= _LONGEST_TICK:
        raise UsageError(f"--watch {watch:g}: from {_SHORTEST_TICK:g} to {_LONGEST_TICK:g} seconds")
    asked = {"watch": watch is not None, "benchmark": benchmark, "offload-folder": offload_folder is not None}
    if any(asked.values()):
        from devctl.planning import clashes  # which a plain look does without

        clashes.refuse(clashes.OF_LIST, {*(name for name, is_asked in asked.items() if is_asked), f"only {only}"})
    folders = () if offload_folder is None else (("offload folder", expanded(offload_folder)),)

    def look() -> Inventory:
        return take_inventory(only=only, folders=folders)

    if watch is not None:
        _watch(look, watch, json=json)
    inventory = look()
    if benchmark:
        from devctl.inventory.probes.benchmark import measure

        inventory = measure(inventory)
    streams.answer(_text(inventory, json=json))


def _text(inventory: Inventory, *, json: bool) -> str:
    if json:
        return show_inventory.to_json(inventory)
    width, styled = streams.answer_style()
    return show_inventory.to_text(inventory, width=width, styled=styled)


def _watch(look: Callable[[], Inventory], seconds: float, *, json: bool) -> None:
    """Show what ``look`` finds, every ``seconds``, until Ctrl-C; then leave without a word.

    Raises:
        typer.Exit: always, with the exit code of an interruption.
    """
    try:
        if json:
            _each(look, seconds, lambda inventory: streams.answer(show_inventory.to_json(inventory, one_line=True)))
        elif not sys.stdout.isatty():
            _each(look, seconds, lambda inventory: streams.answer(_text(inventory, json=False) + "\n"))
        else:
            from rich.live import Live
            from rich.text import Text

            with Live(auto_refresh=False) as screen:
                _each(
                    look, seconds, lambda i: screen.update(Text.from_ansi(_text(i, json=False).rstrip()), refresh=True)
                )
    except KeyboardInterrupt:
        raise typer.Exit(ExitCode.INTERRUPTED) from None


def _each(look: Callable[[], Inventory], seconds: float, show: Callable[[Inventory], None]) -> None:
    due = time.monotonic()
    while True:
        show(look())
        # a look that takes longer than a tick skips ticks instead of hurrying after them
        now = time.monotonic()
        due = max(due + seconds, now)
        time.sleep(due - now)
