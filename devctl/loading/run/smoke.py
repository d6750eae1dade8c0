"""A smoke inference: forwards, and a short greedy generate."""

from __future__ import annotations

import inspect
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from devctl.devices import Device
from devctl.errors import DevctlError, LoadError, first_line
from devctl.loading.proofs.compare import Difference, compare_all, kept, tolerance_of, worst
from devctl.loading.proofs.watch import first_nonfinite, first_unsteady
from devctl.loading.run.allocations import counted
from devctl.loading.run.generating import Generated, decoder_start, generate, generated
from devctl.loading.run.inputs import Inputs
from devctl.loading.run.out_of_memory import is_out_of_memory
from devctl.loading.run.timing import Spread, spread, synchronize
from devctl.models.inputs import codebooks
from devctl.models.quantised.counting import dtype_name
from devctl.placement.budget import is_accelerator

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_META_HINT = (
    "transformers used an offloaded weight, or its device, outside the module that owns it: keep more of the model on "
    "a device that computes"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """A tensor given to the model."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeated:
    """Whether a second forward gave the same bits.

    Attributes:
        bit_equal: every bit of every output is the same.
        worst: the output that differs most; None where none does.
        allowed: the share of each value, and of the mean size of all, by which accelerators may differ, whose kernels
            add up in any order. The CPU's may not.
        steady: bit-equal, or within ``allowed`` on an accelerator.
        block: the first whose output differs; None where none was found.
    """

    bit_equal: bool
    worst: Difference | None
    allowed: float
    steady: bool
    block: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Smoke:
    """What the smoke inference did.

    Attributes:
        inputs: what the forward was given.
        source: where the inputs came from: "tokenizer", "image", "audio" or "random".
        batch_size: sequences, images or sounds at a time.
        padded: some of the texts are shorter, and padded.
        forward_seconds: of a forward, after those that warmed up.
        nonfinite: names of the outputs that have a NaN or an infinity.
        nonfinite_block: the first block whose output has one; None where none has.
        allocated: the most bytes that torch's allocator of the CPU gave out for a forward and its inputs; None where
            another device runs it.
        repeated: a second forward beside the first.
        generated: None where the model does not generate.
    """

    inputs: tuple[Input, ...]
    source: str
    batch_size: int
    padded: bool
    forward_seconds: Spread
    nonfinite: tuple[str, ...]
    nonfinite_block: str | None
    allocated: int | None
    repeated: Repeated
    generated: Generated | None


def run(
    model: PreTrainedModel,
    inputs: Inputs,
    *,
    device: Device,
    new_tokens: int,
    blocks: tuple[str, ...] = (),
    repeat: int = 1,
    warmup: int | None = None,
) -> Smoke:
    """Run forwards, and a greedy generate of ``new_tokens`` where the model generates.

    Args:
        device: where the inputs go.
        blocks: modules among which a fault is looked for.
        repeat: how often each is timed.
        warmup: how often each runs before; None is one forward and no generate. The forward runs twice at least, to
            be compared with itself, and once without being timed, to count what it allocates.

    Raises:
        LoadError: the model raised.
        Exception: memory ran out, as the allocator says it.
    """
    import torch

    with torch.inference_mode(), as_load_errors(model):
        given = _given(model, inputs, device)
        forward = forward_arguments(model, inputs, device)
        before = 1 if warmup is None else warmup
        first: dict[str, torch.Tensor] | None = None
        second: dict[str, torch.Tensor] | None = None
        seconds = []
        allocated: int | None = None
        timed = range(before, before + repeat)
        for number in range(max(before, 1) + repeat):
            if number in timed:
                output, taken = _timed(model, forward, device)
                seconds.append(taken)
            elif allocated is None and device == Device.cpu():
                output, most = counted(lambda: _seeded(model, forward))
                allocated = None if most is None else most + sum(value.nbytes for value in forward.values())
            else:
                output = _seeded(model, forward)
            if first is None:
                first = kept(output)
            elif second is None:
                second = kept(output)
            del output  # its KV cache would stay beside that of the next
        assert first is not None
        assert second is not None
        nonfinite = tuple(name for name, value in second.items() if not value.isfinite().all())
        block = first_nonfinite(model, blocks, lambda: _seeded(model, forward)) if nonfinite else None
        repeated = _repeated(model, first, second, blocks, forward, device)
        del first, second
        made = None
        if new_tokens > 0 and model.can_generate() and inputs.generates:
            for _ in range(warmup or 0):
                generate(model, inputs, given, new_tokens, device)
            made = generated([generate(model, inputs, given, new_tokens, device) for _ in range(repeat)], inputs)
    return Smoke(
        inputs=tuple(Input(name=name, shape=tuple(value.shape)) for name, value in forward.items()),
        source=inputs.source,
        batch_size=inputs.batch_size,
        padded=inputs.padded,
        forward_seconds=spread(seconds),
        nonfinite=nonfinite,
        nonfinite_block=block,
        allocated=allocated,
        repeated=repeated,
        generated=made,
    )


def forward_arguments(model: PreTrainedModel, inputs: Inputs, device: Device) -> dict[str, torch.Tensor]:
    """What a forward is given, on ``device``."""
    given = _given(model, inputs, device)
    return {**given, **_decoder_inputs(model, given)}


def _given(model: PreTrainedModel, inputs: Inputs, device: Device) -> dict[str, torch.Tensor]:
    """The inputs on ``device``, in the model's dtype where they are floating."""
    return {
        name: value.to(device=str(device), dtype=model.dtype if value.is_floating_point() else None)
        for name, value in inputs.tensors.items()
    }


def _seeded(model: PreTrainedModel, forward: dict[str, torch.Tensor]) -> Any:
    """A forward; one that draws random numbers, as some do to mask, draws the same each time."""
    import torch

    torch.manual_seed(0)
    return model(**forward)


def _timed(model: PreTrainedModel, forward: dict[str, torch.Tensor], device: Device) -> tuple[Any, float]:
    synchronize(device)
    start = time.perf_counter()
    output = _seeded(model, forward)
    synchronize(device)
    return output, time.perf_counter() - start


def _repeated(
    model: PreTrainedModel,
    first: dict[str, torch.Tensor],
    second: dict[str, torch.Tensor],
    blocks: tuple[str, ...],
    forward: dict[str, torch.Tensor],
    device: Device,
) -> Repeated:
    allowed = tolerance_of(dtype_name(model.dtype)).outputs
    found = worst(compare_all(second, first, allowed))
    equal = found is None or found.absolute == 0
    return Repeated(
        bit_equal=equal,
        worst=None if equal else found,
        allowed=allowed,
        steady=equal or (found is not None and not found.is_too_much and is_accelerator(device)),
        block=None if equal else first_unsteady(model, blocks, lambda: _seeded(model, forward)),
    )


@contextmanager
def as_load_errors(model: PreTrainedModel) -> Iterator[None]:
    """What goes wrong in the model's own code, as a line that says where.

    Raises:
        LoadError: the model raised, or memory ran out.
    """
    try:
        yield
    except DevctlError:
        raise
    except Exception as error:  # the model's own code
        if is_out_of_memory(error):
            raise
        raise LoadError(
            f"the smoke inference failed in {_blame(error, model)}: {type(error).__name__}: {first_line(error)}",
            hint=_META_HINT if re.search(r"\bmeta\b", str(error)) else "",
        ) from error


def _blame(error: BaseException, model: PreTrainedModel) -> str:
    """The innermost module of the model in whose code ``error`` was raised."""
    names = {id(module): name for name, module in model.named_modules()}
    found = ""
    frame = error.__traceback__
    while frame is not None:
        found = names.get(id(frame.tb_frame.f_locals.get("self")), found) or found
        frame = frame.tb_next
    return f"{found} of {type(model).__name__}" if found else type(model).__name__


def _decoder_inputs(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The first token of the decoder, which a forward of an encoder-decoder needs beside the encoder's inputs."""
    import torch

    if not model.config.is_encoder_decoder or "decoder_input_ids" not in inspect.signature(model.forward).parameters:
        return {}
    rows = len(next(iter(inputs.values()))) * codebooks(model.config)
    device = next(iter(inputs.values())).device
    return {"decoder_input_ids": torch.full((rows, 1), decoder_start(model), dtype=torch.long, device=device)}
