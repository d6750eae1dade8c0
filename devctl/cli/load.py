"""``devctl load``: does it really run there?"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from devctl.cli import gather, hardware, model_options, options
from devctl.cli.footprints import Footprints
from devctl.cli.show import load as show_load
from devctl.cli.show import streams
from devctl.devices import Device
from devctl.errors import LoadError, UntracedError, UsageError
from devctl.inventory import take_inventory
from devctl.inventory.document import to_json_values
from devctl.loading.baseline import (
    DEFAULT_TOLERANCE,
    Subject,
    parse_tolerance,
    percent,
    require_no_regression,
    require_same,
    short_name,
)
from devctl.loading.weights.loader import LoadFormat
from devctl.placement import Strategy
from devctl.placement.placement import make_placement, to_hf

if TYPE_CHECKING:
    from devctl.loading.run.inputs import Inputs
    from devctl.models.skeleton import Skeleton

MapOption = Annotated[
    str | None,
    typer.Option("--map", metavar="FILE|-|DEVICE", help="A device map or plan, - for stdin, or one device for all."),
]


def load(
    model: model_options.Model,
    map: MapOption = None,
    strategy: Annotated[
        Strategy | None, typer.Option("--strategy", help="Place it so, when no map is given.  [default: auto]")
    ] = None,
    max_memory: model_options.MaxMemory = None,
    dtype: model_options.DtypeOption = model_options.Dtype.AUTO,
    model_class: model_options.ModelClass = None,
    trust_remote_code: model_options.TrustRemoteCode = False,
    revision: model_options.Revision = None,
    load_format: Annotated[
        LoadFormat, typer.Option("--load-format", help="dummy makes random weights, and reads and downloads none.")
    ] = LoadFormat.AUTO,
    offload_folder: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="For weights on disk.  [default: a temporary folder, removed afterwards]"),
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="Text to run, where the model has a tokenizer.")] = None,
    image: Annotated[Path | None, typer.Option(metavar="FILE", help="A picture, for a model that sees.")] = None,
    audio: Annotated[Path | None, typer.Option(metavar="FILE.wav", help="A sound, for a model that hears.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, metavar="N", help="Run so many inputs at a time.")] = 1,
    context_length: Annotated[
        int | None, typer.Option(min=1, metavar="TOKENS", help="Make the text this long, by repeating or cutting it.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=0, help="Tokens to generate; 0 for none.")] = 8,
    repeat: Annotated[
        int, typer.Option(min=1, metavar="N", help="Time the forward and the generate so often; medians are told.")
    ] = 1,
    warmup: Annotated[
        int | None,
        typer.Option(min=0, metavar="N", help="Run each so often before it is timed.  [default: one forward]"),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare every block, and the outputs, with the same model on the CPU.")
    ] = False,
    baseline: Annotated[
        Path | None,
        typer.Option(metavar="FILE|-", help="Exit 3 when a figure is worse than in this earlier `load --json`."),
    ] = None,
    tolerance: Annotated[
        str | None,
        typer.Option(metavar="SHARE", help="How much worse than the baseline a figure may be.  [default: 10%]"),
    ] = None,
    json: options.Json = False,
) -> None:
    """Load MODEL on a device map, run it, and prove that every tensor is where the map says.

    Runs a forward twice, and a short greedy generate where the model generates, and reports seconds, tokens per second,
    and predicted beside measured bytes. Exits 5 when a proof fails: a tensor is misplaced, a tie is broken, an output
    is not finite or not the same twice, a copy between accelerators changes a bit, or, with --verify, a block does not
    do what it does on the CPU.
    """
    if map is not None and (strategy is not None or max_memory is not None):
        raise UsageError("--map says where everything goes: leave out --strategy and --max-memory")
    if tolerance is not None and baseline is None:
        raise UsageError("--tolerance is for a --baseline: give one, or leave it out")
    share = parse_tolerance(tolerance or DEFAULT_TOLERANCE)
    earlier = None if baseline is None else gather.read_baseline(baseline)
    inventory = take_inventory()
    given = None if map is None else gather.read_map(map, inventory)
    budgets = hardware.budgets(max_memory, inventory)
    request = gather.Request(
        model=model,
        dtype=dtype,
        model_class=model_class,
        trust_remote_code=trust_remote_code,
        revision=revision,
    )
    source, skeleton = gather.skeleton(request, random_weights=load_format is LoadFormat.DUMMY)
    if given is None:
        placement = gather.placement(skeleton.tree, budgets, strategy or Strategy.AUTO)
    else:
        placement = make_placement(skeleton.tree, given, budgets, strategy=None)
    gather.require_valid(skeleton.tree, placement, inventory)
    gather.require_memory(placement, inventory, random_weights=load_format is LoadFormat.DUMMY)

    from devctl.loading.run.inputs import prepare
    from devctl.loading.trial import TrialOptions, try_out

    inputs = prepare(
        source,
        skeleton,
        prompt=prompt,
        image=image,
        audio=audio,
        batch_size=batch_size,
        context_length=context_length,
        new_tokens=max_new_tokens,
        trust_remote_code=trust_remote_code,
    )
    if earlier is not None:
        subject = Subject(
            model=short_name(model),
            model_class=skeleton.tree.class_name,
            dtype=skeleton.tree.dtype,
            load_format=load_format,
            device_map=to_hf(placement.device_map),
            inputs={name: tuple(tensor.shape) for name, tensor in inputs.tensors.items()},
            max_new_tokens=max_new_tokens,
        )
        require_same(earlier, subject)
    beside, unpredicted = _beside_weights(
        Footprints(request, source, None if skeleton.tree.quantisation else skeleton),
        skeleton,
        inputs,
        dict(placement.device_map),
        max_new_tokens,
    )
    for warning in gather.tight(placement, beside, inventory):
        streams.message(warning)
    trial = TrialOptions(
        load_format=load_format,
        offload_folder=offload_folder,
        max_new_tokens=max_new_tokens,
        repeat=repeat,
        warmup=warmup,
        verify=verify,
        ram=inventory.host.ram_available,
        beside=beside,
        notes=unpredicted,
    )
    report = try_out(
        model, source, skeleton, placement, inputs, trial, progress=streams.progress, status=streams.status
    )
    streams.answer(streams.to_json("devctl.load", report) if json else show_load.load_report(report))
    if not report.ok:
        wrong = next(proof for proof in report.proofs if not proof.passed)
        where = f", first in {wrong.block}" if wrong.block else ""
        raise LoadError(f"the model does not run as the map says: the proof of its {wrong.name} fails{where}")
    if earlier is not None:
        count = require_no_regression(earlier, to_json_values(report), share)
        streams.message(f"none of {count} figures is worse than in {baseline} by more than {percent(share)}")


def _beside_weights(
    footprints: Footprints, skeleton: "Skeleton", inputs: "Inputs", device_map: dict[str, Device], new_tokens: int
) -> tuple[dict[Device, int], tuple[str, ...]]:
    """What each device should hold beside its weights while it runs, and what a reader should know of that."""
    from devctl.loading.run.expected import beside_weights, workloads

    try:
        found = [
            footprints.of_run(workload, inputs.tensors)
            for workload in workloads(skeleton, inputs, device_map, new_tokens)
        ]
    except UntracedError as error:
        return {}, (f"the peak is not predicted: {error.message}",)
    notes = dict.fromkeys(note for footprint in found for note in footprint.notes)
    return beside_weights(skeleton.tree, device_map, found), tuple(f"the predicted peak: {note}" for note in notes)
