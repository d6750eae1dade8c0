"""A plan: which model goes where, what else it holds there, and whether that is what was asked for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from devctl.devices import Device, DeviceMap
from devctl.errors import RefusedError
from devctl.models.footprint import IMAGES_NOT_COUNTED, WITHOUT_IMAGE, Footprint, Workload
from devctl.models.tree import ModuleTree
from devctl.placement.budget import Budgets
from devctl.placement.document import KIND, SCHEMA, PlannedModel, of_gguf, of_several
from devctl.placement.engines.records import EngineFit, title_of
from devctl.placement.parallel.layers import layers_of
from devctl.placement.parallel.places import group_of
from devctl.placement.parallel.records import Stages
from devctl.placement.parallel.tensor import TensorParallel
from devctl.placement.placement import HfDevice, Placement, tight, to_hf
from devctl.placement.runtime import Runtime

_WRITES = re.compile("CausalLM|ConditionalGeneration|LMHead|Seq2Seq|Vision2Seq|TextToSpeech|ForImageTextToText")
"""Found in the names of transformers' classes that generate."""


def writes(class_name: str) -> bool:
    """Whether the class of transformers with this name generates."""
    return _WRITES.search(class_name) is not None


@dataclass(frozen=True, slots=True)
class Refusal:
    """An honest no.

    Attributes:
        message: what is refused; one line.
        findings: every reason, and what would help, one line each.
        hint: what to do next, or empty.
    """

    message: str
    findings: tuple[str, ...] = ()
    hint: str = ""

    def error(self) -> RefusedError:
        """The same, to be raised."""
        return RefusedError(self.message, findings=self.findings, hint=self.hint)


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What a placement leaves on the devices that compute.

    Attributes:
        free: bytes, on all of them.
        tokens: how long about a text may be that fits beside the weights; None where that is not known.
        full: the device that is full then; None where there is no choice.
        made_for: tokens that the model is made for; None where it does not say.
    """

    free: int
    tokens: float | None = None
    full: Device | None = None
    made_for: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MostTokens:
    """Tokens of the longest sequences that fit: 0 where none do.

    Attributes:
        this_map: on the map at hand.
        optimal: on the best one for each length; None where there is no other.
        by_default: on the map at hand, with the gaps that torch's allocator of an accelerator leaves by default; None
            where that is not worked out.
    """

    this_map: int
    optimal: int | None
    by_default: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WayToRun:
    """How a workload is run that an answer is of.

    Attributes:
        attention: how the model attends, as transformers calls it; None where that is not known.
        decodes: whether tokens are chosen one after another.
    """

    workload: Workload
    attention: str | None
    decodes: bool

    def to_document(self) -> dict[str, Any]:
        """The workload as JSON values, with the attention that is counted."""
        return self.workload.to_document() | {"attention": self.attention}


def way_to_run(footprint: Footprint, tree: ModuleTree) -> WayToRun:
    """How the workload of ``footprint`` is run by the model of ``tree``."""
    workload = footprint.workload
    return WayToRun(
        workload=workload,
        attention=workload.attention or tree.attention,
        decodes=bool(workload.generation) or any(block.decode for block in footprint.blocks),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Where each part of a model goes, and what a reader should know of it.

    Attributes:
        model: which model it is.
        tree: its modules.
        budgets: bytes that each device may hold.
        placement: where each part goes, and the bytes that this puts on each device.
        runtime: what the workload adds to the weights; None where only they are counted.
        room: what is left; None with a workload, which takes it.
        max_context: how long a context may be; None where that was not asked.
        run: how the workload is run, or that whose context was looked for; None where only the weights are counted.
        versions: of the packages that decide what a plan says.
        refusal: why this is not what was asked for; None where it is.
        stages: the layers over ranks; None for a plan of one process.
        tensor_parallel: what each rank has, where ranks share layers.
        other_engine: what the plan holds for, where transformers is not what runs the model; its map is then none that
            ``from_pretrained`` takes.
        fit_in: what fits in another engine, of a plan for one.
        served: what it is asked to serve, of such a plan.
    """

    model: PlannedModel
    tree: ModuleTree
    budgets: Budgets
    placement: Placement
    versions: Mapping[str, str]
    runtime: Runtime | None = None
    room: Room | None = None
    max_context: MostTokens | None = None
    run: WayToRun | None = None
    refusal: Refusal | None = None
    stages: Stages | None = None
    tensor_parallel: TensorParallel | None = None
    other_engine: str | None = None
    fit_in: EngineFit | None = None
    served: Workload | None = None

    @property
    def fits(self) -> bool:
        """Whether it is what was asked for: False just where the command line exits with 3."""
        return self.refusal is None

    @property
    def is_shared_whole(self) -> bool:
        """Whether ranks of one machine share every layer, which are in no stages."""
        return self.tensor_parallel is not None and self.placement.strategy is None

    @property
    def engine(self) -> str:
        """What the plan holds for: how transformers runs the model. Other engines hold other things in memory.

        Of a model that sees, for a text alone where no image is counted.
        """
        if self.fit_in is not None:
            return f"{title_of(self.fit_in.name)} {self.fit_in.release}"
        if self.other_engine is not None:
            return self.other_engine
        if self.tensor_parallel is not None and self.stages is not None and len(self.stages.stages) > 1:
            runs = "stages of whole layers, shared as transformers' tensor parallelism shares them"
        elif self.tensor_parallel is not None:
            runs = "transformers' tensor parallelism"
        elif self.stages is not None:
            layers = layers_of(self.tree)
            is_known = not isinstance(layers, str) and not layers.odd
            runs = "transformers' pipeline parallelism" if is_known else "stages of whole layers"
        else:
            runs = f"transformers' {'generate' if writes(self.model.class_name) else 'forward'}"
        told = () if self.runtime is None else self.runtime.footprint.notes
        without = any(note.startswith((IMAGES_NOT_COUNTED, WITHOUT_IMAGE)) for note in told)
        return f"{runs} of a text without an image" if without else runs

    @property
    def attention(self) -> str | None:
        """How the model attends in the workload, as transformers calls it; None without one, or where it is unknown."""
        if self.runtime is None:
            return None
        return self.runtime.footprint.workload.attention or self.tree.attention

    @property
    def device_map(self) -> DeviceMap:
        """The device of each module, by name; a copy.

        Raises:
            RefusedError: it is a plan of several processes.
        """
        self.require_one_process()
        return DeviceMap(dict(self.placement.device_map))

    @property
    def notes(self) -> tuple[str, ...]:
        """Decisions and doubts that a reader should know of."""
        return self.placement.notes

    def to_hf(self) -> dict[str, HfDevice]:
        """The map as ``from_pretrained(device_map=…)`` takes it.

        Raises:
            RefusedError: it is a plan of several processes, or of a GGUF file.
        """
        self.require_loadable()
        return to_hf(self.placement.device_map)

    def require_one_process(self) -> None:
        """Refuse a plan of several processes where a map for one is wanted.

        Raises:
            RefusedError: it is one.
        """
        if self.fit_in is not None:
            raise RefusedError(
                f"the plan is for {self.engine}, which takes no device_map", hint="`devctl export PLAN --to vllm`"
            )
        if self.stages is not None:
            raise of_several(self.stages, "the plan")

    @property
    def has_map(self) -> bool:
        """Whether it has a map that ``from_pretrained`` takes."""
        return self.stages is None and self.other_engine is None

    def require_loadable(self) -> None:
        """Refuse a plan whose map nothing of transformers loads.

        Raises:
            RefusedError: it is of several processes, or of a GGUF file.
        """
        self.require_one_process()
        if self.other_engine is not None:
            raise of_gguf("the plan")

    def _map_of_document(self) -> Mapping[str, HfDevice]:
        """The map; where ranks share modules, with their devices in it, which no one process could load it on."""
        if self.fit_in is not None and self.stages is not None and len(self.fit_in.devices) > 1:
            return {"": ",".join(rank.device for rank in self.stages.ranks())}
        if self.tensor_parallel is None or self.stages is None:
            return to_hf(self.placement.device_map)
        if self.is_shared_whole:
            return {"": ",".join(rank.device for rank in self.stages.ranks())}
        return _of_groups(self.stages, dict(self.placement.device_map))

    def to_document(self) -> dict[str, Any]:
        """The plan document: the map, and all that is known beyond it. Sizes are bytes."""
        placement = self.placement
        return {
            "schema": SCHEMA,
            "kind": KIND,
            "versions": dict(self.versions),
            "model": self.model.to_document(),
            "engine": self.engine if self.fit_in is None else self.fit_in.to_document(),
            "strategy": placement.strategy,
            "devices": [
                {
                    "device": str(use.device),
                    "used": use.used,
                    "state": use.state,
                    "activations": use.activations,
                    "unallocated": use.unallocated,
                    "overhead": use.overhead,
                    "loading": use.loading,
                    "budget": use.budget,
                    "modules": list(use.modules),
                }
                for use in placement.devices
            ],
            "workload": self._workload(),
            "offloaded": placement.offloaded,
            "crossings": placement.crossings,
            "device_map": self._map_of_document(),
            "notes": list(placement.notes),
            "max_context": None if self.max_context is None else asdict(self.max_context),
            **({} if self.stages is None else self.stages.to_document()),
            **({} if self.tensor_parallel is None else {"tensor_parallel": self.tensor_parallel.to_document()}),
        }

    def _workload(self) -> dict[str, Any] | None:
        if self.served is not None:
            return self.served.to_document() | {"attention": None, "exact": False, "output": 0, "blocks": []}
        return None if self.runtime is None else _workload(self.runtime.footprint, self.attention)


