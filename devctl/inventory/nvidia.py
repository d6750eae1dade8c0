"""NVIDIA GPUs, through NVML."""

from collections.abc import Callable
from typing import Any

from devctl.devices import Device
from devctl.inventory.records import Accelerator


def probe() -> tuple[Accelerator, ...]:
    """The boards that the driver knows, in PCI order; none where there is no driver."""
    import pynvml as nvml

    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return ()
    try:
        return tuple(_board(nvml, index) for index in range(nvml.nvmlDeviceGetCount()))
    finally:
        nvml.nvmlShutdown()


def _board(nvml: Any, index: int) -> Accelerator:
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
    except nvml.NVMLError as error:
        return Accelerator(
            device=None, index=index, name=None, uuid=None, memory_total=None, memory_free=None, fault=str(error)
        )
    memory = _ask(nvml, nvml.nvmlDeviceGetMemoryInfo, handle)
    return Accelerator(
        device=Device.gpu(index),
        index=index,
        name=_ask(nvml, nvml.nvmlDeviceGetName, handle),
        uuid=_ask(nvml, nvml.nvmlDeviceGetUUID, handle),
        memory_total=memory and memory.total,
        memory_free=memory and memory.free,
    )


def _ask(nvml: Any, query: Callable[[Any], Any], handle: Any) -> Any:
    """The answer, or None where the board does not support the question."""
    try:
        return query(handle)
    except nvml.NVMLError:
        return None
