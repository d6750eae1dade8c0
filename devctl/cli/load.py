"""``devctl load``: does it really run there?"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import typer

from devctl.as_json import to_json_values
from devctl.cli.groups import Json, grouped, refuse_clashes
from devctl.cli.options import (
    AttnImplementation,
    Decode,
    Images,
    MaxMemory,
    ModelOptions,
    NoPadding,
    PrefillChunkSize,
    tokens,
)
from devctl.cli.show import load as show
from devctl.cli.show import streams
from devctl.cli.staged import HostsOptions, StagedRun, forwarded, load_staged, read_staged, require_alone
from devctl.errors import LoadError, UsageError
from devctl.inventory import take_inventory
from devctl.loading.baseline import (
    BASELINE_HINT,
    DEFAULT_TOLERANCE,
    Baseline,
    parse_baseline,
    parse_tolerance,
    percent,
    require_no_regression,
    require_same,
)
from devctl.loading.weights.loader import LoadFormat
from devctl.models.decoding import checked
from devctl.placement import Strategy
from devctl.planning import clashes
from devctl.planning.map_file import read_loadable, read_text
from devctl.planning.planned_run import Run
from devctl.trying import LoadRequest, prepare


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaceOptions:
    """Where to load."""

    PANEL: ClassVar[str] = "Placement"

    map: Annotated[
        str | None,
        typer.Option("--map", metavar="FILE|-|DEVICE", help="A map or plan, or one device for all."),
    ] = None
    strategy: Annotated[
        Strategy | None,
        typer.Option("--strategy", metavar="STRATEGY", help="As plan has them, where no map is given."),
    ] = None
    max_memory: MaxMemory = None
    load_format: Annotated[
        LoadFormat, typer.Option("--load-format", help="dummy makes random weights, and reads none.")
    ] = LoadFormat.AUTO
    allow_missing: Annotated[
        bool,
        typer.Option(
            "--allow-missing",
            help="Leave weights random that the checkpoint lacks.",
        ),
    ] = False
    offload_folder: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="For weights on disk; else a temporary one."),
    ] = None
    adapter: Annotated[list[str] | None, typer.Option("--adapter", hidden=True)] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """What to run."""

    PANEL: ClassVar[str] = "Run"

    prompt: Annotated[str | None, typer.Option(metavar="TEXT", help="Text to run, where there is a tokenizer.")] = None
    image: Annotated[Path | None, typer.Option(metavar="FILE", help="A picture, for a model that sees.")] = None
    images: Images = None
    audio: Annotated[Path | None, typer.Option(metavar="FILE.wav", help="A sound, for a model that hears.")] = None
    batch_size: Annotated[int, typer.Option(min=1, metavar="N", help="Run so many inputs at a time.")] = 1
    context_length: Annotated[
        int | None, typer.Option(**tokens(1), help="Make the text this long: repeated, or cut.")
    ] = None
    no_padding: NoPadding = False
    decode: Decode = None
    prefill_chunk_size: PrefillChunkSize = None
    attn_implementation: AttnImplementation = None
    max_new_tokens: Annotated[int, typer.Option(**tokens(0), help="Tokens to generate; 0 for none.")] = 8
    repeat: Annotated[int, typer.Option(min=1, metavar="N", help="Time each so often, for a median.")] = 1
    warmup: Annotated[
        int | None,
        typer.Option(min=0, metavar="N", help="Run each so often first; else a forward."),
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProofOptions:
    """What to prove beyond that, and how to tell it."""

    PANEL: ClassVar[str] = "Proofs and output"

    verify: Annotated[bool, typer.Option("--verify", help="Compare every block with the same on the CPU.")] = False
    baseline: Annotated[
        Path | None,
        typer.Option(metavar="FILE|-", help="Exit 3 where a figure is worse than in it."),
    ] = None
    tolerance: Annotated[
        str | None,
        typer.Option(metavar="SHARE", help="How much worse it may be.  [default: 10%]"),
    ] = None
    json: Json = False


@grouped
def load(model: ModelOptions, place: PlaceOptions, run: RunOptions, proofs: ProofOptions, hosts: HostsOptions) -> None:
    """Load MODEL on a map, run it, and prove where every tensor is.

    Runs a forward twice, and a short generate where the model generates, and reports seconds, tokens per second,
    and predicted beside measured bytes. Exits 5 when a proof fails: a tensor is misplaced, a tie is broken, an output
    is not finite or not the same twice, a copy between accelerators changes a bit, or, with --verify, a block does not
    do what it does on the CPU.

    A plan over several hosts is run in stages: --launch says how its ranks are started.
    """
    streams.clean_logs()
    if place.adapter:  # which `devctl plan` takes, so that it is typed here, too
        raise UsageError(
            f"--adapter {place.adapter[0]}: a load loads only the model, and proves nothing of an adapter",
            hint="leave it out; PEFT loads the adapter onto that model in your program",
        )
    if (plan := read_staged(place.map)) is not None:
        refuse_clashes(clashes.OF_STAGES, place, run, proofs)
        load_staged(plan, hosts, _staged(model, run, proofs, hosts))
        return
    require_alone(place.map, hosts)
    refuse_clashes(clashes.OF_LOAD, place, run, proofs)
    share = parse_tolerance(proofs.tolerance or DEFAULT_TOLERANCE)
    earlier = None if proofs.baseline is None else _read_baseline(proofs.baseline)
    inventory = take_inventory()
    file = None if place.map is None else read_loadable(place.map)
    request = LoadRequest(
        model=model.request(),
        device_map=None if file is None else dict(file.device_map),
        strategy=place.strategy,
        max_memory=None if place.max_memory is None else tuple(place.max_memory),
        load_format=place.load_format,
        offload_folder=place.offload_folder,
        prompt=run.prompt,
        image=run.image,
        audio=run.audio,
        images=run.images,
        batch_size=run.batch_size,
        context_length=run.context_length,
        max_new_tokens=run.max_new_tokens,
        repeat=run.repeat,
        warmup=run.warmup,
        verify=proofs.verify,
        allow_missing=place.allow_missing,
        padding=not run.no_padding,
        decode=run.decode,
        prefill_chunk_size=run.prefill_chunk_size,
        attn_implementation=run.attn_implementation,
        planned=(file and file.run) or Run(),
        facts=None if file is None else file.facts,
    )
    prepared = prepare(request, inventory)
    if earlier is not None:
        require_same(earlier, prepared.subject)
    report = prepared.run()
    streams.answer(streams.dumps(report.to_document()) if proofs.json else show.load_report(report))
    if not report.ok:
        raise LoadError(f"the model {show.failure(report)}")
    if earlier is not None:
        count = require_no_regression(earlier, to_json_values(report), share)
        streams.message(f"none of {count} figures is worse than in {proofs.baseline} by more than {percent(share)}")


def _staged(model: ModelOptions, run: RunOptions, proofs: ProofOptions, hosts: HostsOptions) -> StagedRun:
    """What a run over several hosts has of the options, and how its ranks are told them."""
    arguments = forwarded(
        (
            ("--dtype", str(model.dtype), "auto"),
            ("--model-class", model.model_class, None),
            ("--trust-remote-code", model.trust_remote_code, False),
            ("--revision", model.revision, None),
            ("--prompt", run.prompt, None),
            ("--batch-size", run.batch_size, 1),
            ("--no-padding", run.no_padding, False),
            ("--context-length", run.context_length, None),
            ("--decode", run.decode, None),
            ("--max-new-tokens", run.max_new_tokens, 8),
            ("--join-timeout", hosts.join_timeout and f"{hosts.join_timeout:g}s", None),
            ("--step-timeout", hosts.step_timeout and f"{hosts.step_timeout:g}s", None),
            ("--verify-weights", hosts.verify_weights, False),
            ("--json", proofs.json, False),
        )
    )
    return StagedRun(
        model=model.request(),
        prompt=run.prompt,
        batch_size=run.batch_size,
        padding=not run.no_padding,
        context_length=run.context_length,
        max_new_tokens=run.max_new_tokens,
        decode=None if run.decode is None else checked(run.decode),
        json=proofs.json,
        arguments=arguments,
    )


def _read_baseline(path: Path) -> Baseline:
    """The earlier report of a load.

    Raises:
        UsageError: it can't be read, or is none.
    """
    import json

    text, origin = read_text(path, "the baseline", BASELINE_HINT)
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        raise UsageError(f"{origin} is broken JSON, and so no baseline", hint=BASELINE_HINT) from None
    return parse_baseline(document, origin)
