"""The options of commands about models, as frozen groups."""

from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from devctl.cli.asking import Hosts, RemoteCommand, Timeout
from devctl.cli.show import streams
from devctl.models.quantised.quantise import Quantize
from devctl.placement.strategy import Strategy
from devctl.planning.request import (
    Dtype,
    KvDtype,
    Limits,
    MachineRequest,
    ModelRequest,
    Objective,
    WorkloadRequest,
    names_hosts,
)
from devctl.units import parse_count

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
            raise typer.BadParameter(f"{count} is not in the range x>={least}.")
        return count

    return {"parser": parse, "metavar": "TOKENS"}


def dtypes(kind: type[StrEnum]) -> dict[str, Any]:
    """How Typer reads an option that is a dtype of ``kind``, by torch's name or a short one like bf16."""

    def parse(text: str) -> StrEnum:
        try:
            return kind(text)
        except ValueError:
            names = ", ".join(repr(str(member)) for member in kind)
            raise typer.BadParameter(f"{text!r} is not one of {names}.") from None

    def offered() -> list[str]:
        return list(kind)

    return {"parser": parse, "metavar": f"[{'|'.join(kind)}]", "autocompletion": offered}


MaxMemory = Annotated[
    list[str] | None,
    typer.Option(
        "--max-memory",
        metavar="DEVICE=SIZE,…",
        help="Bytes that each device may hold, like 0=10GiB,1=10GiB,cpu=30GiB; may be repeated. "
        "Without it, what this machine has free.",
    ),
]


AttnImplementation = Annotated[
    str | None,
    typer.Option(
        "--attn-implementation",
        metavar="NAME",
        help="How the model attends: sdpa, eager, flash_attention_2, flash_attention_3, flex_attention, or the id of a "
        "kernel on the hub.  [default: what transformers chooses]",
    ),
]

NoPadding = Annotated[
    bool,
    typer.Option("--no-padding", help="The sequences of a batch are all as long; without it, shorter ones are padded."),
]

