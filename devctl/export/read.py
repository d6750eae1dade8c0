"""A plan document, or a plain map, as engines see it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from devctl.as_json import shown_as_json
from devctl.devices import Device, DeviceType
from devctl.errors import UsageError
from devctl.export.llama_cpp import GGUF
from devctl.export.records import Exportable, Unsayable
from devctl.placement.budget import is_accelerator
from devctl.placement.device_map import FrozenMap
from devctl.placement.document import KIND, SCHEMA, map_of
from devctl.placement.document_shape import MOST, require_shape
from devctl.placement.engines.records import Serving
from devctl.placement.parallel.records import Stage, Stages, is_staged, parse_stages
from devctl.units import format_bytes

_LAYER = re.compile(r"^(?P<container>.*?)\.(?P<number>\d+)(?:\.|$)")
_NAME = re.compile(r"[A-Za-z0-9._:@][A-Za-z0-9._:@-]*")
"""Of a host: no option of ssh or of an engine, and no variable of a shell."""
_MOST_LAYERS = 10_000
"""Ten times as many as the deepest model has."""
_FLAGS = ("expert_parallel", "quantised_while_loading")
_PARTS = ("used", "state", "activations", "unallocated", "overhead")


def exportable(data: Any, origin: str, model: str | None = None) -> Exportable | Unsayable:
    """What ``data`` says to engines.

    Args:
        data: JSON values of a plan document, or of a plain map.
        origin: where they came from, for messages.
        model: which model it is; a plan document names its own.

    Returns:
        That, or every reason why it has no such form: a layer is split, layers go to and fro, weights are on disk.

    Raises:
        UsageError: it is no plan or map; no model is named, or another than the plan's.
    """
    document = data if isinstance(data, dict) and data.get("kind") == KIND else {}
    if document and document.get("schema") != SCHEMA:
        raise UsageError(f"{origin} is a plan of schema {document.get('schema')}, and this devctl reads {SCHEMA}")
    about = _object(document, "model", origin)
    name = about.get("name", model)
    if not isinstance(name, str) or not name:
        raise UsageError(f"{origin} names no model", hint="`devctl export FILE MODEL --to …`")
    if model is not None and document and model != name:
        raise UsageError(f"{origin} is a plan for {name}, not for {model}", hint="leave MODEL out")
    workload = _object(document, "workload", origin)
    if is_staged(document):
        split: _Split | Unsayable = _of_stages(parse_stages(document, origin))
    else:
        split = _split(document, map_of(data, origin), origin, may_be_on_cpu=about.get("dtype") == GGUF)
    if not name.isprintable() or name.startswith("-"):
        raise UsageError(f"{origin} names a model {name!r}, which no command takes")
    if isinstance(split, Unsayable):
        return split
    if about.get("adapters"):
        return Unsayable(("it counts an adapter, which engines load by rules of their own",))
    for each in split.stages.hosts:
        if not _NAME.fullmatch(each):
            raise UsageError(f"{origin} names a host {each!r}, which is no host's name")
    found = Exportable(
        model=name,
        revision=_word(about, "revision", origin),
        dtype=_word(about, "dtype", origin),
        quantisation=_word(about, "quantisation", origin),
        layers=split.layers,
        stages=split.stages,
        on_cpu=split.on_cpu,
        cpu_bytes=split.cpu_bytes,
        context_length=_count(workload, "context_length", origin),
        batch_size=_sequences(workload, origin),
        kv_dtype=_word(workload, "kv_dtype", origin),
        kept_alike=_is_kept_alike(document, split.stages.container, origin),
        expert_parallel=_count(_object(document, "tensor_parallel", origin), "expert_parallel", origin) or 1,
        class_name=_word(about, "class", origin),
        serving=_serving(document.get("engine"), origin),
    )
    if document:
        require_shape(document, origin, may_lack=True)
    return found


def _serving(engine: Any, origin: str) -> Serving | None:
    """What a plan for an engine is started with; None of one for transformers.

    Raises:
        UsageError: it says what no engine takes.
    """
    if not isinstance(engine, dict):
        return None
    share, flags = engine.get("utilisation"), [engine.get(key, False) for key in _FLAGS]
    tokens, sequences = (_count(engine, key, origin) for key in ("max_num_batched_tokens", "max_num_seqs"))
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share <= 1:
        raise UsageError(f'{origin}: "utilisation" is {share!r}, which is no share')
    if not tokens or not sequences or not all(isinstance(flag, bool) for flag in flags):
        raise UsageError(f'{origin}: "engine" does not say what vLLM is started with')
    return Serving(
        utilisation=share,
        batched_tokens=tokens,
        sequences=sequences,
        expert_parallel=flags[0],
        quantised_while_loading=flags[1],
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Split:
    """Where layers are, as `Exportable` has it."""

    stages: Stages
    layers: int | None
    on_cpu: tuple[int, int] | None = None
    cpu_bytes: int = 0


def _of_stages(stages: Stages) -> _Split:
    return _Split(stages=stages, layers=stages.stages[-1].layers[1])


def _split(
    document: Mapping[str, Any], device_map: Mapping[str, Device], origin: str, *, may_be_on_cpu: bool = False
) -> _Split | Unsayable:
    blocks = _names_of_blocks(document, origin)
    _require_layers((*device_map, *blocks), origin)
    container = _container([*device_map, *blocks])
    uses = _uses(document, origin)
    if may_be_on_cpu and container is not None and set(device_map.values()) == {Device.cpu()}:
        return _all_on_cpu(container, [*device_map, *blocks], device_map, uses)
    where = [*_reasons_of_devices(device_map, uses)]
    computing = list(dict.fromkeys(d for d in device_map.values() if is_accelerator(d)))
    if container is None:
        if len(computing) > 1:
            where.append("the map does not say which layers are on which device")
        if where:
            return Unsayable(tuple(where))
        stage = _stage(0, computing[0], (0, 1), uses)
        return _Split(stages=Stages(container="", stages=(stage,)), layers=None, cpu_bytes=_bytes_on_cpu(uses))
    at, split = _devices_of_layers(container, [*device_map, *blocks], FrozenMap.of(device_map))
    reasons = [*where, *split]
    runs = _runs(at)
    seen: Counter[Device] = Counter(device for device, _, _ in runs)
    reasons += [f"layers go back to {device}, which had some before" for device, times in seen.items() if times > 1]
    without = [device for device in computing if not seen[device]]
    reasons += [f"{device} has no layer, only other parts" for device in without]
    if reasons:
        return Unsayable(tuple(dict.fromkeys(reasons)))
    on_cpu = next(((first, end) for device, first, end in runs if device == Device.cpu()), None)
    numbered = [run for run in runs if is_accelerator(run[0])]
    stages, end = [], 0
    for number, (device, first, last) in enumerate(numbered):
        count = last - first
        stages.append(_stage(number, device, (end, end + count), uses))
        end += count
    return _Split(
        stages=Stages(container=container, stages=tuple(stages)),
        layers=len(at),
        on_cpu=on_cpu,
        cpu_bytes=_bytes_on_cpu(uses),
    )


def _all_on_cpu(
    container: str, names: list[str], device_map: Mapping[str, Device], uses: Mapping[Device, Mapping[str, int]]
) -> _Split:
    """A model whose every layer is on the CPU, for an engine that runs it there."""
    at, _ = _devices_of_layers(container, names, FrozenMap.of(device_map))
    stage = _stage(0, Device.cpu(), (0, len(at)), uses)
    stages = Stages(container=container, stages=(stage,))
    return _Split(stages=stages, layers=len(at), on_cpu=(0, len(at)), cpu_bytes=_bytes_on_cpu(uses))


def _reasons_of_devices(device_map: Mapping[str, Device], uses: Mapping[Device, Mapping[str, int]]) -> Iterator[str]:
    devices = set(device_map.values())
    disk = [device for device in devices if device.type is DeviceType.DISK]
    if disk:
        told = sum(uses[device]["used"] for device in disk if device in uses)
        yield f"{format_bytes(told) if told else 'a part'} of the model is left on disk, which no engine runs from"
    if not any(map(is_accelerator, devices)):
        yield "nothing is on an accelerator"


def _require_layers(names: Iterable[str], origin: str) -> None:
    """Refuse numbers of layers that no model has.

    Raises:
        UsageError: naming one.
    """
    for name in names:
        for part in name.split("."):
            if part.isdecimal() and (len(part) > 20 or int(part) >= _MOST_LAYERS):
                raise UsageError(f"{origin} names {name[:80]!r}, and no model has {_MOST_LAYERS:,} layers")


def _container(names: list[str]) -> str | None:
    """The module whose children are most of the numbered ones."""
    found = {(m["container"], m["number"]) for name in names if (m := _LAYER.match(name))}
    count = Counter(container for container, _ in found)
    return max(count, key=lambda container: count[container], default=None)


def _devices_of_layers(container: str, names: list[str], device_map: FrozenMap) -> tuple[list[Device], list[str]]:
    """The device of each layer, and what is against it."""
    inside = [m for name in names if (m := _LAYER.match(name)) and m["container"] == container]
    numbers = {int(m["number"]) for m in inside}
    at, reasons = [], []
    for number in range(max(numbers) + 1):
        name = f"{container}.{number}"
        whole = device_map.device_of(name)
        parts = {device_map.device_of(m.string) for m in inside if int(m["number"]) == number and m.string != name}
        devices = {device for device in (whole, *parts) if device is not None}
        if len(devices) > 1:
            reasons.append(f"{name} is split over {' and '.join(sorted(map(str, devices)))}")
        elif not devices:
            reasons.append(f"{name} has no device in the map")
        at.append(next(iter(devices), Device.cpu()))
    return at, reasons


def _runs(at: list[Device]) -> list[tuple[Device, int, int]]:
    runs: list[tuple[Device, int, int]] = []
    for number, device in enumerate(at):
        if runs and runs[-1][0] == device:
            runs[-1] = (device, runs[-1][1], number + 1)
        else:
            runs.append((device, number, number + 1))
    return runs


def _stage(number: int, device: Device, layers: tuple[int, int], uses: Mapping[Device, Mapping[str, int]]) -> Stage:
    use = uses.get(device, dict.fromkeys((*_PARTS, "budget"), 0))
    return Stage(
        stage=number,
        host="here",
        devices=(str(device),),
        layers=layers,
        used=use["used"],
        state=use["state"],
        activations=use["activations"],
        unallocated=use["unallocated"],
        overhead=use["overhead"],
        budget=use["budget"],
    )


def _uses(document: Mapping[str, Any], origin: str) -> dict[Device, dict[str, int]]:
    """Bytes of each device, by part; a device without a budget may hold just what it does."""
    found = {}
    rows = document.get("devices", [])
    if not isinstance(rows, list):
        raise UsageError(f'{origin}: "devices" is no list')
    for row in rows:
        if not isinstance(row, dict) or not isinstance(row.get("device"), str):
            raise UsageError(f'{origin}: a row of "devices" names no device')
        use = {part: _count(row, part, origin) or 0 for part in _PARTS}
        budget = _count(row, "budget", origin)
        use["budget"] = sum(use.values()) if budget is None else budget
        try:
            found[Device.from_str(row["device"])] = use
        except ValueError:
            raise UsageError(f"{origin}: {row['device']!r} is no device") from None
    return found


def _bytes_on_cpu(uses: Mapping[Device, Mapping[str, int]]) -> int:
    return uses[Device.cpu()]["used"] if Device.cpu() in uses else 0


def _is_kept_alike(document: Mapping[str, Any], container: str, origin: str) -> bool:
    """Whether all layers that keep anything of a sequence keep as much."""
    _names_of_blocks(document, origin)
    kept: Counter[str] = Counter()
    for block in _object(document, "workload", origin).get("blocks", []):
        if (found := _LAYER.match(block["name"])) and found["container"] == container:
            kept[found["number"]] += _count(block, "state", origin) or 0
    return len({size for size in kept.values() if size}) <= 1


def _names_of_blocks(document: Mapping[str, Any], origin: str) -> list[str]:
    blocks = _object(document, "workload", origin).get("blocks", [])
    if not isinstance(blocks, list) or not all(isinstance(b, dict) and isinstance(b.get("name"), str) for b in blocks):
        raise UsageError(f'{origin}: "blocks" of its workload are no list of names')
    return [block["name"] for block in blocks]


def _object(document: Mapping[str, Any], key: str, origin: str) -> Mapping[str, Any]:
    value = document.get(key) or {}
    if not isinstance(value, dict):
        raise UsageError(f'{origin}: "{key}" is no object')
    return value


def _word(values: Mapping[str, Any], key: str, origin: str) -> str | None:
    value = values.get(key)
    if value is not None and (not isinstance(value, str) or not _NAME.fullmatch(value)):
        raise UsageError(f'{origin}: "{key}" is {value!r}, which is no name')
    return value


def _sequences(workload: Mapping[str, Any], origin: str) -> int:
    found = _count(workload, "batch_size", origin)
    if found == 0:
        raise UsageError(f'{origin}: "batch_size" is 0, and a run has one sequence at least')
    return 1 if found is None else found


def _count(values: Mapping[str, Any], key: str, origin: str) -> int | None:
    value = values.get(key)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise UsageError(f'{origin}: "{key}" is {shown_as_json(value)}, which is no number')
    if value >= MOST:
        raise UsageError(f'{origin}: "{key}" is larger than anything of a machine')
    return value
