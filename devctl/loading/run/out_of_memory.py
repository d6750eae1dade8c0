"""Out of memory, in the words of every allocator: on which device, and how much was asked for."""

from __future__ import annotations

import contextlib
import gc
import re
import traceback
from collections.abc import Iterator, Mapping

from devctl.devices import Device, DeviceType
from devctl.errors import LoadError, first_line
from devctl.units import format_bytes

_SAYS_SO = re.compile(
    r"out of memory|DefaultCPUAllocator: (?:can't allocate|not enough) memory|CUBLAS_STATUS_ALLOC_FAILED", re.IGNORECASE
)
"""RuntimeErrors of torch that are no ``OutOfMemoryError``: of the CPU, of MPS, of CUDA's own calls and cuBLAS."""

_UNITS = {"bytes": 0, "KiB": 1, "MiB": 2, "GiB": 3, "KB": 1, "MB": 2, "GB": 3}
"""Powers of 1024; MPS, too, counts in them and says KB, MB and GB."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device, or the host, had no memory left."""
    import torch

    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and _SAYS_SO.search(str(error)) is not None
    )


def parse(text: str) -> tuple[Device | None, int | None]:
    """The device and the bytes asked for in an allocator's message; None for what it does not say."""
    device = None
    kind = re.match(r"(CUDA|XPU|HIP|MPS)\b", text)
    number = re.search(r"GPU (\d+)", text)
    if "DefaultCPUAllocator" in text:
        device = Device.cpu()
    elif kind is not None and kind[1] == "MPS":
        device = Device.mps()
    elif kind is not None and number is not None:
        device = Device(DeviceType.XPU if kind[1] == "XPU" else DeviceType.GPU, int(number[1]))
    asked = re.search(r"[Tt]r(?:ied|ying) to allocate (\d+(?:\.\d+)?) ?([KMG]i?B|bytes)", text)
    return device, None if asked is None else int(float(asked[1]) * 1024 ** _UNITS[asked[2]])


@contextlib.contextmanager
def on_device(doing: str, predicted: Mapping[Device, int]) -> Iterator[None]:
    """Turn out of memory into a line that says where, how much was asked for, and what was expected there.

    What the failed call still held is released: a half-loaded model would stay as long as its exception.

    Args:
        doing: like "while loading".
        predicted: bytes that each device was to hold.

    Raises:
        LoadError: memory ran out.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        failure = describe(error, doing, predicted)
        release(error)
        raise failure from error


def describe(error: BaseException, doing: str, predicted: Mapping[Device, int]) -> LoadError:
    """The failure in our words."""
    device, asked = parse(str(error))
    if device is None and isinstance(error, MemoryError):
        device = Device.cpu()
    where = "" if device is None else f" on {device}"
    how_much = f"{format_bytes(asked)} more were asked for" if asked is not None else first_line(error)
    if device is not None and predicted.get(device):
        less = f"{device.id if device.type is DeviceType.GPU else device}={format_bytes(predicted[device] * 4 // 5)}"
        hint = (
            f"{format_bytes(predicted[device])} were expected there: plan with less for it, "
            f"like --max-memory {less.replace(' ', '')}"
        )
    else:
        expected = ", ".join(f"{format_bytes(size)} on {d}" for d, size in predicted.items() if size)
        hint = f"expected were {expected}; plan with a smaller --max-memory"
    return LoadError(f"out of memory{where} {doing}: {how_much}", hint=hint)


def release(error: BaseException) -> None:
    """Let go of what the frames of a failed call hold, here and on the accelerators.

    An accelerator that answers no more gives nothing back, and the failure that is told stays the first one.
    """
    import torch

    seen: BaseException | None = error
    while seen is not None:
        traceback.clear_frames(seen.__traceback__)
        seen = seen.__cause__ or seen.__context__
    gc.collect()
    # those of CUDA and XPU do nothing where no tensor was there yet, nor in a build without
    with contextlib.suppress(RuntimeError):
        torch.cuda.empty_cache()
    with contextlib.suppress(RuntimeError):
        torch.xpu.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()
