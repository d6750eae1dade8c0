"""devctl: what hardware is here, where each layer of a model should go, and does it really run there.

The names below are the public API; each is imported when it is first asked for. Importing devctl, and all but planning
and loading with it, imports no torch, transformers, rich, typer or pynvml.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from devctl.api import capacity, check, compare, fits_on, load, open_model, plan
    from devctl.devices import ComponentDevice, Device, DeviceMap, DeviceType
    from devctl.errors import DevctlError, LoadError, ModelError, RefusedError, UsageError
    from devctl.inventory.records import Inventory
    from devctl.inventory.requirements import Requirements, Verdict
    from devctl.inventory.take import take_inventory
    from devctl.loading.measure import LoadReport
    from devctl.placement.plan import Comparison, Plan
    from devctl.placement.strategy import Strategy
    from devctl.planning.capacity import Capacity
    from devctl.planning.fits_on import FitsOn
    from devctl.planning.model import Model

__version__ = "0.2.0"

_WHERE = {
    "devctl.api": ("capacity", "check", "compare", "fits_on", "load", "open_model", "plan"),
    "devctl.devices": ("ComponentDevice", "Device", "DeviceMap", "DeviceType"),
    "devctl.errors": ("DevctlError", "LoadError", "ModelError", "RefusedError", "UsageError"),
    "devctl.inventory.records": ("Inventory",),
    "devctl.inventory.requirements": ("Requirements", "Verdict"),
    "devctl.inventory.take": ("take_inventory",),
    "devctl.loading.measure": ("LoadReport",),
    "devctl.placement.plan": ("Comparison", "Plan"),
    "devctl.placement.strategy": ("Strategy",),
    "devctl.planning.capacity": ("Capacity",),
    "devctl.planning.fits_on": ("FitsOn",),
    "devctl.planning.model": ("Model",),
}
_MODULE_OF = {name: module for module, names in _WHERE.items() for name in names}

__all__ = [
    "Capacity",
    "Comparison",
    "ComponentDevice",
    "DevctlError",
    "Device",
    "DeviceMap",
    "DeviceType",
    "FitsOn",
    "Inventory",
    "LoadError",
    "LoadReport",
    "Model",
    "ModelError",
    "Plan",
    "RefusedError",
    "Requirements",
    "Strategy",
    "UsageError",
    "Verdict",
    "__version__",
    "capacity",
    "check",
    "compare",
    "fits_on",
    "load",
    "open_model",
    "plan",
    "take_inventory",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
