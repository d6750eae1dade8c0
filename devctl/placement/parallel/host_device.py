"""An accelerator of one of several hosts."""

from __future__ import annotations

from dataclasses import dataclass

from devctl.devices import Device


@dataclass(frozen=True, slots=True)
class HostDevice(Device):
    """A device of the host that has the name ``host``, written "host/cuda:0"."""

    host: str = ""

    def __str__(self) -> str:
        # super() knows no class that dataclass has made anew for its slots
        return f"{self.host}/{Device.__str__(self)}"
