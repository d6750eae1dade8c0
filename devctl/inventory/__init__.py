"""What is here: accelerators, host and disks as frozen values. No torch, ever."""

from pathlib import Path

from devctl.inventory.records import Accelerator, Disk, Host, Inventory

__all__ = ["Accelerator", "Disk", "Host", "Inventory", "take_inventory"]


def take_inventory() -> Inventory:
    """Look at this machine now. A device that can't be read is in the result with its fault; nothing is raised."""
    from devctl.inventory import disk, host, nvidia

    return Inventory(
        accelerators=nvidia.probe(),
        host=host.probe(),
        disks=(disk.probe("working directory", Path.cwd()), disk.probe("hf cache", disk.hf_cache())),
    )
