"""``devctl list``: what is here."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from devctl.cli.asking import Hosts, RemoteCommand, Timeout, seconds
from devctl.cli.groups import Json
from devctl.cli.show import inventory as show_inventory
from devctl.cli.show import streams
from devctl.errors import ExitCode, RefusedError, UsageError
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
        typer.Option(parser=seconds, metavar="TIME", help="Look again and again, until q; --json: lines."),
    ] = None,
    benchmark: Annotated[
        bool,
        typer.Option("--benchmark", help="Measure how fast disks read and GPUs take data."),
    ] = False,
    offload_folder: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Look at the disk of this folder too.")
    ] = None,
    machine: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE|-", help="What `devctl list --json` wrote; may be repeated."),
    ] = None,
    hosts: Hosts = None,
    timeout: Timeout = None,
    remote_command: RemoteCommand = None,
    require_all: Annotated[
        bool, typer.Option("--require-all", help="Refuse, exit 3, where a host gives none.")
    ] = False,
) -> None:
    """Show the GPUs, CPU and disks of this machine, and what is free.

    Imports no framework, and takes no memory on any GPU but for --benchmark. Other hosts are asked by ssh, with
    --hosts; one that can't be is a row that says why.
    """
    if watch is not None and not _SHORTEST_TICK <= watch <= _LONGEST_TICK:
        raise UsageError(f"--watch {watch:g}: from {_SHORTEST_TICK:g} to {_LONGEST_TICK:g} seconds")
    asked = {
        "watch": watch is not None,
        "benchmark": benchmark,
        "offload-folder": offload_folder is not None,
        "machine": bool(machine),
        "hosts": hosts is not None,
        "timeout": timeout is not None,
        "remote-command": remote_command is not None,
        "require-all": require_all,
    }
    if any(asked.values()):
        from devctl.planning import clashes  # which a plain look does without

        clashes.refuse(clashes.OF_LIST, {*(name for name, is_asked in asked.items() if is_asked), f"only {only}"})
    if machine or hosts is not None:
        _several(machine or [], hosts, timeout, remote_command, json=json, require_all=require_all)
        return
    folders = () if offload_folder is None else (("offload folder", expanded(offload_folder)),)

    def look() -> Inventory:
        return take_inventory(only=only, folders=folders)

    if watch is not None:
        _watch(look, watch, json=json)
    inventory = look()
    if benchmark:
        from devctl.inventory.probes.benchmark import measure

        with streams.status("measuring how fast disks read and GPUs take data, for some seconds each"):
            inventory = measure(inventory)
    streams.answer(_text(inventory, json=json))


def _several(
    files: list[str],
    hosts: str | None,
    timeout: str | None,
    remote_command: str | None,
    *,
    json: bool,
    require_all: bool,
) -> None:
    """Show what several hosts have.

    Raises:
        RefusedError: none gave an inventory, or one did not that is required.
    """
    from devctl.cli.show.hosts import cluster_text
    from devctl.inventory.hosts import TIMEOUT, Cluster, HostFound, together
    from devctl.inventory.named_hosts import cluster_of, name_of_file

    if hosts is not None:
        with streams.status(f"asking {hosts} by ssh, each for at most {timeout or f'{TIMEOUT:g}s'}"):
            found: Cluster = cluster_of(hosts, remote=remote_command, timeout=timeout)
    else:
        from devctl.planning.machine import read_machine

        found = together([HostFound(name=name_of_file(path), inventory=read_machine(path)) for path in files])
    width, styled = streams.answer_style(sys.stdout)
    streams.answer(streams.dumps(found.to_document()) if json else cluster_text(found, width=width, styled=styled))
    silent = found.silent
    if silent and (require_all or len(silent) == len(found.hosts)):
        raise RefusedError(
            f"{len(silent)} of {len(found.hosts)} hosts gave no inventory",
            findings=tuple(f"{host.name}: {host.error}" for host in silent),
            hint="or bring what `devctl list --json` writes there, as NAME.json, and give it with --machine",
        )


def _text(inventory: Inventory, *, json: bool) -> str:
    if json:
        return show_inventory.to_json(inventory)
    width, styled = streams.answer_style(sys.stdout)
    return show_inventory.to_text(inventory, width=width, styled=styled)


def _watch(look: Callable[[], Inventory], seconds: float, *, json: bool) -> None:
    """Show what ``look`` finds, every ``seconds``, until q or Ctrl-C; then leave without a word.

    Raises:
        typer.Exit: always, with the exit code of an interruption; of none where somebody pressed q.
    """
    try:
        if json:
            _each(look, seconds, lambda inventory: streams.answer(show_inventory.to_json(inventory, one_line=True)))
        elif not streams.is_terminal(sys.stdout) or os.environ.get("TERM") == "dumb":
            _each(look, seconds, lambda inventory: streams.answer(_text(inventory, json=False) + "\n"))
        else:
            _on_screen(look, seconds)
    except KeyboardInterrupt:
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    raise typer.Exit(ExitCode.DONE)


def _on_screen(look: Callable[[], Inventory], seconds: float) -> None:
    """The same on a screen of its own, under a clock, until q."""
    from devctl.cli.watching import screen

    with screen() as shown:
        due = time.monotonic()
        while True:
            inventory = look()
            clock = f"{time.strftime('%H:%M:%S')}, every {seconds:g} s; {'q' if shown.has_keys else 'Ctrl-C'} leaves"

            def draw(inventory: Inventory = inventory, clock: str = clock) -> None:
                shown.draw(f"{clock}\n\n{_text(inventory, json=False)}")

            draw()
            now = time.monotonic()
            due = max(due + seconds, now)
            if shown.wait(due, draw):
                return


def _each(look: Callable[[], Inventory], seconds: float, show: Callable[[Inventory], None]) -> None:
    due = time.monotonic()
    while True:
        show(look())
        # a look that takes longer than a tick skips ticks instead of hurrying after them
        now = time.monotonic()
        due = max(due + seconds, now)
        time.sleep(due - now)
