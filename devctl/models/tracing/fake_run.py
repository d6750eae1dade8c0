"""One run of a model on fake tensors: a generate or a forward, and what each of its steps held.

Imports torch: to be imported inside functions.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationMixin

from devctl.errors import first_line
from devctl.models.attention import of_config, without_packages
from devctl.models.decoding import CACHE_BITS
from devctl.models.footprint import Kernels, Workload
from devctl.models.tracing.adapters import with_adapters
from devctl.models.tracing.attention import standing_in
from devctl.models.tracing.caches import TRACED
from devctl.models.tracing.fake_tensors import FakeWorld
from devctl.models.tracing.loops import MANY, Loops
from devctl.models.tracing.loops import standing_in as standing_in_loops
from devctl.models.tracing.peaks import Peaks, peaks
from devctl.models.tracing.prompts import Given, MadeUp, Prompts
from devctl.models.tracing.recorder import MODEL, Phase, Recorder, states, tensors_in
from devctl.models.tracing.requests import requests
from devctl.models.tracing.segments import NOTHING, Held, held
from devctl.models.tracing.sharded import shard
from devctl.models.tracing.twins import RUN, kinds, repeats
from devctl.models.tracing.weights import loaded
from devctl.models.tree import Module, ModuleTree

if TYPE_CHECKING:
    from devctl.models.skeleton import Skeleton


_GREEDY = {"do_sample": False, "num_beams": 1, "num_return_sequences": 1, "use_cache": True}


class _FinishedError(Exception):
    """Enough steps were seen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TracedStep:
    """A phase of a run.

    Attributes:
        state: bytes of what survived it, by block.
        executed: the blocks, in the order in which they first did.
        peaks: the most bytes beside the states.
        output: bytes of the logits that it gave, or of all that a forward returned.
        held: what an accelerator's allocator holds if all blocks are on one device, states among it; nothing on the
            CPU, which has no such one, and where it is not asked for.
    """

    state: dict[str, int]
    executed: tuple[str, ...]
    peaks: Peaks
    output: int
    held: Held


_Figures = Callable[[], TracedStep]
"""Adds up what a step held that has ended."""


