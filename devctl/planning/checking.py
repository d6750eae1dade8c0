"""Does a machine meet what a job asks for, and does a map still fit it?"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from devctl.devices import Device
from devctl.errors import DevctlError, RefusedError, UsageError
from devctl.inventory import Inventory, Part, take_inventory
from devctl.inventory.requirements import Requirements, disk_use, judge
from devctl.inventory.verdict import Finding, Verdict
from devctl.models.gguf.files import gguf_at
from devctl.planning.map_file import MapFile
from devctl.planning.progress import reporter
from devctl.planning.request import ModelRequest, WorkloadRequest
from devctl.units import format_bytes

if TYPE_CHECKING:
    from devctl.models.tree import ModuleTree
    from devctl.planning.model import Model
    from devctl.planning.plan_facts import PlanFacts

_IDLE_SAMPLES = 3
_IDLE_SECONDS = 1.0
"""How often, and over how long, a board is looked at to say that nobody is on it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What a map needs of a machine.

    Attributes:
        bytes: on each device; None where that is not known.
        gaps: bytes that torch's allocator of an accelerator reserves by default beside them.
        problems: why the map does not hold, or does not agree with what is said of it: a line each.
    """

    bytes: Mapping[Device, int | None]
    gaps: Mapping[Device, int] = field(default_factory=dict)
    problems: tuple[str, ...] = ()


def check_machine(
    wanted: Requirements,
    file: MapFile | None = None,
    model: ModelRequest | None = None,
    inventory: Inventory | None = None,
    *,
    called: str = "device_map",
) -> tuple[Verdict, Inventory]:
    """Whether the machine meets ``wanted``, and has room for the map of ``file``; and that machine.

    Args:
        model: what the map is of, to know the bytes of its layers; None takes those that the file says.
        inventory: the machine; None is this one, now.
        called: what to call the map.

    Raises:
        UsageError: nothing is asked for, or a model without a map.
        ModelError: the model can't be read.
    """
    if model is not None and gguf_at(str(model.model)) is not None:
        raise UsageError(
            f"MODEL {model.model} is in a GGUF file: what it needs is in its plan",
            hint=f"`devctl plan {model.model} > plan.json`, then `devctl check --map plan.json`",
        )
    if model is not None and file is None:
        raise UsageError(f"MODEL {model.model!r} is only for --map", hint="write --map map.json MODEL")
    if wanted == Requirements() and file is None:
        raise UsageError("nothing to check", hint="say what the job needs, like --gpus 2 --gpu-memory 40GiB")
    if inventory is None:
        inventory = _look(wanted)
    needs = None if file is None else needs_of(file, model, inventory)
    verdict = judge(inventory, wanted)
    if needs is None:
        return verdict, inventory
    from devctl.inventory.map_fits import judge_map
    from devctl.placement.budget import as_here
    from devctl.placement.placement import SEGMENTS
    from devctl.planning import allocator

    here = {as_here(device, inventory): size for device, size in needs.bytes.items()}
    gaps = {as_here(device, inventory): size for device, size in needs.gaps.items()} if allocator.here() else {}
    judged = judge_map(inventory, here, gaps, without_gaps=SEGMENTS)
    wrong = tuple(Finding(requirement=called, met=False, said=problem) for problem in needs.problems)
    whole = Verdict(findings=verdict.findings + wrong + judged, selected=verdict.selected)
    return (whole if whole.ok else replace(whole, selected=())), inventory


def _look(wanted: Requirements) -> Inventory:
    """This machine, now; where idle boards are asked for, several times."""
    uses = {disk_use(path): path for path, _ in wanted.disks}
    samples = []
    if wanted.idle:
        with reporter().status("looking for a second whether anybody works on the GPUs"):
            for _ in range(_IDLE_SAMPLES - 1):
                samples.append(take_inventory(only=Part.GPU))
                time.sleep(_IDLE_SECONDS / (_IDLE_SAMPLES - 1))
    inventory = take_inventory(folders=tuple(uses.items()), there=tuple(uses))
    if not samples:
        return inventory
    from devctl.inventory.idle import busiest

    return busiest([*samples, inventory])


def needs_of(file: MapFile, model: ModelRequest | None, inventory: Inventory | None = None) -> Needs:
    """What the map of ``file`` needs, by all that the file says, and by ``model`` where it is given.

    Weights that are unpacked on the machine of ``inventory`` count so.

    Of two figures for a device the larger counts: a plan that says too little is no room.
    """
    devices: dict[Device, int | None] = dict.fromkeys(file.device_map.values())
    gaps: dict[Device, int] = {}
    facts, problems = file.facts, []
    if facts is not None:
        from devctl.planning.plan_facts import contradictions

        problems = list(contradictions(facts, file.device_map))
        # a plan may name devices that hold nothing; they need not be there
        for device in dict.fromkeys(each.device for each in facts.devices):
            said = facts.of(device)
            assert said is not None
            if said.used or said.state or said.activations or device in devices:
                devices[device] = said.most
                gaps[device] = said.unallocated
    if model is not None:
        opened, differs = _open_as_planned(model, facts, inventory)
        problems += differs
        problems += _of_model(opened.tree, file.device_map)
        for device, size in _by_model(opened, file, problems, gaps).items():
            devices[device] = max(size, devices.get(device) or 0)
    return Needs(bytes=devices, gaps=gaps, problems=tuple(dict.fromkeys(problems)))


def require_as_planned(
    facts: PlanFacts, device_map: Mapping[str, Device], tree: ModuleTree, inventory: Inventory
) -> None:
    """Refuse to load by a plan that contradicts its own map, is of another model, or has no room here.

    Weights on the CPU are not held against its RAM: those of a checkpoint are mapped from their files.

    Args:
        device_map: the plan's.
        tree: of the model that is to be loaded.

    Raises:
        RefusedError: with every reason.
    """
    from devctl.inventory.map_fits import judge_map
    from devctl.placement.budget import as_here, is_accelerator
    from devctl.placement.placement import bytes_per_device
    from devctl.planning.plan_facts import contradictions

    findings = [*contradictions(facts, device_map), *_not_of(facts, tree, "this one")]
    if tree.quantisation is None and tree.packed_as is None:
        there = bytes_per_device(tree, device_map)
        findings += [
            f"{device} is said to hold {said.used} bytes of weights, and by the model it is {size}"
            for device, size in there.items()
            if (said := facts.of(device)) is not None and said.used != size
        ]
    needed = {each.device: each.most for each in facts.devices if each.most and is_accelerator(each.device)}
    on_cpu = facts.of(Device.cpu())
    if on_cpu is not None and (running := on_cpu.state + on_cpu.activations + on_cpu.overhead):
        needed[Device.cpu()] = running
    judged = judge_map(inventory, {as_here(device, inventory): size for device, size in needed.items()})
    # what is free on a device that does not tell is seen when it is loaded
    findings += [f"{each.requirement}: {each.said}" for each in judged if not each.met and each.found is not None]
    if findings:
        raise RefusedError(
            "the plan does not hold for this model on this machine",
            findings=tuple(dict.fromkeys(findings)),
            hint="`devctl plan` with the same --dtype and --model-class writes one that does",
        )


def _not_of(facts: PlanFacts, tree: ModuleTree, name: str) -> Iterator[str]:
    """What a plan says of its model that is otherwise in ``tree``."""
    said = facts.model
    quantised: list[object] = [tree.quantisation]
    if tree.unpacked is not None or tree.packed_as is not None:  # packed or not goes by the machine
        quantised += [None, tree.packed_as]
    now: dict[str, list[object]] = {"class": [tree.class_name], "dtype": [tree.dtype], "quantisation": quantised}
    yield from (
        f"it is a plan of a model of {key} {said[key]}, and {name} is of {values[0]}"
        for key, values in now.items()
        if key in said and said[key] not in values
    )


def _open_as_planned(
    request: ModelRequest, facts: PlanFacts | None, inventory: Inventory | None
) -> tuple[Model, list[str]]:
    """The model in the dtype and class of the plan, and how else it is not the plan's."""
    from devctl.planning.request import Dtype

    opened = _open_there(request, inventory)
    if facts is None:
        return opened, []
    said = facts.model
    changes: dict[str, Any] = {}
    if said.get("dtype") != opened.tree.dtype and said.get("dtype") in list(Dtype):
        changes["dtype"] = said["dtype"]
    if isinstance(said.get("class"), str) and said["class"] != opened.tree.class_name:
        changes["model_class"] = said["class"]
    if changes:
        with contextlib.suppress(DevctlError):  # then it stays what it is, and differs
            opened = _open_there(replace(request, **changes), inventory)
    differs = _not_of(facts, opened.tree, str(request.model))
    return opened, [*differs, *_other_adapters(opened, said.get("adapters"))]


