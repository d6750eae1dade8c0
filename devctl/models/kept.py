"""Values of entries that are kept between runs, checked as input is: an entry that is wrong is made anew."""

from typing import Any

MOST = 2**63
"""More than any number of bytes or elements."""


def text(value: Any) -> str:
    """``value``, a string.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no text")
    return value


def whole(value: Any) -> int:
    """``value``, a whole number of any sign.

    Raises:
        ValueError: it is none, or larger than any of a model.
    """
    if not isinstance(value, int) or isinstance(value, bool) or not -MOST < value < MOST:
        raise ValueError(f"{value!r} is no number of a model")
    return value


def size(value: Any) -> int:
    """``value``, a number of bytes or elements.

    Raises:
        ValueError: it is none.
    """
    if whole(value) < 0:
        raise ValueError(f"{value!r} is below 0")
    return int(value)


def flag(value: Any) -> bool:
    """``value``, true or false.

    Raises:
        ValueError: it is neither.
    """
    if not isinstance(value, bool):
        raise ValueError(f"{value!r} is neither true nor false")
    return value


def texts(values: Any) -> tuple[str, ...]:
    """``values``, a list of strings.

    Raises:
        ValueError: they are none.
    """
    if not isinstance(values, list):
        raise ValueError(f"{values!r} is no list")
    return tuple(map(text, values))