def _of_groups(stages: Stages, device_map: Mapping[str, Device]) -> dict[str, str]:
    """The same of stages: each module is on all devices of its own."""
    groups: dict[Device, str] = {
        group_of(stage.host, stage.devices): ",".join(f"{stage.host}/{device}" for device in stage.devices)
        for stage in stages.stages
    }
    return {name: groups[device] for name, device in device_map.items()}


def _workload(footprint: Footprint, attention: str | None) -> dict[str, Any]:
    """What was asked for, and what each block holds for it beside its weights."""
    return {
        **footprint.workload.to_document(),
        "attention": attention,
        "exact": footprint.exact,
        "output": footprint.output,
        "blocks": [
            {"name": block.name, "state": block.state, "prefill": block.prefill, "decode": block.decode}
            for block in footprint.blocks
        ],
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The plans of all strategies, side by side; over hosts, of the best cut and of even ones.

    Attributes:
        model: which model it is.
        placements: one for each strategy, transformers' default first.
        chosen: the one to take.
        why: the reason, in words.
        notes: why accelerators of the machine are missing, a line for each reason.
        lacks_disk: whether the machine has no disk, so that what leaves bytes on one does not fit.
        run: how the workload is run; None where the weights alone are counted.
    """

    model: PlannedModel
    placements: tuple[Placement, ...]
    chosen: Placement
    why: str
    notes: tuple[str, ...] = ()
    lacks_disk: bool = False
    run: WayToRun | None = None

    def fits(self, placement: Placement) -> bool:
        """Whether the machine can hold ``placement``."""
        return placement.fits and not (self.lacks_disk and placement.on_disk)

    def fits_by_default(self, placement: Placement) -> bool:
        """Whether it can hold the gaps, too, that torch's allocator of an accelerator leaves by default."""
        return self.fits(placement) and not tight(placement.devices)

    def to_document(self) -> dict[str, Any]:
        """The comparison as JSON values. Sizes are bytes."""
        return {
            "schema": SCHEMA,
            "kind": "devctl.comparison",
            "plans": [
                {
                    "strategy": each.strategy,
                    "devices": [
                        {"device": str(use.device), "used": use.used, "budget": use.budget} for use in each.devices
                    ],
                    "offloaded": each.offloaded,
                    "fullest": float(each.fullest),
                    "crossings": each.crossings,
                    "fits": self.fits(each),
                    "fits_by_default": self.fits_by_default(each),
                }
                for each in self.placements
            ],
            "workload": None if self.run is None else self.run.to_document(),
            "take": self.chosen.strategy,
            "why": self.why,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Whether a context and a batch size fit on the best placement.

    Attributes:
        fullest: how full the fullest device is, 1 is full; None where they do not fit.
        fits_by_default: whether the gaps fit, too, that torch's allocator of an accelerator leaves by default.
    """

    context_length: int
    batch_size: int
    fullest: float | None
    fits_by_default: bool

    @property
    def fits(self) -> bool:
        """Whether they fit."""
        return self.fullest is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class WhatIf:
    """Which contexts and batch sizes fit.

    Attributes:
        run: how each case is run; its context and batch are those of the case.
        notes: why accelerators of the machine are missing, and what is counted beside the text.
        placed: how each case is placed, in words.
    """

    model: PlannedModel
    cases: tuple[Case, ...]
    run: WayToRun
    notes: tuple[str, ...] = ()
    placed: str = "placed by optimal"

    def to_document(self) -> dict[str, Any]:
        """The cases as JSON values."""
        cases = [
            {
                "context_length": case.context_length,
                "batch_size": case.batch_size,
                "fits": case.fits,
                "fullest": case.fullest,
                "fits_by_default": case.fits_by_default,
            }
            for case in self.cases
        ]
        run = self.run.to_document()
        del run["context_length"], run["batch_size"]
        return {"schema": SCHEMA, "kind": "devctl.what_if", "workload": run, "cases": cases}
