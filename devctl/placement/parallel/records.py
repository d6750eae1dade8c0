"""Stages of a model over hosts, as records and as what a plan document says of them.

A stage is a run of consecutive layers on one accelerator, or on a tensor-parallel group of accelerators in one host.
The first stage has the embedding too, the last one the norm and the head. A rank is one process, for one accelerator:
ranks are numbered stage by stage.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from devctl.errors import UsageError
from devctl.placement.placement import Load


@dataclass(frozen=True, slots=True, kw_only=True)
class RankUse:
    """What one rank of a stage holds, in bytes, as `Stage` has it of the fullest, and what its device may hold."""

    used: int
    state: int
    activations: int
    unallocated: int = 0
    overhead: int
    budget: int

    @classmethod
    def of(cls, load: Load, budget: int) -> RankUse:
        """What a rank that holds ``load`` tells of it."""
        return cls(**{name: getattr(load, name) for name in _BYTES if name != "budget"}, budget=budget)

    @property
    def total(self) -> int:
        """All bytes on its device."""
        return self.used + self.state + self.activations + self.overhead

    def to_document(self) -> dict[str, Any]:
        """What documents say of it."""
        return {name: getattr(self, name) for name in _BYTES}


_BYTES = ("used", "state", "activations", "unallocated", "overhead", "budget")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A run of layers, and the accelerators of one host that share it.

    Attributes:
        stage: its number; the first has the embedding.
        host: the name of the host.
        devices: accelerators of that host, like "cuda:0", one for each rank of its tensor-parallel group; "cpu" for
            each, in a plan that is changed to be tried without any.
        layers: (first, one past the last).
        used: bytes of weights and buffers on the fullest of its devices.
        state: bytes of KV cache and the like there.
        activations: bytes alive beside those while it works, what it receives and sends among them.
        unallocated: bytes that torch's allocator reserves by default beside those that it gives out; not in the total.
        overhead: bytes that the libraries and their communicators take there.
        budget: bytes that the device may hold.
        uneven: the same of each of its devices; empty where all are as the fullest.
    """

    stage: int
    host: str
    devices: tuple[str, ...]
    layers: tuple[int, int]
    used: int
    state: int
    activations: int
    unallocated: int = 0
    overhead: int
    budget: int
    uneven: tuple[RankUse, ...] = ()

    @property
    def uses(self) -> tuple[RankUse, ...]:
        """What each rank holds, in the order of its devices."""
        same = RankUse(**{name: getattr(self, name) for name in _BYTES})
        return self.uneven or (same,) * len(self.devices)

    @property
    def total(self) -> int:
        """All bytes on the fullest of its devices."""
        return self.used + self.state + self.activations + self.overhead

    @property
    def fits(self) -> bool:
        """Whether they are no more than it may hold."""
        return self.total <= self.budget

    def to_document(self) -> dict[str, Any]:
        """What documents say of it."""
        return {
            "stage": self.stage,
            "host": self.host,
            "devices": list(self.devices),
            "layers": list(self.layers),
            "used": self.used,
            "state": self.state,
            "activations": self.activations,
            "unallocated": self.unallocated,
            "overhead": self.overhead,
            "budget": self.budget,
            "ranks": [
                # each stage has as many
                {"rank": self.stage * len(self.devices) + at, "device": device, **use.to_document()}
                for at, (device, use) in enumerate(zip(self.devices, self.uses, strict=True))
            ],
        }


