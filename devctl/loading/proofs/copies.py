"""Do accelerators copy to one another without changing a bit?

Some machines do not, with peer-to-peer copies that their boards or their IOMMU can't do, and then a model that is split
over them answers nonsense without an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import TYPE_CHECKING

from devctl.devices import Device
from devctl.errors import LoadError, first_line
from devctl.loading.run.out_of_memory import is_out_of_memory

if TYPE_CHECKING:
    import torch

SIZES = (2**20, 2**26)
"""Bytes of the buffers that are copied: one that is copied at once, and one that is copied in parts."""

CopyFunction = Callable[["torch.Tensor", Device, Device], "torch.Tensor"]
"""Given bytes on the CPU, puts them on the first device, copies them to the second, and returns what is there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Copied:
    """A buffer of ``nbytes`` random bytes, copied from one device to another."""

    source: Device
    target: Device
    nbytes: int
    changed: int


def check_copies(
    devices: Sequence[Device], *, sizes: Sequence[int] = SIZES, copy: CopyFunction | None = None
) -> tuple[Copied, ...]:
    """Copy random bytes from each device to each other, and compare every one.

    Where bytes have changed, the same are sent from the CPU to the second device and back: if they change there too, it
    is that way which is at fault, and is named.

    Args:
        copy: how to copy; None is torch's way.

    Raises:
        LoadError: a device has no memory left for the buffers, or can't be used.
    """
    if len(devices) < 2:
        return ()
    try:
        return tuple(_check(devices, sizes, copy or _copy))
    except Exception as error:
        if is_out_of_memory(error):
            raise LoadError(
                f"out of memory for the {max(sizes) >> 20} MiB that are copied between accelerators to compare them",
                hint="leave more room: plan with a smaller --max-memory",
            ) from error
        raise LoadError(f"copying between accelerators failed: {first_line(error)}") from error


def _check(devices: Sequence[Device], sizes: Sequence[int], copy: CopyFunction) -> Iterator[Copied]:
    import torch

    generator = torch.Generator().manual_seed(0)
    for size in sizes:
        sent = torch.randint(0, 256, (size,), dtype=torch.uint8, generator=generator)
        for source, target in permutations(devices, 2):
            changed = _changed(sent, copy(sent, source, target))
            start = source
            if changed and (on_the_way := _changed(sent, copy(sent, Device.cpu(), target))):
                start, changed = Device.cpu(), on_the_way
            yield Copied(source=start, target=target, nbytes=size, changed=changed)


def _changed(sent: torch.Tensor, arrived: torch.Tensor) -> int:
    return int((sent != arrived).sum())


def _copy(sent: torch.Tensor, source: Device, target: Device) -> torch.Tensor:
    there = sent.to(str(source)).to(str(target), copy=True)
    return there.cpu()
