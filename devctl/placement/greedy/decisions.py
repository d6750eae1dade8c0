"""What the walk through a model decides, step by step: written down where it decides, and told by `explain`."""

from dataclasses import dataclass
from enum import StrEnum

from devctl.devices import Device


class Step(StrEnum):
    """What was done with a module or tensor whose turn it was."""

    PLACED = "placed"
    """It has room on the device, with all that is tied to it."""
    JOINED = "joined"
    """It is tied to something that is on the device already."""
    NEXT = "next"
    """It has no room on the device, which is left for good."""
    SPLIT = "split"
    """It has no room whole: its parts take its place."""
    SPLIT_TO_JOIN = "split to join"
    """A part of it is tied to something on the device: its parts take its place."""
    SPLIT_TO_BRING = "split to bring"
    """Not all of it has room beside what a part of it is tied to: its parts take its place."""
    LEFT_OUT = "left out"
    """It goes tensor by tensor, and some of them not into the map."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """One step of the walk, and the bytes that decided it.

    Attributes:
        name: the module or tensor.
        device: the device that was asked for room.
        needs: bytes asked for, those of what is tied to it among them.
        used: bytes on the device before.
        limit: bytes that the device may hold; None for the disk.
        kept: bytes of the limit that are kept free to run the largest layer still to come.
        kept_for: that layer; None where nothing is kept.
        tied: what it is tied to: placed with it, or placed before.
    """

    step: Step
    name: str
    device: Device
    needs: int
    used: int
    limit: int | None
    kept: int
    kept_for: str | None
    tied: tuple[str, ...] = ()

    @property
    def left(self) -> int | None:
        """Bytes that the device had to give; None where nothing limits it."""
        return None if self.limit is None else max(0, self.limit - self.kept - self.used)


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What the balanced strategies let an accelerator hold: ``total`` / ``parts`` + 1.25 × ``largest``.

    Attributes:
        nbytes: the share.
        total: bytes of the model.
        parts: accelerators that share it.
        largest: bytes of the largest block, or of the tensors directly in one module.
    """

    nbytes: int
    total: int
    parts: int
    largest: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Trail:
    """How a walk came to its map.

    Attributes:
        share: None where the strategy knows none, or no accelerator shares.
        limits: (device, bytes) that each might hold, in the order in which they are filled.
        main: the devices that keep room for the largest layer still to come.
        decisions: every step, in the order in which it was taken.
    """

    share: Share | None
    limits: tuple[tuple[Device, int], ...]
    main: tuple[Device, ...]
    decisions: tuple[Decision, ...]
