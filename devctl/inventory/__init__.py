"""What is here: accelerators, host and disks as frozen values. No torch, ever."""

from devctl.inventory.records import Accelerator, Disk, Host, Inventory
from devctl.inventory.take import Part, take_inventory

__all__ = ["Accelerator", "Disk", "Host", "Inventory", "Part", "take_inventory"]
