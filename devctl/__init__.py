"""devctl: what hardware is here, where each layer of a model should go, and does it really run there.

The names below are the public API. Importing them imports no torch, transformers, rich or pynvml.
"""

from devctl.devices import ComponentDevice, Device, DeviceMap, DeviceType
from devctl.errors import DevctlError

__version__ = "0.1.0"

__all__ = ["ComponentDevice", "DevctlError", "Device", "DeviceMap", "DeviceType", "__version__"]
