"""What a model takes, and random inputs of any modality from its config alone."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from devctl.models.inputs import WAVEFORM_SAMPLES, sound_shape

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    Tensors = dict[str, torch.Tensor]

_FEW = 16
"""Steps of a series, patches of a page: enough to run."""
_FRAMES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Wants:
    """What a model takes.

    Attributes:
        main: the name of its main input.
        text: token ids.
        image: pixels.
        sound: a waveform, or its spectrum.
        deaf: it takes sounds between its words, and it is not known how.
        image_tokens: tokens of the text that stand for one image; 0 where none do, None where it is not known how many.
    """

    main: str
    text: bool
    image: bool
    sound: bool
    deaf: bool
    image_tokens: int | None


def wants_of(config: Any, model_class: type[PreTrainedModel]) -> Wants:
    """What the model takes, from its forward's arguments and its config."""
    main, takes = model_class.main_input_name, inspect.signature(model_class.forward).parameters
    needed = {name for name, p in takes.items() if p.default is p.empty}
    # one that compares texts with images or sounds; a page's words with their boxes are read without its picture
    compares = "input_ids" in takes and not model_class.can_generate() and "bbox" not in takes
    places = main == "input_ids" or config.model_type in _TOKENS
    inserts = image_token(config) is not None and places and "pixel_values" in takes
    tokens = _tokens_per_image(config) if inserts else 0
    describes = main == "pixel_values" and hasattr(config, "text_config") and model_class.can_generate()
    sound = (
        main in ("input_values", "input_features")
        or (main == "inputs" and "input_values" in takes)
        or (compares and "input_features" in takes)
    )
    return Wants(
        main=main,
        text="input_ids" in takes and (main == "input_ids" or "input_ids" in needed or describes),
        image="pixel_values" in takes
        and (main == "pixel_values" or "pixel_values" in needed or bool(tokens) or (compares and not inserts)),
        sound=sound,
        deaf=not sound and main == "input_ids" and bool({"input_features", "input_audio_embeds"} & takes.keys()),
        image_tokens=tokens,
    )


def image_token(config: Any) -> int | None:
    """The token that stands for a piece of an image in a text; None where there is none."""
    names = ("image_token_id", "image_token_index")
    return next((token for name in names if isinstance(token := getattr(config, name, None), int)), None)


def random_inputs(config: Any, model_class: type[PreTrainedModel], generator: torch.Generator) -> Tensors:
    """All that the model takes beside its text, of batch 1; of what it needs, nothing where no way is known."""
    wants, takes = wants_of(config, model_class), inspect.signature(model_class.forward).parameters
    make = _Make(generator)
    special = _SPECIAL.get(config.model_type)
    if special is not None and (found := special(config, model_class, make)) is not None:
        return {name: tensor for name, tensor in found.items() if name in takes}
    made: Tensors = {}
    if wants.image:
        made["pixel_values"] = make.normal(*_image_shape(config))
        if "input_points" in takes:
            made["input_points"] = make.normal(1, 1, 1, 2).abs()
    if wants.sound:
        made |= _sound(config, takes, wants.main, make)
    return made


def known_inputs(config: Any, model_class: type[PreTrainedModel], batch_size: int) -> Tensors:
    """All that the model takes, with a short text where it takes one."""
    import torch

    made = random_inputs(config, model_class, torch.Generator().manual_seed(0))
    if wants_of(config, model_class).text:
        made["input_ids"] = torch.ones((1, _FEW), dtype=torch.long)
        if "attention_mask" in inspect.signature(model_class.forward).parameters:
            made["attention_mask"] = torch.ones_like(made["input_ids"])
    return batch_of(made, batch_size)


def batch_of(made: Tensors, size: int) -> Tensors:
    """Each input ``size`` times."""
    return {name: tensor.repeat(size, *[1] * (tensor.dim() - 1)) for name, tensor in made.items()}


@dataclass(frozen=True, slots=True)
class _Make:
    """Makes random tensors."""

    generator: torch.Generator

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


def image_size(config: Any) -> tuple[int, int]:
    """The height and width of the images that a model takes, or 224 where any will do."""
    vision = _vision(config)
    image = getattr(vision, "image_size", None) or 224
    if isinstance(image, dict):
        image = (image.get("height", 224), image.get("width", 224))
    height, width = image if isinstance(image, list | tuple) else (image, image)
    return height, width


def _vision(config: Any) -> Any:
    parts = (getattr(config, name, None) for name in ("vision_config", "encoder", "backbone_config", "image_config"))
    return next((part for part in parts if part is not None), config)


def _image_shape(config: Any) -> tuple[int, ...]:
    height, width = image_size(config)
    vision = _vision(config)
    channels = getattr(vision, "num_channels", None) or 3
    frames = getattr(vision, "num_frames", None) or getattr(vision, "frames_per_clip", None)
    if isinstance(frames, int) and config.model_type in _VIDEO:
        return (1, frames, channels, height, width)
    return (1, channels, height, width)


_VIDEO = frozenset({"videomae", "vivit", "timesformer", "xclip"})


def _sound(config: Any, takes: Mapping[str, Any], main: str, make: _Make) -> Tensors:
    name = "input_values" if main == "inputs" else main
    shape = sound_shape(config, name)
    return {} if shape is None or name not in takes else {name: make.normal(1, *shape)}


# models that take what their arguments' names do not say, by config.model_type


def _series(config: Any, _: object, make: _Make) -> Tensors:
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


def _patched_series(config: Any, _: object, make: _Make) -> Tensors:
    return {"past_values": make.normal(1, config.context_length, config.num_input_channels)}


