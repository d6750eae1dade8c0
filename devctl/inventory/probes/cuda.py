"""The CUDA driver itself, asked without a framework, where NVML does not know: CUDA's order, and how fast copies are.

Run as a script, it prints the UUIDs of the devices in CUDA's order; it imports nothing of devctl for that.
Functions and numbers: NVIDIA's CUDA driver API reference, cuda.h.
"""

import ctypes
import sys
import time
from collections.abc import Collection, Mapping
from typing import Any

COPY_BYTES = 64 << 20
"""Bytes of the buffer in pinned RAM and of the one on the GPU."""

_MOST_COPIES = 64

_ORDER_SECONDS = 10.0
"""How long the driver may take to start: a second or two for eight boards that nobody keeps awake."""


class CudaError(Exception):
    """A function of the driver failed; the message has its name and number."""


class Cuda:
    """The one gate to libcuda: every call is checked."""

    def __init__(self) -> None:
        """Load and start the driver; it reads CUDA_VISIBLE_DEVICES now.

        Raises:
            OSError: there is no such library.
            CudaError: the driver does not start.
        """
        self._library = ctypes.CDLL("libcuda.so.1")
        self.call("cuInit", ctypes.c_uint(0))

    def call(self, function: str, *arguments: Any) -> None:
        """Call ``function``.

        Raises:
            CudaError: it failed, or the library does not have it.
        """
        entry = getattr(self._library, function, None)
        result = None if entry is None else entry(*arguments)
        if result != 0:
            raise CudaError(f"{function} failed: {'not found' if result is None else result}")

    def devices(self) -> dict[str, ctypes.c_int]:
        """The devices that this process can use, by UUID as NVML writes it, in CUDA's order."""
        count = ctypes.c_int()
        self.call("cuDeviceGetCount", ctypes.byref(count))
        found = {}
        for ordinal in range(count.value):
            device, uuid = ctypes.c_int(), (ctypes.c_ubyte * 16)()
            self.call("cuDeviceGet", ctypes.byref(device), ctypes.c_int(ordinal))
            self.call("cuDeviceGetUuid_v2", ctypes.byref(uuid), device)
            found[format_uuid(bytes(uuid))] = device
        return found


def format_uuid(raw: bytes) -> str:
    """The 16 bytes of a UUID as NVML writes those of a GPU, without "GPU-" or "MIG-"."""
    text = raw.hex()
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def order(environment: Mapping[str, str]) -> tuple[str, ...] | None:
    """The UUIDs of all devices, as NVML writes those of GPUs, in CUDA's order before CUDA_VISIBLE_DEVICES.

    Asked in a process of its own: the driver reads the environment once in a process's life, can't be used after a
    fork, and with a sick board may not come back. No context is made, so no GPU memory is taken.

    Returns:
        None where there is no CUDA driver, or it does not answer.
    """
    if not sys.executable:
        return None
    import subprocess  # with all that it needs: boards that are alike do without

    everything = {name: value for name, value in environment.items() if name != "CUDA_VISIBLE_DEVICES"}
    command = [sys.executable, "-I", __file__]
    try:
        done = subprocess.run(
            command, env=everything, capture_output=True, text=True, timeout=_ORDER_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return tuple(f"GPU-{uuid}" for uuid in done.stdout.split())


def host_to_device(uuids: Collection[str], *, seconds: float) -> dict[str, int]:
    """Bytes a second from pinned RAM to each GPU named in ``uuids``, one after the other, by UUID.

    What can't be measured is left out: without a CUDA driver, that is all.
    """
    if not uuids:
        return {}
    try:
        cuda = Cuda()
        devices = cuda.devices()
    except (OSError, CudaError):
        return {}
    speeds = {}
    for uuid in uuids:
        device = devices.get(uuid.partition("-")[2])
        if device is None:
            continue
        try:
            speeds[uuid] = _copy_speed(cuda, device, seconds)
        except CudaError:  # no memory left on this one; the others may have
            continue
    return speeds


def _copy_speed(cuda: Cuda, device: ctypes.c_int, seconds: float) -> int:
    context, on_host, on_device = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_uint64()
    size = ctypes.c_size_t(COPY_BYTES)
    cuda.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    try:
        cuda.call("cuCtxSetCurrent", context)
        cuda.call("cuMemHostAlloc", ctypes.byref(on_host), size, ctypes.c_uint(0))
        try:
            cuda.call("cuMemAlloc_v2", ctypes.byref(on_device), size)
            try:
                return _timed_copies(cuda, on_device, on_host, size, seconds)
            finally:
                cuda.call("cuMemFree_v2", on_device)
        finally:
            cuda.call("cuMemFreeHost", on_host)
    finally:
        cuda.call("cuDevicePrimaryCtxRelease_v2", device)


def _timed_copies(
    cuda: Cuda, to: ctypes.c_uint64, source: ctypes.c_void_p, size: ctypes.c_size_t, seconds: float
) -> int:
    cuda.call("cuMemcpyHtoD_v2", to, source, size)  # the first pays for waking the link
    copies = 0
    start = time.perf_counter()
    while copies < _MOST_COPIES and time.perf_counter() - start < seconds:
        cuda.call("cuMemcpyHtoD_v2", to, source, size)
        copies += 1
    return int(copies * COPY_BYTES / (time.perf_counter() - start))


if __name__ == "__main__":
    print("\n".join(Cuda().devices()))
