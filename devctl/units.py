"""Bytes to text and back: the only place where a size has a unit, and a count of tokens a k."""

import re

_BINARY = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_DECIMAL = {"K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_SIZE = re.compile(r"([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]{1,4})?)\s*([KMGTkmgt]?)([Ii]?)([Bb]?)")
_MOST = 2**63
_COUNT = re.compile(r"([0-9]{1,15})([kKmM]?)")


class AmbiguousSizeError(ValueError):
    """A size that can be read in two ways; the message names both."""


def parse_size(text: str) -> int:
    """Bytes meant by ``text``, a number and a unit: "10GiB" is binary, "7.5GB" decimal, "4096B" as it is.

    Fractions of a byte are cut off, and the case of K, M, G, T and i is free. What can be read in two ways is refused:
    "64gb" is bits to some (to accelerate, too), "80G" is GB or GiB, and a number alone may lack its unit.

    Raises:
        AmbiguousSizeError: ``text`` can be read in two ways.
        ValueError: ``text`` is no size, is negative, or more than any machine has.
    """
    text = text.strip()
    match = _SIZE.fullmatch(text)
    number, scale, binary, last = match.groups() if match else ("", "", "", "")
    scale = scale.upper()
    if match and not (scale or binary or last):
        raise AmbiguousSizeError(f"{text!r} has no unit; write it like {number}GiB, or {number}B where bytes are meant")
    if match is None or (binary and not (scale and last)):
        why = ", but a share" if text.endswith("%") else "" if text else ", it has no unit"
        raise ValueError(f"{text!r} is not a size{why}; write it like 10GiB, 512MiB or 7.5GB")
    if not last:
        raise AmbiguousSizeError(f"{text!r} may be {number}{scale}B or {number}{scale}iB; write which")
    if last == "b" and not binary:
        raise AmbiguousSizeError(f"{text!r} may be bits or bytes; write bytes with a capital B, like {number}{scale}B")
    factor = (_BINARY if binary else _DECIMAL)[scale] if scale else 1
    # whole numbers exactly; of others a float has all the digits that anybody writes
    value = int(number) * factor if number.isdigit() and len(number) < 20 else float(number) * factor
    if value >= _MOST:
        raise ValueError(f"{text!r} is too large for a size")
    if 0 < value < 1:
        raise ValueError(f"{text!r} is less than a byte; write it like 10GiB, 512MiB or 7.5GB")
    return int(value)


def parse_count(text: str) -> int:
    """How many tokens ``text`` means: "4096", or "32k", which is 32 times 1024 as in the names of models, and "1M".

    Raises:
        ValueError: ``text`` is no such number.
    """
    match = _COUNT.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a count of tokens; write it like 4096 or 32k")
    return int(match[1]) * {"": 1, "k": 2**10, "m": 2**20}[match[2].lower()]


_SECONDS = {"ms": 0.001, "": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


def parse_seconds(text: str) -> float:
    """Seconds in a duration like 60s, 500ms or 2min; without a unit it is of seconds, as `sleep` and `timeout` have it.

    Raises:
        ValueError: it is none, or is 0.
    """
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*(ms|s|m|min|h|)", text.strip(), re.ASCII)
    if found is None or len(found[1]) > 9:
        raise ValueError(f"{text!r} is no time like 60s, 500ms or 2min")
    seconds = float(found[1]) * _SECONDS[found[2]]
    if not seconds:
        raise ValueError(f"{text!r} leaves no time at all")
    return seconds


def format_need(size: int) -> str:
    """``size`` as `format_bytes` writes it, but rounded up: what is written is enough."""
    text = format_bytes(size)
    number, unit = text.split()
    digits = len(number.partition(".")[2])
    if parse_size(number + unit) < size:
        number = f"{float(number) + 10**-digits:.{digits}f}"
    return f"{number} {unit}"


def format_bytes(size: int) -> str:
    """``size`` in the largest binary unit that keeps it at or above 1, with three significant digits: "7.48 GiB"."""
    if abs(size) >= _MOST * 2**40:  # nothing has so much, and a float may not hold it
        return f"{size // 2**40} TiB"
    value, unit = float(size), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(value) < 999.5 or unit == "TiB":
            break
        value /= 1024
    if unit == "B":
        return f"{size} B"
    digits = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    return f"{value:.{digits}f} {unit}"


def format_rate(rate: int) -> str:
    """``rate``, bytes a second, in the decimal units of datasheets, with three significant digits: "3.35 TB/s"."""
    value, unit = (rate / 10**12, "TB/s") if rate >= 999.5 * 10**9 else (rate / 10**9, "GB/s")
    digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{digits}f} {unit}"
