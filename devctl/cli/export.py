"""``devctl export``: a plan in another engine's words."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from devctl.cli.groups import Json
from devctl.cli.show import streams

if TYPE_CHECKING:
    from devctl.export.records import Export


def export(
    plan: Annotated[Path, typer.Argument(metavar="PLAN", help="What `devctl plan` wrote; - is stdin.")],
    model: Annotated[str | None, typer.Argument(metavar="MODEL", help="Of a plain map; a plan names its own.")] = None,
    *,
    to: Annotated[str, typer.Option(metavar="ENGINE", help="vllm, sglang or llama.cpp.")],
    host: Annotated[str | None, typer.Option(metavar="NAME", help="The line of one host alone.")] = None,
    json: Json = False,
) -> None:
    """Print the commands that run a plan with another engine, ready to paste.

    There is one line a host.

    Refused (exit code 3), with every reason, is what the engine can't run, or would silently run otherwise.
    """
    from devctl.export.engines import export as to_engine
    from devctl.planning.exporting import read_exportable

    print_export(to_engine(read_exportable(plan, model), to, host), json=json)


def print_export(found: "Export", *, json: bool, path: Path | None = None) -> None:
    """Print the commands, or the document of them, or write it to ``path``; notes are part of the conversation."""
    for note in found.notes:
        streams.say(f"note: {streams.clean(note)}\n")
    if json:
        streams.deliver(streams.dumps(found.to_document()), path)
    else:
        streams.deliver("".join(f"{command.line}\n" for command in found.commands), path)
