"""How fast the disks read and the GPUs take data, measured: bounded in time and bytes, leaving nothing behind."""

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from devctl.inventory.probes.disk import nearest_existing
from devctl.inventory.records import Accelerator, Disk, Inventory

READ_BYTES = 256 << 20
"""Bytes of the file that is written and read; a twentieth of the free bytes where that is less."""

SECONDS = 2.0
"""How long each writing, reading or copying may take."""

_CHUNK = 4 << 20


def measure(inventory: Inventory) -> Inventory:
    """``inventory`` with the speeds of its disks and of the NVIDIA GPUs that this process can use.

    Folders on one file system are measured once. What could not be measured stays None, on a disk with the fault.
    """
    from devctl.inventory.probes.cuda import host_to_device

    measured: dict[str | None, Disk] = {}
    disks = []
    for disk in inventory.disks:
        if disk.mount is None or disk.mount not in measured:
            measured[disk.mount] = measure_disk(disk)
        twin = measured[disk.mount]
        disks.append(replace(disk, read_speed=twin.read_speed, fault=disk.fault or twin.fault))

    speeds = host_to_device({a.uuid for a in inventory.accelerators if _measurable(a) and a.uuid}, seconds=SECONDS)
    accelerators = tuple(replace(a, host_to_device=speeds.get(a.uuid or "")) for a in inventory.accelerators)
    return replace(inventory, disks=tuple(disks), accelerators=accelerators)


def _measurable(accelerator: Accelerator) -> bool:
    return accelerator.device is not None and accelerator.uuid is not None


def measure_disk(disk: Disk, clock: Callable[[], float] = time.perf_counter) -> Disk:
    """``disk`` with its sequential read speed, or with the fault that kept it from being measured."""
    if disk.fault is not None or disk.free is None:
        return disk
    size = min(READ_BYTES, disk.free // 20)
    if size < _CHUNK:
        return replace(disk, fault="too full to measure")
    try:
        return replace(disk, read_speed=read_speed(nearest_existing(Path(disk.path)), size, clock))
    except OSError as error:
        return replace(disk, fault=f"not measured: {error.strerror or error}")


def read_speed(folder: Path, size: int, clock: Callable[[], float] = time.perf_counter) -> int | None:
    """Bytes a second of reading a file of ``size`` bytes in ``folder`` once, past the page cache.

    The file has no name, where the system can do that, so that even a killed process leaves nothing. None where the
    page cache can't be told to forget it, and what would be measured is RAM.

    Raises:
        OSError: the file can't be made, written or read.
    """
    if not hasattr(os, "posix_fadvise"):
        return None
    # random, so that a file system that compresses has to read it all
    chunk = os.urandom(_CHUNK)
    with tempfile.TemporaryFile(dir=folder, prefix=".devctl-", buffering=0) as file:
        written = 0
        deadline = clock() + SECONDS
        while written < size and clock() < deadline:
            written += file.write(chunk) or 0
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        file.seek(0)

        buffer = bytearray(_CHUNK)
        done = 0
        start = clock()
        deadline = start + SECONDS
        while done < written and clock() < deadline:
            got = file.readinto(buffer)
            if not got:
                break
            done += got
        took = clock() - start
    return int(done / took) if done and took > 0 else None
