"""What a model is given, from its config alone: the one truth, for the tracer and for a load.

Sizes are those that a config names: an image's, a film's frames, a spectrum's bins. Where any will do, they are the
ones that most models take. Imports torch, inside functions.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from devctl.errors import UsageError
from devctl.models.images import Images
from devctl.models.special_inputs import (
    IMAGE_TOKENS,
    SPECIAL,
    WAVEFORM_SAMPLES,
    Maker,
    beside_image,
    counted_as,
    default_size,
    grid_side,
    resized,
    takes_sizes,
    unseeing,
)
from devctl.models.tiles import tiles_of

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    Tensors = dict[str, torch.Tensor]

_TILES = 2
_ANY_SIDE = 224
"""Pixels of an image's side for a model that takes any size."""
_FILMS = frozenset({"videomae", "vivit", "timesformer", "xclip"})
_ROWS_OF_CODES = frozenset({"musicgen_decoder", "musicgen_melody_decoder"})
_RATE = 16_000
"""Samples a second, where a config does not say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInputs:
    """What a model takes.

    Attributes:
        main: the name of its main input.
        text: token ids.
        image: pixels.
        sound: a waveform, or its spectrum.
        deaf: it takes sounds between its words, and it is not known how.
        image_tokens: tokens of the text that stand for one image; 0 where none do, None where it is not known how many.
        images: how many images stand in the text of a sequence.
        size: height and width of each as the model sees it, or of each of its tiles; as it is counted.
        scaled: height and width that the processor gives it, where it is counted as a larger one; None elsewhere.
        tiles: how many an image is cut into; 1 where it is not.
        beside: tokens of the text that go with each image, and stand for no piece of it.
        asked: what was asked for, where that is not as the model sees it; None where nothing was.
        unseeing: why no image goes through the model, though its kind sees; None where one does.
        media: all that it takes beside its text, of batch 1, at random, but for what no way is known to make.
    """

    main: str
    text: bool
    image: bool
    sound: bool
    deaf: bool
    image_tokens: int | None
    images: int
    size: tuple[int, int]
    scaled: tuple[int, int] | None
    tiles: int
    beside: int
    asked: Images | None
    unseeing: str | None
    media: Tensors

    def is_enough(self, given: Mapping[str, torch.Tensor]) -> bool:
        """Whether the main input is among ``given``; one that is called "inputs" goes by several names."""
        return self.main in given or (self.main == "inputs" and bool(given))


def inputs_of(
    config: Any, model_class: type[PreTrainedModel], images: Images | None = None, *, shapes: bool = False
) -> ModelInputs:
    """What the model takes, and of which sizes, from its forward's arguments and its config.

    Args:
        images: those of a sequence; None for one of the size that the config has, where the model sees.
        shapes: make media of the right shapes that hold nothing.

    Raises:
        UsageError: it takes no such images.
        Exception: the config lacks what its kind of model has.
    """
    named, takes = model_class.main_input_name, inspect.signature(model_class.forward).parameters
    main = named if isinstance(named, str) else " and ".join(named)  # OneFormer has two
    needed = {name for name, p in takes.items() if p.default is p.empty}
    # one that compares texts with images or sounds; a page's words with their boxes are read without its picture
    compares = "input_ids" in takes and not model_class.can_generate() and "bbox" not in takes
    places = main == "input_ids" or config.model_type in IMAGE_TOKENS
    inserts = image_token(config) is not None and places and "pixel_values" in takes
    why_not = unseeing(config) if inserts else None
    _require_seen(model_class, images, why_not, inserts=inserts, sees="pixel_values" in takes)
    seen = _Seen(image_shape(config)) if why_not else _as_seen(config, model_class, images)
    shape = seen.shape
    is_left_out = why_not is not None or (images is not None and not images.count)
    tokens = _image_tokens(config, shape) if inserts and not is_left_out else 0
    tokens = tokens and tokens * seen.tiles
    describes = main == "pixel_values" and hasattr(config, "text_config")
    image = "pixel_values" in takes and (
        main == "pixel_values" or "pixel_values" in needed or bool(tokens) or (compares and not inserts)
    )
    sound = (
        main in ("input_values", "input_features")
        or (main == "inputs" and "input_values" in takes)
        or (compares and "input_features" in takes)
    )
    return ModelInputs(
        main=main,
        text="input_ids" in takes and (main == "input_ids" or "input_ids" in needed or describes),
        image=image,
        sound=sound,
        deaf=not sound and main == "input_ids" and bool({"input_features", "input_audio_embeds"} & takes.keys()),
        image_tokens=tokens,
        images=0 if tokens == 0 else 1 if images is None else images.count,
        size=shape[1:],
        scaled=seen.scaled,
        tiles=seen.tiles,
        beside=seen.beside,
        asked=None if images is None or (images.height, images.width) == shape[1:] else images,
        unseeing=why_not,
        media={}
        if inserts and is_left_out
        else _media(config, model_class, _maker(seen, images, shapes=shapes), image=image, sound=sound),
    )


def _require_seen(
    model_class: type[PreTrainedModel], images: Images | None, why_not: str | None, *, inserts: bool, sees: bool
) -> None:
    if images is None:
        return
    if not inserts:
        where = "image stands in the text of" if sees else "image goes into"
        raise UsageError(f"--images {images}: no {where} {model_class.__name__}", hint="leave it out")
    if images.count and why_not is not None:
        raise UsageError(f"--images {images}: {why_not}", hint="mend the config, or leave it out")


@dataclass(frozen=True, slots=True)
class _Seen:
    """An image after the model's processor.

    Attributes:
        shape: channels, height and width of it, or of each of its tiles.
        tiles: how many it is cut into.
        beside, scaled: as `ModelInputs` has them.
    """

    shape: tuple[int, int, int]
    tiles: int = 1
    beside: int = 0
    scaled: tuple[int, int] | None = None


def _as_seen(config: Any, model_class: type[PreTrainedModel], images: Images | None) -> _Seen:
    channels, *own = image_shape(config)
    if images is None or not images.count:
        return _Seen((channels, *(default_size(config) or (own[0], own[1]))))
    try:
        cut = tiles_of(config, images, (own[0], own[1]))
        if cut is not None:
            return _Seen((channels, cut.height, cut.width), cut.count, cut.beside)
        found = resized(config, images, (own[0], own[1]))
    except ValueError as error:
        raise UsageError(f"--images {images}: {error}", hint="leave it out, or give --images 0") from None
    if found is None:
        raise UsageError(
            f"--images {images}: what {model_class.__name__} makes of an image of a given size is not known",
            hint="leave it out, or give --images 0",
        )
    size = counted_as(config, found)
    return _Seen((channels, *size), beside=beside_image(config, size), scaled=None if size == found else found)


def _maker(seen: _Seen, images: Images | None, *, shapes: bool) -> Maker:
    import torch

    count = 1 if images is None else max(1, images.count)
    return Maker(None if shapes else torch.Generator().manual_seed(0), seen.shape, count * seen.tiles)


def _media(config: Any, model_class: type[PreTrainedModel], make: Maker, *, image: bool, sound: bool) -> Tensors:
    main, takes = model_class.main_input_name, inspect.signature(model_class.forward).parameters
    special = SPECIAL.get(config.model_type)
    if special is not None and (found := special(config, model_class, make)) is not None:
        return {name: tensor for name, tensor in found.items() if name in takes}
    made: Tensors = {}
    if image:
        if takes_sizes(config):
            import torch

            made["image_sizes"] = torch.tensor([list(make.image[1:])] * make.count)
        frames = _frames(config)
        made["pixel_values"] = make.normal(make.count, *(() if frames is None else (frames,)), *make.image)
        if "input_points" in takes:
            made["input_points"] = make.normal(1, 1, 1, 2).abs()
    name = "input_values" if main == "inputs" else main
    if sound and name in takes and (shape := _sound_shape(config, name)) is not None:
        made[name] = make.normal(1, *shape)
    return made


def images_to_try(config: Any, model_class: type[PreTrainedModel]) -> Iterator[Tensors]:
    """Shapes of one image for a model of which it is not known what stands for it: from the likeliest on."""
    import torch

    takes = inspect.signature(model_class.forward).parameters
    channels, height, width = image_shape(config)
    if "image_grid_thw" in takes:
        vision = getattr(config, "vision_config", config)
        side = grid_side(vision)
        length = channels * getattr(vision, "temporal_patch_size", 1) * vision.patch_size**2
        yield {"pixel_values": torch.zeros(side**2, length), "image_grid_thw": torch.tensor([[1, side, side]])}
        return
    sizes = {"image_sizes": torch.tensor([[height, width]])} if "image_sizes" in takes else {}
    for tiles in ((), (_TILES,)):
        pixels = torch.zeros(1, *tiles, channels, height, width)
        yield {"pixel_values": pixels}
        if sizes:
            yield {"pixel_values": pixels, **sizes}


def batch_of(made: Mapping[str, torch.Tensor], size: int) -> Tensors:
    """Each input ``size`` times."""
    return {name: tensor.repeat(size, *[1] * (tensor.dim() - 1)) for name, tensor in made.items()}


def told(
    config: Any, media: Mapping[str, torch.Tensor], image_tokens: int = 0, inputs: ModelInputs | None = None
) -> str | None:
    """What one sequence is given beside its text, in a few words; None where that is nothing.

    Args:
        media: of batch 1.
        image_tokens: tokens of the text that stand for all images.
        inputs: what the model takes, of images that stand in its text and are of a known size.
    """
    parts = []
    if inputs is not None:
        parts = [_told_images(inputs)]
    elif "pixel_values" in media:
        parts = [_told_image(config, media)]
    if (sound := media.get("input_values")) is not None and sound.shape[-1] == WAVEFORM_SAMPLES:
        rate = getattr(config, "sampling_rate", None) or _RATE
        parts.append(f"a sound of {WAVEFORM_SAMPLES / rate:.3g} s")
    elif (spectrum := media.get("input_features", sound)) is not None:
        parts.append(f"a spectrum of {_by(spectrum.shape[1:])}")
    if media and not parts:
        name, tensor = next(iter(media.items()))
        parts.append(f"{name} of {_by(tensor.shape[1:])}")
    tokens = f", {image_tokens} tokens of the text" if image_tokens else ""
    return " and ".join(parts) + tokens if parts else None


def _told_images(inputs: ModelInputs) -> str:
    size = _by(inputs.size)
    if inputs.tiles > 1 and inputs.asked is not None:
        was = _by((inputs.asked.height, inputs.asked.width))
        cut = f"cut into {inputs.tiles} tiles of {size}"
        return f"an image of {was}, {cut}" if inputs.images == 1 else f"{inputs.images} images of {was}, each {cut}"
    several = f"an image of {size}" if inputs.images == 1 else f"{inputs.images} images of {size}"
    if inputs.asked is None:
        return several
    if inputs.scaled is not None:
        was = _by((inputs.asked.height, inputs.asked.width))
        return f"{several} in the place of {was}, which the model's processor scales to {_by(inputs.scaled)}: a bound"
    was = _by((inputs.asked.height, inputs.asked.width))
    return f"{several}, to which the model's processor scales {was}"


def _told_image(config: Any, media: Mapping[str, torch.Tensor]) -> str:
    pixels, grid = media["pixel_values"], media.get("image_grid_thw")
    if grid is not None:
        vision = getattr(config, "vision_config", config)
        return f"an image of {_by(int(patches) * vision.patch_size for patches in grid[0, 1:])}"
    size = _by(pixels.shape[-2:])
    several = pixels.shape[1] if pixels.dim() == 5 else 1
    if several == 1:
        return f"an image of {size}"
    return (
        f"a film of {several} frames of {size}"
        if config.model_type in _FILMS
        else (f"an image of {several} tiles of {size}")
    )


def _by(sizes: Iterable[int]) -> str:
    return "×".join(str(size) for size in sizes)


# tokens


def image_token(config: Any) -> int | None:
    """The token that stands for a piece of an image in a text; None where there is none."""
    names = ("image_token_id", "image_token_index")
    return next((token for name in names if isinstance(token := getattr(config, name, None), int)), None)


def tokens_of_images(config: Any, inputs: ModelInputs, given: Mapping[str, torch.Tensor]) -> tuple[int, ...]:
    """Tokens that stand for each image among ``given``; of one cut into a grid, those of that grid."""
    grid = given.get("image_grid_thw")
    if grid is None:
        return (inputs.image_tokens,) * inputs.images if inputs.image_tokens else ()
    return tuple(int(patches) // int(config.vision_config.spatial_merge_size**2) for patches in grid.prod(dim=1))


def image_ids(config: Any, tokens: Sequence[int], beside: int = 0) -> list[int]:
    """The ids that stand for images in a text, each between those that say where it begins and ends, where it has such.

    Args:
        tokens: of each image.
        beside: tokens of another kind that go with each.
    """
    text = config.get_text_config(decoder=True)
    most = getattr(text, "vocab_size", None) or getattr(config, "vocab_size", None) or 0

    def named(*names: str) -> list[int]:
        found = (getattr(config, name, None) for name in names)
        return next(([each] for each in found if isinstance(each, int) and 0 < each < most), [])

    first = named("vision_start_token_id", "boi_token_index", "boi_token_id")
    last = named("vision_end_token_id", "eoi_token_index", "eoi_token_id")
    text_token = 1 if image_token(config) != 1 else 2
    if len(tokens) > 1 and not first and not last and not beside:
        last = [text_token]  # text between them, as images side by side may be taken for one
    last = [*[text_token] * beside, *last]
    return [each for count in tokens for each in (*first, *[image_token(config) or 0] * count, *last)]


_IMAGES_SEE_ALL_OF_THEM = "gemma3"
_PREFIX_SEES_ITSELF = "paligemma"
"""Models whose processors tell them by ``token_type_ids`` where attention goes both ways."""


def kinds_of_tokens(config: Any, takes: Collection[str], ids: torch.Tensor) -> Tensors:
    """What a model's processor gives beside the ids of a text with images, so that it tells one from the other.

    With it, attention goes both ways over an image, or all of the prompt, for which there has to be a mask.

    Args:
        takes: names of what its forward takes.
    """
    import torch

    is_image = torch.eq(ids, image_token(config) or 0).long()
    made = {"mm_token_type_ids": is_image} if "mm_token_type_ids" in takes else {}
    if "token_type_ids" in takes and config.model_type == _IMAGES_SEE_ALL_OF_THEM:
        made["token_type_ids"] = is_image
    elif "token_type_ids" in takes and config.model_type == _PREFIX_SEES_ITSELF:
        made["token_type_ids"] = torch.zeros_like(ids)
    return made


def _image_tokens(config: Any, shape: tuple[int, int, int]) -> int | None:
    count = IMAGE_TOKENS.get(config.model_type)
    return None if count is None else count(config, shape)


def most_tokens(config: Any) -> int | None:
    """The most tokens that the model's text part takes; None where nothing limits them."""
    text = config.get_text_config(decoder=True)
    limits = (getattr(text, name, None) for name in ("max_target_positions", "max_position_embeddings"))
    return next((limit for limit in limits if isinstance(limit, int) and limit > 0), None)


