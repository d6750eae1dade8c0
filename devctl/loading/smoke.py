"""A smoke inference: one forward, and a short greedy generate."""

from __future__ import annotations

import inspect
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from devctl.devices import Device
from devctl.errors import LoadError, first_line
from devctl.loading.inputs import Inputs
from devctl.loading.memory import is_out_of_memory

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_META_HINT = (
    "transformers used an offloaded weight, or its device, outside the module that owns it: keep more of the model on "
    "a device that computes"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Generated:
    """A greedy generate of ``tokens`` new tokens; ``seconds`` count the prompt's prefill too."""

    tokens: int
    seconds: float
    tokens_per_second: float
    text: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """A tensor given to the model."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Smoke:
    """What the smoke inference did.

    Attributes:
        inputs: what the forward was given.
        source: where the inputs came from: "tokenizer" or "random".
        forward_seconds: one forward, after one that warmed up.
        nonfinite: names of the outputs that have a NaN or an infinity.
        generated: None where the model does not generate.
    """

    inputs: tuple[Input, ...]
    source: str
    forward_seconds: float
    nonfinite: tuple[str, ...]
    generated: Generated | None


def run(model: PreTrainedModel, inputs: Inputs, *, device: Device, new_tokens: int) -> Smoke:
    """Run one forward, and a greedy generate of ``new_tokens`` where the model generates.

    Args:
        device: where the inputs go.

    Raises:
        LoadError: the model raised.
        Exception: memory ran out, as the allocator says it.
    """
    import torch

    try:
        with torch.inference_mode():
            given = {
                name: value.to(device=str(device), dtype=model.dtype if value.is_floating_point() else None)
                for name, value in inputs.tensors.items()
            }
            forward = {**given, **_decoder_inputs(model, given)}
            model(**forward)
            _synchronize(device)
            start = time.perf_counter()
            output = model(**forward)
            _synchronize(device)
            seconds = time.perf_counter() - start
            nonfinite = tuple(name for name, value in _floats(output, "output") if not value.isfinite().all())
            generated = None
            if new_tokens > 0 and model.can_generate():
                generated = _generate(model, inputs.tokenizer, given, new_tokens, device)
    except Exception as error:  # the model's own code
        if is_out_of_memory(error):
            raise
        raise LoadError(
            f"the smoke inference failed in {_blame(error, model)}: {type(error).__name__}: {first_line(error)}",
            hint=_META_HINT if re.search(r"\bmeta\b", str(error)) else "",
        ) from error
    return Smoke(
        inputs=tuple(Input(name=name, shape=tuple(value.shape)) for name, value in forward.items()),
        source=inputs.source,
        forward_seconds=seconds,
        nonfinite=nonfinite,
        generated=generated,
    )


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
    start, device = _decoder_start(model), next(iter(inputs.values())).device
    return {"decoder_input_ids": torch.full((1, 1), start, dtype=torch.long, device=device)}


def _decoder_start(model: PreTrainedModel) -> int:
    """The token that a decoder begins with: what the model says, else its first of text, else padding, else 0."""
    places = (getattr(model, "generation_config", None), model.config, model.config.get_text_config(decoder=True))
    for name in ("decoder_start_token_id", "bos_token_id", "pad_token_id"):
        for place in places:
            token = getattr(place, name, None)
            if isinstance(token, int):
                return token
    return 0


def _generate(
    model: Any,
    tokenizer: PreTrainedTokenizerBase | None,
    inputs: dict[str, torch.Tensor],
    new_tokens: int,
    device: Device,
) -> Generated:
    settings = model.generation_config
    if not isinstance(settings.pad_token_id, int):
        settings.pad_token_id = 0  # one sequence needs no padding, and it is warned of where there is none
    arguments = {"decoder_start_token_id": _decoder_start(model)} if model.config.is_encoder_decoder else {}
    steps = 0

    def count(*_: Any) -> None:
        nonlocal steps
        steps += 1

    counting = model.register_forward_hook(count)  # a forward makes a token
    try:
        _synchronize(device)
        start = time.perf_counter()
        output = model.generate(
            **inputs,
            **arguments,
            do_sample=False,
            num_beams=1,
            num_return_sequences=1,
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
        )
        _synchronize(device)
        seconds = time.perf_counter() - start
    finally:
        counting.remove()
    # a model that generates with a part of it has no forward of its own; its tokens are those asked for
    steps = steps or new_tokens
    ids = output if hasattr(output, "shape") else output.sequences
    text = None if tokenizer is None else tokenizer.decode(ids[0, -steps:], skip_special_tokens=True)
    return Generated(
        tokens=steps,
        seconds=seconds,
        tokens_per_second=steps / seconds,
        text=text if isinstance(text, str) else None,
    )


def _synchronize(device: Device) -> None:
    """Wait for the accelerators, whose work is asynchronous."""
    import torch

    if device.type in ("cuda", "xpu"):
        module = getattr(torch, device.type.value)
        for index in range(module.device_count()):
            # waiting for one that holds nothing of ours would only make a context on it, of some hundred MiB
            if module.memory_reserved(index):
                module.synchronize(index)
    elif device.type == "mps":
        torch.mps.synchronize()


def _floats(value: Any, name: str) -> Iterator[tuple[str, torch.Tensor]]:
    """The floating tensors within a model's output, with their names."""
    import torch

    if isinstance(value, torch.Tensor):
        if value.is_floating_point():
            yield name, value
    elif hasattr(value, "items"):
        for key, item in value.items():
            yield from _floats(item, str(key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _floats(item, f"{name}[{index}]")
