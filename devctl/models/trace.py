"""What a model holds in memory beside its weights, found by running its own code on fake tensors.

The model is built without weights, and does what a user's call would: ``generate`` where it generates, one forward
else. Every storage's birth and death is followed and belongs to the block that executed when it was born. What lives on
between two steps is state. Imports torch and transformers, inside functions.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from devctl.errors import UntracedError, first_line
from devctl.models.footprint import BlockFootprint, Footprint, Kernels, Workload
from devctl.models.tree import Module, ModuleTree

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from devctl.models.skeleton import Skeleton


class _FinishedError(Exception):
    """Enough steps were seen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    """A phase of a run.

    Attributes:
        state: bytes of what survived it, by block.
        peak: the most bytes beside every block's state, by block.
        output: bytes of the logits that it gave.
    """

    state: dict[str, int]
    peak: dict[str, int]
    output: int


def trace_footprint(skeleton: Skeleton, workload: Workload) -> Footprint:
    """What the model of ``skeleton`` holds beside its weights while it does ``workload``.

    Raises:
        UntracedError: its code can't be run on fake tensors.
    """
    try:
        return _trace(skeleton, workload)
    except UntracedError:
        raise
    except Exception as error:  # a model's own code may raise anything, and fake tensors make it do so
        raise UntracedError(
            f"{skeleton.model_class.__name__} can't be traced: {type(error).__name__}: {first_line(error)}"
        ) from error


def _trace(skeleton: Skeleton, workload: Workload) -> Footprint:
    from devctl.models.fake import Guesses, fake_world

    guesses = Guesses()
    notes: list[str] = []
    with fake_world(guesses, workload):
        model = _fake_model(skeleton)
        order: dict[str, None] = {}
        if model.can_generate() and workload.new_tokens:
            prompt = workload.context_length - workload.new_tokens
            # two decode steps: the first ends what prefill left, like a sliding window that still holds the prompt
            few = workload.new_tokens <= 2
            steps = _generate(model, skeleton.tree, workload, prompt, workload.new_tokens + 1 if few else 1, order)
            prefill, last = steps[0], steps[-1]
            if not few:
                last = _generate(model, skeleton.tree, workload, workload.context_length - 2, 3, order)[-1]
        else:
            prefill = _forward(model, skeleton.tree, workload, order)
            last = None
    blocks = tuple(
        BlockFootprint(
            name=name,
            prompt_state=prefill.state.get(name, 0),
            state=(last or prefill).state.get(name, 0),
            prefill=prefill.peak.get(name, 0),
            decode=last.peak.get(name, 0) if last else 0,
        )
        for name in order
    )
    return Footprint(
        workload=workload,
        blocks=tuple(b for b in blocks if b.prompt_state or b.state or b.prefill or b.decode),
        output=max(prefill.output, last.output if last else 0),
        exact=not guesses.shaped,
        notes=tuple(notes),
    )


def _fake_model(skeleton: Skeleton) -> PreTrainedModel:
    import torch
    from transformers.initialization import no_init_weights

    dtype = getattr(torch, skeleton.tree.dtype)
    config = copy.deepcopy(skeleton.config)
    with ExitStack() as stack:
        for context in skeleton.model_class.get_init_context(dtype, False, False, None):
            stack.enter_context(context)
        stack.enter_context(no_init_weights())
        stack.enter_context(torch.device("cpu"))  # and not the meta device of the contexts before
        model = skeleton.model_class(config)
    model.train(False)
    return model


def _owners(tree: ModuleTree) -> dict[str, str]:
    """The block or leaf of every module that is one, by name; what is within a block is no more than the block."""
    found: dict[str, str] = {}

    def visit(module: Module) -> None:
        if not module.children or (module.name and module.class_name in tree.no_split):
            found[module.name] = module.name
        else:
            for child in module.children:
                visit(child)

    visit(tree.root)
    return found


@contextmanager
def _hooked(model: PreTrainedModel, tree: ModuleTree, recorder: Any, begin: Any) -> Iterator[None]:
    """Tell ``recorder`` which block executes, and call ``begin`` before any module does."""
    names = _owners(tree)
    handles = []

    def enter(name: str) -> Any:
        def hook(*_: Any) -> None:
            begin()
            recorder.enter(name)

        return hook

    for name, module in model.named_modules():
        if name in names:
            handles.append(module.register_forward_pre_hook(enter(name)))
            handles.append(module.register_forward_hook(lambda *_: recorder.leave()))

    def enter_model(*_: Any) -> None:
        begin()
        recorder.inside = True

    def leave_model(*_: Any) -> None:
        recorder.inside = False

    handles += [model.register_forward_pre_hook(enter_model), model.register_forward_hook(leave_model)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _generate(
    model: Any, tree: ModuleTree, workload: Workload, prompt: int, steps: int, order: dict[str, None]
) -> list[_Step]:
    """The first ``steps`` steps of a greedy generate from ``prompt`` tokens; the first is the prefill."""
    import torch

    from devctl.models.storages import Recorder, peaks, states

    recorder = Recorder([*model.parameters(), *model.buffers()])
    found: list[_Step] = []
    ended = False
    output = 0

    def end(_: Any, scores: torch.Tensor) -> torch.Tensor:
        nonlocal ended, output
        ended = True
        output = scores.numel() * scores.element_size()
        return scores

    def begin() -> None:
        nonlocal ended
        if not ended:
            return
        ended = False
        phase = recorder.next_phase()
        survivors = recorder.phase.begin
        state = states(recorder, survivors)
        found.append(_Step(state=state, peak=peaks(recorder, phase, survivors, state), output=output))
        if len(found) == steps:
            raise _FinishedError

    settings = model.generation_config  # the model's own, which fills what is None in another
    settings.eos_token_id = None
    settings.pad_token_id = 0
    if workload.kernels is Kernels.ACCELERATOR:
        model._optimize_model_for_decode = lambda: _gathered_experts(model)
    with recorder, _hooked(model, tree, recorder, begin):
        inputs = {"input_ids": torch.ones((workload.batch_size, prompt), dtype=torch.long)}
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        with suppress(_FinishedError):
            model.generate(
                **inputs,
                do_sample=False,
                num_beams=1,
                max_new_tokens=steps + 1,
                logits_processor=[end],
            )
    order.update(recorder.executed)
    return found


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


def _forward(model: Any, tree: ModuleTree, workload: Workload, order: dict[str, None]) -> _Step:
    """One forward."""
    import torch

    from devctl.models.storages import Recorder, peaks

    recorder = Recorder([*model.parameters(), *model.buffers()])
    with recorder, _hooked(model, tree, recorder, lambda: None):
        inputs = {"input_ids": torch.ones((workload.batch_size, workload.context_length), dtype=torch.long)}
        _output = model(**inputs)
        order.update(recorder.executed)
        phase = recorder.next_phase()
    return _Step(state={}, peak=peaks(recorder, phase, frozenset(), {}), output=0)
