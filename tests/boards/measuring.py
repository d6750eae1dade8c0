"""A model of random weights on a card: what a plan says that it takes, and what it takes."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from devctl.devices import Device
from devctl.loading.run.out_of_memory import is_out_of_memory, release
from devctl.models.footprint import Footprint
from devctl.placement.placement import DeviceUse, tight
from devctl.planning.building import experts_per_token, made_for
from devctl.planning.footprints import Footprints
from devctl.planning.machine import open_machine
from devctl.planning.model import Model, open_skeleton
from devctl.planning.question import Question, question_of
from devctl.planning.request import MachineRequest, ModelRequest, WorkloadRequest
from tests.boards.cards import Card, NoSegmentsError, devctl_device
from tests.boards.records import MIB, Row, Verdict, equal, failed, holds, near_peak, near_process, skipped, told

if TYPE_CHECKING:
    import torch

    from devctl.loading.run.inputs import Inputs
    from devctl.models.skeleton import Skeleton

Make = Callable[..., tuple[Any, Any]]
"""Makes a class of transformers and a config, anew."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a model does: ``context`` tokens in all, ``new`` of them generated, by each of ``batch`` sequences."""

    context: int
    new: int = 1
    batch: int = 1
    attention: str | None = None

    def __str__(self) -> str:
        rows = f", {self.batch} padded" if self.batch > 1 else ""
        return f"{self.context - self.new}+{self.new}{rows}{f', {self.attention}' if self.attention else ''}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Predicted:
    """Bytes that a plan counts on one card.

    Attributes:
        whole: of tensors and libraries.
        process: of the whole process, by `process_bytes`.
        unallocated: what the allocator has to reserve by default beside what it gives out; no part of ``whole``.
        fits: whether it says that they go there.
        expandable: whether it says that they do so only with expandable segments.
        beside_cache: the state counts more than a cache holds: what an encoder hands on, or what was made of images.
    """

    weights: int
    state: int
    peak: int
    whole: int
    process: int
    unallocated: int = 0
    fits: bool
    expandable: bool = False
    beside_cache: bool = False
    notes: tuple[str, ...] = ()