def prompt_rows(config: Any) -> int:
    """Rows that a prompt of ids takes for each sequence: MusicGen's decoder by itself reads its codebooks so."""
    return codebooks(config) if config.model_type in _ROWS_OF_CODES else 1


def codebooks(config: Any) -> int:
    """Rows that a decoder takes for each sequence: one of sounds takes one for each of its codebooks."""
    return getattr(config.get_text_config(decoder=True), "num_codebooks", None) or 1


# sizes


def image_shape(config: Any) -> tuple[int, int, int]:
    """Channels, height and width of an image that the model takes."""
    vision = _vision(config)
    image = getattr(vision, "image_size", None) or _ANY_SIDE
    if isinstance(image, dict):
        image = (image.get("height", _ANY_SIDE), image.get("width", _ANY_SIDE))
    height, width = image if isinstance(image, list | tuple) else (image, image)
    return getattr(vision, "num_channels", None) or 3, height, width


def _vision(config: Any) -> Any:
    parts = (getattr(config, name, None) for name in ("vision_config", "encoder", "backbone_config", "image_config"))
    return next((part for part in parts if part is not None), config)


def _frames(config: Any) -> int | None:
    """Of a film; None for a model of images."""
    vision = _vision(config)
    frames = getattr(vision, "num_frames", None) or getattr(vision, "frames_per_clip", None)
    return frames if isinstance(frames, int) and config.model_type in _FILMS else None


def _sound_shape(config: Any, name: str) -> tuple[int, ...] | None:
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
