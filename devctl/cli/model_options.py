"""Options that the commands about models share, one alias each."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from devctl.models.quantisation import Quantize
from devctl.placement.greedy import Strategy


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
NoCache = Annotated[bool, typer.Option("--no-cache", help="Build the model anew, and keep nothing for the next time.")]
