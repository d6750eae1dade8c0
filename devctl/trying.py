"""A load on this machine, put together: the map, what it should take, and the run that proves it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from devctl.devices import Device
from devctl.errors import LoadError, ModelError, UntracedError, UsageError
from devctl.inventory import Inventory, Part, take_inventory
from devctl.loading.baseline import Subject, short_name
from devctl.loading.weights.loader import LoadFormat
from devctl.models import attention, decoding
from devctl.models.files.processor import limited
from devctl.models.files.resolve import generation_of
from devctl.models.images import Images
from devctl.models.own_code import ExitedError, contained
from devctl.placement import Placement, Strategy, place
from devctl.placement.budget import as_here, is_accelerator
from devctl.placement.placement import make_placement, to_hf
from devctl.placement.runtime import main_of
from devctl.planning import allocator
from devctl.planning.checking import require_as_planned
from devctl.planning.footprints import Footprints
from devctl.planning.gates import require_memory, require_ram, require_valid, tight
from devctl.planning.installed import planner_of
from devctl.planning.machine import open_machine
from devctl.planning.model import open_skeleton
from devctl.planning.plan_facts import PlanFacts
from devctl.planning.planned_run import Run, not_followed
from devctl.planning.progress import reporter
from devctl.planning.question import require_flash
from devctl.planning.request import MachineRequest, ModelRequest, images_of, one_of, require_between
from devctl.units import format_bytes

if TYPE_CHECKING:
    from devctl.loading.measure import LoadReport
    from devctl.loading.run.inputs import Inputs
    from devctl.loading.trial import TrialOptions
    from devctl.models.files.resolve import ModelSource
    from devctl.models.skeleton import Skeleton


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadRequest:
    """What to load, where, and what to run.

    Attributes:
        device_map: the device of each name; None places it by ``strategy``, auto unless given.
        max_memory: entries like "0=10GiB", where no map is given.
        load_format: "dummy" makes random weights, and reads none.
        offload_folder: for weights on disk; None is a temporary folder.
        prompt, image, audio: what to run; made up where not given.
        images: how many images of what size to make up for each sequence, like "2x448x448"; None is one of the size
            that the model's config has, in a model that sees.
        context_length: tokens of the text; None leaves it as it is.
        max_new_tokens: tokens to generate, where the model generates.
        repeat, warmup: how often the forward and the generate are timed, and run before.
        verify: compare with the same model on the CPU.
        allow_missing: leave weights random that the checkpoint does not have.
        attn_implementation: how the model attends; None is what transformers chooses.
        padding: whether several texts are of mixed lengths, and padded to the longest.
        decode: how tokens are chosen; None is as the model's files say.
        prefill_chunk_size: tokens of the prompt that are read at once; None is what the model's files say, else all.
        planned: the run that the map was planned for. What it says of attention, decoding, padding, chunks and images
            is run so, where nothing else is asked for.
        facts: what a plan document says beside its map; None for a plain map.

    Raises:
        UsageError: there is no such load format or attention, it reads no weights that could be missing, or a number
            is none.
    """

    model: ModelRequest
    device_map: Mapping[str, Device] | None = None
    strategy: Strategy | None = None
    max_memory: tuple[str, ...] | None = None
    load_format: LoadFormat | str = LoadFormat.AUTO
    offload_folder: Path | None = None
    prompt: str | None = None
    image: Path | None = None
    audio: Path | None = None
    batch_size: int = 1
    context_length: int | None = None
    max_new_tokens: int = 8
    repeat: int = 1
    warmup: int | None = None
    verify: bool = False
    allow_missing: bool = False
    attn_implementation: str | None = None
    padding: bool = True
    decode: str | None = None
    prefill_chunk_size: int | None = None
    images: str | Images | None = None
    planned: Run = field(default_factory=Run)
    facts: PlanFacts | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "images", images_of(self.images))
        if self.images is not None and self.image is not None:
            raise UsageError("--image is the only one that is run: leave out --images")
        if self.attn_implementation is not None:
            attention.checked(self.attn_implementation, "--attn-implementation")
        if self.decode is not None:
            object.__setattr__(self, "decode", decoding.checked(self.decode))
        object.__setattr__(self, "load_format", one_of(LoadFormat, self.load_format, "--load-format"))
        if self.allow_missing and self.random_weights:
            raise UsageError("--load-format dummy reads no weights: leave out --allow-missing")
        require_between("--batch-size", self.batch_size, 1)
        require_between("--context-length", self.context_length, 1)
        require_between("--max-new-tokens", self.max_new_tokens, 0)
        require_between("--repeat", self.repeat, 1)
        require_between("--warmup", self.warmup, 0)

    @property
    def random_weights(self) -> bool:
        """Whether the weights are made up."""
        return self.load_format is LoadFormat.DUMMY


@dataclass(frozen=True, slots=True, kw_only=True)
class _Expected:
    """What a run should take beside weights.

    Attributes:
        beside: bytes on each device whose peak is measured.
        in_ram: bytes of the CPU in all that is run.
        gaps: bytes that torch's allocator of each device reserves by default beside what it gives out.
        notes: what a reader should know of that.
    """

    beside: dict[Device, int] = field(default_factory=dict)
    in_ram: int = 0
    gaps: dict[Device, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A load whose every part is at hand, but for the weights.

    Attributes:
        subject: what is loaded and run: only the same can be compared with it.
        attention: how the model is asked to attend; None for what transformers chooses.
    """

    name: str
    source: ModelSource
    skeleton: Skeleton
    placement: Placement
    inputs: Inputs
    subject: Subject
    request: LoadRequest
    inventory: Inventory
    attention: str | None = None

    def run(self) -> LoadReport:
        """Load, run and prove.

        Raises:
            RefusedError: torch can't use a device of the map, or the RAM has not what the load has to hold there.
            LoadError: it can't be loaded, or can't run.
        """
        from devctl.loading.trial import require_usable, try_out

        options, in_ram, gaps = self._options()
        show = reporter()
        for warning in tight(self.placement, options.beside, gaps, self.inventory):
            show.warn(warning)
        require_usable(self.placement)
        ram, notes = self._require_ram(in_ram)
        options = replace(options, ram=options.ram if ram is None else ram, notes=(*options.notes, *notes))
        try:
            with contained():
                return try_out(
                    self.name,
                    self.source,
                    self.skeleton,
                    self.placement,
                    self.inputs,
                    options,
                    progress=show.progress,
                    status=show.status,
                )
        except ExitedError as error:
            raise LoadError(f"{self.name} can't run: {error}") from error

    def _require_ram(self, running: int) -> tuple[int | None, tuple[str, ...]]:
        """Bytes of RAM that there are for weights, None where that is not known, and notes on what the load takes.

        Args:
            running: bytes that the CPU holds beside weights while the model runs.

        Raises:
            RefusedError: it takes more than this process can have.
        """
        from devctl.loading.weights.ram import host_need

        try:
            need = host_need(
                self.source,
                self.skeleton,
                dict(self.placement.device_map),
                random_weights=self.request.random_weights,
                forward=running,
            )
        except ModelError:  # a file is broken, which the load tells better
            return None, ()
        # the libraries that were imported since have taken some of it
        now = take_inventory(only=Part.CPU).host.ram_available
        known = [size for size in (now, self.inventory.host.ram_available) if size is not None]
        available = min(known, default=None)
        what = "made up" if self.request.random_weights else "converted, or read from pickles"
        parts = {
            f"weights on the CPU that are {what}": need.made,
            **(
                {"parts of weights while they are loaded": need.loading}
                if need.loading > need.beside + need.forward
                else {"making them": need.beside, "the run beside weights": need.forward}
            ),
            "the libraries": need.libraries,
        }
        require_ram(parts, available)
        if available is None:
            return None, ()
        left = available - (need.anonymous - need.made)
        if need.made + need.mapped <= left:
            return left, ()
        mapped, here = format_bytes(need.mapped), format_bytes(available)
        return left, (
            f"{mapped} of weights on the CPU are mapped from their files, and {here} of RAM can be had: what is not in "
            "use is read again from disk, which is slow",
        )

    def _options(self) -> tuple[TrialOptions, int, dict[Device, int]]:
        """How to load and run, bytes that the CPU should hold beside weights as it runs, and the gaps that torch's
        allocator of each accelerator may leave, as it is set here."""
        from devctl.loading.trial import TrialOptions

        expected = self._beside_weights()
        options = TrialOptions(
            load_format=LoadFormat(self.request.load_format),
            offload_folder=self.request.offload_folder,
            max_new_tokens=self.request.max_new_tokens,
            repeat=self.request.repeat,
            warmup=self.request.warmup,
            verify=self.request.verify,
            allow_missing=self.request.allow_missing,
            ram=self.inventory.host.ram_available,
            beside=expected.beside,
            notes=expected.notes,
            attention=self.attention or self.skeleton.tree.attention,
        )
        return options, expected.in_ram, expected.gaps if allocator.here() else {}

    def _beside_weights(self) -> _Expected:
        from devctl.loading.run.expected import beside_weights, gaps, generate_on_cpu, workloads

        tree = self.skeleton.tree
        device_map = dict(self.placement.device_map)
        footprints = Footprints(self.request.model, self.source, None if tree.quantisation else self.skeleton)
        try:
            found = [
                footprints.of_run(workload, self.inputs.tensors)
                for workload in workloads(
                    self.skeleton,
                    self.inputs,
                    device_map,
                    self.request.max_new_tokens,
                    attention=self.attention,
                )
            ]
            unmeasured = generate_on_cpu(
                self.skeleton, self.inputs, device_map, self.request.max_new_tokens, attention=self.attention
            )
            more = None if unmeasured is None else footprints.of_run(unmeasured, self.inputs.tensors)
        except UntracedError as error:
            return _Expected(notes=(f"the peak is not predicted: {error.message}",))
        told = dict.fromkeys(note for footprint in found for note in footprint.notes)
        notes = [f"the predicted peak: {note}" for note in told]
        beside, cpu = beside_weights(tree, device_map, found), Device.cpu()
        in_ram = beside.get(cpu, 0)
        if more is not None and (generating := beside_weights(tree, device_map, [more]).get(cpu, 0)) > in_ram:
            in_ram = generating
            notes.append(
                f"the peak of cpu is that of the forward: generate, {decoding.words(self.inputs.generation)}, should "
                f"hold {format_bytes(generating)} beside the weights"
            )
        return _Expected(beside=beside, in_ram=in_ram, gaps=gaps(device_map, found), notes=tuple(notes))


