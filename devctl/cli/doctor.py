"""``devctl doctor``: what is wrong with this environment?"""

from typing import Annotated

import typer

from devctl.cli.groups import Json
from devctl.cli.show import streams
from devctl.errors import RefusedError


def doctor(
    json: Json = False,
    timeout: Annotated[
        str | None,
        typer.Option(
            "--timeout",
            metavar="TIME",
            help="How long the imports of torch, transformers and accelerate may take together.  [default: 120s]",
        ),
    ] = None,
) -> None:
    """Look at what devctl rests on, a line a finding; exit code 3 where something is broken.

    Versions, the torch build, drivers, boards, variables, limits, caches and completion. A report may be pasted as it
    is: it has no names of hosts or users, no paths, UUIDs or command lines. torch is imported in another process.
    """
    from devctl.cli.reporter import Terminal
    from devctl.cli.show.doctor import lines
    from devctl.inventory.named_hosts import parse_timeout
    from devctl.planning.doctor import examine
    from devctl.planning.examining.frameworks import SECONDS
    from devctl.planning.progress import reporting

    seconds = SECONDS if timeout is None else parse_timeout(timeout)
    with reporting(Terminal()):
        found = examine(seconds=seconds)
    streams.answer(streams.dumps(found.to_document()) if json else lines(found))
    if found.broken:
        raise RefusedError(f"to be repaired: {', '.join(dict.fromkeys(finding.subject for finding in found.broken))}")
