"""What an exporter is told of a plan, and what it answers."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from devctl.placement.engines.records import Serving
from devctl.placement.parallel.records import Stages

SCHEMA = 1
KIND = "devctl.export"


@dataclass(frozen=True, slots=True, kw_only=True)
class Exportable:
    """A plan as engines see it: layers over accelerators, and the work.

    Attributes:
        model: a folder, or a name on the hub.
        revision: the hub's commit; None for files.
        dtype: torch's name of what the weights are in, without ``torch.``; None where that is not known.
        quantisation: how they are quantised; None where they are not.
        layers: how many layers the model has; None where one device has all of them and nothing says it.
        stages: the layers that each accelerator, or group of them, has.
        on_cpu: the first and one past the last of the layers that are on the CPU; None where none is.
        cpu_bytes: bytes of weights there.
        context_length: tokens of each sequence; None where no workload was counted.
        batch_size: sequences at once.
        kv_dtype: torch's name of what keys and values are kept in; None for the model's.
        kept_alike: whether all layers that keep anything keep as much, as those do that keep all tokens.
        expert_parallel: ranks of a stage that have experts of their own; 1 where each has a part of all.
        class_name: transformers' class; None where that is not known.
        serving: what vLLM is started with, of a plan for it; None for the rest.
    """

    model: str
    revision: str | None
    dtype: str | None
    quantisation: str | None
    layers: int | None
    stages: Stages
    on_cpu: tuple[int, int] | None = None
    cpu_bytes: int = 0
    context_length: int | None = None
    batch_size: int = 1
    kv_dtype: str | None = None
    kept_alike: bool = True
    expert_parallel: int = 1
    class_name: str | None = None
    serving: Serving | None = None

    @property
    def counts(self) -> tuple[int, ...]:
        """Layers of each stage."""
        return tuple(stage.layers[1] - stage.layers[0] for stage in self.stages.stages)


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A line for one host.

    Attributes:
        host: its name; empty where there is only one.
        environment: variables that it is given.
        words: the command and its arguments.
    """

    host: str
    environment: Mapping[str, str] = field(default_factory=dict)
    words: tuple[str, ...]

    @property
    def line(self) -> str:
        """Ready to paste into a shell."""
        variables = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return " ".join([*variables, shlex.join(self.words)])


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """A plan in an engine's words.

    Attributes:
        engine: its name.
        release: the release whose source the rules were read from.
        commands: a line a host, in the order in which to start them.
        notes: what a reader should know.
    """

    engine: str
    release: str
    commands: tuple[Command, ...]
    notes: tuple[str, ...] = ()

    def to_document(self) -> dict[str, Any]:
        """The same as JSON values; see ``export.schema.json``."""
        return {
            "schema": SCHEMA,
            "kind": KIND,
            "engine": {"name": self.engine, "release": self.release},
            "commands": [
                {
                    "host": each.host or None,
                    "environment": dict(each.environment),
                    "words": list(each.words),
                    "line": each.line,
                }
                for each in self.commands
            ],
            "notes": list(self.notes),
        }


@dataclass(frozen=True, slots=True)
class Unsayable:
    """Why an engine can't run a plan as it is: every reason, a line each."""

    reasons: tuple[str, ...]


def visible_devices(devices: tuple[str, ...], *, alone: bool = False) -> dict[str, str]:
    """The variable that puts ``devices`` in this order; none where an engine takes them so by itself.

    Args:
        alone: hide others, too, from an engine that takes all that it sees.
    """
    if any(not device.startswith("cuda:") for device in devices) or (are_first(devices) and not alone):
        return {}
    return {"CUDA_VISIBLE_DEVICES": ",".join(device.partition(":")[2] for device in devices)}


def are_first(devices: tuple[str, ...]) -> bool:
    """Whether ``devices`` are numbered from 0 on, in this order."""
    return [device.partition(":")[2] or "0" for device in devices] == [str(n) for n in range(len(devices))]
