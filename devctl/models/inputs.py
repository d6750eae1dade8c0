"""Random inputs for a model, made from its config alone. Imports torch, inside functions."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel

WAVEFORM_SAMPLES = 16_000
"""Of a sound whose length is free: a second, at the rate that most models take."""


def random_inputs(
    config: PreTrainedConfig,
    model_class: type[PreTrainedModel],
    *,
    tokens: int,
    batch_size: int = 1,
    text: bool = True,
) -> dict[str, torch.Tensor]:
    """Inputs on the CPU for the model's main modality; text beside an image where its forward wants both.

    Args:
        tokens: length of a text.
        text: whether texts are made, and not left to a tokenizer.

    Raises:
        ValueError: none are known for this kind of model.
    """
    import torch

    main = model_class.main_input_name
    takes = inspect.signature(model_class.forward).parameters
    generator = torch.Generator().manual_seed(0)
    made: dict[str, torch.Tensor] = {}
    if text and reads_text(config, model_class):
        vocabulary = config.get_text_config().vocab_size
        made["input_ids"] = torch.randint(0, vocabulary, (batch_size, tokens), generator=generator)
        if "attention_mask" in takes:
            made["attention_mask"] = torch.ones_like(made["input_ids"])
    if main == "pixel_values" or _compares(config, model_class):
        made["pixel_values"] = torch.randn((batch_size, *image_shape(config)), generator=generator)
    if (shape := sound_shape(config, main)) is not None:
        made[main] = torch.randn((batch_size, *shape), generator=generator)
    compares_sounds = hasattr(config, "audio_config") and "input_features" in takes and not model_class.can_generate()
    known = main in made or (not text and reads_text(config, model_class))
    if not known or compares_sounds:
        raise ValueError(f"no inputs are known for {model_class.__name__}, which takes {main!r}")
    return made


def reads_text(config: PreTrainedConfig, model_class: type[PreTrainedModel]) -> bool:
    """Whether a text is among the inputs that the model's forward wants."""
    main = model_class.main_input_name
    takes = inspect.signature(model_class.forward).parameters
    describes = main == "pixel_values" and hasattr(config, "text_config") and "input_ids" in takes
    return main == "input_ids" or describes or _compares(config, model_class)


def most_tokens(config: PreTrainedConfig) -> int | None:
    """The most tokens that the model's text part takes; None where nothing limits them."""
    text = config.get_text_config(decoder=True)
    limits = (getattr(text, name, None) for name in ("max_target_positions", "max_position_embeddings"))
    return next((limit for limit in limits if isinstance(limit, int) and limit > 0), None)


def codebooks(config: Any) -> int:
    """Rows that a decoder takes for each sequence: one of sounds takes one for each of its codebooks."""
    return getattr(config.get_text_config(decoder=True), "num_codebooks", None) or 1


def sound_shape(config: Any, name: str) -> tuple[int, ...] | None:
    """The shape of one sound: of ``input_features`` bins and frames, of ``input_values`` windows and bins, or samples.

    None for another input, and for features that a part of the model takes.
    """
    bins = getattr(config, "num_mel_bins", None)
    if name == "input_features" and not hasattr(config, "audio_config"):
        return bins or 80, 2 * getattr(config, "max_source_positions", 1500)
    if name == "input_values":
        windows = getattr(config, "max_length", None)
        return (windows, bins) if bins and windows else (WAVEFORM_SAMPLES,)
    return None


def image_shape(config: Any) -> tuple[int, int, int]:
    """Channels, height and width of an image that the model takes."""
    vision = getattr(config, "vision_config", None) or getattr(config, "encoder", None) or config
    image = getattr(vision, "image_size", None) or 224
    height, width = image if isinstance(image, list | tuple) else (image, image)
    return getattr(vision, "num_channels", None) or 3, height, width


def _compares(config: PreTrainedConfig, model_class: type[PreTrainedModel]) -> bool:
    """Whether it is one that compares texts with images, and not one that puts images into a text."""
    return (
        hasattr(config, "vision_config")
        and hasattr(config, "text_config")
        and not model_class.can_generate()
        and not any(hasattr(config, name) for name in ("image_token_id", "image_token_index"))
    )
