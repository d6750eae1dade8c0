"""Options that the commands about models share, one alias each."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from devctl.cli import render
from devctl.placement.strategy import Strategy


class Dtype(StrEnum):
    """Dtypes that a model can be built in."""

    AUTO = "auto"
    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    FLOAT64 = "float64"


Model = Annotated[str, typer.Argument(metavar="MODEL", help="A folder, a config.json, or a model id on the hub.")]
StrategyOption = Annotated[Strategy, typer.Option("--strategy", help="How to place the layers, as transformers does.")]
MaxMemory = Annotated[
    list[str] | None,
    typer.Option(
        "--max-memory",
        metavar="DEVICE=SIZE,…",
        help="Bytes that each device may hold, like 0=10GiB,1=10GiB,cpu=30GiB; may be repeated. "
        "Without it, what this machine has free.",
    ),
]
Machine = Annotated[
    str | None,
    typer.Option(
        "--machine",
        metavar="FILE|-",
        help="Plan for the machine that `devctl list --json` described, not this one.",
    ),
]


def _help_on_devices(context: typer.Context, value: str | None) -> str | None:
    """``--devices help`` needs no MODEL: it is answered before one is asked for."""
    if value != "help" or context.resilient_parsing:
        return value
    from devctl.cli.render_boards import boards_table

    render.answer(boards_table())
    raise typer.Exit


Devices = Annotated[
    str | None,
    typer.Option(
        "--devices",
        metavar="DEVICE,…",
        callback=_help_on_devices,
        is_eager=True,
        help="Plan for these, like 4xH100,cpu=512GiB,disk or 24GiB,8GiB,cpu=64GiB; with --max-memory for less of some. "
        "`--devices help` lists the boards.",
    ),
]
Visible = Annotated[
    str | None,
    typer.Option("--visible", metavar="ID,…", help="Plan with these accelerators alone, counted from 0, like 0,2."),
]
DtypeOption = Annotated[Dtype, typer.Option("--dtype", help="Build in this dtype; auto is the checkpoint's own.")]
ModelClass = Annotated[
    str | None,
    typer.Option(
        "--model-class",
        metavar="CLASS",
        help="Class of transformers, like AutoModelForCausalLM.  [default: the config's first architecture]",
    ),
]
TrustRemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help="Run Python code that the model brings.")]
Revision = Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit of a model on the hub.")]
Report = Annotated[
    Path | None,
    typer.Option("--report", metavar="FILE", help="Also write the plan document: map, bytes, budgets, notes."),
]
Explain = Annotated[bool, typer.Option("--explain", help="Tell, block by block, why it goes where it does.")]
Svg = Annotated[Path | None, typer.Option("--svg", metavar="FILE", help="Also draw the plan, as a picture.")]
Html = Annotated[
    Path | None,
    typer.Option("--html", metavar="FILE", help="Also draw the plan, as a page with a table of all blocks."),
]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Build the model anew, and keep nothing for the next time.")]
