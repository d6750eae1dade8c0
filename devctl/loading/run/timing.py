"""Taking the time of work that runs on accelerators."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from devctl.devices import Device


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """A figure that was measured ``runs`` times."""

    median: float
    least: float
    most: float
    runs: int


def spread(values: list[float]) -> Spread:
    """The median and the ends of what was measured."""
    return Spread(median=statistics.median(values), least=min(values), most=max(values), runs=len(values))


def spread_of_known(values: Iterable[float | None]) -> Spread | None:
    """The spread of the values that are known; None where none is."""
    known = [value for value in values if value is not None]
    return spread(known) if known else None


def synchronize(device: Device) -> None:
    """Wait for the accelerators, whose work is asynchronous."""
    import torch

    if device.type in ("cuda", "xpu"):
        module = getattr(torch, device.type.value)
        for index in range(module.device_count()):
            # waiting for one that holds nothing of ours would only make a context on it, of some hundred MiB
            if _reserved(module, index):
                module.synchronize(index)
    elif device.type == "mps":
        torch.mps.synchronize()


def _reserved(module: Any, index: int) -> int:
    """Bytes that torch's allocator holds of an accelerator; 0 of one that is counted and not there.

    torch up to 2.12 counts the boards that NVML shows, of which CUDA has fewer where they are in MIG mode, and its
    allocator refuses the number of such a one: "Invalid device argument".
    """
    try:
        return int(module.memory_reserved(index))
    except RuntimeError:
        return 0
