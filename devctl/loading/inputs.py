"""Inputs for a smoke inference, from a config and a tokenizer, before any weight is read."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from devctl.errors import DevctlError, LoadError, UsageError, first_line
from devctl.models.resolve import ModelSource, SourceKind

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from devctl.models.skeleton import Skeleton

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
class Inputs:
    """Inputs of batch 1 on the CPU, made before a byte of weights is read.

    Attributes:
        source: "tokenizer" or "random".
        tokenizer: to read what is generated; None where the model has none.
        notes: why the tokenizer is not used, if so.
    """

    tensors: dict[str, torch.Tensor]
    source: str
    tokenizer: PreTrainedTokenizerBase | None
    notes: tuple[str, ...] = ()
    batch_size: int = 1


def prepare(
    source: ModelSource, skeleton: Skeleton, *, prompt: str | None, new_tokens: int, trust_remote_code: bool
) -> Inputs:
    """Inputs for the model: text through its tokenizer if it has one that works, random ones else.

    Args:
        prompt: text for the tokenizer; None is a sentence of our own.
        trust_remote_code: run Python code that comes with the tokenizer.

    Raises:
        UsageError: a prompt was given, but there is no tokenizer; or more tokens are to be made than the model takes.
        LoadError: no inputs are known for this kind of model.
    """
    tokenizer, notes = load_tokenizer(source, trust_remote_code=trust_remote_code)
    if prompt is not None and tokenizer is None:
        raise UsageError("--prompt needs the model's tokenizer, which is missing", hint="leave it out: ids are random")
    config, model_class = skeleton.config, skeleton.model_class
    try:
        most = _most_tokens(config)
        if most is not None and model_class.can_generate() and new_tokens >= most:
            raise UsageError(f"--max-new-tokens {new_tokens}: this model takes at most {most} tokens in all")
        tensors, origin = make_inputs(config, model_class, tokenizer, DEFAULT_PROMPT if prompt is None else prompt)
    except DevctlError:
        raise
    except Exception as error:  # a config, also one from remote code, may lack or refuse anything
        raise LoadError(f"no inputs are known for {model_class.__name__}: {first_line(error)}") from error
    return Inputs(tensors=tensors, source=origin, tokenizer=tokenizer, notes=notes)


def load_tokenizer(
    source: ModelSource, *, trust_remote_code: bool
) -> tuple[PreTrainedTokenizerBase | None, tuple[str, ...]]:
    """The model's tokenizer if it has one that works here, and a note if it has one that does not."""
    from transformers import AutoTokenizer

    folder = source.config_path.parent
    if source.kind is SourceKind.CONFIG:
        return None, ()
    if source.kind is SourceKind.DIRECTORY and not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        return None, ()
    try:
        # given, and not left to its default: then transformers would ask, on the terminal, whether to run such code
        return AutoTokenizer.from_pretrained(
            source.location, revision=source.revision, trust_remote_code=trust_remote_code
        ), ()
    except Exception as error:  # noqa: BLE001 - a tokenizer may need any package, or run code of its own
        return None, (f"the tokenizer can't be used, so the inputs are random: {first_line(error)}",)


def make_inputs(
    config: PreTrainedConfig, model_class: type[PreTrainedModel], tokenizer: PreTrainedTokenizerBase | None, prompt: str
) -> tuple[dict[str, torch.Tensor], str]:
    """Inputs of batch 1 on the CPU for the model's main modality; text beside an image where its forward wants both.

    Raises:
        LoadError: none are known for this kind of model.
    """
    import torch

    main = model_class.main_input_name
    takes = inspect.signature(model_class.forward).parameters
    generator = torch.Generator().manual_seed(0)
    # one that compares texts with images, and not one that puts images into a text
    compares = (
        hasattr(config, "vision_config")
        and hasattr(config, "text_config")
        and not model_class.can_generate()
        and not any(hasattr(config, name) for name in ("image_token_id", "image_token_index"))
    )
    describes = main == "pixel_values" and hasattr(config, "text_config") and "input_ids" in takes
    made: dict[str, torch.Tensor] = {}
    origin = "random"
    if main == "input_ids" or compares or describes:
        if tokenizer is not None:
            encoded = tokenizer(prompt, return_tensors="pt")
            wanted = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in takes]
            if model_class.can_generate():
                wanted = [name for name in wanted if name != "token_type_ids"]  # generate takes none
            made |= {name: encoded[name] for name in wanted if name in encoded}
            origin = "tokenizer"
        else:
            most = _most_tokens(config)
            length = _RANDOM_TOKENS if most is None else max(1, min(_RANDOM_TOKENS, most // 2))
            text = config.get_text_config()
            made["input_ids"] = torch.randint(0, text.vocab_size, (1, length), generator=generator)
            if "attention_mask" in takes:
                made["attention_mask"] = torch.ones_like(made["input_ids"])
    if main == "pixel_values" or compares:
        made["pixel_values"] = torch.randn(_image_shape(config), generator=generator)
    bins = getattr(config, "num_mel_bins", None)
    if main == "input_features" and not hasattr(config, "audio_config"):
        frames = 2 * getattr(config, "max_source_positions", 1500)
        made["input_features"] = torch.randn((1, bins or 80, frames), generator=generator)
    if main == "input_values":
        windows = getattr(config, "max_length", None)
        shape = (1, windows, bins) if bins and windows else (1, _WAVEFORM_SAMPLES)
        made["input_values"] = torch.randn(shape, generator=generator)
    compares_sounds = hasattr(config, "audio_config") and "input_features" in takes and not model_class.can_generate()
    if main not in made or compares_sounds:
        raise LoadError(f"no inputs are known for {model_class.__name__}, which takes {main!r}")
    return made, origin


def _most_tokens(config: PreTrainedConfig) -> int | None:
    """The most tokens that the model's text part takes; None where nothing limits them."""
    text = config.get_text_config(decoder=True)
    limits = (getattr(text, name, None) for name in ("max_target_positions", "max_position_embeddings"))
    return next((limit for limit in limits if isinstance(limit, int) and limit > 0), None)


def _image_shape(config: Any) -> tuple[int, ...]:
    vision = getattr(config, "vision_config", None) or getattr(config, "encoder", None) or config
    image = getattr(vision, "image_size", None) or 224
    height, width = image if isinstance(image, list | tuple) else (image, image)
    return (1, getattr(vision, "num_channels", None) or 3, height, width)
