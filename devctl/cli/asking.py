"""Options of several commands: those that ask other hosts, and of adapters."""

from typing import Annotated

import typer

from devctl.units import parse_seconds


def seconds(text: str | float) -> float:
    """How Typer reads an option that is a duration."""
    try:
        return parse_seconds(str(text))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


Hosts = Annotated[
    str | None,
    typer.Option(
        "--hosts",
        metavar="HOST,…|@FILE|slurm:",
        help="Asked by ssh: a,node[01-04], a hostfile, what `devctl list --hosts … --json` wrote, or a Slurm job.",
    ),
]
Timeout = Annotated[
    str | None,
    typer.Option("--timeout", metavar="TIME", help="How long a host has to answer.  [default: 20s]"),
]
RemoteCommand = Annotated[
    str | None,
    typer.Option("--remote-command", metavar="COMMAND", help="Run on each host.  [default: devctl list --json]"),
]

Adapters = Annotated[
    list[str] | None,
    typer.Option(
        "--adapter",
        metavar="FOLDER|ID",
        help="Count a LoRA beside it; may be repeated.",
    ),
]
