"""A short generate, timed."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from devctl.devices import Device
from devctl.loading.run.timing import Spread, spread, spread_of_known, synchronize
from devctl.models.decoding import CACHE_BITS

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from devctl.loading.run.inputs import Inputs


@dataclass(frozen=True, slots=True, kw_only=True)
class Generated:
    """A generate.

    Attributes:
        tokens: new ones of each sequence.
        seconds: of the whole, the prompt's prefill too.
        first_token_seconds: from the call to the end of the first forward; None where the model generates with a part
            of it that has no forward of its own.
        decode_tokens_per_second: of the tokens after the first, those of all sequences added up; None where there are
            none.
        text: of the first sequence; None without a tokenizer.
    """

    tokens: int
    seconds: Spread
    first_token_seconds: Spread | None
    decode_tokens_per_second: Spread | None
    text: str | None


def decoder_start(model: PreTrainedModel) -> int:
    """The token that a decoder begins with: what the model says, else its first of text, else padding, else 0."""
    places = (getattr(model, "generation_config", None), model.config, model.config.get_text_config(decoder=True))
    for name in ("decoder_start_token_id", "bos_token_id", "pad_token_id"):
        for place in places:
            token = getattr(place, name, None)
            if isinstance(token, int):
                return token
    return 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """One generate: ``first`` is the seconds to the first token, None where no forward was seen."""

    steps: int
    seconds: float
    first: float | None
    ids: torch.Tensor


def generate(model: Any, inputs: Inputs, given: dict[str, torch.Tensor], new_tokens: int, device: Device) -> Made:
    """Generate as ``inputs`` say, from what of them is ``given`` on the device."""
    import torch

    settings = model.generation_config
    if not isinstance(settings.pad_token_id, int):
        settings.pad_token_id = 0  # one sequence needs no padding, and it is warned of where there is none
    arguments = {"decoder_start_token_id": decoder_start(model)} if model.config.is_encoder_decoder else {}
    reads = _reads(model, inputs)
    steps: dict[int, int] = {}
    first: dict[int, float] = {}
    # a forward makes a token: the model's own, or that of the part which a model generates with
    parts = [module for module in model.modules() if module is model or _generates(module)]

    def count(module: Any, *_: Any) -> None:
        steps[id(module)] = steps.get(id(module), 0) + 1
        if steps[id(module)] == reads:
            synchronize(device)
            first[id(module)] = time.perf_counter() - start

    counting = [part.register_forward_hook(count) for part in parts]
    try:
        torch.manual_seed(0)
        synchronize(device)
        start = time.perf_counter()
        output = model.generate(
            **given,
            **arguments,
            **_told(inputs),
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
        )
        synchronize(device)
        seconds = time.perf_counter() - start
    finally:
        for hook in counting:
            hook.remove()
    seen = next((id(part) for part in parts if id(part) in steps), None)
    return Made(
        steps=new_tokens if seen is None else steps[seen] - reads + 1,
        seconds=seconds,
        first=None if seen is None else first.get(seen),
        ids=output if hasattr(output, "shape") else output.sequences,
    )


def _reads(model: Any, inputs: Inputs) -> int:
    """Forwards until the prompt is read."""
    text = inputs.tensors.get("input_ids")
    if inputs.prefill_chunk is None or text is None or model.config.is_encoder_decoder:
        return 1
    return -(-text.shape[1] // inputs.prefill_chunk)


def _told(inputs: Inputs) -> dict[str, Any]:
    """All that decides on memory is told, as the model's own config of generate may say it or not."""
    told = {"do_sample": False, "num_beams": 1, "num_return_sequences": 1, **dict(inputs.generation)}
    told.pop(CACHE_BITS, None)
    if inputs.prefill_chunk is not None:
        told["prefill_chunk_size"] = inputs.prefill_chunk
    return told


def _generates(module: Any) -> bool:
    from transformers import PreTrainedModel

    return isinstance(module, PreTrainedModel) and module.can_generate()


def generated(made: list[Made], inputs: Inputs) -> Generated:
    steps = made[0].steps
    text = (
        None if inputs.tokenizer is None else inputs.tokenizer.decode(made[0].ids[0, -steps:], skip_special_tokens=True)
    )
    rates = [
        None if m.first is None or m.steps < 2 else inputs.batch_size * (m.steps - 1) / (m.seconds - m.first)
        for m in made
    ]
    return Generated(
        tokens=steps,
        seconds=spread([m.seconds for m in made]),
        first_token_seconds=spread_of_known([m.first for m in made]),
        decode_tokens_per_second=spread_of_known(rates),
        text=text if isinstance(text, str) else None,
    )
