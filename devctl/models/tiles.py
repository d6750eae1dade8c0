"""Into how many tiles a model's processor cuts an image, and how many tokens stand for them: arithmetic alone.

Each function does what transformers' processor of that name does, by the settings in the model's own files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from devctl.models.images import Images

_LARGEST = 4096
"""Pixels of a side to which Idefics 3's processor scales at most (``MAX_IMAGE_SIZE``)."""

NO_FILE = "how its processor cuts an image is in preprocessor_config.json, which is not at hand"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiles:
    """What one image becomes.

    Attributes:
        count: tiles, a smaller copy of the whole among them.
        height, width: pixels of each.
        beside: tokens of the text that go with them, beside those that stand for a piece of an image, and those that
            the config names for where an image begins and ends.
    """

    count: int
    height: int
    width: int
    beside: int = 0


def tiles_of(config: Any, images: Images, own: tuple[int, int]) -> Tiles | None:
    """What the model's processor makes of one of ``images``; None where it does not cut them, or it is not known.

    Args:
        own: height and width that the config has.

    Raises:
        ValueError: the files that say so are not at hand, or do not go with the config.
    """
    cut = _CUTS.get(config.model_type)
    if cut is None:
        return None
    if images.processor is None:
        raise ValueError(NO_FILE)
    return cut(dict(images.processor), images.height, images.width, own)


def _internvl(settings: Mapping[str, int], height: int, width: int, own: tuple[int, int]) -> Tiles:
    """As GotOcr2ImageProcessor does, which InternVL's processor always tells to cut."""
    side = _side(settings.get("height"), own)
    columns, rows = _closest_grid(height, width, side, settings.get("min_patches", 1), settings.get("max_patches", 12))
    cut = columns * rows
    return Tiles(count=1 if cut == 1 else cut + 1, height=side, width=side, beside=2)


def _closest_grid(height: int, width: int, side: int, least: int, most: int) -> tuple[int, int]:
    """Columns and rows of tiles whose ratio is closest to the image's (``get_optimal_tiled_canvas``)."""
    grids = sorted(
        (
            (columns, rows)
            for columns in range(1, most + 1)
            for rows in range(1, most // columns + 1)
            if columns * rows >= least
        ),
        key=lambda grid: grid[0] * grid[1],
    )
    best, closest = (1, 1), math.inf
    for columns, rows in grids:
        apart = abs(width / height - columns / rows)
        # of equal ones, the larger, as long as the image has half of its pixels
        if apart < closest or (apart == closest and height * width > 0.5 * side * side * columns * rows):
            best, closest = (columns, rows), apart
    return best


def _idefics3(settings: Mapping[str, int], height: int, width: int, own: tuple[int, int]) -> Tiles:
    side = _side(settings.get("tile", 364), own)
    if not settings.get("do_image_splitting", 1):
        return Tiles(count=1, height=side, width=side, beside=3)
    longest = settings.get("longest_edge", 4 * 364)
    high, wide = _below(*_to_longest(height, width, longest))
    rows, columns = math.ceil(high / side), math.ceil(wide / side)
    if rows * columns == 1:
        return Tiles(count=1, height=side, width=side, beside=3)
    return Tiles(count=rows * columns + 1, height=side, width=side, beside=3 + rows * (2 * columns + 1))


def _to_longest(height: int, width: int, longest: int) -> tuple[int, int]:
    """The same image with so long a side, the other one even (``_resize_output_size_rescale_to_max_len``)."""
    ratio = width / height
    if width >= height:
        other = int(longest / ratio)
        return max(1, other + other % 2), longest
    other = int(longest * ratio)
    return longest, max(1, other + other % 2)


def _below(height: int, width: int) -> tuple[int, int]:
    """The same image with no side above the largest (``_resize_output_size_scale_below_upper_bound``)."""
    ratio = width / height
    if width >= height and width > _LARGEST:
        return max(1, int(_LARGEST / ratio)), _LARGEST
    if height > width and height > _LARGEST:
        return _LARGEST, max(1, int(_LARGEST * ratio))
    return height, width


def _llama4(settings: Mapping[str, int], height: int, width: int, own: tuple[int, int]) -> Tiles:
    side = _side(settings.get("height"), own)
    most, largest = settings.get("max_patches", 16), bool(settings.get("resize_to_max_canvas", 0))
    rows, columns = _best_fit(height, width, side, most, largest=largest)
    cut = rows * columns
    # the one for the whole; where there are others, a token behind each of them
    return Tiles(count=1 if cut == 1 else cut + 1, height=side, width=side, beside=1 if cut == 1 else 1 + cut)


def _best_fit(height: int, width: int, side: int, most: int, *, largest: bool) -> tuple[int, int]:
    """Rows and columns of tiles that the image fits best (``get_best_fit``), the fewest of equal ones.

    In single precision, as there, where ratios of long sides are equal that are not otherwise.
    """
    import numpy as np

    grids = [(rows, columns) for rows in range(1, most + 1) for columns in range(1, most // rows + 1)]
    single = np.float32
    scales = [
        min(single(rows * side) / single(height), single(columns * side) / single(width)) for rows, columns in grids
    ]
    enough = [scale for scale in scales if scale >= 1]
    chosen = (max(enough) if largest else min(enough)) if enough else max(scales)
    fitting = [grid for grid, scale in zip(grids, scales, strict=True) if scale == chosen]
    return min(fitting, key=lambda grid: grid[0] * grid[1])


def _side(said: int | None, own: tuple[int, int]) -> int:
    """The side of a tile, which is the model's.

    Raises:
        ValueError: the model takes another one.
    """
    if own[0] != own[1] or said not in (None, own[0]):
        raise ValueError(
            f"its processor makes tiles of {said or own[0]} pixels a side, and the config has {own[0]}×{own[1]}"
        )
    return own[0]


_CUTS: Mapping[str, Callable[[Mapping[str, int], int, int, tuple[int, int]], Tiles]] = {
    "internvl": _internvl,
    "idefics3": _idefics3,
    "smolvlm": _idefics3,
    "llama4": _llama4,
}
