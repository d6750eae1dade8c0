"""Which kinds of models take what the names of their arguments do not say, by ``config.model_type``: a table.

Imports torch, inside functions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from devctl.models.images import Images

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    Tensors = dict[str, torch.Tensor]

WAVEFORM_SAMPLES = 16_000
"""Of a sound whose length is free: a second, at the rate that most models take."""

_FEW = 16
"""Steps of a series, patches of a page: enough to run."""
_FRAMES = 64
GRIDS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe")
"""Models that cut an image of any size into a grid."""

_GRID_PIXELS, _GRID_PATCHES = 448, 32
"""The most of either on a side of the image, for models that take any size, as a grid of patches."""


@dataclass(frozen=True, slots=True)
class Maker:
    """Makes random tensors.

    Attributes:
        generator: None for tensors of the right shapes that hold nothing.
        image: channels, height and width of an image as the model's processor leaves it.
        count: images of a sequence, or tiles of all of them.
    """

    generator: torch.Generator | None
    image: tuple[int, int, int]
    count: int = 1

    def normal(self, *shape: int) -> torch.Tensor:
        import torch

        if self.generator is None:
            return torch.empty(shape, device="meta")
        return torch.randn(shape, generator=self.generator)

    def ids(self, *shape: int, below: int) -> torch.Tensor:
        import torch

        if self.generator is None:
            return torch.zeros(shape, dtype=torch.long)
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
    if make.generator is not None:
        patches[0, :, 0], patches[0, :, 1] = 1, make.steps(_FEW)[0] + 1
    return {"flattened_patches": patches, "attention_mask": make.ones(1, _FEW)}


def _patches_in_a_grid(config: Any, _: object, make: Maker) -> Tensors:
    """Images of Qwen's models: flattened patches, and how many there are in time, height and width."""
    import torch

    vision = config.vision_config
    _, height, width = make.image
    rows, columns = height // int(vision.patch_size), width // int(vision.patch_size)
    channels = getattr(vision, "in_channels", None) or getattr(vision, "in_chans", 3)
    length = channels * vision.temporal_patch_size * vision.patch_size**2
    return {
        "pixel_values": make.normal(make.count * rows * columns, length),
        "image_grid_thw": torch.tensor([[1, rows, columns]] * make.count),
    }