def _other_adapters(opened: Model, said: object) -> Iterator[str]:
    """How the adapters that a plan counts are not those that the model is opened with, by their bytes."""
    counted = said if isinstance(said, list) else []
    there = {each.get("name"): each.get("bytes") for each in counted if isinstance(each, dict)}
    here = {each.name: each.nbytes for each in opened.planned.adapters}
    if sorted(map(str, there.values())) != sorted(map(str, here.values())):
        named = " and ".join(map(str, there)) or "no adapter"
        yield f"it is a plan with {named}, and {opened.request.model} is given with {' and '.join(here) or 'none'}"


def _open_there(request: ModelRequest, inventory: Inventory | None) -> Model:
    """The model as the machine of ``inventory`` holds it."""
    from devctl.planning.model import open_model
    from devctl.planning.unpacked import is_unpacked

    opened = open_model(request)
    return opened.unpacked() if inventory is not None and is_unpacked(opened.tree, inventory) else opened


def _of_model(tree: ModuleTree, device_map: Mapping[str, Device]) -> Iterator[str]:
    from devctl.placement import judge as judge_placement

    # which devices are here is a question of its own, with an answer for each
    yield from judge_placement.validate(tree, device_map, tuple(device_map.values()))
    yield from judge_placement.find_faults(tree, device_map)