def process_bytes(use: DeviceUse, footprint: Footprint, *, expandable: bool = False) -> int:
    """What a plan says that a process holds of a device: tensors, libraries, and what its allocator reserves beside.

    By default that last part is what it reserves while memory is not short.
    """
    return use.total + footprint.pages if expandable else use.with_gaps + footprint.given_back


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Bytes that were counted while it ran; None where they can't be.

    Attributes:
        base: what was allocated before a model was there, which libraries keep.
        peak: the most that was allocated beside that.
        reserved: the most that the allocator held.
        process: what the whole process held after the run, by the driver.
        kept: of that, what the allocator held beside ``base`` and ``peak``: it gives it back when memory is short.
        was_short: memory was, and it did.
        how: ``process`` was told.
    """

    state: int | None
    base: int
    peak: int
    reserved: int
    process: int | None
    kept: int
    was_short: bool
    how: str

    @property
    def needed(self) -> int | None:
        """What the process held without what its allocator kept."""
        return None if self.process is None else self.process - self.kept


@dataclass(slots=True)
class Subject:
    """A model, as it is planned and loaded.

    Attributes:
        skeleton: of what is loaded, random weights.
        model: the same to be planned with.
    """

    name: str
    dtype: str
    source: Any
    skeleton: Skeleton
    model: Model

    def question(self, card: Card, job: Job, *, room: int | None = None) -> Question:
        """What is planned: the job on the card alone, of which ``room`` bytes may be used; None for all."""
        machine = open_machine(MachineRequest(devices=f"{card.room() if room is None else room}B"))
        asked = WorkloadRequest(
            context_length=job.context,
            new_tokens=job.new,
            batch_size=job.batch,
            attn_implementation=job.attention,
            padding=job.batch > 1,
        )
        found = question_of(self.model, machine, asked, counts=True)
        device = devctl_device(card)
        size = dict(machine.budgets.devices)[Device.gpu(0)]
        return replace(
            found,
            budgets=replace(machine.budgets, devices=((device, size),)),
            overhead={device: card.overhead()},
            workload=replace(found.workload, kernels=card.kernels),
        )

    def predict(self, card: Card, job: Job) -> Predicted:
        """What a plan says of the job on the card.

        Raises:
            UntracedError: what it holds beside its weights is not known.
        """
        asked = self.question(card, job)
        device = devctl_device(card)
        placement = asked.on({"": device}, asked.workload)
        use = next(use for use in placement.devices if use.device == device)
        expandable = placement.fits and bool(tight(placement.devices))
        footprint = asked.footprints.of(asked.workload)
        return Predicted(
            weights=use.used,
            state=use.state,
            peak=use.used + use.state + use.activations,
            whole=use.total,
            process=process_bytes(use, footprint, expandable=expandable),
            unallocated=use.unallocated,
            fits=placement.fits,
            expandable=expandable,
            beside_cache=self.model.has_encoder or footprint.image_tokens > 0,
            notes=placement.notes,
        )


def open_subject(name: str, folder: Path, make: Make, dtype: str) -> Subject:
    """The model that ``make`` makes, saved as a config in ``folder``."""
    model_class, config = make()
    config.architectures = [model_class.__name__]
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    request = ModelRequest(model=str(folder), dtype=dtype)
    source, skeleton = open_skeleton(request, random_weights=True)
    model = Model(
        request=request,
        source=source,
        tree=skeleton.tree,
        made_for=made_for(source.config),
        footprints=Footprints(request, source, skeleton),
        experts_per_token=experts_per_token(source.config),
        has_encoder=source.config.get("is_encoder_decoder") is True,
    )
    return Subject(name, dtype, source, skeleton, model)


@dataclass(slots=True)
class Loaded:
    """A subject whose weights are on a card.

    Attributes:
        base: bytes that were allocated before.
        kept: bytes that the allocator held for them.
        weights: bytes of its parameters and buffers, each storage once.
    """

    subject: Subject
    card: Card
    base: int
    kept: int
    module: Any = field(repr=False)
    weights: int = 0

    def inputs(self, job: Job) -> Inputs:
        """What the job is given, on the CPU."""
        from devctl.loading.run.inputs import prepare

        asked = self.subject.question(self.card, job).workload
        new = asked.new_tokens if self.module.can_generate() else 0
        return prepare(
            self.subject.source,
            self.subject.skeleton,
            prompt=None,
            new_tokens=new,
            trust_remote_code=False,
            batch_size=job.batch,
            context_length=job.context - new if self.reads_text else None,
            padding=job.batch > 1,
            images=asked.images,
        )

    @property
    def reads_text(self) -> bool:
        """Whether a text is among its inputs."""
        from devctl.models.inputs import inputs_of

        return bool(inputs_of(self.module.config, type(self.module)).text)


def load(subject: Subject, card: Card, attention: str | None = None) -> Loaded:
    """Put random weights on the card, by devctl's own loader.

    Raises:
        LoadError: it can't be loaded, for want of memory too.
    """
    import torch

    from devctl.loading.proofs.places import find_places
    from devctl.loading.weights import loader
    from devctl.loading.weights.loader import LoadFormat

    if attention is not None:
        subject.skeleton.config._attn_implementation = attention
    with card.running():
        card.warm(tuple(dict.fromkeys((getattr(torch, subject.dtype), torch.float32))))
        gc.collect()
        card.empty()
        base, kept = card.allocated(), card.reserved_now()
        device_map = {"": devctl_device(card)}
        module, _ = loader.load(
            subject.source,
            subject.skeleton,
            device_map,
            load_format=LoadFormat.DUMMY,
            folder=None,
            on_progress=lambda _: None,
        )
        card.tame(module)
        measured = dict(find_places(module, device_map).measured)
    return Loaded(subject, card, base, kept, module, measured.get(devctl_device(card), 0))


def run(loaded: Loaded, job: Job) -> Measured:
    """Do the job once, and count.

    Raises:
        torch.OutOfMemoryError, RuntimeError: there was no memory for it.
    """
    inputs = loaded.inputs(job)
    card = loaded.card
    caches: list[Any] = []

    def keep(_module: Any, _args: Any, kwargs: dict[str, Any], _output: Any) -> None:
        names = ("past_key_values", "cache_params", "state")
        caches[:] = [kwargs[name] for name in names if kwargs.get(name) is not None] or caches

    hook = loaded.module.register_forward_hook(keep, with_kwargs=True)
    try:
        with card.running():
            gc.collect()
            card.empty()
            card.forget()
            before = card.retries()
            # a step more than tokens: generate does not run the model on its last one
            work(loaded.module, inputs, card.place, job.new + 1)
            card.wait()
            held, reserved_now = card.held(), card.reserved_now()
            state = sum(storages(caches).values()) if caches else None
    finally:
        hook.remove()
        caches.clear()
    peak = card.peak()
    return Measured(
        state=state,
        base=loaded.base,
        peak=peak - loaded.base,
        reserved=card.reserved_peak(),
        process=held.nbytes,
        kept=reserved_now - peak,
        was_short=card.retries() > before,
        how=held.how,
    )


def work(module: Any, inputs: Inputs, place: str, new: int) -> Any:
    """Generate ``new`` tokens, or run a forward where the model makes none; what comes out.

    Args:
        place: torch's name of the device that takes the inputs.
    """
    import torch

    given = {
        name: tensor.to(place, module.dtype if tensor.is_floating_point() else None)
        for name, tensor in inputs.tensors.items()
    }
    with torch.no_grad():
        if not (module.can_generate() and inputs.generates):
            return module(**given, **_of_decoder(module, given))
        settings = module.generation_config
        settings.eos_token_id, settings.forced_eos_token_id = None, None
        settings.pad_token_id = 0
        if module.config.is_encoder_decoder and not isinstance(settings.decoder_start_token_id, int):
            settings.decoder_start_token_id = 0
        return module.generate(**given, do_sample=False, num_beams=1, max_new_tokens=new)


def _of_decoder(module: Any, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    from devctl.loading.run.smoke import _decoder_inputs

    return _decoder_inputs(module, given)


def storages(value: Any, seen: set[int] | None = None) -> dict[int, int]:
    """Bytes of the floating storages that can be reached from an object, by address."""
    import torch

    seen = set() if seen is None else seen
    if id(value) in seen:
        return {}
    seen.add(id(value))
    if isinstance(value, torch.Tensor):
        storage = value.untyped_storage()
        return {storage.data_ptr(): storage.nbytes()} if value.is_floating_point() else {}
    children: Any = ()
    if isinstance(value, dict):
        children = value.values()
    elif isinstance(value, list | tuple):
        children = value
    elif hasattr(value, "__dict__") and not isinstance(value, torch.nn.Module | type):
        children = vars(value).values()
    found: dict[int, int] = {}
    for child in children:
        found |= storages(child, seen)
    return found


def rows_of(subject: str, predicted: Predicted, measured: Measured, weights: int) -> Iterator[Row]:
    """What was predicted beside what was measured, of a job that ran."""
    yield equal(subject, "weights", predicted.weights, weights, unit="B")
    if predicted.beside_cache:
        yield told(
            subject,
            "state beside a cache",
            measured.state,
            predicted=predicted.state,
            unit="B",
            why="the cache alone is measured",
        )
    elif measured.state is not None or predicted.state:
        yield equal(subject, "state", predicted.state, measured.state, unit="B")
    why = "; ".join(note for note in predicted.notes if "bound" in note or "estimate" in note)
    yield near_peak(subject, "peak", predicted.peak, measured.peak, why)
    beside = (predicted.peak - predicted.weights, measured.peak - weights)
    yield told(subject, "peak beside weights", beside[1], predicted=beside[0], unit="B")
    yield from _of_process(subject, predicted, measured)


def _of_process(subject: str, predicted: Predicted, measured: Measured) -> Iterator[Row]:
    """The whole process.

    What it needs is judged: the driver's figure without what the allocator reserved and gave to no tensor. How much it
    keeps so depends on the memory that is left: a plan knows the least, to which it comes when memory is short. Whether
    there is room for that least is what the longest contexts under a limit are for.
    """
    kept = f"less {measured.kept / MIB:.0f} MiB that the allocator reserved and gave to no tensor"
    yield near_process(subject, "process", predicted.whole, measured.needed, f"{measured.how}, {kept}")
    if predicted.expandable:
        when = "with expandable segments, of which a plan counts no gaps"
    elif measured.was_short:
        when = "memory was short: predicted is the least that is reserved then"
    else:
        when = "memory was not short: predicted is the least that is reserved when it is"
    if measured.process is not None:
        yield told(
            subject,
            "process, with what is reserved for no tensor",
            measured.process,
            predicted=predicted.process,
            unit="B",
            why=when,
        )
    lost = measured.reserved - measured.peak - measured.base
    share = f"{lost / measured.reserved:.1%} of what was reserved; " if measured.reserved else ""
    row = told(
        subject,
        "reserved for no tensor",
        lost,
        predicted=0 if predicted.expandable else predicted.unallocated,
        unit="B",
        why=f"{share}{when}",
    )
    # the least is no forecast of what is kept while there is room
    yield row if measured.was_short and not predicted.expandable else replace(row, error=None)


def try_job(loaded: Loaded, title: str, job: Job) -> Iterator[Row]:
    """One job: planned, then run, whatever the plan says; with expandable segments where it says that it needs them.

    A plan that says no is right where it runs out of memory. Where it runs all the same, the figures say by how much
    the plan was wrong.
    """
    card, subject = loaded.card, loaded.subject
    predicted = subject.predict(card, job)
    try:
        with card.segments(expandable=predicted.expandable):
            measured: Measured | None = run(loaded, job)
    except NoSegmentsError as error:
        yield skipped(title, "fits or not", f"the plan says {ONLY_EXPANDABLE}, and {error.message}")
        return
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        release(error)
        measured = None
    yield from judged(title, predicted, measured, loaded.weights, room=card.room())


ONLY_EXPANDABLE = "that it fits only with expandable segments"


def judged(title: str, predicted: Predicted, measured: Measured | None, weights: int, *, room: int) -> Iterator[Row]:
    """The rows of a job; ``measured`` is None where memory ran out."""
    if measured is None:
        says = f"the plan needs {predicted.whole // MIB} MiB of {room // MIB} MiB"
        says += ", with expandable segments" if predicted.expandable else ""
        yield holds(title, "fits or not", not predicted.fits, why=f"out of memory; {says}")
        return
    near = predicted.peak <= measured.peak * 1.05
    why = f"it ran{', with expandable segments, as the plan says' if predicted.expandable else ''}"
    if not predicted.fits:
        why = f"the plan says no, and it ran: {predicted.whole // MIB} of {room // MIB} MiB"
    yield holds(title, "fits or not", predicted.fits or near, why=why)
    yield from rows_of(title, predicted, measured, weights)


def failure_to_load(title: str, predicted: Predicted, error: BaseException) -> Row:
    """What it means that the weights did not go onto the card."""
    from tests.boards.asking import told_of

    if "out of memory" not in str(error):
        return failed(title, "loads", told_of(error))
    return Row(
        subject=title,
        claim="fits or not",
        verdict=Verdict.MISSED if predicted.fits else Verdict.MET,
        target="holds",
        measured=False,
        why=f"out of memory while loading; the plan needs {predicted.whole // MIB} MiB",
    )