def grid_side(vision: Any) -> int:
    """Patches on a side of an image that is cut into a grid, whole where the model merges them into tokens."""
    merge = int(getattr(vision, "spatial_merge_size", 1))
    return max(1, min(_GRID_PIXELS // int(vision.patch_size), _GRID_PATCHES) // merge) * merge


def _patches_with_places(config: Any, _: object, make: Maker) -> Tensors:
    """Images of Gemma 4: as many patches as it takes at most, and the column and row of each that is not filling."""
    import torch

    vision = config.vision_config
    _, height, width = make.image
    rows, columns = height // int(vision.patch_size), width // int(vision.patch_size)
    most = _most_patches(config)
    places = torch.full((most, 2), -1)
    places[: rows * columns, 0] = torch.arange(columns).repeat(rows)
    places[: rows * columns, 1] = torch.arange(rows).repeat_interleave(columns)
    return {
        "pixel_values": make.normal(make.count, most, 3 * int(vision.patch_size) ** 2),
        "image_position_ids": places.repeat(make.count, 1, 1),
    }


def _most_patches(config: Any) -> int:
    return int(config.vision_config.default_output_length) * int(config.vision_config.pooling_kernel_size) ** 2


def _images_in_a_list(_: Any, __: object, make: Maker) -> Tensors:
    return {"pixel_values": make.normal(1, make.count, *make.image)}


SPECIAL: Mapping[str, Callable[[Any, type[PreTrainedModel], Maker], Tensors | None]] = {
    **dict.fromkeys(("time_series_transformer", "informer", "autoformer"), _series),
    **dict.fromkeys(("patchtst", "patchtsmixer"), _patched_series),
    **dict.fromkeys(("encodec", "dac", "mimi"), _codec),
    **dict.fromkeys(GRIDS, _patches_in_a_grid),
    "gemma4": _patches_with_places,
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
    if takes_sizes(config):
        return _patches(config, image)
    whole = getattr(config, "vision_feature_select_strategy", "default") == "full"
    has_class = config.vision_config.model_type == "clip_vision_model"
    lost = 0 if whole or has_class else 1  # "default" drops the first patch of a tower that has no class
    return _patches(config, image) + int(whole and has_class) - lost


def _patches(config: Any, image: tuple[int, int, int]) -> int:
    _, height, width = image
    size = config.vision_config.patch_size
    patch = int(size[0] if isinstance(size, list | tuple) else size)
    return (height // patch) * (width // patch)


def _of_grid(config: Any, image: tuple[int, int, int]) -> int:
    return _patches(config, image) // int(config.vision_config.spatial_merge_size) ** 2


IMAGE_TOKENS: Mapping[str, Callable[[Any, tuple[int, int, int]], int]] = {
    **dict.fromkeys(("llava", "vipllava"), _whole_image),
    **dict.fromkeys(GRIDS, _of_grid),
    "gemma4": lambda config, image: _patches(config, image) // int(config.vision_config.pooling_kernel_size) ** 2,
    "llama4": lambda config, image: int(_patches(config, image) * config.vision_config.pixel_shuffle_ratio**2),
    **dict.fromkeys(("idefics3", "smolvlm"), lambda config, image: _patches(config, image) // config.scale_factor**2),
    "blip-2": lambda config, _: int(config.num_query_tokens),
    "gemma3": lambda config, _: int(config.mm_tokens_per_image),
    "paligemma": _patches,
    "internvl": lambda config, image: int(_patches(config, image) * config.downsample_ratio**2),
}


# what a processor makes of an image of any size


def default_size(config: Any) -> tuple[int, int] | None:
    """Height and width of the image that is counted where none is asked for; None where the config has a size."""
    if config.model_type in GRIDS:
        side = grid_side(config.vision_config) * int(config.vision_config.patch_size)
        return side, side
    return _filling_patches(config) if config.model_type == "gemma4" else None


def resized(config: Any, images: Images, own: tuple[int, int]) -> tuple[int, int] | None:
    """Height and width that the model's processor gives such an image; None where that is not known.

    Args:
        own: those that the config has.

    Raises:
        ValueError: the processor refuses such an image.
    """
    kind = config.model_type
    if kind in GRIDS:
        return _onto_grid(config, images)
    tower = getattr(config.vision_config, "model_type", None)
    settings = dict(images.processor or ())
    if kind in _OF_ONE_SIZE and tower in _TOWERS_OF_ONE_SIZE:
        return None if settings.get("do_pan_and_scan") else own
    if takes_sizes(config):
        return _of_pixtral(config, images, settings.get("longest_edge"))
    if kind == "gemma4":
        tokens = int(config.vision_config.default_output_length)
        return _of_gemma4(config, images) if settings.get("max_soft_tokens", tokens) == tokens else None
    return None


def counted_as(config: Any, size: tuple[int, int]) -> tuple[int, int]:
    """Height and width that an image of ``size``, as the processor leaves it, is counted as: never one that takes less.

    Gemma 4 fills up what an image has less than the most patches, and leaves the filling out once it has seen its
    values; what has none, in a trace, is taken for whole.
    """
    if config.model_type != "gemma4":
        return size
    vision = config.vision_config
    tokens = (size[0] // int(vision.patch_size)) * (size[1] // int(vision.patch_size))
    is_whole = tokens // int(vision.pooling_kernel_size) ** 2 == int(vision.default_output_length)
    return size if is_whole else _filling_patches(config)


def takes_sizes(config: Any) -> bool:
    """Whether the model is LLaVA with Pixtral's tower, which takes images of any size, and is told which."""
    tower = getattr(getattr(config, "vision_config", None), "model_type", None)
    return bool(config.model_type == "llava" and tower == "pixtral" and config.vision_feature_select_strategy == "full")


def _of_pixtral(config: Any, images: Images, longest: int | None) -> tuple[int, int]:
    """As ``get_resize_output_image_size`` of transformers' PixtralImageProcessor does.

    Without its files nothing is scaled down, so that no less is counted than there is.
    """
    patch = int(config.vision_config.patch_size)
    high, wide = images.height, images.width
    ratio = max(high, wide) / longest if longest else 0
    if ratio > 1:
        high, wide = (math.floor(side / ratio) for side in (high, wide))
    return ((high - 1) // patch + 1) * patch, ((wide - 1) // patch + 1) * patch


def _of_gemma4(config: Any, images: Images) -> tuple[int, int]:
    """As ``get_aspect_ratio_preserving_size`` of transformers' Gemma4ImageProcessor does.

    Raises:
        ValueError: the image is too narrow for it.
    """
    vision = config.vision_config
    patch, pool = int(vision.patch_size), int(vision.pooling_kernel_size)
    height, width, unit = images.height, images.width, patch * pool
    pixels = _most_patches(config) * patch**2
    factor = math.sqrt(pixels / (height * width))
    high, wide = (math.floor(factor * side / unit) * unit for side in (height, width))
    longest = _most_patches(config) // pool**2 * unit
    if not high and not wide:
        raise ValueError("its processor would scale it to nothing")
    if not high:
        high, wide = unit, min(width // height * unit, longest)
    elif not wide:
        high, wide = min(height // width * unit, longest), unit
    if high * wide > pixels:
        raise ValueError("its processor refuses an image of this shape")
    return high, wide


def beside_image(config: Any, size: tuple[int, int]) -> int:
    """Tokens of the text that go with one image of ``size`` that is not cut, and stand for no piece of it: Pixtral's
    processor ends each row of patches with one.
    """
    return size[0] // int(config.vision_config.patch_size) if takes_sizes(config) else 0


_OF_ONE_SIZE = frozenset({"llava", "vipllava", "gemma3", "paligemma", "blip-2"})
_TOWERS_OF_ONE_SIZE = frozenset({"clip_vision_model", "siglip_vision_model", "blip_2_vision_model"})
"""What takes images of one size alone, to which their processors scale any other."""

_MOST_RATIO = 200


def _onto_grid(config: Any, images: Images) -> tuple[int, int]:
    """As ``smart_resize`` of transformers' Qwen2VLImageProcessor does, with the limits of the model's own files alone.

    Without these nothing is scaled down, so that no less is counted than there is.
    """
    height, width = images.height, images.width
    if max(height, width) > _MOST_RATIO * min(height, width):
        raise ValueError(f"its processor takes no image with one side more than {_MOST_RATIO} times the other")
    vision = config.vision_config
    unit = int(vision.patch_size) * int(vision.spatial_merge_size)
    # round() takes half to even, as there
    high, wide = round(height / unit) * unit, round(width / unit) * unit
    least = max(images.least or 0, 1)
    if images.most is not None and high * wide > images.most:
        less = math.sqrt(height * width / images.most)
        high, wide = (max(unit, math.floor(side / less / unit) * unit) for side in (height, width))
    elif high * wide < least:
        more = math.sqrt(least / (height * width))
        high, wide = (math.ceil(side * more / unit) * unit for side in (height, width))
    return high, wide


def _filling_patches(config: Any) -> tuple[int, int]:
    """Height and width of an image of Gemma 4 that takes all the patches there may be, the squarest one."""
    tokens = int(config.vision_config.default_output_length)
    rows = next(side for side in range(math.isqrt(tokens), 0, -1) if tokens % side == 0)
    unit = int(config.vision_config.patch_size) * int(config.vision_config.pooling_kernel_size)
    return rows * unit, tokens // rows * unit


# configs that name parts which do not fit together, so that no image goes through them


def unseeing(config: Any) -> str | None:
    """Why no image goes through a model of this config, though its kind sees; None where one does."""
    if config.model_type == "gemma4" and config.vision_config is None:
        return "the config has no vision_config"
    check = {"gemma3": _unpooled, "llama4": _unshuffled}.get(config.model_type)
    return None if check is None else check(config)


def _unpooled(config: Any) -> str | None:
    vision, tokens = config.vision_config, int(config.mm_tokens_per_image)
    side, wanted = int(vision.image_size) // int(vision.patch_size), math.isqrt(tokens)
    step = side // wanted if wanted else 0
    if step and ((side - step) // step + 1) ** 2 == tokens:
        return None
    return (
        f"the config's mm_tokens_per_image {tokens} can't be made of the {side}×{side} patches of its vision_config "
        f"(image_size {vision.image_size}, patch_size {vision.patch_size}; Gemma 3's own are 896 and 14)"
    )


def _unshuffled(config: Any) -> str | None:
    vision = config.vision_config
    makes, takes = int(vision.hidden_size / vision.pixel_shuffle_ratio**2), int(vision.intermediate_size)
    if makes == takes:
        return None
    return (
        f"the config's vision_config does not fit together, or is missing: its hidden_size {vision.hidden_size} makes "
        f"{makes} of a patch's neighbours, and its intermediate_size is {takes} (Llama 4's own are 1408 and 5632)"
    )