def _by_model(opened: Model, file: MapFile, problems: list[str], gaps: dict[Device, int]) -> dict[Device, int]:
    """Bytes on each device of the map by the model itself; ``problems`` is told where the plan says less.

    ``gaps`` are made as large as they are by the model.
    """
    from devctl.placement.placement import bytes_per_device, loaded_beside

    weights = bytes_per_device(opened.tree, file.device_map)
    loading = loaded_beside(opened.tree, file.device_map)
    if file.facts is None:
        return {device: size + loading.get(device, 0) for device, size in weights.items()}
    beside = _beside_weights(opened, file, problems, gaps)
    needed = {}
    for device in {**weights, **beside}:
        said = file.facts.of(device)
        used, (state, activations) = weights.get(device, 0), beside.get(device, (0, 0))
        overhead = said.overhead if said is not None else 0
        if said is not None:
            problems += [
                f"{device} is said to hold {format_bytes(there)} of {what}, and by the model it is {format_bytes(real)}"
                for what, there, real in (
                    ("weights", said.used, used),
                    ("state", said.state, state),
                    ("activations", said.activations, activations),
                )
                if there < real or (what == "weights" and there != real)
            ]
        needed[device] = used + overhead + max(state + activations, loading.get(device, 0))
    return needed


def _beside_weights(
    opened: Model, file: MapFile, problems: list[str], gaps: dict[Device, int]
) -> dict[Device, tuple[int, int]]:
    """State and activations on each device by the model itself, for the workload that the plan names."""
    from devctl.models.footprint import Kernels, Workload
    from devctl.models.images import images_of_document
    from devctl.placement.runtime import needs, unallocated

    if file.facts is None or file.facts.workload is None:
        return {}
    said = file.facts.workload
    known: dict[str, Any] = {field.name: said[field.name] for field in fields(Workload) if field.name in said}
    asked: dict[str, Any] = {field.name: known[field.name] for field in fields(WorkloadRequest) if field.name in known}
    asked.pop("images", None)
    if isinstance(told := known.get("generation"), dict):
        known["generation"] = tuple(told.items())
    if known.get("attention") == opened.tree.attention:
        known["attention"] = None  # as it is by itself
    try:
        if known.get("images") is not None:
            known["images"] = images_of_document(known["images"])
        WorkloadRequest(**asked)  # which knows what can be counted
        footprint = opened.footprints.of(Workload(**{**known, "kernels": Kernels(known.get("kernels", ""))}))
    except (TypeError, ValueError, UsageError) as error:
        problems.append(f"its workload is none: {error}")
        return {}
    except DevctlError as error:
        problems.append(f"its workload can't be counted: {error.message}")
        return {}
    found = needs(opened.tree, file.device_map, footprint)
    gaps |= {device: max(unallocated(footprint, device), gaps.get(device, 0)) for device in found}
    return {device: (need.state, need.activations) for device, need in found.items()}
