"""What a model is given for a workload: fake inputs of the right sizes.

Imports torch: to be imported inside functions.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch

from devctl.models.inputs import codebooks, image_shape, random_inputs
from devctl.models.tracing.recorder import tensors_in

_MEDIA_TOKENS = ("image_token_id", "image_token_index", "video_token_id", "audio_token_id", "audio_token_index")
_FILLING = {"attention_mask": 1, "token_type_ids": 0, "mm_token_type_ids": 0}
"""What stands in these for a token of text."""
_TILES = 2
_GRID_SIDE = 448
"""Pixels of the image for models that take any size, as a grid of patches."""


class Prompts:
    """Makes the inputs of one model."""

    def __init__(self, model: Any, batch_size: int) -> None:
        self._model = model
        self._batch_size = batch_size
        self._takes = inspect.signature(model.forward).parameters
        self._image_token = next((t for n in _MEDIA_TOKENS[:2] if (t := _number(model.config, n)) is not None), None)
        self._way: tuple[str, int] | None = None
        config = model.config
        used = {_number(config, name) for name in _MEDIA_TOKENS}
        self._plain_token = next(token for token in range(1, len(_MEDIA_TOKENS) + 2) if token not in used)

    @property
    def may_have_images(self) -> bool:
        """Whether images stand in its text."""
        return self._image_token is not None and "pixel_values" in self._takes

    @property
    def reads_whole(self) -> bool:
        """Whether an encoder reads the prompt, and the decoder begins with one token."""
        return bool(self._model.config.is_encoder_decoder) and self._model.main_input_name == "input_ids"

    def make(self, tokens: int, *, answer: int = 1, images: bool = False) -> dict[str, torch.Tensor]:
        """Inputs for a prompt.

        Args:
            tokens: of the prompt; where an encoder takes no text, those of the decoder.
            answer: tokens that a decoder beside an encoder of text begins with.
            images: whether each sequence begins with an image.

        Raises:
            ValueError: no inputs are known for this kind of model, or the image is longer than the prompt.
        """
        model = self._model
        made: dict[str, torch.Tensor] = {}
        if not (self.may_have_images and model.main_input_name == "pixel_values"):
            made = random_inputs(model.config, type(model), tokens=tokens, batch_size=self._batch_size)
        if "input_ids" in made or self.may_have_images:
            made["input_ids"] = torch.full((self._batch_size, tokens), self._plain_token)
            made["attention_mask"] = torch.ones_like(made["input_ids"])
            if "attention_mask" not in self._takes and not model.can_generate():
                del made["attention_mask"]
        if model.config.is_encoder_decoder and "decoder_input_ids" in self._takes:
            length = answer if self.reads_whole else tokens
            made["decoder_input_ids"] = torch.full((self._batch_size, length), self._plain_token)
        made = {name: _in_dtype(value, model.dtype) for name, value in made.items()}
        if images:
            pictures, count = self.pictures()
            if count >= tokens:
                raise ValueError(f"an image is {count} tokens long, the prompt {tokens}")
            is_image = torch.arange(tokens).expand(self._batch_size, tokens) < count
            made["input_ids"] = made["input_ids"].masked_fill(is_image, self._image_token or 0)
            if "mm_token_type_ids" in self._takes:
                made["mm_token_type_ids"] = is_image.long()
            made |= pictures
        return made

    def pictures(self) -> tuple[dict[str, torch.Tensor], int]:
        """An image for each sequence, in the shape that the model takes, and the tokens that it becomes.

        Raises:
            Exception: its code knows no way that is tried.
        """
        if self._way is not None:
            way, count = self._way
            return self._in_shape(way), count
        failed: Exception | None = None
        for way in self._ways():
            pictures = self._in_shape(way)
            try:
                out = _image_features(self._model)(**pictures)
            except Exception as error:  # noqa: BLE001 - the shape may be another model's
                failed = failed or error
                continue
            features = getattr(out, "pooler_output", out)
            rows = sum(tensor.numel() // tensor.shape[-1] for tensor in tensors_in(features))
            self._way = way, rows // self._batch_size
            return pictures, self._way[1]
        assert failed is not None
        raise failed

    def _ways(self) -> tuple[str, ...]:
        if "image_grid_thw" in self._takes:
            return ("grid",)
        return ("one", "sizes", "tiles", "tiles and sizes") if "image_sizes" in self._takes else ("one", "tiles")

    def _in_shape(self, way: str) -> dict[str, torch.Tensor]:
        config = self._model.config
        vision = getattr(config, "vision_config", config)
        channels, height, width = image_shape(config)
        if way == "grid":
            patch, frames = vision.patch_size, getattr(vision, "temporal_patch_size", 1)
            merge = getattr(vision, "spatial_merge_size", 1)
            side = _GRID_SIDE // (patch * merge) * merge
            size = (self._batch_size * side * side, channels * frames * patch * patch)
            grid = torch.tensor([[1, side, side]] * self._batch_size)
            return {"pixel_values": torch.zeros(size, dtype=self._model.dtype), "image_grid_thw": grid}
        tiles = (_TILES,) if "tiles" in way else ()
        pixels = torch.zeros((self._batch_size, *tiles, channels, height, width), dtype=self._model.dtype)
        sizes = {"image_sizes": torch.tensor([[height, width]] * self._batch_size)} if "sizes" in way else {}
        return {"pixel_values": pixels, **sizes}


class Given(Prompts):
    """The inputs of a run that is known: as they are, but longer or shorter at the end of the text."""

    def __init__(self, model: Any, batch_size: int, tensors: Mapping[str, torch.Tensor]) -> None:
        super().__init__(model, batch_size)
        self._tensors = tensors

    @property
    def may_have_images(self) -> bool:
        """None but those that are given."""
        return False

    def make(self, tokens: int, *, answer: int = 1, images: bool = False) -> dict[str, torch.Tensor]:
        """The given inputs, with a text of ``tokens``: an encoder's, where it reads one, else the decoder's."""
        assert not images
        # made anew, as what a model is given is in its memory too
        made = {
            name: torch.zeros(value.shape, dtype=self._model.dtype) if value.is_floating_point() else value.clone()
            for name, value in self._tensors.items()
        }
        has_encoder = self._model.config.is_encoder_decoder
        if "input_ids" in made and (self.reads_whole or not has_encoder):
            for name, filling in {**_FILLING, "input_ids": self._plain_token}.items():
                if name in made and (more := tokens - made[name].shape[1]):
                    made[name] = torch.nn.functional.pad(made[name], (0, more), value=filling)
        if has_encoder and "decoder_input_ids" in self._takes:
            rows = self._batch_size * codebooks(self._model.config)
            made["decoder_input_ids"] = torch.full((rows, answer if self.reads_whole else tokens), self._plain_token)
        return made


def _image_features(model: Any) -> Any:
    """The method that makes tokens of an image; some models with a head leave it to the model below."""
    return getattr(model, "get_image_features", None) or getattr(model, model.base_model_prefix).get_image_features


def _number(config: Any, name: str) -> int | None:
    value = getattr(config, name, None)
    return value if isinstance(value, int) else None


def _in_dtype(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return value.to(dtype) if value.is_floating_point() else value