class FakeModel:
    """A model without weights that can be run, as often as one likes."""

    def __init__(
        self,
        skeleton: Skeleton,
        workload: Workload,
        *,
        alike: bool,
        most: int,
        given: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        """Build it.

        Args:
            alike: whether blocks that are alike answer for one another.
            most: the operations that a run may take.
            given: inputs to run on, instead of some of the workload's sizes.
        """
        self.world = FakeWorld(workload)
        self.operations = 0
        self._workload = workload
        self.most = most
        """The operations that a run may take."""
        self._owners = _owners(skeleton.tree)
        self._model: Any = _build(skeleton, workload, self.world)
        self._alike = [name for name, is_block in self._owners.items() if is_block] if alike else []
        self._kinds = kinds(self._model, self._alike)
        self._adapted = bool(skeleton.adapters)
        self._attention = of_config(self._model.config)
        batch = workload.batch_size
        self.prompts: Prompts = (
            MadeUp(self._model, batch, padded=workload.padded, images=workload.images)
            if given is None
            else Given(self._model, batch, given)
        )
        self._told = _told(workload)
        self._loaded = loaded(self._model) if workload.kernels is Kernels.ACCELERATOR else NOTHING
        self.generates: bool = self._model.can_generate() and workload.new_tokens > 0
        self.images = False
        """Whether prompts begin with their images."""
        self.no_images: str | None = None
        """Why they can't, in a model that would."""
        try:
            with self._entered():
                self.images = self.prompts.find_images()
        except Exception as error:  # noqa: BLE001 - it is the model's own code
            self.no_images = first_line(error)
        self.fewest_rounds: int | None = MANY
        """Of a loop over the text that is cut short; None where none is."""
        self.strides: set[int] = set()
        """Tokens to a round, of the loops that ever were cut short."""
        self.in_brief = False
        """Whether only a block of each kind runs, and no allocator is asked: that tells of each loop."""
        self.plain_generate = False
        """Whether a model's own way to generate is passed over for that of all."""

    def generate(
        self, tokens: int, *, answer: int = 1, steps: Sequence[int] = (0,), chunk: int | None = None
    ) -> list[TracedStep]:
        """Those of the workload's generate that have the numbers ``steps``, which rise; the prefill is 0.

        All up to the last of them run; what the others hold is not added up.

        Args:
            tokens: of the prompt.
            answer: tokens that the decoder begins with, where there is an encoder for the prompt.
            chunk: tokens of the prompt that are read at once, in which a prefill has its peak again and again.

        Raises:
            TooManyOperationsError: it takes too long.
        """
        found: list[_Figures] = []
        parts: list[_Figures] = []
        ended = begun = False
        output = 0
        chunks = None if chunk is None or chunk >= tokens else _chunks(tokens, chunk)
        stands_for = chunks[0] // chunk if chunks is not None and chunk is not None and len(chunks) > 3 else 0

        def end(_: Any, scores: torch.Tensor) -> torch.Tensor:
            nonlocal ended, output
            ended = True
            output = scores.numel() * scores.element_size()
            return scores

        def begin(*, forward: bool = False) -> None:
            nonlocal ended, begun
            if ended:
                ended = False
                # what chunks, or a step, leave behind of a cache that grows or is reordered is in the way of the next
                after = int(len(found) > 1) if found else len(parts)
                figures = end_step(output, after=after, stands_for=0 if found else stands_for)
                found.append(partial(_chunked, [*parts[-1:], figures]) if parts and not found else figures)
                if len(found) > steps[-1]:
                    raise _FinishedError
            elif forward and begun and chunks is not None:
                parts.append(end_step(0))
            begun = begun or forward

        with self._recorded(tokens, begin) as end_step:
            _settle(self._model, self._workload)
            given = self.prompts.make(tokens, answer=answer, images=self.images)
            generate: Any = GenerationMixin.generate if self.plain_generate else type(self._model).generate
            with suppress(_FinishedError):
                generate(
                    self._model,
                    **given,
                    **self._told,
                    prefill_chunk_size=chunks,
                    max_new_tokens=max(steps[-1] + 2, self._left(tokens, answer)),
                    logits_processor=[end],
                )
        if len(found) <= steps[-1]:
            raise ValueError("it generates by other means than its forward")
        return [found[number]() for number in steps]

    def _left(self, tokens: int, answer: int) -> int:
        """Tokens that generate is to make after so many, the last is not read: caches may be as long as all."""
        if self.prompts.reads_whole:
            return self._workload.new_tokens + 2 - answer
        return self._workload.context_length + 1 - tokens

    @property
    def image_tokens(self) -> int:
        """Tokens of its text that the images of a sequence take."""
        return self.prompts.image_tokens() if self.images else 0

    @property
    def windows(self) -> list[int]:
        """Lengths of texts at which the model does something else, by its config."""
        named = self._model.config.get_text_config(decoder=True).to_dict().items()
        return sorted({value for key, value in named if "window" in key and type(value) is int and value > 1})

    @property
    def has_own_generate(self) -> bool:
        """Whether it generates in a way of its own."""
        return self.generates and type(self._model).generate is not GenerationMixin.generate

    def forward(self, tokens: int) -> TracedStep:
        """One forward.

        Raises:
            TooManyOperationsError: it takes too long.
        """
        with self._recorded(tokens, lambda **_: None) as end_step:
            output = self._model(**self.prompts.make(tokens, images=self.images))
            kept = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors_in(output)}
            # what is deeper in the output than its own tensors is kept for a next step: keys and values, above all
            results = frozenset(t.untyped_storage()._cdata for t in _own_tensors(output))
            return end_step(sum(kept.values()), results=results)()

    @contextmanager
    def _recorded(self, tokens: int, begin: Callable[..., None]) -> Iterator[Callable[..., _Figures]]:
        """Follows what happens inside; gives a function that ends a step, and gives one that adds up what it held.

        That function is told how many steps before belong to the same prefill, and what the first of them stands for.
        """
        weights = [*self._model.parameters(), *self._model.buffers()]
        on_accelerator = self._workload.kernels is Kernels.ACCELERATOR
        recorder = Recorder(
            weights,
            length=tokens,
            most=self.most,
            on_accelerator=on_accelerator,
            promoting=self._adapted,
        )
        fewest = self.fewest_rounds
        loops = None if fewest is None else Loops(tokens, lambda: recorder.held, fewest)
        alike_ones = kinds(self._model, self._alike, few=True) if self.in_brief else self._kinds
        phases: list[tuple[Phase, frozenset[int]]] = []
        with (
            self._entered(loops, recorder),
            standing_in_loops(self._model, loops),
            repeats(self._model, alike_ones, 1 if self.in_brief else RUN) as alike,
            self._hooked(recorder, begin),
        ):

            def end_step(
                output: int, *, results: frozenset[int] = frozenset(), after: int = 0, stands_for: int = 0
            ) -> _Figures:
                phase = recorder.next_phase()
                alike.next_step()
                survivors = recorder.alive(but=results)
                phases.append((phase, survivors))
                followed = tuple(phases[-1 - after :])
                executed = tuple(dict.fromkeys((MODEL, *recorder.executed)))
                twins = dict(alike.twins)

                def figures() -> TracedStep:
                    state = states(recorder, survivors, twins)
                    ways = [((phase, survivors),), followed][: 1 + bool(after)]
                    if not on_accelerator or self.in_brief:
                        ways = []
                    # gaps are a matter of luck: a step that begins without any may leave more than one behind others
                    asked = [requests(recorder, way, twins, stands_for) for way in ways]
                    return TracedStep(
                        state=state,
                        executed=executed,
                        peaks=peaks(recorder, phase, survivors, state, twins),
                        output=output,
                        held=held(asked, self._loaded),
                    )

                return figures

            try:
                yield end_step
            finally:
                self.operations = recorder.operations
                if loops is not None:
                    self.strides |= loops.strides

    @contextmanager
    def _entered(self, loops: Loops | None = None, recorder: Recorder | None = None) -> Iterator[None]:
        with standing_in(self._attention), self.world.entered(loops, recorder):
            yield

    @contextmanager
    def _hooked(self, recorder: Recorder, begin: Callable[..., None]) -> Iterator[None]:
        """Tell ``recorder`` which block executes, and call ``begin`` before any module does."""
        handles = []

        def enter(name: str) -> Callable[..., None]:
            def hook(_: Any, args: Any, kwargs: dict[str, Any]) -> None:
                begin()
                # accelerate leaves a cache where it is
                recorder.enter(name, (args, [value for key, value in kwargs.items() if key != "past_key_values"]))

            return hook

        def enter_model(*_: Any) -> None:
            begin(forward=True)
            recorder.inside = True

        def leave_model(*_: Any) -> None:
            recorder.inside = False

        for name, module in self._model.named_modules():
            if name in self._owners:
                handles.append(module.register_forward_pre_hook(enter(name), with_kwargs=True))
                handles.append(module.register_forward_hook(lambda *_: recorder.leave()))
        handles += [self._model.register_forward_pre_hook(enter_model), self._model.register_forward_hook(leave_model)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _told(workload: Workload) -> dict[str, Any]:
    """What generate is told besides its inputs."""
    told = {**_GREEDY, **dict(workload.generation)}
    told.pop(CACHE_BITS, None)
    if (cache := told.pop("cache_implementation", None)) in TRACED:
        told["cache_implementation"] = TRACED[cache]
    return told


def _chunks(tokens: int, chunk: int) -> list[int]:
    """Tokens that are read at once, one after the other: so many, but what is long before the last ones in one go.

    The last of each length are those with the peak; one before them frees what only the long one leaves behind. What
    the long one stands for asked an allocator for less at once, and more often: two equal chunks tell what that was.
    """
    rest = tokens % chunk or chunk
    before = tokens - rest - 2 * chunk
    whole = [before, chunk, chunk] if before > 0 else [chunk] * ((tokens - rest) // chunk)
    return [*whole, rest]


def _chunked(last_steps: Sequence[_Figures]) -> TracedStep:
    """A prefill of chunks, whose peak is in the last steps: each runs beside the states of all blocks."""
    steps = [figures() for figures in last_steps]
    again: dict[str, int] = {}
    for each in steps:
        for name in {**each.peaks.beside, **each.peaks.again}:
            most = max(each.peaks.beside.get(name, 0), each.peaks.again.get(name, 0))
            again[name] = max(again.get(name, 0), most)
    # of a window, a long chunk leaves more than a short one at the end does
    state = {name: max(each.state.get(name, 0) for each in steps) for each in steps for name in each.state}
    last = steps[-1]
    return TracedStep(
        state=state,
        executed=last.executed,
        peaks=Peaks(again=again),
        output=last.output,
        held=Held.most([each.held for each in steps]),
    )


def _own_tensors(output: Any) -> Iterator[torch.Tensor]:
    """The tensors that a model's output is made of, and none of what is kept in its other parts."""
    parts = output.values() if hasattr(output, "values") else output if isinstance(output, list | tuple) else (output,)
    return (part for part in parts if isinstance(part, torch.Tensor))


def _build(skeleton: Skeleton, workload: Workload, world: FakeWorld) -> Any:
    from transformers.core_model_loading import build_glob_alternation
    from transformers.initialization import no_init_weights

    dtype = getattr(torch, skeleton.tree.dtype)
    config = copy.deepcopy(skeleton.config)
    if workload.attention is not None:
        config._attn_implementation = workload.attention

    def build(device: str) -> Any:
        with ExitStack() as stack:
            stack.enter_context(without_packages())
            for context in skeleton.model_class.get_init_context(dtype, False, False, None):
                stack.enter_context(context)
            stack.enter_context(no_init_weights())
            stack.enter_context(torch.device(device))
            return skeleton.model_class(config)

    # many times faster than among fake tensors
    model = with_adapters(shard(build("meta"), skeleton.tree.sharding, workload), skeleton)
    with world.entered():
        if not world.take_over(model):
            model = with_adapters(shard(build("cpu"), skeleton.tree.sharding, workload), skeleton)
        model.train(False)
        if plan := model._get_dtype_plan(dtype):
            kept = build_glob_alternation(list(plan))[0]
            for name, parameter in model.named_parameters():
                if kept.search(name):
                    parameter.data = parameter.data.float()
    return model


def _owners(tree: ModuleTree) -> dict[str, bool]:
    """Names of the blocks and leaves, and whether it is a block; what is within a block is no more than the block."""
    found: dict[str, bool] = {}

    def visit(module: Module) -> None:
        if not module.children or (module.name and module.class_name in tree.no_split):
            found[module.name] = bool(module.children)
        else:
            for child in module.children:
                visit(child)

    visit(tree.root)
    return found


def _settle(model: Any, workload: Workload) -> None:
    """Let generate go on until it is stopped, and do in decode what it does on the device."""
    settings = model.generation_config  # the model's own, which fills what is None in another
    settings.eos_token_id = None
    for name in ("pad_token_id", "bos_token_id", "decoder_start_token_id"):
        if getattr(settings, name, None) is None:
            setattr(settings, name, 0)
    for name in ("forced_bos_token_id", "forced_eos_token_id", "suppress_tokens", "begin_suppress_tokens"):
        setattr(settings, name, None)
    model._has_unfinished_sequences = lambda *_, **__: True  # beams end by scores, which are not real
    if workload.kernels is Kernels.ACCELERATOR:
        model._optimize_model_for_decode = lambda: _gathered_experts(model)


@contextmanager
def _gathered_experts(model: Any) -> Iterator[None]:
    """What generate does for decode on every device but the CPU: each token's experts are gathered."""
    before = model.get_experts_implementation()
    if "grouped_mm" not in before.values():
        yield
        return
    model.set_experts_implementation({key: "batched_mm" if v == "grouped_mm" else v for key, v in before.items()})
    try:
        yield
    finally:
        model.set_experts_implementation(before)
