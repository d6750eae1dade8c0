"""Versions of drivers and capabilities of boards, compared as numbers."""


def parse_version(text: str) -> tuple[int, ...]:
    """ "550.54" as (550, 54).

    Raises:
        ValueError: a part is no number.
    """
    parts = text.strip().split(".")
    if not all(part.isascii() and part.isdigit() and len(part) < 10 for part in parts):
        raise ValueError(f"{text!r} is not a version; write numbers with dots, like 12.4")
    return tuple(int(part) for part in parts)


def reaches(found: str, wanted: tuple[int, ...]) -> bool:
    """Whether a version that a driver tells is at least ``wanted``: 550 is reached by 550.54, and 12.0 by 12."""
    try:
        version = parse_version(found)
    except ValueError:
        return False
    length = max(len(version), len(wanted))
    return version + (0,) * (length - len(version)) >= wanted + (0,) * (length - len(wanted))


def dotted(version: tuple[int, ...]) -> str:
    """(12, 4) as "12.4"."""
    return ".".join(str(part) for part in version)
