"""A smoke inference: inputs for the model, one forward, and a short greedy generate."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from devctl.devices import Device
from devctl.errors import LoadError, ModelError, UsageError, first_line
from devctl.models.resolve import ModelSource, SourceKind

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_META_HINT = (
    "transformers used an offloaded weight, or its device, outside the module that owns it: keep more of the model on "
    "a device that computes"
)
DEFAULT_PROMPT = "The quick brown fox jumps over the lazy dog."
_RANDOM_TOKENS = 16
_WAVEFORM_SAMPLES = 16_000
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
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


def load_tokenizer(source: ModelSource) -> tuple[PreTrainedTokenizerBase | None, tuple[str, ...]]:
    """The model's tokenizer if it has one that works here, and a note if it has one that does not."""
    from transformers import AutoTokenizer

    folder = source.config_path.parent
    if source.kind is SourceKind.CONFIG:
        return None, ()
    if source.kind is SourceKind.DIRECTORY and not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        return None, ()
    try:
        return AutoTokenizer.from_pretrained(source.location, revision=source.revision), ()
    except Exception as error:  # noqa: BLE001 - a tokenizer may need any package, or run code of its own
        reason = first_line(error)
        return None, (f"the tokenizer can't be used, so the inputs are random: {reason}",)


def run(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    device: Device,
    prompt: str | None,
    new_tokens: int,
) -> Smoke:
    """Run one forward, and a greedy generate of ``new_tokens`` where the model generates.

    Args:
        device: where the inputs go.
        prompt: text for the tokenizer; None is a sentence of our own.

    Raises:
        ModelError: no inputs are known for this kind of model.
        UsageError: a prompt was given, but there is no tokenizer.
        LoadError: the model raised, or memory ran out.
    """
    import torch

    if prompt is not None and tokenizer is None:
        raise UsageError("--prompt needs the model's tokenizer, which is missing", hint="leave it out: ids are random")
    inputs, origin = make_inputs(model, tokenizer, prompt or DEFAULT_PROMPT)
    inputs = {name: value.to(str(device)) for name, value in inputs.items()}
    try:
        with torch.inference_mode():
            forward = {**inputs, **_decoder_inputs(model, inputs)}
            model(**forward)
            _synchronize(device)
            start = time.perf_counter()
            output = model(**forward)
            _synchronize(device)
            seconds = time.perf_counter() - start
            nonfinite = tuple(name for name, value in _floats(output, "output") if not value.isfinite().all())
            generated = None
            if new_tokens > 0 and model.can_generate():
                generated = _generate(model, tokenizer, inputs, new_tokens, device)
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise LoadError(
            f"out of memory in the smoke inference: {first_line(error)}",
            hint="leave more room: plan with a smaller --max-memory",
        ) from error
    except Exception as error:  # the model's own code
        raise LoadError(
            f"the smoke inference failed in {_blame(error, model)}: {type(error).__name__}: {first_line(error)}",
            hint=_META_HINT if "meta tensor" in str(error) else "",
        ) from error
    return Smoke(
        inputs=tuple(Input(name=name, shape=tuple(value.shape)) for name, value in forward.items()),
        source=origin,
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


def make_inputs(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, prompt: str
) -> tuple[dict[str, torch.Tensor], str]:
    """Inputs of batch 1 on the CPU for the model's main modality (for both, where it compares text and images).

    Raises:
        ModelError: none are known for this kind of model.
    """
    import torch

    config = model.config
    main = model.main_input_name
    generator = torch.Generator().manual_seed(0)
    made: dict[str, torch.Tensor] = {}
    compares = hasattr(config, "vision_config") and hasattr(config, "text_config") and not model.can_generate()
    origin = "random"
    if main == "input_ids" or compares:
        if tokenizer is not None:
            made |= {
                name: value
                for name, value in tokenizer(prompt, return_tensors="pt").items()
                if name in ("input_ids", "attention_mask", "token_type_ids")
            }
            if model.config.is_encoder_decoder or model.can_generate():
                made.pop("token_type_ids", None)
            origin = "tokenizer"
        else:
            text = config.get_text_config()
            length = min(_RANDOM_TOKENS, getattr(text, "max_position_embeddings", None) or _RANDOM_TOKENS)
            made["input_ids"] = torch.randint(0, text.vocab_size, (1, length), generator=generator)
            made["attention_mask"] = torch.ones_like(made["input_ids"])
    if main == "pixel_values" or compares:
        made["pixel_values"] = torch.randn(_image_shape(config), generator=generator)
    if main == "input_features":
        frames = 2 * getattr(config, "max_source_positions", 1500)
        bins = getattr(config, "num_mel_bins", None) or 80
        made["input_features"] = torch.randn((1, bins, frames), generator=generator)
    if main == "input_values":
        made["input_values"] = torch.randn((1, _WAVEFORM_SAMPLES), generator=generator)
    if not made:
        raise ModelError(f"no inputs are known for {type(model).__name__}, which takes {main!r}")
    dtype = model.dtype
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in made.items()}, origin


def _image_shape(config: Any) -> tuple[int, ...]:
    vision = getattr(config, "vision_config", config)
    image = getattr(vision, "image_size", None) or 224
    height, width = image if isinstance(image, list | tuple) else (image, image)
    return (1, getattr(vision, "num_channels", None) or 3, height, width)


def _decoder_inputs(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The first token of the decoder, which a forward of an encoder-decoder needs beside the encoder's inputs."""
    import torch

    if not model.config.is_encoder_decoder or not model.can_generate():
        return {}
    config = model.config.get_text_config(decoder=True)
    start = next(
        (
            token
            for name in ("decoder_start_token_id", "bos_token_id", "pad_token_id")
            if (token := getattr(model.generation_config, name, None) or getattr(config, name, None)) is not None
        ),
        0,
    )
    device = next(iter(inputs.values())).device
    return {"decoder_input_ids": torch.full((1, 1), start, dtype=torch.long, device=device)}


def _generate(
    model: Any,
    tokenizer: PreTrainedTokenizerBase | None,
    inputs: dict[str, torch.Tensor],
    new_tokens: int,
    device: Device,
) -> Generated:
    pad = model.generation_config.pad_token_id
    if pad is None:
        end = model.generation_config.eos_token_id
        pad = end[0] if isinstance(end, list) else end
    _synchronize(device)
    start = time.perf_counter()
    output = model.generate(
        **inputs,
        do_sample=False,
        num_beams=1,
        max_new_tokens=new_tokens,
        min_new_tokens=new_tokens,
        pad_token_id=0 if pad is None else pad,
    )
    _synchronize(device)
    seconds = time.perf_counter() - start
    ids = output if hasattr(output, "shape") else output.sequences
    text = None if tokenizer is None else tokenizer.decode(ids[0, -new_tokens:], skip_special_tokens=True)
    return Generated(
        tokens=new_tokens,
        seconds=seconds,
        tokens_per_second=new_tokens / seconds,
        text=text if isinstance(text, str) else None,
    )


def _synchronize(device: Device) -> None:
    """Wait for the accelerators, whose work is asynchronous."""
    import torch

    if device.type in ("cuda", "xpu"):
        module = getattr(torch, device.type.value)
        for index in range(module.device_count()):
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
