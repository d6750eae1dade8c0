"""Which kinds of models take what the names of their arguments do not say, by ``config.model_type``: a table.

Imports torch, inside functions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    Tensors = dict[str, torch.Tensor]

WAVEFORM_SAMPLES = 16_000
"""Of a sound whose length is free: a second, at the rate that most models take."""

_FEW = 16
"""Steps of a series, patches of a page: enough to run."""
_FRAMES = 64
_GRID_PIXELS, _GRID_PATCHES = 448, 32
"""The most of either on a side of the image, for models that take any size, as a grid of patches."""


@dataclass(frozen=True, slots=True)
class Maker:
    """Makes random tensors.

    Attributes:
        image: channels, height and width of the model's images.
    """

    generator: torch.Generator
    image: tuple[int, int, int]

    def normal(self, *shape: int) -> torch.Tensor:
        import torch

        return torch.randn(shape, generator=self.generator)

    def ids(self, *shape: int, below: int) -> torch.Tensor:
        import torch

        return torch.randint(0, below, shape, generator=self.generator)

    def ones(self, *shape: int) -> torch.Tensor:
        import torch

        return torch.ones(shape)

    def steps(self, count: int) -> torch.Tensor:
        import torch

        return torch.arange(count)[None]


def _series(config: Any, _: object, make: Maker) -> Tensors:
    """A window of the past with its time features, and the future's for the decoder."""
    width = () if config.input_size == 1 else (config.input_size,)
    past, future = config.context_length + max(config.lags_sequence), config.prediction_length
    made = {
        "past_values": make.normal(1, past, *width),
        "past_time_features": make.normal(1, past, config.num_time_features),
        "past_observed_mask": make.ones(1, past, *width),
        "future_values": make.normal(1, future, *width),
        "future_time_features": make.normal(1, future, config.num_time_features),
    }
    if config.num_static_categorical_features:
        made["static_categorical_features"] = make.ids(1, config.num_static_categorical_features, below=1)
    if config.num_static_real_features:
        made["static_real_features"] = make.normal(1, config.num_static_real_features)
    return made


def _patched_series(config: Any, _: object, make: Maker) -> Tensors:
    return {"past_values": make.normal(1, config.context_length, config.num_input_channels)}


def _perceiver(config: Any, model_class: type[PreTrainedModel], make: Maker) -> Tensors | None:
    name = model_class.__name__
    if "MaskedLM" in name or "SequenceClassification" in name:
        return {"inputs": make.ids(1, config.max_position_embeddings, below=config.vocab_size)}
    if "ImageClassification" in name:
        # only learned positions are of one size; those of the other two are computed for 224 pixels
        size = config.image_size if name.endswith("Learned") else 224
        return {"inputs": make.normal(1, 3, size, size)}
    return {"inputs": make.normal(1, _FEW, config.d_model)} if name == "PerceiverModel" else None


