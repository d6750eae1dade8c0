"""What a plan document says beside its map, and whether it agrees with that map."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from devctl.devices import Device, DeviceType
from devctl.errors import UsageError
from devctl.models.gguf.layout import DTYPE as GGUF
from devctl.placement.budget import is_accelerator
from devctl.placement.device_map import FrozenMap
from devctl.placement.document import normal
from devctl.placement.judge import shorten
from devctl.placement.placement import Load
from devctl.placement.runtime import main_of
from devctl.units import format_bytes

MOST = 2**63
"""Bytes; no machine has more, and what says so is no plan of ours."""

_PARTS = ("used", "state", "activations", "overhead")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFacts(Load):
    """What a document says of one device; ``budget`` and ``modules`` are None where it does not say."""

    device: Device
    budget: int | None = None
    modules: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockFacts:
    """What a document says that a block holds beside its weights, in bytes."""

    name: str
    state: int
    prefill: int
    decode: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanFacts:
    """What a plan document says; None where it does not say.

    Attributes:
        devices: in its order; a device that it has twice is here twice.
        model: of its model: name, class, dtype, quantisation, bytes.
        offloaded: bytes that it calls so.
        workload: as it is in the document; None for a plan of weights alone.
        blocks: of the workload.
        output: of the workload, in bytes.
    """

    devices: tuple[DeviceFacts, ...]
    model: Mapping[str, Any]
    offloaded: int | None = None
    workload: Mapping[str, Any] | None = None
    blocks: tuple[BlockFacts, ...] = ()
    output: int = 0

    @property
    def is_of_gguf(self) -> bool:
        """Whether it is the plan of a GGUF file, for llama.cpp."""
        return self.model.get("dtype") == GGUF

    def of(self, device: Device) -> DeviceFacts | None:
        """What it says of ``device`` in all."""
        found = [each for each in self.devices if each.device == device]
        if len(found) < 2:
            return found[0] if found else None
        sums = {part: sum(getattr(each, part) for each in found) for part in (*_PARTS, "unallocated", "loading")}
        return DeviceFacts(device=device, **sums)


def parse_facts(document: Mapping[str, Any], origin: str) -> PlanFacts:
    """What ``document``, a plan, says.

    Raises:
        UsageError: it is malformed.
    """
    devices = document.get("devices")
    if not isinstance(devices, list):
        raise UsageError(f'{origin}: "devices" must be a list of objects with "device" and "used", in bytes')
    model, workload = document.get("model"), document.get("workload")
    if not isinstance(model, dict) or not isinstance(workload, dict | None):
        raise UsageError(f'{origin}: "model" and "workload" must be objects')
    blocks = (workload or {}).get("blocks", [])
    if not isinstance(blocks, list):
        raise UsageError(f'{origin}: "blocks" must be a list of objects')
    return PlanFacts(
        devices=tuple(_device(entry, origin, with_workload=workload is not None) for entry in devices),
        model={**model, "bytes": _bytes(model, "bytes", origin)},
        offloaded=_bytes(document, "offloaded", origin),
        workload=workload,
        blocks=tuple(_block(entry, origin) for entry in blocks),
        output=_bytes(workload or {}, "output", origin) or 0,
    )


def _device(entry: Any, origin: str, *, with_workload: bool) -> DeviceFacts:
    if not isinstance(entry, dict):
        raise UsageError(f'{origin}: "devices" must be a list of objects with "device" and "used", in bytes')
    try:
        device = normal(Device.from_str(entry.get("device", "")))
    except (ValueError, AttributeError) as error:
        raise UsageError(f'{origin}: in "devices": {error}') from None
    needed = _PARTS if with_workload else ("used",)
    if missing := [part for part in needed if entry.get(part) is None]:
        raise UsageError(f'{origin}: in "devices", {device} has no "{missing[0]}", in bytes')
    modules = entry.get("modules")
    if modules is not None and not (isinstance(modules, list) and all(isinstance(each, str) for each in modules)):
        raise UsageError(f'{origin}: in "devices", the "modules" of {device} must be a list of names')
    sizes = {part: _bytes(entry, part, origin) or 0 for part in (*_PARTS, "unallocated")}
    loading = _bytes(entry, "loading", origin)
    return DeviceFacts(
        device=device,
        **sizes,
        loading=sizes["used"] + sizes["overhead"] if loading is None else loading,
        budget=_bytes(entry, "budget", origin),
        modules=None if modules is None else tuple(modules),
    )


def _block(entry: Any, origin: str) -> BlockFacts:
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        raise UsageError(f'{origin}: "blocks" must be a list of objects with a "name"')
    sizes = {part: _bytes(entry, part, origin) or 0 for part in ("state", "prefill", "decode")}
    return BlockFacts(name=entry["name"], **sizes)


def _bytes(entry: Mapping[str, Any], key: str, origin: str) -> int | None:
    size = entry.get(key)
    if size is None:
        return None
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < MOST:
        raise UsageError(f'{origin}: "{key}" must be bytes, at least 0 and below 2**63')
    return size


def contradictions(facts: PlanFacts, device_map: Mapping[str, Device]) -> Iterator[str]:
    """Where a plan document says something else than its own map: a line each.

    Every tensor is on one device, so that what they hold adds up to the model. What a map leaves out is on the CPU.
    """
    counted = Counter(each.device for each in facts.devices)
    yield from (f'{device} is {times} times in "devices"' for device, times in counted.items() if times > 1)
    for device in dict.fromkeys(device_map.values()):
        keys = [key or "the whole model" for key, at in device_map.items() if at == device]
        said = facts.of(device)
        if said is None:
            yield f'the map puts {shorten(keys)} on {device}, which "devices" does not have'
        elif not said.used:
            yield f"{device} is said to hold nothing, and the map puts {shorten(keys)} there"
    for each in facts.devices:
        keys = [key for key, at in device_map.items() if at == each.device]
        if each.modules is not None and counted[each.device] == 1 and set(each.modules) != set(keys):
            wrong = [key or "the whole model" for key in {**dict.fromkeys(keys), **dict.fromkeys(each.modules)}
                     if (key in keys) != (key in each.modules)]  # fmt: skip
            yield f'the "modules" of {each.device} are not those of the map: {shorten(wrong)}'
        yield from _of_row(each, is_of_gguf=facts.is_of_gguf)
        if each.used and not keys and each.device != Device.cpu():
            yield f"{each.device} is said to hold {format_bytes(each.used)}, and the map puts nothing there"
    used = sum(each.used for each in facts.devices)
    # llama.cpp has some tensors on several devices
    if (whole := facts.model.get("bytes")) is not None and (used < whole if facts.is_of_gguf else used != whole):
        yield f"its devices hold {format_bytes(used)}, and its model is of {format_bytes(whole)}{_exactly(used, whole)}"
    if facts.offloaded is not None and facts.offloaded != (off := _offloaded(facts)):
        said_off, exactly = format_bytes(facts.offloaded), _exactly(facts.offloaded, off)
        yield f"{said_off} are said to be offloaded, and by its devices it is {format_bytes(off)}{exactly}"
    if facts.workload is not None:
        yield from _of_workload(facts, device_map)
    else:
        yield from _without_workload(facts)


def _of_row(row: DeviceFacts, *, is_of_gguf: bool) -> Iterator[str]:
    """What a device is said to hold against what else is said of it."""
    if row.budget is not None and row.most > row.budget:
        need, may = format_bytes(row.most), format_bytes(row.budget)
        yield f"{row.device} is said to need {need}, and may hold {may}{_exactly(row.most, row.budget)}"
    # how llama.cpp loads is not counted
    if not is_of_gguf and row.loading < (least := row.used + row.overhead):
        loading, exactly = format_bytes(row.loading), _exactly(row.loading, least)
        yield f"{row.device} is said to take {loading} to load, and holds {format_bytes(least)} then{exactly}"


def _without_workload(facts: PlanFacts) -> Iterator[str]:
    for each in facts.devices:
        if running := each.state + each.activations:
            yield f"{each.device} is said to need {format_bytes(running)} beside weights, and no workload is told"


def _exactly(a: int, b: int) -> str:
    return f" ({a} and {b} bytes)" if format_bytes(a) == format_bytes(b) else ""


def _offloaded(facts: PlanFacts) -> int:
    # an accelerator that may hold something, and is given nothing, makes the rest offloaded, too
    computes = any(is_accelerator(each.device) and (each.used or each.budget) for each in facts.devices)
    off = [DeviceType.CPU, DeviceType.DISK] if computes else [DeviceType.DISK]
    return sum(each.used for each in facts.devices if each.device.type in off)


def _of_workload(facts: PlanFacts, device_map: Mapping[str, Device]) -> Iterator[str]:
    """What the blocks of the workload say against what the devices do.

    What is offloaded runs, and keeps its state, on the main device; so does what belongs to no part alone. There, too,
    is what an encoder hands on, and once more where the inputs are.
    """
    frozen = FrozenMap.of(device_map)
    main = main_of(frozen)
    tokens, new = ((facts.workload or {}).get(key) for key in ("context_length", "new_tokens"))
    if isinstance(tokens, int) and isinstance(new, int) and new > tokens:
        yield f"{new:,} of {tokens:,} tokens are said to be new"
    if facts.is_of_gguf:
        yield from _of_layers(facts, frozen)
        return
    state, prefill, steps = Counter[Device](), Counter[Device](), Counter[Device]()
    generates, handed_on = bool((facts.workload or {}).get("new_tokens")), 0
    nowhere = []
    for block in facts.blocks:
        device = frozen.device_of(block.name) if block.name else None
        if device is None:
            nowhere.append(block)
            continue
        device = device if is_accelerator(device) else main
        may_be_handed_on = generates and block.state > 0 and not block.decode
        handed_on += may_be_handed_on * block.state
        # if it is, it is on the main device, and where it is made if not, which the document does not say
        state[device] += 0 if may_be_handed_on and device != main else block.state
        prefill[device] = max(prefill[device], block.prefill)
        steps[device] = max(steps[device], block.decode)

    def too_little(said: DeviceFacts, in_prefill: int, in_step: int) -> bool:
        # in a step all states are there, in prefill they may not be yet
        least = max(in_step, in_prefill - said.state)
        # what blocks on several devices do not share takes a bit off it, or adds to it
        least = least if len(state) < 2 else least // 2
        return said.activations < least or (not said.activations and in_prefill > 0)

    for device, least in state.items():
        said = facts.of(device)
        if said is None:
            continue  # which is told above
        if said.state < least:
            kept_there = format_bytes(said.state)
            yield f"{device} is said to keep {kept_there} of state, and its blocks keep {format_bytes(least)}"
        if too_little(said, prefill[device], steps[device]):
            most = format_bytes(max(prefill[device], steps[device]))
            told = f"{format_bytes(said.activations)} of activations" if said.activations else "no activations"
            yield f"{device} is said to need {told}, and its blocks need up to {most}"
    for block in nowhere:
        # of the whole model, or of no part of the map: it runs on some device
        if all(too_little(each, block.prefill, block.decode) for each in facts.devices):
            named, most = block.name or "the whole model", format_bytes(max(block.prefill, block.decode))
            yield f"no device is said to need {most} of activations, as {named} does"
    whole, kept = sum(block.state for block in facts.blocks), sum(each.state for each in facts.devices)
    if not whole <= kept <= whole + handed_on:
        exactly = _exactly(kept, whole)
        yield f"its devices keep {format_bytes(kept)} of state, and its blocks {format_bytes(whole)}{exactly}"
    at_main = facts.of(main)
    if at_main is not None and at_main.activations < facts.output:
        said_there = format_bytes(at_main.activations)
        yield f"{main} is said to need {said_there} of activations, and the output is of {format_bytes(facts.output)}"


def _of_layers(facts: PlanFacts, device_map: FrozenMap) -> Iterator[str]:
    """The same of a plan for llama.cpp, where every layer runs and keeps its state on its own device."""
    state = Counter[Device]()
    for block in facts.blocks:
        if (device := device_map.device_of(block.name)) is not None:
            state[device] += block.state
    for device in dict.fromkeys([*state, *(each.device for each in facts.devices)]):
        said = facts.of(device)
        if said is not None and said.state != state[device]:
            kept_there, exactly = format_bytes(said.state), _exactly(said.state, state[device])
            yield (
                f"{device} is said to keep {kept_there} of state, and its layers keep "
                f"{format_bytes(state[device])}{exactly}"
            )
