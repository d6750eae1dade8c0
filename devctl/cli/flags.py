"""Options whose types are Python's own: a command that has no others starts without what `options` imports."""

from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")]
