"""Which NVIDIA boards a build of CUDA code runs on, and with which drivers. Pure: versions in, an answer out."""

import re
from enum import StrEnum

from devctl.inventory.versions import dotted, parse_version, reaches

LEAST_DRIVERS = {
    11: ("450.80.02", "452.39"),
    12: ("525.60.13", "528.33"),
    13: ("580.65.06", "580"),
}
"""The first driver, on Linux and on Windows, that runs what any release of a major version of CUDA built.

Source: NVIDIA's CUDA compatibility guide, "Minor Version Compatibility", table 1 (450, 525, 580), and for their last
parts the release notes of the CUDA Toolkit, "CUDA Toolkit and Minimum Required Driver Version for CUDA Minor
Version Compatibility".
"""


class Runs(StrEnum):
    """How what one CUDA built runs with a driver."""

    FULLY = "fully"
    WITHIN_MAJOR = "within-major"
    """The driver is of an older release of the same major version: all but what is compiled from PTX runs."""
    NOT = "not"
    UNKNOWN = "unknown"


def runs(built_for: str, driver: str | None, driver_cuda: str | None, *, windows: bool = False) -> Runs:
    """How code of CUDA ``built_for`` ("12.8") runs with a driver.

    Args:
        driver: its version, "550.54.15".
        driver_cuda: the newest CUDA that it says it runs, "12.4".
    """
    try:
        wanted = parse_version(built_for)[:2]
    except ValueError:
        return Runs.UNKNOWN
    if driver_cuda is not None and reaches(driver_cuda, wanted):
        return Runs.FULLY
    least = least_driver(built_for, windows=windows)
    if driver is None or least is None or not _is_version(driver):
        same = driver_cuda is not None and reaches(driver_cuda, wanted[:1])
        return Runs.UNKNOWN if driver_cuda is None or same else Runs.NOT
    if not reaches(driver, parse_version(least)):
        return Runs.NOT
    return Runs.UNKNOWN if driver_cuda is None else Runs.WITHIN_MAJOR


def _is_version(text: str) -> bool:
    try:
        return bool(parse_version(text))
    except ValueError:
        return False


def least_driver(built_for: str, *, windows: bool = False) -> str | None:
    """The first driver that runs what CUDA ``built_for`` built; None where the table does not have it."""
    try:
        major = parse_version(built_for)[0]
    except ValueError:
        return None
    pair = LEAST_DRIVERS.get(major)
    return None if pair is None else pair[1 if windows else 0]


class Kernels(StrEnum):
    """What a build has for a board."""

    BINARY = "binary"
    PTX = "ptx"
    """Code that the driver compiles when it is first used."""
    NONE = "none"


def kernels_for(capability: str, architectures: tuple[str, ...]) -> Kernels | None:
    """What a build with ``architectures`` ("sm_80", "sm_90a", "compute_90") has for a board of ``capability`` ("8.6").

    A binary runs on boards of its major number and of its minor or a later one; of a name with "a" on that very board
    alone, with "f" on its family, which is that major number from that minor on. PTX runs on any later board, of a name
    with "a" not. Source: NVIDIA's CUDA programming guide, "Compute Capabilities", and the CUDA compiler's reference,
    "GPU Feature List".

    Returns:
        None where the capability can't be read.
    """
    try:
        board = parse_version(capability)
    except ValueError:
        return None
    found = Kernels.NONE
    for name in architectures:
        match = re.fullmatch(r"(sm|compute)_([0-9]{1,3})([0-9])([af]?)", name.strip())
        if match is None:
            continue
        built, suffix = (int(match[2]), int(match[3])), match[4]
        within = board[0] == built[0] and board >= built if suffix != "a" else board == built
        if match[1] == "sm" and within:
            return Kernels.BINARY
        if match[1] == "compute" and (within if suffix else board >= built):
            found = Kernels.PTX
    return found


def listed(architectures: tuple[str, ...]) -> str:
    """``architectures`` as a person reads them: "7.5, 8.0, 9.0 and PTX of 9.0"."""
    parts = [re.fullmatch(r"(sm|compute)_([0-9]{1,3})([0-9])([af]?)", name) for name in architectures]
    binary = [f"{dotted((int(p[2]), int(p[3])))}{p[4]}" for p in parts if p and p[1] == "sm"]
    ptx = [f"{dotted((int(p[2]), int(p[3])))}{p[4]}" for p in parts if p and p[1] == "compute"]
    return " and ".join(part for part in (", ".join(binary), f"PTX of {', '.join(ptx)}" if ptx else "") if part)