def _perceiver(config: Any, model_class: type[PreTrainedModel], make: _Make) -> Tensors | None:
    name = model_class.__name__
    if "MaskedLM" in name or "SequenceClassification" in name:
        return {"inputs": make.ids(1, config.max_position_embeddings, below=config.vocab_size)}
    if "ImageClassification" in name:
        # only learned positions are of one size; those of the other two are computed for 224 pixels
        size = config.image_size if name.endswith("Learned") else 224
        return {"inputs": make.normal(1, 3, size, size)}
    return {"inputs": make.normal(1, _FEW, config.d_model)} if name == "PerceiverModel" else None


def _clap(config: Any, _: object, make: _Make) -> Tensors:
    audio = getattr(config, "audio_config", config)
    frames = audio.spec_size * (audio.spec_size // audio.num_mel_bins)
    return {"input_features": make.normal(1, 4 if audio.enable_fusion else 1, frames, audio.num_mel_bins)}


def _codec(config: Any, _: object, make: _Make) -> Tensors:
    return {"input_values": make.normal(1, getattr(config, "audio_channels", 1), WAVEFORM_SAMPLES)}


def _speech_to_text(config: Any, _: object, make: _Make) -> Tensors:
    return {"input_features": make.normal(1, _FRAMES, config.input_feat_per_channel * config.input_channels)}


def _wav2vec2_bert(config: Any, _: object, make: _Make) -> Tensors:
    return {"input_features": make.normal(1, _FRAMES, config.feature_projection_input_dim)}


def _univnet(config: Any, _: object, make: _Make) -> Tensors:
    return {"input_features": make.normal(1, _FRAMES, config.num_mel_bins)}


def _speecht5(config: Any, model_class: type[PreTrainedModel], make: _Make) -> Tensors:
    sound = {"input_values": make.normal(1, WAVEFORM_SAMPLES)} if model_class.main_input_name == "input_values" else {}
    return sound | {
        "decoder_input_values": make.normal(1, config.reduction_factor * 2, config.num_mel_bins),
        "speaker_embeddings": make.normal(1, config.speaker_embedding_dim),
    }


def _decision(config: Any, _: object, make: _Make) -> Tensors:
    return {
        "states": make.normal(1, _FEW, config.state_dim),
        "actions": make.normal(1, _FEW, config.act_dim),
        "rewards": make.normal(1, _FEW, 1),
        "returns_to_go": make.normal(1, _FEW, 1),
        "timesteps": make.steps(_FEW),
        "attention_mask": make.ones(1, _FEW),
    }


def _lxmert(config: Any, _: object, make: _Make) -> Tensors:
    return {"visual_feats": make.normal(1, _FEW, config.visual_feat_dim), "visual_pos": make.ones(1, _FEW, 4)}


def _page(config: Any, _: object, make: _Make) -> Tensors:
    """Patches of a page, each after its row and its column."""
    patches = make.normal(1, _FEW, 2 + config.vision_config.patch_embed_hidden_size)
    patches[0, :, 0], patches[0, :, 1] = 1, make.steps(_FEW)[0] + 1
    return {"flattened_patches": patches, "attention_mask": make.ones(1, _FEW)}


def _patches_in_a_grid(config: Any, _: object, make: _Make) -> Tensors:
    """An image of Qwen's models: flattened patches, and how many there are in time, height and width."""
    import torch

    vision = config.vision_config
    side = 2 * vision.spatial_merge_size
    channels = getattr(vision, "in_channels", None) or getattr(vision, "in_chans", 3)
    length = channels * vision.temporal_patch_size * vision.patch_size**2
    return {"pixel_values": make.normal(side**2, length), "image_grid_thw": torch.tensor([[1, side, side]])}


def _images_in_a_list(config: Any, _: object, make: _Make) -> Tensors:
    return {"pixel_values": make.normal(1, *_image_shape(config))}


_SPECIAL: Mapping[str, Callable[[Any, type[PreTrainedModel], _Make], Tensors | None]] = {
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


# how many tokens stand for one image, by config.model_type


def _whole_image(config: Any) -> int:
    """A token for each patch, and one for the class where the tower's is kept."""
    height, width = image_size(config)
    patch = _side(config.vision_config.patch_size)
    whole = getattr(config, "vision_feature_select_strategy", "default") == "full"
    has_class = config.vision_config.model_type == "clip_vision_model"
    lost = 0 if whole or has_class else 1  # "default" drops the first patch of a tower that has no class
    return (height // patch) * (width // patch) + int(whole and has_class) - lost


def _side(size: Any) -> int:
    return int(size[0] if isinstance(size, list | tuple) else size)


def _patches(config: Any) -> int:
    height, width = image_size(config)
    patch = _side(config.vision_config.patch_size)
    return (height // patch) * (width // patch)


_TOKENS: Mapping[str, Callable[[Any], int]] = {
    **dict.fromkeys(("llava", "vipllava"), _whole_image),
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"), lambda _: 4),
    **dict.fromkeys(("idefics3", "smolvlm"), lambda config: _patches(config) // config.scale_factor**2),
    "blip-2": lambda config: int(config.num_query_tokens),
    "gemma3": lambda config: int(config.mm_tokens_per_image),
    "paligemma": _patches,
    "internvl": lambda config: int(_patches(config) * config.downsample_ratio**2),
}


def _tokens_per_image(config: Any) -> int | None:
    count = _TOKENS.get(config.model_type)
    return None if count is None else count(config)
