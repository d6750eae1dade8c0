"""Bytes to text and back: the only place where a size has a unit."""

import math
import re

_BINARY = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_DECIMAL = {"K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_SIZE = re.compile(r"\s*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*(?:([KMGTkmgt])([Ii]?)([Bb])|B)?\s*")


def parse_size(text: str) -> int:
    """Bytes meant by ``text``: "10GiB" is binary, "7.5GB" decimal, a bare number bytes.

    As in accelerate's ``convert_file_size_to_int``, fractions of a byte are cut off, the unit's case is free, and a
    lower-case final b in KB, MB or GB means bits ("8Gb" is 10**9 bytes). Terabytes and bare numbers are ours.

    Raises:
        ValueError: ``text`` is no such size, or is negative.
    """
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a size; write bytes as a number, or with a unit like 10GiB, 512MiB or 7.5GB")
    number, scale, binary, last = match.groups()
    value = float(number) * (1 if scale is None else (_BINARY if binary else _DECIMAL)[scale.upper()])
    if not math.isfinite(value):
        raise ValueError(f"{text!r} is too large for a size")
    return int(value) // 8 if last == "b" and not binary else int(value)


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
