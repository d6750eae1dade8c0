"""Inputs for a smoke inference, from a config and a tokenizer, before any weight is read."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from devctl.errors import DevctlError, LoadError, UsageError, first_line
from devctl.loading.run.media import audio_inputs, image_inputs
from devctl.models.decoding import Settings
from devctl.models.files.resolve import ModelSource, SourceKind
from devctl.models.images import Images
from devctl.models.inputs import (
    ModelInputs,
    batch_of,
    image_ids,
    image_token,
    inputs_of,
    kinds_of_tokens,
    most_tokens,
    prompt_rows,
    tokens_of_images,
    told,
)

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from devctl.models.skeleton import Skeleton

DEFAULT_PROMPT = "The quick brown fox jumps over the lazy dog."
_RANDOM_TOKENS = 16
_GENERATES_SPEECH = frozenset({"speecht5"})
"""Kinds of models whose generate makes sounds, and takes what no other does."""

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
    """Inputs on the CPU, made before a byte of weights is read.

    Attributes:
        source: "image" or "audio" where a file was given, "tokenizer" where the text is the tokenizer's, else "random".
        tokenizer: to read what is generated; None where the model has none.
        notes: why the tokenizer is not used, if so, and what is not tried.
        batch_size: rows of each.
        padded: some of the texts are shorter, and padded.
        generates: whether the model, if it does at all, generates as others do.
        generation: what generate is told, where that is not as in a greedy one.
        prefill_chunk: tokens of the prompt that generate reads at once; None for all.
    """

    tensors: dict[str, torch.Tensor]
    source: str
    tokenizer: PreTrainedTokenizerBase | None
    notes: tuple[str, ...] = ()
    batch_size: int = 1
    padded: bool = False
    generates: bool = True
    generation: Settings = ()
    prefill_chunk: int | None = None


def prepare(
    source: ModelSource,
    skeleton: Skeleton,
    *,
    prompt: str | None,
    new_tokens: int,
    trust_remote_code: bool,
    image: Path | None = None,
    audio: Path | None = None,
    batch_size: int = 1,
    context_length: int | None = None,
    padding: bool = True,
    images: Images | None = None,
) -> Inputs:
    """Inputs for the model: text through its tokenizer if it has one that works, given files, and random ones else.

    Args:
        prompt: text for the tokenizer; None is a sentence of our own.
        trust_remote_code: run Python code that comes with the tokenizer.
        image: a picture to give it.
        audio: a .wav file to give it.
        batch_size: how often each input is given, at a time.
        context_length: tokens that the text is made up, or cut, to; None is the text as it is.
        padding: make all texts but the first shorter, and pad them.
        images: how many images of what size to make up for each text; None for one of the size that the config has.

    Raises:
        UsageError: something was given that the model does not take, or needs what it does not have; a file can't be
            read; or it is more tokens than the model takes.
        LoadError: no inputs are known for this kind of model.
    """
    tokenizer, notes = load_tokenizer(source, trust_remote_code=trust_remote_code)
    if prompt is not None and tokenizer is None:
        raise UsageError("--prompt needs the model's tokenizer, which is missing", hint="leave it out: ids are random")
    config, model_class = skeleton.config, skeleton.model_class
    try:
        wants = inputs_of(config, model_class, images, shapes=images is not None)
        most = most_tokens(config)
        _refuse_misuse(model_class, wants, most, image, audio, context_length, new_tokens)
        if images is not None:
            _require_room(images, wants, config, model_class, most, context_length, new_tokens)
            wants = inputs_of(config, model_class, images)
        made = dict(wants.media)
        origin = "random"
        if image is not None:
            made, origin = {**made, **image_inputs(image, source, config)}, "image"
        if audio is not None:
            made, origin = {**made, **audio_inputs(audio, source, config, wants.main)}, "audio"
        if wants.text:
            text = DEFAULT_PROMPT if prompt is None else prompt
            ids = image_ids(config, tokens_of_images(config, wants, made), wants.beside)
            made = {**_text(config, model_class, tokenizer, text, context_length, ids), **made}
            if origin == "random" and tokenizer is not None:
                origin = "tokenizer"
        if not wants.is_enough(made):
            raise LoadError(f"no inputs are known for {model_class.__name__}, which takes {wants.main!r}")
    except DevctlError:
        raise
    except Exception as error:  # a config, also one from remote code, may lack or refuse anything
        raise LoadError(f"no inputs are known for {model_class.__name__}: {first_line(error)}") from error
    untried = (["images"] if wants.image_tokens is None else []) + (["sounds"] if wants.deaf else [])
    if untried:
        notes = (*notes, f"no {' or '.join(untried)} are known for {model_class.__name__}: only the rest is tried")
    if wants.unseeing is not None:
        notes = (*notes, f"images are not tried: {wants.unseeing}")
    if images is not None:
        beside = told(config, wants.media, sum(tokens_of_images(config, wants, made)), wants) if images.count else None
        notes = (*notes, f"run with {beside}" if beside else "run without an image")
    tensors = batch_of(made, batch_size)
    padded = padding and batch_size > 1 and _pad(tensors, config, model_class, tokenizer)
    return Inputs(
        tensors=tensors,
        source=origin,
        tokenizer=tokenizer,
        notes=notes,
        batch_size=batch_size,
        padded=padded,
        generates=config.model_type not in _GENERATES_SPEECH,
    )


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


def _refuse_misuse(
    model_class: type[PreTrainedModel],
    wants: ModelInputs,
    most: int | None,
    image: Path | None,
    audio: Path | None,
    context_length: int | None,
    new_tokens: int,
) -> None:
    name = model_class.__name__
    if image is not None and not wants.image:
        known = "no images are known for" if wants.image_tokens is None else "no image goes into"
        raise UsageError(f"--image {image}: {known} {name}", hint="leave it out")
    if audio is not None and not wants.sound:
        known = "no sounds are known for" if wants.deaf else "no sound goes into"
        raise UsageError(f"--audio {audio}: {known} {name}", hint="leave it out")
    if context_length is not None and not wants.text:
        raise UsageError(f"--context-length {context_length}: no text goes into {name}", hint="leave it out")
    if most is None:
        return
    made = new_tokens if model_class.can_generate() else 0
    if made >= most:
        raise UsageError(f"--max-new-tokens {new_tokens}: this model takes at most {most:,} tokens in all")
    if context_length is not None and context_length + made > most:
        more = f" and {made} new ones" if made else ""
        raise UsageError(f"--context-length {context_length}{more}: this model takes at most {most:,} tokens in all")


def _require_room(
    images: Images,
    wants: ModelInputs,
    config: PreTrainedConfig,
    model_class: type[PreTrainedModel],
    most: int | None,
    context_length: int | None,
    new_tokens: int,
) -> None:
    """Refuse images whose tokens leave none to the text, before they are made.

    Raises:
        UsageError: naming how many tokens are needed.
    """
    length = len(image_ids(config, tokens_of_images(config, wants, wants.media), wants.beside))
    takes = f"--images {images} takes {length:,} tokens of each sequence"
    if context_length is not None and length >= context_length:
        raise UsageError(
            f"{takes}: a context of {context_length} is too short, and has to be at least {length + 1}",
            hint="give a longer --context-length, or fewer or smaller images",
        )
    made = new_tokens if model_class.can_generate() else 0
    if most is not None and length + 1 + made > most:
        raise UsageError(f"{takes}, and this model takes at most {most} in all", hint="give fewer or smaller ones")


def _text(
    config: PreTrainedConfig,
    model_class: type[PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase | None,
    prompt: str,
    length: int | None,
    of_images: Sequence[int],
) -> dict[str, torch.Tensor]:
    """A row of token ids and what goes with it: the prompt's, over and over up to ``length``, after those of images.

    Args:
        of_images: the ids that images take.
    """
    import torch

    takes = inspect.signature(model_class.forward).parameters
    if tokenizer is not None:
        encoded = tokenizer(prompt, return_tensors="pt")
        wanted = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in takes]
        if model_class.can_generate():
            wanted = [name for name in wanted if name != "token_type_ids"]  # generate takes none
        made = {name: encoded[name] for name in wanted if name in encoded}
    else:
        most = most_tokens(config)
        few = _RANDOM_TOKENS if most is None else max(1, min(_RANDOM_TOKENS, most // 2))
        generator = torch.Generator().manual_seed(0)
        known = [token for token in (image_token(config), getattr(config, "video_token_id", None)) if token]
        below = min(_vocabulary(config), *known) if known else _vocabulary(config)
        made = {"input_ids": torch.randint(0, below, (prompt_rows(config), few), generator=generator)}
        if "attention_mask" in takes:
            made["attention_mask"] = torch.ones_like(made["input_ids"])
    image = torch.tensor([[*of_images]], dtype=torch.long)
    if length is not None:
        left = length - image.shape[1]
        if left < 1:
            raise UsageError(f"--context-length {length}: the image alone takes {image.shape[1]} tokens")
        made = {name: row.repeat(1, -(-left // row.shape[1]))[:, :left] for name, row in made.items()}
    if of_images:
        ids = torch.cat([image, made["input_ids"]], dim=1)
        made = {"input_ids": ids} | ({"attention_mask": torch.ones_like(ids)} if "attention_mask" in made else {})
        made |= kinds_of_tokens(config, takes, ids)
    return made


_OF_TEXT = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")
"""What has a place for each token."""


def _pad(
    tensors: dict[str, torch.Tensor],
    config: Any,
    model_class: type[PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase | None,
) -> bool:
    """Make all texts but the first shorter, each a little more, and pad them, in place; False where that can't be.

    A decoder that continues a text is padded before it, any other model after it, as tokenizers do.
    """
    import torch

    ids = tensors.get("input_ids")
    if ids is None or "attention_mask" not in tensors or tensors["attention_mask"].shape != ids.shape:
        return False
    rows, length = ids.shape
    # an image stays whole: what is cut off is text behind it
    image = image_token(config)
    of_image = max((place + 1 for place, token in enumerate(ids[0].tolist()) if token == image), default=0)
    spare = length - 1 - of_image
    if spare < 1:
        return False
    said = (getattr(each, "pad_token_id", None) for each in (tokenizer, config))
    pad = next((token for token in said if isinstance(token, int) and token >= 0), 0)
    before = model_class.can_generate() and not config.is_encoder_decoder
    for name in _OF_TEXT:
        if name not in tensors:
            continue
        padded = tensors[name].clone()
        for row in range(1, rows):
            less = max(1, spare * row // (2 * rows))
            filling = torch.full((less,), pad if name == "input_ids" else 0)
            left = padded[row, : length - less]
            padded[row] = torch.cat([filling, left] if before else [left, filling])
        tensors[name] = padded
    return True


def _vocabulary(config: Any) -> int:
    """How many tokens the text part knows."""
    # one with several text parts, as a decoder of sounds after an encoder of text, is given text in its encoder
    parts = [getattr(config, "text_encoder", None) or config.get_text_config(), config]
    for part in parts:
        if isinstance(size := getattr(part, "vocab_size", None), int):
            return size
    raise LoadError(f"no inputs are known for {type(config).__name__}: it does not say how many tokens there are")