Decode = Annotated[
    str | None,
    typer.Option(
        "--decode",
        metavar="HOW",
        help="How tokens are chosen: config, as the model's generation config says, greedy, sample, or beam:N.  "
        "[default: config]",
    ),
]
PrefillChunkSize = Annotated[
    int | None,
    typer.Option(
        "--prefill-chunk-size",
        metavar="TOKENS",
        min=1,
        help="Read the prompt in chunks of so many tokens, as generate does when it is told.",
    ),
]
Images = Annotated[
    str | None,
    typer.Option(
        "--images",
        metavar="NxHxW",
        help="Images of each sequence, like 2x448x640: two of 448 pixels in height and 640 in width; 0 for none.  "
        "[default: one of the model's size]",
    ),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions:
    """Which model, built how."""

    PANEL: ClassVar[str] = "Model"

    model: Annotated[str, typer.Argument(metavar="MODEL", help="A folder, a config.json, or a model id on the hub.")]
    dtype: Annotated[
        Dtype, typer.Option("--dtype", **dtypes(Dtype), help="Build in this dtype; auto is the checkpoint's own.")
    ] = Dtype.AUTO
    model_class: Annotated[
        str | None,
        typer.Option(
            "--model-class",
            metavar="CLASS",
            help="Class of transformers, like AutoModelForCausalLM.  [default: the config's first architecture]",
        ),
    ] = None
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python code that the model brings.")
    ] = False
    revision: Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit of a model on the hub.")] = (
        None
    )

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

    quantize: Annotated[
        Quantize | None,
        typer.Option(
            "--quantize",
            metavar="METHOD",
            help="Plan as if from_pretrained quantised the weights while loading: int8, nf4, fp4 (bitsandbytes), fp8, "
            "mxfp4 (transformers' own), fbgemm-fp8, eetq-int8, torchao-int8, -int4, -float8, quanto-int8, -int4, "
            "-int2, -float8.",
        ),
    ] = None
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Build the model anew, and keep nothing for the next time.")
    ] = False

    def request(self) -> ModelRequest:
        """The same, checked."""
        # super() knows no class that dataclass has made anew for its slots
        return replace(ModelOptions.request(self), quantize=self.quantize, cache=not self.no_cache)


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
            help="Plan for these, like 4xH100,cpu=512GiB,disk or 24GiB,8GiB,cpu=64GiB; with --max-memory for less of "
            "some. `--devices help` lists the boards. Several hosts are like 'a:4xH100;b:2xA100'.",
        ),
    ] = None
    machine: Annotated[
        list[str] | None,
        typer.Option(
            "--machine",
            metavar="FILE|-",
            help="Plan for the machine that `devctl list --json` described, not this one; given several times, for "
            "stages over those hosts, each called as its file.",
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
            help="Bytes that each device may hold, like 0=10GiB,1=10GiB,cpu=30GiB, or a:0=10GiB on one of several "
            "hosts; may be repeated. Without it, what this machine has free.",
        ),
    ] = None
    visible: Annotated[
        str | None,
        typer.Option("--visible", metavar="ID,…", help="Plan with these accelerators alone, counted from 0, like 0,2."),
    ] = None
    reserve: Annotated[
        list[str] | None,
        typer.Option(
            "--reserve",
            metavar="SIZE|SHARE",
            help="Keep so much of every GPU free, like 1GiB or 10%, or 0=2GiB,cpu=10%; of one host a:1GiB or a:0=2GiB.",
        ),
    ] = None
    speed: Annotated[
        list[str] | None,
        typer.Option(
            "--speed",
            metavar="DEVICE=SIZE,…",
            help="For --objective latency: bytes a second of a GPU's memory, the link to it, or the disk, like "
            "0=2TB,link=25GB,disk=3GB. Without it, as measured, or the board's own.",
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
            help="Count the KV cache and activations of so many tokens too, like 4096 or 32k.",
        ),
    ] = None
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", metavar="N", min=1, help="Sequences at once.  [default: 1]")
    ] = None
    new_tokens: Annotated[
        int | None,
        typer.Option("--new-tokens", **tokens(0), help="How many of the tokens are generated.  [default: 1]"),
    ] = None
    kv_dtype: Annotated[
        KvDtype | None,
        typer.Option("--kv-dtype", **dtypes(KvDtype), help="What keys and values are kept in.  [default: the model's]"),
    ] = None
    overhead: Annotated[
        str | None,
        typer.Option(
            "--overhead",
            metavar="SIZE",
            help="What the libraries of each GPU take.  [default: by board, 128MiB to 720MiB, with a workload]",
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
            "--strategy", help="How to place the layers: as transformers does, or the best way.  [default: auto]"
        ),
    ] = None
    objective: Annotated[
        Objective | None,
        typer.Option(
            "--objective", help="What optimal is best in: room left on every GPU, or predicted seconds a token."
        ),
    ] = None
    map: Annotated[
        str | None,
        typer.Option("--map", metavar="FILE|-|DEVICE", help="Judge this device map instead of making one."),
    ] = None
    tp: Annotated[
        int | None,
        typer.Option(
            "--tp",
            metavar="N",
            help="Tensor parallelism: let N ranks share every layer, each a process with an accelerator of its own; "
            "over hosts, N of a host share each stage.",
        ),
    ] = None
    ep: Annotated[
        int | None,
        typer.Option("--ep", metavar="N", help="Expert parallelism: let the N ranks of --tp share the experts out."),
    ] = None
    no_offload: Annotated[
        bool, typer.Option("--no-offload", help="Refuse (exit code 3) a plan that leaves layers off the GPUs.")
    ] = False
    no_disk: Annotated[
        bool, typer.Option("--no-disk", help="Refuse (exit code 3) a plan that leaves layers on disk.")
    ] = False
    max_context: Annotated[
        bool,
        typer.Option("--max-context", help="Find the most tokens that fit on this placement, and on the best one."),
    ] = False
    target_context: Annotated[
        int | None,
        typer.Option(
            "--target-context",
            **tokens(2),
            help="Place for as many sequences of this length as fit; if not one does, for the longest that does.",
        ),
    ] = None
    what_if: Annotated[bool, typer.Option("--what-if", help="Print which contexts and batch sizes fit, instead.")] = (
        False
    )
    fits_on: Annotated[
        str | None,
        typer.Option(
            "--fits-on",
            metavar="all|BOARD,…",
            help="Print on how many of each board it runs, 1 to 8, instead; `--devices help` lists the boards.",
        ),
    ] = None
    compare: Annotated[
        bool, typer.Option("--compare", help="Print all strategies side by side instead, and which one to take.")
    ] = False

    @property
    def limits(self) -> Limits:
        """What a plan may do that fits."""
        return Limits(offload=not self.no_offload, disk=not self.no_disk)


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputOptions:
    """What to print and write."""

    PANEL: ClassVar[str] = "Output"

    json: Annotated[
        bool, typer.Option("--json", help="Print the plan document instead of the map; with others, theirs as JSON.")
    ] = False
    to: Annotated[
        str | None,
        typer.Option(metavar="ENGINE", help="Print the commands for vllm, sglang or llama.cpp instead of the map."),
    ] = None
    report: Annotated[
        Path | None,
        typer.Option("--report", metavar="FILE", help="Also write the plan document: map, bytes, budgets, notes."),
    ] = None
    explain: Annotated[bool, typer.Option("--explain", help="Tell, block by block, why it goes where it does.")] = False
    svg: Annotated[Path | None, typer.Option("--svg", metavar="FILE", help="Also draw the plan, as a picture.")] = None
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", help="Also draw the plan, as a page with a table of all blocks."),
    ] = None