def prepare(request: LoadRequest, inventory: Inventory | None = None) -> Prepared:
    """All that a load needs but the weights, once the map holds and fits here.

    Args:
        inventory: this machine; looked at now where it is None.

    Raises:
        RefusedError: the map does not hold for the model, or does not fit this machine as it is now.
        ModelError: the model can't be read, or a package that it needs is missing.
        UsageError: it can't be loaded so.
    """
    machine = open_machine(MachineRequest(inventory=inventory, max_memory=request.max_memory))
    source, skeleton = open_skeleton(request.model, random_weights=request.random_weights)
    if request.device_map is None:
        strategy = request.strategy or Strategy.AUTO
        placement = place(skeleton.tree, machine.budgets, strategy, installed=planner_of(skeleton))
    else:
        given = {name: as_here(device, machine.inventory) for name, device in request.device_map.items()}
        placement = make_placement(skeleton.tree, given, machine.budgets, strategy=None)
    attending = _attending(request, skeleton, placement)
    require_valid(skeleton.tree, placement, machine.inventory)
    require_memory(placement, machine.inventory, random_weights=request.random_weights)
    if request.facts is not None and request.device_map is not None:
        require_as_planned(request.facts, request.device_map, skeleton.tree, machine.inventory)

    from devctl.loading.run.inputs import prepare as prepare_inputs

    images = _images(request, source)
    inputs = prepare_inputs(
        source,
        skeleton,
        prompt=request.prompt,
        image=request.image,
        audio=request.audio,
        batch_size=request.batch_size,
        context_length=request.context_length,
        padding=request.padding and request.planned.padded is not False,
        images=images,
        new_tokens=request.max_new_tokens,
        trust_remote_code=request.model.trust_remote_code,
    )
    inputs = _generating(request, source, inputs)
    ran = _run(request, skeleton, inputs, attending, images)
    inputs = replace(inputs, notes=(*inputs.notes, *not_followed(request.planned, ran)))
    name = str(request.model.model)
    subject = Subject(
        model=short_name(name),
        model_class=skeleton.tree.class_name,
        dtype=skeleton.tree.dtype,
        load_format=str(request.load_format),
        device_map=to_hf(placement.device_map),
        inputs={name: tuple(tensor.shape) for name, tensor in inputs.tensors.items()},
        max_new_tokens=request.max_new_tokens,
        attention=attending or skeleton.tree.attention,
    )
    return Prepared(
        name=name,
        source=source,
        skeleton=skeleton,
        placement=placement,
        inputs=inputs,
        subject=subject,
        request=request,
        inventory=machine.inventory,
        attention=attending,
    )


