"""Whose kernels torch runs on which accelerators, by their compute capability and the cuDNN beside it. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from devctl.models.footprint import Kernels

_PREFERRED = ((9, 0), (11, 0))
"""From Hopper on, and up to what comes after Blackwell's data-centre boards, torch tries cuDNN's attention first."""
_CUDNN = (9, 15, 1)
"""The first cuDNN of which it does so (``check_prefer_cudnn_attention`` in ``sdp_utils.cpp``)."""
_TORCH = (2, 11)
"""The first torch that was seen to."""
_FLASH = (8, 0)
"""The first boards with flash attention, and with bfloat16 in memory-efficient attention."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """What is installed.

    Attributes:
        torch: its version; None where that is not known.
        cudnn: that of the cuDNN that it runs with.
        shuns_cudnn: see the function.
    """

    torch: tuple[int, ...] | None = None
    cudnn: tuple[int, ...] | None = None
    shuns_cudnn: bool = False

    @property
    def prefers_cudnn(self) -> bool:
        """Whether it tries cuDNN's attention first on boards where that is preferred."""
        known = self.torch is not None and self.cudnn is not None and not self.shuns_cudnn
        return known and (self.torch or ()) >= _TORCH and (self.cudnn or ()) >= _CUDNN


def kernels_on(capabilities: Collection[str | None], build: Build | None = None) -> Kernels:
    """Whose kernels run on accelerators of these compute capabilities; None for one that is not known.

    Of several that differ, or where the build is not known, those that take most: flash and memory-efficient attention
    pad what cuDNN's kernel does not, and old boards have plain products where new ones have none.

    Args:
        build: of torch, on the machine with these accelerators.
    """
    if not capabilities:
        return Kernels.CPU
    known = [parse_release(each) for each in capabilities]
    if any(each is not None and each < _FLASH for each in known):
        return Kernels.ACCELERATOR_BEFORE_8
    preferring = all(each is not None and _PREFERRED[0] <= each < _PREFERRED[1] for each in known)
    return Kernels.ACCELERATOR_CUDNN if preferring and build and build.prefers_cudnn else Kernels.ACCELERATOR


def shuns_cudnn(environment: Mapping[str, str]) -> bool:
    """Whether torch is told not to try cuDNN's attention first."""
    return environment.get("TORCH_CUDNN_SDPA_DEPRIORITIZED") == "1"


def parse_release(version: str | None) -> tuple[int, ...] | None:
    """The numbers that a version begins with: "9.15.1.9" is (9, 15, 1, 9), and "2.11.0+cu130" (2, 11, 0)."""
    found = []
    for part in (version or "").partition("+")[0].split("."):
        if not part.isdecimal():
            break
        found.append(int(part))
    return tuple(found) or None


def parse_cudnn(number: int | None) -> tuple[int, ...] | None:
    """A release of cuDNN as torch tells it: 91501 is (9, 15, 1)."""
    return None if number is None else (number // 10_000, number // 100 % 100, number % 100)
