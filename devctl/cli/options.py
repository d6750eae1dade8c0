"""The options of commands about models, as frozen groups."""

import os
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from devctl.cli.asking import Adapters, Hosts, RemoteCommand, Timeout
from devctl.cli.show import streams
from devctl.errors import UsageError
from devctl.models.quantised.quantise import Quantize
from devctl.placement.engines.records import Engine
from devctl.placement.strategy import Strategy
from devctl.planning.request import (
    Dtype,
    EngineRequest,
    KvDtype,
    Limits,
    MachineRequest,
    ModelRequest,
    Objective,
    WorkloadRequest,
    names_hosts,
    not_one,
)
from devctl.units import parse_count
from devctl.writing import require_folder

if TYPE_CHECKING:
    from devctl.planning.hosts import HostsRequest


def tokens(least: int) -> dict[str, Any]:
    """How Typer reads an option that is a count of tokens, like 4096 or 32k, ``least`` or more."""

    def parse(text: str | int) -> int:
        try:
            count = parse_count(str(text))
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
        if count < least:
            raise typer.BadParameter(f"{count}: it is at least {least}")
        return count

    return {"parser": parse, "metavar": "TOKENS"}


def named(kind: type[StrEnum], metavar: str = "DTYPE") -> dict[str, Any]:
    """How Typer reads an option that is a member of ``kind``, by its name or another that it is known by, like bf16."""

    def parse(text: str) -> StrEnum:
        try:
            return kind(text)
        except ValueError:
            raise typer.BadParameter(not_one(kind, text)) from None

    def offered() -> list[str]:
        return list(kind)

    return {"parser": parse, "metavar": metavar, "autocompletion": offered}


MaxMemory = Annotated[
    list[str] | None,
    typer.Option(
        "--max-memory",
        metavar="DEVICE=SIZE,…",
        help="Bytes a device may hold, like 0=10GiB,cpu=30GiB.",
    ),
]


AttnImplementation = Annotated[
    str | None,
    typer.Option(
        "--attn-implementation",
        metavar="NAME",
        help="sdpa, eager, flash_attention_2, flash_attention_3, flex_attention, or the id of a "
        "kernel on the hub; else what transformers chooses.",
    ),
]

NoPadding = Annotated[
    bool,
    typer.Option("--no-padding", help="All sequences of a batch are as long."),
]

Decode = Annotated[
    str | None,
    typer.Option(
        "--decode",
        metavar="HOW",
        help="greedy, sample, beam:N; else config, as it says.",
    ),
]
PrefillChunkSize = Annotated[
    int | None,
    typer.Option(
        "--prefill-chunk-size",
        **tokens(1),
        help="Read the prompt in chunks, as generate can.",
    ),
]
Images = Annotated[
    str | None,
    typer.Option(
        "--images",
        metavar="NxHxW",
        help="Of each sequence, height first: 2x448x640, or 0.",
    ),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions:
    """Which model, built how."""

    PANEL: ClassVar[str] = "Model"

    model: Annotated[str, typer.Argument(metavar="MODEL", help="A folder, a config.json, or a model id on the hub.")]
    dtype: Annotated[
        Dtype, typer.Option("--dtype", **named(Dtype), help="bf16, fp16, fp32, fp64, or auto: its own.")
    ] = Dtype.AUTO
    model_class: Annotated[
        str | None,
        typer.Option(
            "--model-class",
            metavar="CLASS",
            help="Of transformers, like AutoModelForCausalLM.",
        ),
    ] = None
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python code that the model brings.")
    ] = False
    revision: Annotated[
        str | None, typer.Option("--revision", metavar="REVISION", help="Branch, tag or commit of a model on the hub.")
    ] = None

    def request(self) -> ModelRequest:
        """The same, checked."""
        return ModelRequest(
            model=self.model,
            dtype=self.dtype,
            model_class=self.model_class,
            trust_remote_code=self.trust_remote_code,
            revision=self.revision,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedModelOptions(ModelOptions):
    """Which model, built how, where it is not loaded."""

    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A folder, a config.json, a GGUF file, or a model id on the hub."),
    ]
    quantize: Annotated[
        Quantize | None,
        typer.Option(
            "--quantize",
            **named(Quantize, "METHOD"),
            help="As from_pretrained would: int8, nf4, fp4 (bitsandbytes), fp8, mxfp4 (transformers' own), "
            "fbgemm-fp8, eetq-int8, torchao-int8, -int4, -float8, quanto-int8, -int4, -int2, -float8.",
        ),
    ] = None
    adapter: Adapters = None
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Build the model anew, and keep nothing.")] = False

    def request(self) -> ModelRequest:
        """The same, checked."""
        # super() knows no class that dataclass has made anew for its slots
        return replace(
            ModelOptions.request(self),
            quantize=self.quantize,
            adapters=tuple(self.adapter or ()),
            cache=not self.no_cache,
        )