def stage_of(number: int, host: str, devices: Sequence[str], layers: tuple[int, int], uses: Sequence[RankUse]) -> Stage:
    """The stage whose ranks hold ``uses``, in the order of ``devices``."""
    fullest = max(uses, key=lambda use: Fraction(use.total, max(use.budget, 1)))
    return Stage(
        stage=number,
        host=host,
        devices=tuple(devices),
        layers=layers,
        uneven=tuple(uses) if len(set(uses)) > 1 else (),
        **fullest.to_document(),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Rank:
    """A process of a staged plan.

    Attributes:
        rank: its number among all.
        host: the name of its host.
        host_rank: the number of its host: torchrun's ``--node-rank``.
        local_rank: its number on its host.
        stage: which stage it works on.
        device: its accelerator on that host.
    """

    rank: int
    host: str
    host_rank: int
    local_rank: int
    stage: Stage
    device: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stages:
    """A model over hosts.

    Attributes:
        container: the module whose children are the layers, like "model.layers".
        stages: in the order in which they run.
    """

    container: str
    stages: tuple[Stage, ...]

    @property
    def hosts(self) -> tuple[str, ...]:
        """The hosts, in the order in which stages come to them; each has its stages one after another."""
        return tuple(dict.fromkeys(stage.host for stage in self.stages))

    @property
    def tensor_parallel(self) -> int:
        """Ranks that share each stage."""
        return len(self.stages[0].devices)

    @property
    def is_for_engines(self) -> bool:
        """Whether there are several stages that ranks share, which transformers does not load."""
        return len(self.stages) > 1 and self.tensor_parallel > 1

    def devices_on(self, host: str) -> tuple[str, ...]:
        """The accelerators of a host that have a rank, in the order of their ranks."""
        return tuple(device for stage in self.stages if stage.host == host for device in stage.devices)

    def ranks(self) -> Iterator[Rank]:
        """Every process, stage by stage."""
        order = self.hosts
        there = dict.fromkeys(order, 0)
        rank = 0
        for stage in self.stages:
            for device in stage.devices:
                yield Rank(
                    rank=rank,
                    host=stage.host,
                    host_rank=order.index(stage.host),
                    local_rank=there[stage.host],
                    stage=stage,
                    device=device,
                )
                there[stage.host] += 1
                rank += 1

    def to_document(self) -> dict[str, Any]:
        """The keys that a plan document has beside its others."""
        return {"layers_in": self.container, "stages": [stage.to_document() for stage in self.stages]}


_ANEW = "write the plan anew: `devctl plan MODEL --hosts …`"


def is_staged(data: Any) -> bool:
    """Whether a plan document is one over several hosts, or of tensor parallelism."""
    return isinstance(data, dict) and "stages" in data


def parse_stages(data: Any, origin: str) -> Stages:
    """The stages of a plan document.

    Args:
        data: JSON values.
        origin: where they came from, for messages.

    Raises:
        UsageError: there are none, or they can't be: layers are missing or told twice, a host comes twice, a stage has
            no layer or no device.
    """
    if not is_staged(data):
        raise UsageError(f"{origin} has no stages in it", hint="`devctl plan MODEL --hosts …` writes them")
    try:
        stages = tuple(_stage(each) for each in data["stages"])
        found = Stages(container=_text(data["layers_in"]), stages=stages)
    except KeyError as error:
        raise UsageError(f"{origin} has stages that can't be read: {error} is missing", hint=_ANEW) from None
    except TypeError:
        why = "a value of them is of another kind"
        raise UsageError(f"{origin} has stages that can't be read: {why}", hint=_ANEW) from None
    except ValueError as error:
        raise UsageError(f"{origin} has stages that can't be read: {error}", hint=_ANEW) from None
    if fault := _fault(found) or _fault_of_ranks(found, data["stages"]):
        raise UsageError(f"{origin}: {fault}", hint=_ANEW)
    return found


def _stage(data: dict[str, Any]) -> Stage:
    first, end = (_count(number) for number in data["layers"])
    fullest = _use(data)
    devices = tuple(_text(device) for device in data["devices"])
    ranks = data.get("ranks")  # which plans have not always had
    uses = () if ranks is None else tuple(map(_use, ranks))
    return Stage(
        stage=_count(data["stage"]),
        host=_text(data["host"]),
        devices=devices,
        layers=(first, end),
        uneven=uses if set(uses) - {fullest} else (),
        **fullest.to_document(),
    )


def _use(data: dict[str, Any]) -> RankUse:
    # which plans have not always had
    return RankUse(**{name: _count({"unallocated": 0, **data}[name]) for name in _BYTES})


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{value!r} is no number of bytes or layers")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{value!r} is no name")
    return value


def _fault_of_ranks(found: Stages, data: Sequence[dict[str, Any]]) -> str | None:
    """Why what is told of each rank can't be so; None where it can, or nothing is told."""
    for stage, each in zip(found.stages, data, strict=True):
        if each.get("ranks") is None:
            continue
        if [rank.get("device") for rank in each["ranks"]] != list(stage.devices):
            return f"stage {stage.stage} has ranks on other devices than its own"
        if _use(each) not in stage.uses:
            return f"stage {stage.stage} says it is as full as none of its ranks is"
    return None


def _fault(found: Stages) -> str | None:
    """Why these stages can't be; None where they can."""
    if not found.stages:
        return "there is no stage"
    if not found.tensor_parallel:
        return "stage 0 has no device"
    end = 0
    devices: set[tuple[str, str]] = set()
    for number, stage in enumerate(found.stages):
        wrong = None
        if stage.stage != number:
            wrong = f"stage {stage.stage} is at place {number}"
        elif stage.layers[0] != end or stage.layers[1] <= end:
            wrong = f"stage {number} has layers {stage.layers[0]} to {stage.layers[1]}, after {end} layers before it"
        elif len(stage.devices) != found.tensor_parallel:
            wrong = f"stage {number} has {len(stage.devices)} devices, and stage 0 has {found.tensor_parallel}"
        for device in stage.devices:
            if (stage.host, device) in devices and device != "cpu":  # which ranks may share
                wrong = f"{device} of {stage.host} has two stages"
            devices.add((stage.host, device))
        if wrong is not None:
            return wrong
        end = stage.layers[1]
    visits = [stage.host for stage in found.stages]
    if sum(one != other for one, other in itertools.pairwise(visits)) >= len(set(visits)):
        return "a host has stages that are not one after another"
    return None
