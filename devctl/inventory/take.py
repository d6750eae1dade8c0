"""All probes together: one machine at one moment."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from devctl.errors import first_line
from devctl.inventory.probes.findings import Findings
from devctl.inventory.records import HOST_POOL, Accelerator, Disk, Hidden, Host, Inventory, Links, Vendor

if TYPE_CHECKING:
    from devctl.inventory.probes.nvidia_apart import Question


class Part(StrEnum):
    """A part of an inventory that can be looked at alone."""

    GPU = "gpu"
    CPU = "cpu"
    DISK = "disk"


def take_inventory(
    *,
    only: Part | None = None,
    folders: Sequence[tuple[str, Path]] = (),
    there: Collection[str] = (),
    environment: Mapping[str, str] | None = None,
    accelerators: bool = True,
) -> Inventory:
    """Look at this machine now. A device that can't be read is in the result with its fault; nothing is raised.

    Args:
        only: look at one part; the rest is empty or unknown.
        folders: what to look at besides the working directory and the Hugging Face cache, each with its ``use``.
        there: those uses whose folder must be there: others are looked at as if they were made.
        environment: the variables that choose devices; this process's own where it is None.
        accelerators: whether their drivers are asked; a plan that uses none does without.

    Raises:
        UsageError: DEVCTL_DRIVER_TIMEOUT is no time.
    """
    from devctl.inventory.probes import host

    environment = os.environ if environment is None else environment
    this_host = host.UNKNOWN
    disks: tuple[Disk, ...] = ()
    findings: tuple[Findings, ...] = ()
    with contextlib.ExitStack() as asking:
        nvidia = None
        if accelerators and only in (None, Part.GPU):
            nvidia = asking.enter_context(contextlib.closing(_ask_nvidia(environment)))
        # the driver answers while the rest is looked at
        if only in (None, Part.CPU):
            this_host = host.probe()
        if only in (None, Part.DISK):
            disks = _disks(folders, there)
        if nvidia is not None:
            findings = _accelerators(environment, nvidia.findings)
    shown = this_host
    if only is Part.GPU and any(a.memory_pool == HOST_POOL for found in findings for a in found.accelerators):
        this_host = host.probe()  # a GPU that shares the host's memory has the host's numbers
    inventory = combine(findings, this_host, torch_is_rocm() if _both_vendors(findings) else None)
    return replace(inventory, disks=disks, host=shown, taken_at=utc(time.time()))


def _disks(folders: Sequence[tuple[str, Path]], there: Collection[str]) -> tuple[Disk, ...]:
    from devctl.inventory.probes import disk

    # "." is made absolute by the probe, which can say so where the working directory has been removed
    always = (("working directory", Path()), ("hf cache", disk.hf_cache()))
    mounted = disk.mounted()
    return tuple(disk.probe(use, path, mounted, must_be_there=use in there) for use, path in (*always, *folders))


def utc(seconds: float) -> str:
    """ISO 8601 to the millisecond. Not by datetime, which alone takes 3 ms to import."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{int(seconds * 1000) % 1000:03d}Z"


def _ask_nvidia(environment: Mapping[str, str]) -> Question:
    from devctl.inventory.probes.nvidia_apart import Question

    return Question(environment)


def _accelerators(environment: Mapping[str, str], nvidia: Callable[[], Findings]) -> tuple[Findings, ...]:
    from devctl.inventory.probes import pci

    on_bus = pci.scan()
    vendors = {device.vendor for device in on_bus}
    probes: list[tuple[Vendor, Callable[[], Findings]]] = [(Vendor.NVIDIA, nvidia)]
    # the other probes are only read in where there is something for them: each costs a millisecond or two
    if pci.AMD in vendors:
        from devctl.inventory.probes import amd

        probes.append((Vendor.AMD, partial(amd.probe, environment, on_bus)))
    if pci.INTEL in vendors:
        from devctl.inventory.probes import intel

        probes.append((Vendor.INTEL, partial(intel.probe, environment, on_bus)))
    if sys.platform == "darwin":
        from devctl.inventory.probes import apple

        probes.append((Vendor.APPLE, apple.probe))
    if (pci.SYS / "class/accel").exists():
        from devctl.inventory.probes import npu

        probes.append((Vendor.OTHER, npu.probe))
    return tuple(guarded(vendor, probe) for vendor, probe in probes)