def _clap(config: Any, _: object, make: Maker) -> Tensors:
    audio = getattr(config, "audio_config", config)
    frames = audio.spec_size * (audio.spec_size // audio.num_mel_bins)
    return {"input_features": make.normal(1, 4 if audio.enable_fusion else 1, frames, audio.num_mel_bins)}


def _codec(config: Any, _: object, make: Maker) -> Tensors:
    return {"input_values": make.normal(1, getattr(config, "audio_channels", 1), WAVEFORM_SAMPLES)}


def _speech_to_text(config: Any, _: object, make: Maker) -> Tensors:
    return {"input_features": make.normal(1, _FRAMES, config.input_feat_per_channel * config.input_channels)}


def _wav2vec2_bert(config: Any, _: object, make: Maker) -> Tensors:
    return {"input_features": make.normal(1, _FRAMES, config.feature_projection_input_dim)}


def _univnet(config: Any, _: object, make: Maker) -> Tensors:
    return {"input_features": make.normal(1, _FRAMES, config.num_mel_bins)}


def _speecht5(config: Any, model_class: type[PreTrainedModel], make: Maker) -> Tensors:
    sound = {"input_values": make.normal(1, WAVEFORM_SAMPLES)} if model_class.main_input_name == "input_values" else {}
    return sound | {
        "decoder_input_values": make.normal(1, config.reduction_factor * 2, config.num_mel_bins),
        "speaker_embeddings": make.normal(1, config.speaker_embedding_dim),
    }


def _decision(config: Any, _: object, make: Maker) -> Tensors:
    return {
        "states": make.normal(1, _FEW, config.state_dim),
        "actions": make.normal(1, _FEW, config.act_dim),
        "rewards": make.normal(1, _FEW, 1),
        "returns_to_go": make.normal(1, _FEW, 1),
        "timesteps": make.steps(_FEW),
        "attention_mask": make.ones(1, _FEW),
    }


def _lxmert(config: Any, _: object, make: Maker) -> Tensors:
    return {"visual_feats": make.normal(1, _FEW, config.visual_feat_dim), "visual_pos": make.ones(1, _FEW, 4)}


def _page(config: Any, _: object, make: Maker) -> Tensors:
    """Patches of a page, each after its row and its column."""
    patches = make.normal(1, _FEW, 2 + config.vision_config.patch_embed_hidden_size)
    patches[0, :, 0], patches[0, :, 1] = 1, make.steps(_FEW)[0] + 1
    return {"flattened_patches": patches, "attention_mask": make.ones(1, _FEW)}


def _patches_in_a_grid(config: Any, _: object, make: Maker) -> Tensors:
    """An image of Qwen's models: flattened patches, and how many there are in time, height and width."""
    import torch

    vision = config.vision_config
    side = grid_side(vision)
    channels = getattr(vision, "in_channels", None) or getattr(vision, "in_chans", 3)
    length = channels * vision.temporal_patch_size * vision.patch_size**2
    return {"pixel_values": make.normal(side**2, length), "image_grid_thw": torch.tensor([[1, side, side]])}


def grid_side(vision: Any) -> int:
    """Patches on a side of an image that is cut into a grid, whole where the model merges them into tokens."""
    merge = int(getattr(vision, "spatial_merge_size", 1))
    return max(1, min(_GRID_PIXELS // int(vision.patch_size), _GRID_PATCHES) // merge) * merge


def _images_in_a_list(_: Any, __: object, make: Maker) -> Tensors:
    return {"pixel_values": make.normal(1, 1, *make.image)}


SPECIAL: Mapping[str, Callable[[Any, type[PreTrainedModel], Maker], Tensors | None]] = {
    **dict.fromkeys(("time_series_transformer", "informer", "autoformer"), _series),
    **dict.fromkeys(("patchtst", "patchtsmixer"), _patched_series),
    **dict.fromkeys(("encodec", "dac", "mimi"), _codec),
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"), _patches_in_a_grid),
    **dict.fromkeys(("idefics3", "smolvlm"), _images_in_a_list),
    **dict.fromkeys(("clap", "clap_audio_model"), _clap),
    "perceiver": _perceiver,
    "speech_to_text": _speech_to_text,
    "wav2vec2-bert": _wav2vec2_bert,
    "univnet": _univnet,
    "speecht5": _speecht5,
    "decision_transformer": _decision,
    "lxmert": _lxmert,
    "pix2struct": _page,
    "kosmos-2": lambda *_: {},  # it marks the place of an image in a way of its own
}


# how many tokens stand for one image of (channels, height, width)


def _whole_image(config: Any, image: tuple[int, int, int]) -> int:
    """A token for each patch, and one for the class where the tower's is kept."""
    whole = getattr(config, "vision_feature_select_strategy", "default") == "full"
    has_class = config.vision_config.model_type == "clip_vision_model"
    lost = 0 if whole or has_class else 1  # "default" drops the first patch of a tower that has no class
    return _patches(config, image) + int(whole and has_class) - lost


def _patches(config: Any, image: tuple[int, int, int]) -> int:
    _, height, width = image
    size = config.vision_config.patch_size
    patch = int(size[0] if isinstance(size, list | tuple) else size)
    return (height // patch) * (width // patch)


def _of_grid(config: Any, _: object) -> int:
    side = grid_side(config.vision_config) // int(config.vision_config.spatial_merge_size)
    return side * side


IMAGE_TOKENS: Mapping[str, Callable[[Any, tuple[int, int, int]], int]] = {
    **dict.fromkeys(("llava", "vipllava"), _whole_image),
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"), _of_grid),
    **dict.fromkeys(("idefics3", "smolvlm"), lambda config, image: _patches(config, image) // config.scale_factor**2),
    "blip-2": lambda config, _: int(config.num_query_tokens),
    "gemma3": lambda config, _: int(config.mm_tokens_per_image),
    "paligemma": _patches,
    "internvl": lambda config, image: int(_patches(config, image) * config.downsample_ratio**2),
}
