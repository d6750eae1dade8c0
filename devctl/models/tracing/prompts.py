"""What a model is given for a workload: fake inputs of the right sizes.

Imports torch: to be imported inside functions.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch

from devctl.models.images import Images
from devctl.models.inputs import codebooks, image_ids, images_to_try, inputs_of, kinds_of_tokens, prompt_rows, told
from devctl.models.tracing.recorder import tensors_in

_MEDIA_TOKENS = ("image_token_id", "image_token_index", "video_token_id", "audio_token_id", "audio_token_index")
_FILLING = {"attention_mask": 1, "token_type_ids": 0, "mm_token_type_ids": 0}
"""What stands in these for a token of text."""


class Prompts(ABC):
    """Makes the inputs of one model, with a text of any length.

    Attributes:
        deaf: the model takes sounds, and is given none, as it is not known how.
        padded: some of its texts are padded.
    """

    def __init__(self, model: Any, batch_size: int) -> None:
        self.deaf = self.padded = False
        self._model = model
        self._batch_size = batch_size
        self._takes = inspect.signature(model.forward).parameters
        used = {_number(model.config, name) for name in _MEDIA_TOKENS}
        self._plain_token = next(token for token in range(1, len(_MEDIA_TOKENS) + 2) if token not in used)

    @property
    def reads_whole(self) -> bool:
        """Whether an encoder reads the prompt, and the decoder begins with one token."""
        return bool(self._model.config.is_encoder_decoder) and self._model.main_input_name == "input_ids"

    @abstractmethod
    def make(self, tokens: int, *, answer: int = 1, images: bool = False) -> dict[str, torch.Tensor]:
        """Inputs for a prompt.

        Args:
            tokens: of the prompt; where an encoder takes no text, those of the decoder.
            answer: tokens that a decoder beside an encoder of text begins with.
            images: whether each sequence begins with its images.

        Raises:
            ValueError: no inputs are known for this kind of model, or the images are longer than the prompt.
        """

    def told(self, *, images: bool) -> str | None:
        """What each sequence is given beside its text, in a few words; None where that is nothing, or known.

        Args:
            images: as ``make`` was asked.
        """
        return None

    def image_tokens(self) -> int:
        """Tokens of the text that its images take, where ``make`` is asked for them."""
        return 0

    def find_images(self) -> bool:
        """Whether ``make`` can be asked for images that stand in the text.

        Raises:
            Exception: the model's code knows no way that is tried, though it would have some.
        """
        return False

    def _decoder_ids(self, tokens: int, answer: int) -> dict[str, torch.Tensor]:
        if not self._model.config.is_encoder_decoder or "decoder_input_ids" not in self._takes:
            return {}
        rows = self._batch_size * codebooks(self._model.config)
        length = answer if self.reads_whole else tokens
        return {"decoder_input_ids": torch.full((rows, length), self._plain_token)}

    def _anew(self, tensors: Mapping[str, torch.Tensor], times: int = 1) -> dict[str, torch.Tensor]:
        """The same, so many times, made now: what a model is given is in its memory too."""
        made = {}
        for name, value in tensors.items():
            if value.is_floating_point():
                made[name] = torch.zeros(value.shape[0] * times, *value.shape[1:], dtype=self._model.dtype)
            else:
                made[name] = value.repeat(times, *[1] * (value.dim() - 1))
        return made


class MadeUp(Prompts):
    """Inputs of the model's kind, of the sizes in its config."""

    def __init__(self, model: Any, batch_size: int, *, padded: bool, images: Images | None = None) -> None:
        super().__init__(model, batch_size)
        self._inputs = inputs_of(model.config, type(model), images, shapes=True)
        self._pictures: tuple[dict[str, torch.Tensor], int] | None = None
        self.deaf = self._inputs.deaf
        self._may_have_images = self._inputs.image_tokens != 0
        takes_mask = "attention_mask" in self._takes and (self._inputs.text or self._may_have_images)
        self.padded = padded and batch_size > 1 and takes_mask

    def make(self, tokens: int, *, answer: int = 1, images: bool = False) -> dict[str, torch.Tensor]:
        """As ``Prompts`` says: the ids of its text are all the same."""
        model = self._model
        made: dict[str, torch.Tensor] = {}
        if self._inputs.text or self._may_have_images:
            rows = self._batch_size * prompt_rows(model.config)
            made["input_ids"] = torch.full((rows, tokens), self._plain_token)
            if "attention_mask" in self._takes or model.can_generate():
                made["attention_mask"] = self._mask(tokens)
        if not self._may_have_images:
            made |= self._anew(self._inputs.media, self._batch_size)
            if not self._inputs.is_enough(made):
                main = self._inputs.main
                raise ValueError(f"no inputs are known for {type(model).__name__}, which takes {main!r}")
        if images:
            pictures, _ = self._picture()
            row = self._row()
            if len(row) >= tokens:
                raise ValueError(f"an image is {len(row)} tokens long, the prompt {tokens}")
            made["input_ids"][:, : len(row)] = torch.tensor(row)
            made |= kinds_of_tokens(model.config, self._takes, made["input_ids"])
            made |= self._anew(pictures, self._batch_size)
        return made | self._decoder_ids(tokens, answer)

    def _mask(self, tokens: int) -> torch.Tensor:
        """Where text is: all over, or, if texts are padded, all but the last one's first place: most is held then."""
        mask = torch.ones(self._batch_size, tokens, dtype=torch.long)
        if not self.padded or tokens == 1:
            return mask
        is_last, is_first = torch.arange(self._batch_size) == self._batch_size - 1, torch.arange(tokens) == 0
        return mask.masked_fill(is_last[:, None] & is_first, 0)

    def told(self, *, images: bool) -> str | None:
        """As ``Prompts`` says."""
        config, inputs = self._model.config, self._inputs
        if not self._may_have_images:
            return told(config, inputs.media)
        if not images:
            return None
        pictures, count = self._picture()
        is_known = inputs.image_tokens is not None
        return told(config, pictures, count * inputs.images, inputs if is_known else None)

    def find_images(self) -> bool:
        """As ``Prompts`` says."""
        if self._inputs.unseeing is not None:
            raise ValueError(self._inputs.unseeing)
        if self._may_have_images:
            self._picture()
        return self._may_have_images

    def image_tokens(self) -> int:
        """As ``Prompts`` says."""
        return len(self._row())

    def _row(self) -> list[int]:
        """The ids that a text begins with, of its images."""
        return image_ids(self._model.config, [self._picture()[1]] * self._inputs.images, self._inputs.beside)

    def _picture(self) -> tuple[dict[str, torch.Tensor], int]:
        """The images, and the tokens that stand for each: where it is not known how many, the model's code is asked."""
        if self._pictures is None:
            count = self._inputs.image_tokens
            self._pictures = self._tried() if count is None else (self._inputs.media, count)
        return self._pictures

    def _tried(self) -> tuple[dict[str, torch.Tensor], int]:
        failed: Exception | None = None
        for picture in images_to_try(self._model.config, type(self._model)):
            try:
                out = _image_features(self._model)(**self._anew(picture))
            except Exception as error:  # noqa: BLE001 - the shape may be another model's
                failed = failed or error
                continue
            features = getattr(out, "pooler_output", out)
            rows = sum(tensor.numel() // tensor.shape[-1] for tensor in tensors_in(features))
            return picture, rows
        assert failed is not None
        raise failed


class Given(Prompts):
    """The inputs of a run that is known: as they are, but longer or shorter at the end of the text."""

    def __init__(self, model: Any, batch_size: int, tensors: Mapping[str, torch.Tensor]) -> None:
        super().__init__(model, batch_size)
        self.padded = not bool(tensors.get("attention_mask", torch.ones(1)).all())
        self._tensors = tensors

    def make(self, tokens: int, *, answer: int = 1, images: bool = False) -> dict[str, torch.Tensor]:
        """The given inputs, with a text of ``tokens``: an encoder's, where it reads one, else the decoder's."""
        assert not images
        made = self._anew(self._tensors)
        if "input_ids" in made and (self.reads_whole or not self._model.config.is_encoder_decoder):
            for name, filling in {**_FILLING, "input_ids": self._plain_token}.items():
                if name in made and (more := tokens - made[name].shape[1]):
                    made[name] = torch.nn.functional.pad(made[name], (0, more), value=filling)
        return made | self._decoder_ids(tokens, answer)


def _image_features(model: Any) -> Any:
    """The method that makes tokens of an image; some models with a head leave it to the model below."""
    return getattr(model, "get_image_features", None) or getattr(model, model.base_model_prefix).get_image_features


def _number(config: Any, name: str) -> int | None:
    value = getattr(config, name, None)
    return value if isinstance(value, int) else None