def guarded(vendor: Vendor, probe: Callable[[], Findings]) -> Findings:
    """What ``probe`` finds; where its library or files are broken beyond what it expects, that as the driver's fault.

    The other vendors' devices must not be lost with it, so this is one of the two places that catch everything.
    """
    from devctl.inventory.records import Driver

    try:
        return probe()
    except Exception as error:  # noqa: BLE001 - see above
        fault = f"could not be looked at: {type(error).__name__}: {first_line(error)}"
        return Findings(driver=Driver(vendor=vendor, version=None, cuda=None, fault=fault))


def combine(findings: Sequence[Findings], host: Host, torch_is_rocm: bool | None = None) -> Inventory:
    """One inventory of every vendor's findings, without disks."""
    findings = one_vendor_as_cuda(findings, torch_is_rocm)
    accelerators: list[Accelerator] = []
    links = Links()
    for found in findings:
        if found.links.accelerators:
            places = tuple(place + len(accelerators) for place in found.links.accelerators)
            links = replace(found.links, accelerators=places)
        accelerators += found.accelerators
    return Inventory(
        accelerators=tuple(share_memory(accelerator, host) for accelerator in accelerators),
        host=host,
        disks=(),
        drivers=tuple(found.driver for found in findings if found.driver is not None),
        links=links,
        cuda_order_certain=all(found.order_certain for found in findings),
        notes=tuple(note for found in findings for note in found.notes),
    )


def share_memory(accelerator: Accelerator, host: Host) -> Accelerator:
    """``accelerator`` with the host's bytes where its memory is the host's and its driver did not say how much."""
    if accelerator.memory_pool != HOST_POOL:
        return accelerator
    total, free = accelerator.memory_total, accelerator.memory_free
    if free is not None and host.ram_available is not None:
        free = min(free, host.ram_available)
    return replace(
        accelerator,
        memory_total=host.ram_total if total is None else total,
        memory_free=host.ram_available if total is None else free,
    )


def _both_vendors(findings: Sequence[Findings]) -> bool:
    return len(_cuda_vendors(findings)) > 1


def _cuda_vendors(findings: Sequence[Findings]) -> set[Vendor]:
    return {
        a.vendor
        for found in findings
        for a in found.accelerators
        if a.device and a.vendor in (Vendor.NVIDIA, Vendor.AMD)
    }


def one_vendor_as_cuda(findings: Sequence[Findings], torch_is_rocm: bool | None) -> tuple[Findings, ...]:
    """NVIDIA's and AMD's boards are both "cuda" to torch, and a build drives one: the others are hidden.

    ``torch_is_rocm`` is what the installed torch was built for; NVIDIA's are taken where that is unknown.
    """
    if not _both_vendors(findings):
        return tuple(findings)
    loser = Vendor.NVIDIA if torch_is_rocm else Vendor.AMD
    reason = "it is built for ROCm" if torch_is_rocm else "it is not built for ROCm, or not installed"
    note = f"torch calls both NVIDIA's and AMD's GPUs \"cuda\"; {loser} is left out, because {reason}"

    def without_devices(found: Findings) -> Findings:
        if all(a.vendor is not loser for a in found.accelerators):
            return found
        hidden = tuple(
            replace(a, device=None, hidden=Hidden.OTHER_BUILD) if a.device else a for a in found.accelerators
        )
        return replace(found, accelerators=hidden, notes=(*found.notes, note))

    return tuple(without_devices(found) for found in findings)


def torch_is_rocm() -> bool | None:
    """Whether the installed torch is built for AMD's GPUs, read from a file of it; None without torch."""
    from importlib.util import find_spec

    from devctl.inventory.probes.pci import read

    spec = find_spec("torch")
    if spec is None or not spec.origin:
        return None
    return parse_torch_version(read(Path(spec.origin).parent / "version.py"))


def parse_torch_version(text: str | None) -> bool | None:
    """torch/version.py: whether ``hip`` is set in it; None where it does not say."""
    for line in (text or "").splitlines():
        name, equals, value = line.partition("=")
        if equals and name.partition(":")[0].strip() == "hip":
            return value.strip() not in ("None", "''", '""')
    return None