def _images(request: LoadRequest, source: ModelSource) -> Images | None:
    """The images that are made up for each sequence: those that are asked for, else those of the plan."""
    if isinstance(request.images, Images):
        return limited(request.images, source)
    return request.planned.images if request.image is None else None


def _generating(request: LoadRequest, source: ModelSource, inputs: Inputs) -> Inputs:
    """``inputs`` with what generate is told besides them: what is asked for, else the plan's, else the model's files'.

    Raises:
        ModelError: the model's files say what can't be meant.
    """
    told = decoding.decoding(request.decode or decoding.CONFIG, generation_of(source))
    settings = dict(told.settings)
    of_files = settings.pop("prefill_chunk_size", None)
    planned = request.planned
    if request.decode is None and planned.generation is not None:
        settings = dict(planned.generation)
    chunk = request.prefill_chunk_size or planned.prefill_chunk or (None if of_files is None else int(of_files))
    notes = tuple(f"the generation config asks for {what}, which is not counted" for what in told.uncounted)
    return replace(inputs, generation=tuple(settings.items()), prefill_chunk=chunk, notes=(*inputs.notes, *notes))


def _run(request: LoadRequest, skeleton: Skeleton, inputs: Inputs, attending: str | None, images: Images | None) -> Run:
    """What is run, to be held against a plan."""
    text = inputs.tensors.get("input_ids")
    generates = inputs.generates and skeleton.model_class.can_generate()
    new = request.max_new_tokens if generates else 0
    return Run(
        context_length=None if text is None else text.shape[1] + new,
        new_tokens=new,
        batch_size=inputs.batch_size,
        attention=attending or skeleton.tree.attention,
        padded=inputs.padded if inputs.batch_size > 1 else None,
        generation=inputs.generation if generates else None,
        prefill_chunk=inputs.prefill_chunk,
        images=images,
    )


def _attending(request: LoadRequest, skeleton: Skeleton, placement: Placement) -> str | None:
    """How the model is asked to attend, which its config then says; None for what transformers chooses.

    Raises:
        UsageError: its class does not have that, or it does not run on these devices.
        ModelError: the package for it is missing.
    """
    from devctl.loading.run.attention import require_package

    tree, name = skeleton.tree, request.attn_implementation or request.planned.attention
    if name is not None:
        name = attention.chosen(name, tree.attentions, tree.class_name)
        skeleton.config._attn_implementation = name
    runs = name or tree.attention
    if runs is not None and attention.is_flash(runs):
        require_flash(runs, tree, on_gpu=is_accelerator(main_of(dict(placement.device_map))))
    require_package(runs)
    return name
