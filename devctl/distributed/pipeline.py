"""One rank's part of a model by transformers' own parallelism: in stages, cut where the plan says, or shared.

Imports torch and transformers, inside functions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from devctl.errors import UsageError
from devctl.loading.proofs.compare import compare, tolerance_of
from devctl.models.tree import ModuleTree, is_under
from devctl.placement.parallel.records import Stages

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def tensors_of_stages(tree: ModuleTree, stages: Stages) -> tuple[dict[str, int], ...]:
    """The tensors that each stage holds, by name, with their bytes; those of a tied weight are told once.

    As ``transformers/distributed/pipeline_parallel.py`` splits a model: the embedding is on the first stage, norm and
    head are on the last, which has the embedding too where the head is tied to it; what else there is, as the buffers
    of rotary positions, is on every stage.

    Raises:
        UsageError: the plan's layers are not the model's.
    """
    container, count = stages.container, stages.stages[-1].layers[1]
    layers = tree.index.modules.get(container)
    there = 0 if layers is None else len(layers.children)
    if there != count:
        raise UsageError(
            f"the plan has {count} layers in {container}, and {tree.class_name} has {there}",
            hint="is it the plan of this model?",
        )
    base = container.rpartition(".")[0]
    last = len(stages.stages) - 1
    sources = {source for _, source in tree.ties}
    found: tuple[dict[str, int], ...] = tuple({} for _ in stages.stages)
    for tensor in tree.index.tensors:
        name = tensor.name
        if is_under(name, container):
            number = int(name.removeprefix(f"{container}.").partition(".")[0])
            places = [each.stage for each in stages.stages if each.layers[0] <= number < each.layers[1]]
        elif is_under(name, f"{base}.embed_tokens"):
            places = sorted({0, last}) if name in sources else [0]
        elif is_under(name, f"{base}.norm") or is_under(name, "lm_head"):
            places = [last]
        else:
            places = [each.stage for each in stages.stages]
        for place in places:
            found[place][name] = tree.index.held[name]
    return found


@contextmanager
def cut(stages: Stages) -> Iterator[None]:
    """Let transformers cut a model where the plan does, as long as this lasts.

    Its own stages are of equal numbers of layers; both loading and splitting ask ``layer_range_for_rank``.
    """
    from transformers.distributed import pipeline_parallel

    class PlannedStage(pipeline_parallel.PipelineStage):
        """A stage whose layers the plan says."""

        def layer_range_for_rank(self, rank: int, num_layers: int) -> tuple[int, int]:
            if stages.stages[-1].layers[1] != num_layers:
                raise ValueError(f"the plan has {stages.stages[-1].layers[1]} layers, the model {num_layers}")
            return stages.stages[rank].layers

    before = pipeline_parallel.PipelineStage
    pipeline_parallel.PipelineStage = PlannedStage  # type: ignore[misc]
    try:
        yield
    finally:
        pipeline_parallel.PipelineStage = before  # type: ignore[misc]


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What a loaded rank holds.

    Attributes:
        names: of its parameters and buffers.
        nbytes: each storage once.
        empty: those without data.
    """

    names: frozenset[str]
    nbytes: int
    empty: tuple[str, ...]


def held_by(model: PreTrainedModel) -> Held:
    """Look every parameter and buffer up."""
    names, empty = set(), []
    storages: dict[int, int] = {}
    for name, found in (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)):
        names.add(name)
        tensor: torch.Tensor = found.to_local() if hasattr(found, "to_local") else found  # of one that ranks share
        if tensor.device.type == "meta":
            empty.append(name)
        else:
            storages[tensor.untyped_storage().data_ptr() or id(tensor)] = tensor.numel() * tensor.element_size()
    return Held(names=frozenset(names), nbytes=sum(storages.values()), empty=tuple(empty))


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A greedy generate.

    Attributes:
        ids: new tokens of each sequence.
        logits: of each new token, (batch, tokens, vocabulary), on the CPU.
        seconds: of the whole.
    """

    ids: tuple[tuple[int, ...], ...]
    logits: torch.Tensor
    seconds: float


def generate(model: PreTrainedModel, given: dict[str, torch.Tensor], new_tokens: int, tick: Callable[[], None]) -> Made:
    """Generate greedily, with the dynamic cache, and by no other setting of the model's files.

    Args:
        given: inputs without padding, on the model's device.
        tick: called for every token.
    """
    import torch
    from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

    class Ticking(StoppingCriteria):
        """Stops nothing."""

        def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
            tick()
            return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)

    settings: Any = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False,
        num_beams=1,
        use_cache=True,
        max_new_tokens=new_tokens,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    model.generation_config = settings  # what it does not say is taken from there
    start = time.perf_counter()
    generates: Any = model
    with torch.inference_mode():
        output = generates.generate(
            **given, generation_config=settings, stopping_criteria=StoppingCriteriaList([Ticking()])
        )
    length = given["input_ids"].shape[1]
    return Made(
        ids=tuple(tuple(row) for row in output.sequences[:, length:].tolist()),
        logits=torch.stack([each.cpu() for each in output.logits], dim=1),
        seconds=time.perf_counter() - start,
    )


def difference(made: Made, expected: Made, dtype: str, *, exact: bool) -> str | None:
    """How what the ranks made differs from what one process did; None where it does not.

    Args:
        exact: whether the ids have to be the same. Accelerators, and ranks that share a layer and add up their parts,
            round otherwise than one CPU does: there a token may differ where all logits up to it are within rounding.
    """
    steps = min(made.logits.shape[1], expected.logits.shape[1])
    for step in range(steps):
        apart = compare(f"token {step}", made.logits[:, step], expected.logits[:, step], tolerance_of(dtype).outputs)
        ours, theirs = ([row[step] for row in each.ids] for each in (made, expected))
        if apart.is_too_much:
            far = "" if apart.absolute is None else f", by up to {apart.absolute:.3g}"
            return f"the logits of token {step + 1} differ by more than rounding{far}"
        if ours != theirs:
            return f"token {step + 1} is {ours}, and {theirs} in one process" if exact else None
    return None