def _help_on_devices(context: typer.Context, value: str | None) -> str | None:
    """``--devices help`` needs no MODEL: it is answered before one is asked for."""
    if value != "help" or context.resilient_parsing:
        return value
    from devctl.cli.show.boards import boards_table

    streams.answer(boards_table())
    raise typer.Exit


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineOptions:
    """Which machine, and how much of it."""

    PANEL: ClassVar[str] = "Machine"

    devices: Annotated[
        str | None,
        typer.Option(
            "--devices",
            metavar="DEVICE,…",
            callback=_help_on_devices,
            is_eager=True,
            help="What is not here, like 4xH100,cpu=512GiB,disk or 24GiB,8GiB; hosts are like"
            " 'a:4xH100;b:2xA100'. `--devices help` lists the boards.",
        ),
    ] = None
    machine: Annotated[
        list[str] | None,
        typer.Option(
            "--machine",
            metavar="FILE|-",
            help="What `devctl list --json` wrote there; several are several hosts.",
        ),
    ] = None
    hosts: Hosts = None
    timeout: Timeout = None
    remote_command: RemoteCommand = None
    max_memory: Annotated[
        list[str] | None,
        typer.Option(
            "--max-memory",
            metavar="DEVICE=SIZE,…",
            help="Bytes a device may hold: 0=10GiB,cpu=30GiB, or a:0=10GiB of host a.",
        ),
    ] = None
    visible: Annotated[
        str | None,
        typer.Option("--visible", metavar="ID,…", help="These accelerators alone, from 0, like 0,2."),
    ] = None
    reserve: Annotated[
        list[str] | None,
        typer.Option(
            "--reserve",
            metavar="SIZE|SHARE",
            help="Keep free on GPUs: 1GiB, 10%, 0=2GiB,cpu=10%; on hosts a:1GiB, a:0=2GiB.",
        ),
    ] = None
    speed: Annotated[
        list[str] | None,
        typer.Option(
            "--speed",
            metavar="DEVICE=SIZE,…",
            help="Bytes a second, like 0=2TB,link=25GB,disk=3GB.",
        ),
    ] = None

    @property
    def over_hosts(self) -> bool:
        """Whether it is about several hosts."""
        return self.hosts is not None or names_hosts(self.devices) or len(self.machine or ()) > 1

    def several(self) -> "HostsRequest":
        """The hosts, where it is about several."""
        from devctl.planning.hosts import HostsRequest

        return HostsRequest(
            devices=self.devices,
            files=tuple(self.machine or ()),
            hosts=self.hosts,
            timeout=self.timeout,
            remote_command=self.remote_command,
            reserve=None if self.reserve is None else tuple(self.reserve),
            max_memory=None if self.max_memory is None else tuple(self.max_memory),
        )

    def request(self, *, timed: bool) -> MachineRequest:
        """The same, checked; ``timed`` where it matters how fast the machine is."""
        return MachineRequest(
            devices=self.devices,
            file=self.machine[0] if self.machine else None,
            max_memory=None if self.max_memory is None else tuple(self.max_memory),
            visible=self.visible,
            reserve=None if self.reserve is None else tuple(self.reserve),
            speed=tuple(self.speed or ()) if timed else None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadOptions:
    """What the model should do."""

    PANEL: ClassVar[str] = "Workload"

    context_length: Annotated[
        int | None,
        typer.Option(
            "--context-length",
            **tokens(1),
            help="Count KV cache and activations of so many: 32k.",
        ),
    ] = None
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", metavar="N", min=1, help="Sequences at once.  [default: 1]")
    ] = None
    new_tokens: Annotated[
        int | None,
        typer.Option("--new-tokens", **tokens(0), help="How many of them are generated.  [default: 1]"),
    ] = None
    kv_dtype: Annotated[
        KvDtype | None,
        typer.Option("--kv-dtype", **named(KvDtype), help="bf16, fp16, fp32, fp8, int8; else the model's."),
    ] = None
    overhead: Annotated[
        str | None,
        typer.Option(
            "--overhead",
            metavar="SIZE",
            help="What each GPU's libraries take; else by board.",
        ),
    ] = None
    attn_implementation: AttnImplementation = None
    no_padding: NoPadding = False
    decode: Decode = None
    prefill_chunk_size: PrefillChunkSize = None
    images: Images = None

    def request(self) -> WorkloadRequest:
        """The same, checked."""
        return WorkloadRequest(
            context_length=self.context_length,
            batch_size=self.batch_size or 1,
            new_tokens=self.new_tokens,
            kv_dtype=self.kv_dtype,
            overhead=self.overhead,
            attn_implementation=self.attn_implementation,
            padding=not self.no_padding,
            decode=self.decode,
            prefill_chunk_size=self.prefill_chunk_size,
            images=self.images,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class GoalOptions:
    """How to place, and what a plan may do."""

    PANEL: ClassVar[str] = "Placement"

    strategy: Annotated[
        Strategy | None,
        typer.Option(
            "--strategy",
            metavar="STRATEGY",
            help="auto, balanced, balanced_low_0, sequential or optimal.  [default: auto]",
        ),
    ] = None
    objective: Annotated[
        Objective | None,
        typer.Option("--objective", metavar="OBJECTIVE", help="headroom, on each GPU, or latency of a token."),
    ] = None
    map: Annotated[
        str | None,
        typer.Option("--map", metavar="FILE|-|DEVICE", help="Judge this map instead of making one."),
    ] = None
    tp: Annotated[
        int | None,
        typer.Option(
            "--tp",
            metavar="N",
            help="Let N ranks share every layer; over hosts, each stage.",
        ),
    ] = None
    ep: Annotated[
        int | None,
        typer.Option("--ep", metavar="N", help="Let the N ranks of --tp share the experts out."),
    ] = None
    no_offload: Annotated[bool, typer.Option("--no-offload", help="Refuse, exit 3, to leave layers off the GPUs.")] = (
        False
    )
    no_disk: Annotated[bool, typer.Option("--no-disk", help="Refuse, exit 3, to leave layers on disk.")] = False
    max_context: Annotated[
        bool,
        typer.Option("--max-context", help="Find the most tokens: here, and placed best."),
    ] = False
    target_context: Annotated[
        int | None,
        typer.Option(
            "--target-context",
            **tokens(2),
            help="Place for as many texts of this length as fit.",
        ),
    ] = None
    what_if: Annotated[bool, typer.Option("--what-if", help="Which contexts and batch sizes fit, instead.")] = False
    fits_on: Annotated[
        str | None,
        typer.Option(
            "--fits-on",
            metavar="all|BOARD,…",
            help="How many of each board it takes, instead.",
        ),
    ] = None
    compare: Annotated[bool, typer.Option("--compare", help="All strategies side by side, instead.")] = False

    @property
    def limits(self) -> Limits:
        """What a plan may do that fits."""
        return Limits(offload=not self.no_offload, disk=not self.no_disk)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """Whose memory is counted."""

    PANEL: ClassVar[str] = "Engine"

    engine: Annotated[
        Engine | None,
        typer.Option("--engine", help="What runs the model: its memory is counted.  [default: transformers]"),
    ] = None
    gpu_memory_utilization: Annotated[
        float | None,
        typer.Option(
            "--gpu-memory-utilization",
            metavar="X",
            help="vLLM's share of each GPU.  [default: 0.9]",
        ),
    ] = None
    max_num_batched_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-num-batched-tokens",
            **tokens(1),
            help="Read in a step of vLLM.",
        ),
    ] = None
    max_num_seqs: Annotated[
        int | None,
        typer.Option(
            "--max-num-seqs",
            metavar="N",
            min=1,
            help="Sequences that a step of vLLM runs.",
        ),
    ] = None

    def request(self, goal: GoalOptions) -> EngineRequest:
        """The same, checked, with the ranks of ``goal``."""
        return EngineRequest(
            utilisation=self.gpu_memory_utilization,
            batched_tokens=self.max_num_batched_tokens,
            sequences=self.max_num_seqs,
            tp=goal.tp,
            ep=goal.ep,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputOptions:
    """What to print and write."""

    PANEL: ClassVar[str] = "Output"

    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE|-", help="Write the answer there; - prints it always."),
    ] = None
    json: Annotated[bool, typer.Option("--json", help="The plan document; of other answers, theirs.")] = False
    to: Annotated[
        str | None,
        typer.Option(metavar="ENGINE", help="Commands for vllm, sglang or llama.cpp, instead."),
    ] = None
    report: Annotated[
        Path | None,
        typer.Option("--report", metavar="FILE", help="Also write the plan document."),
    ] = None
    explain: Annotated[bool, typer.Option("--explain", help="Why each block goes where it does.")] = False
    svg: Annotated[Path | None, typer.Option("--svg", metavar="FILE", help="Also draw the plan, as a picture.")] = None
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", help="Also draw the plan, as a page with all blocks."),
    ] = None

    @property
    def on_stdout(self) -> bool:
        """Whether what is asked for is printed."""
        return self.output is None or str(self.output) == streams.STDOUT

    def require_apart(self) -> None:
        """Refuse two answers in one file, a folder that is not there, and a picture or report on standard output.

        Raises:
            UsageError: naming the options.
        """
        wanted = {"--output": self.output, "--report": self.report, "--svg": self.svg, "--html": self.html}
        seen: dict[Path, str] = {}
        for option, path in wanted.items():
            if path is None or (option == "--output" and self.on_stdout):
                continue
            if str(path) == streams.STDOUT:
                instead = (
                    "--json prints the plan document"
                    if option == "--report"
                    else f"write it like {option} plan.{option[2:]}"
                )
                raise UsageError(f"{option} writes a file, and - is standard output", hint=instead)
            require_folder(path)
            where = Path(os.path.realpath(path))
            if where in seen and not (where.exists() and not where.is_file()):  # a device takes all of them
                raise UsageError(f"{seen[where]} and {option} both write {path}", hint="give them two files")
            seen[where] = option
