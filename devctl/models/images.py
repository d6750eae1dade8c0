"""How many images of what size a sequence carries: what is asked, as plain data. Imports no torch."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

MOST_IMAGES, MOST_SIDE, MOST_PIXELS = 4096, 2**14, 2**28
"""The most images of a sequence, pixels of a side, and pixels of all of them."""

MOST_SETTING = 2**14
"""The largest setting of a processor that is looked at: tiles of an image, or pixels of a side."""

_FORM = re.compile(r"0*(\d{1,6})x0*(\d{1,6})x0*(\d{1,6})", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """The images of each sequence, all of one size, before the model's processor changes that.

    Attributes:
        count: how many; 0 for none, which have no size.
        height, width: pixels.
        least, most: pixels of an image that the model's processor scales to at least and at most, where its files
            say so.
        processor: other settings of that processor, by name; None where its files are not at hand.
    """

    count: int
    height: int = 0
    width: int = 0
    least: int | None = None
    most: int | None = None
    processor: tuple[tuple[str, int], ...] | None = None

    def to_document(self) -> dict[str, Any]:
        """What was asked for, and what decides on the size that the model sees, for a document."""
        return {
            "count": self.count,
            "height": self.height,
            "width": self.width,
            "least": self.least,
            "most": self.most,
            "processor": None if self.processor is None else dict(self.processor),
        }

    def __str__(self) -> str:
        return f"{self.count}x{self.height}x{self.width}" if self.count else "0"


def parse_images(text: str) -> Images:
    """Images from text like ``2x448x640``: two, 448 pixels high and 640 wide; ``0`` is none.

    Raises:
        ValueError: it is not that, or more than is counted.
    """
    if text.strip() == "0":
        return Images(count=0)
    found = _FORM.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"{text[:40]!r} is not COUNTxHEIGHTxWIDTH in pixels, like 2x448x640, or 0 for none")
    count, height, width = (int(number) for number in found.groups())
    if not (count and height and width):
        raise ValueError(f"{text[:40]!r} has a part that is 0: none at all is just 0")
    if count > MOST_IMAGES or max(height, width) > MOST_SIDE or count * height * width > MOST_PIXELS:
        raise ValueError(
            f"{text[:40]!r} is more than devctl counts: {MOST_IMAGES} images, {MOST_SIDE} pixels a side, "
            f"{MOST_PIXELS:,} in all"
        )
    return Images(count=count, height=height, width=width)


def images_of_document(data: Any) -> Images:
    """What ``to_document`` wrote; one without the limits of a processor has none.

    Raises:
        ValueError: it is not that, or more than is counted.
    """
    if not isinstance(data, dict):
        raise ValueError("images are an object")
    count, height, width = (data.get(name, 0) for name in ("count", "height", "width"))
    limits = data.get("least"), data.get("most")
    if not all(type(value) is int and value >= 0 for value in (count, height, width)):
        raise ValueError("images have a count and sides")
    if not all(limit is None or (type(limit) is int and limit > 0) for limit in limits):
        raise ValueError("limits are pixels")
    processor = data.get("processor")
    if processor is not None and not isinstance(processor, dict):
        raise ValueError("settings of a processor are an object")
    if not all(type(value) is int and 0 <= value <= MOST_SETTING for value in (processor or {}).values()):
        raise ValueError("settings of a processor are numbers")
    found = parse_images(f"{count}x{height}x{width}" if count else "0")
    settings = None if processor is None else tuple(sorted(processor.items()))
    return replace(found, least=limits[0], most=limits[1], processor=settings)
