"""Options that the commands about models share, one alias each."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from devctl.cli.show import streams
from devctl.models.quantised.quantise import Quantize
from devctl.placement.strategy import Strategy


class Dtype(StrEnum):
    """Dtypes that a model can be built in."""

    AUTO = "auto"
    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    FLOAT64 = "float64"


class KvDtypeName(StrEnum):
    """Dtypes that keys and values can be kept in."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    FP8 = "float8_e4m3fn"
    INT8 = "int8"


class Objective(StrEnum):
    """What `optimal` is best in."""

    HEADROOM = "headroom"
    LATENCY = "latency"


Model = Annotated[str, typer.Argument(metavar="MODEL", help="A folder, a config.json, or a model id on the hub.")]
StrategyOption = Annotated[
    Strategy | None,
    typer.Option("--strategy", help="How to place the layers: as transformers does, or the best way.  [default: auto]"),
]
ObjectiveOption = Annotated[
    Objective | None,
    typer.Option("--objective", help="What optimal is best in: room left on every GPU, or predicted seconds a token."),
]
Speed = Annotated[
    list[str] | None,
    typer.Option(
        "--speed",
        metavar="DEVICE=SIZE,…",
        help="For --objective latency: bytes a second of a GPU's memory, the link to it, or the disk, like "
        "0=2TB,link=25GB,disk=3GB. Without it, as measured, or the board's own.",
    ),
]
ReserveOption = Annotated[
    list[str] | None,
    typer.Option(
        "--reserve", metavar="SIZE|SHARE", help="Keep so much of every GPU free, like 1GiB or 10%, or 0=2GiB,cpu=10%."
    ),
]
NoOffload = Annotated[
    bool, typer.Option("--no-offload", help="Refuse (exit code 3) a plan that leaves layers off the GPUs.")
]
NoDisk = Annotated[bool, typer.Option("--no-disk", help="Refuse (exit code 3) a plan that leaves layers on disk.")]
ContextLength = Annotated[
    int | None,
    typer.Option(
        "--context-length", metavar="TOKENS", min=1, help="Count the KV cache and activations of so many tokens too."
    ),
]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Sequences at once.")]
NewTokens = Annotated[
    int | None,
    typer.Option("--new-tokens", min=0, help="How many of the tokens are generated.  [default: 1]"),
]
KvDtype = Annotated[
    KvDtypeName | None, typer.Option("--kv-dtype", help="What keys and values are kept in.  [default: the model's]")
]
Overhead = Annotated[
    str | None,
    typer.Option(
        "--overhead", metavar="SIZE", help="What the libraries of each GPU take.  [default: 512MiB with a workload]"
    ),
]
MaxContext = Annotated[
    bool, typer.Option("--max-context", help="Find the most tokens that fit on this placement, and on the best one.")
]
TargetContext = Annotated[
    int | None,
    typer.Option(
        "--target-context",
        metavar="TOKENS",
        min=2,
        help="Place for as many sequences of this length as fit; if not one does, for the longest that does.",
    ),
]
WhatIf = Annotated[bool, typer.Option("--what-if", help="Print which contexts and batch sizes fit, instead.")]
PlanJson = Annotated[
    bool, typer.Option("--json", help="Print the plan document instead of the map; with others, theirs as JSON.")
]
Compare = Annotated[
    bool, typer.Option("--compare", help="Print all strategies side by side instead, and which one to take.")
]
MapToCheck = Annotated[
    str | None,
    typer.Option("--map", metavar="FILE|-|DEVICE", help="Judge this device map instead of making one."),
]
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
    from devctl.cli.show.boards import boards_table

    streams.answer(boards_table())
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
QuantizeOption = Annotated[
    Quantize | None,
    typer.Option(
        "--quantize",
        metavar="METHOD",
        help="Plan as if from_pretrained quantised the weights while loading: int8, nf4, fp4 (bitsandbytes), fp8, "
        "mxfp4 (transformers' own), fbgemm-fp8, eetq-int8, torchao-int8, -int4, -float8, quanto-int8, -int4, -int2, "
        "-float8.",
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
