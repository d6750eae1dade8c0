"""A reason: which parts of a model it is about, and what led them to their device."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from devctl.devices import Device


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """Why some parts of a model are where they are.

    Attributes:
        names: modules and tensors that follow each other in the model.
        nbytes: bytes of them all.
        because: what led to it, in sentences; the first in a run of parts speaks for those that have nothing to add.
    """

    names: tuple[str, ...]
    device: Device
    nbytes: int
    because: tuple[str, ...] = ()


def joined(reasons: Iterable[Reason]) -> tuple[Reason, ...]:
    """Those without a word of their own drawn together with the one before, where that is on the same device."""
    found: list[Reason] = []
    for reason in reasons:
        last = found[-1] if found else None
        if last is not None and last.device == reason.device and not reason.because:
            found[-1] = replace(last, names=(*last.names, *reason.names), nbytes=last.nbytes + reason.nbytes)
        else:
            found.append(reason if reason.because else replace(reason, because=(f"{reason.device} has room for it",)))
    return tuple(found)
