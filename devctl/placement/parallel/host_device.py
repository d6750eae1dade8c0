"""An accelerator of one of several hosts."""

from __future__ import annotations

from dataclasses import dataclass, field

from devctl.devices import Device


@dataclass(frozen=True, slots=True)
class HostDevice(Device):
    """A device of the host that has the name ``host``, written "host/cuda:0".

    Attributes:
        last: the last of several devices of that host that it is the first of, written "host/cuda:0 to cuda:3"; it is
            equal to that first one.
    """

    host: str = ""
    last: str = field(default="", compare=False)

    def __str__(self) -> str:
        # super() knows no class that dataclass has made anew for its slots
        return f"{self.host}/{Device.__str__(self)}" + (f" to {self.last}" if self.last else "")
