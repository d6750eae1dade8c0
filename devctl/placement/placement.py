"""A placement: the device map, the bytes it puts on each device, and whether a map holds for a model."""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

from devctl.devices import Device, DeviceType
from devctl.models.tree import Module, ModuleTree, Tensor, counted_bytes, is_under, names, tensors, walk
from devctl.placement.budget import NUMBERED, Budgets, is_accelerator
from devctl.placement.runtime import Runtime, needs
from devctl.placement.strategy import device_of
from devctl.units import format_bytes

HfDevice = int | str
"""A device as a Hugging Face ``device_map`` has it: a GPU's id, or "cpu", "disk", "mps"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceUse:
    """What a placement puts on one device.

    Attributes:
        used: bytes of the weights and buffers placed there.
        state: bytes of KV cache and recurrent states beside them, where a workload is planned for.
        activations: the most bytes that are alive beside those, offloaded weights that are there to be used among them.
        overhead: bytes that the device's libraries take for themselves.
        budget: bytes that it may hold; None where nothing limits it.
        modules: the map's keys that are there, in the order of definition.
    """

    device: Device
    used: int
    budget: int | None
    modules: tuple[str, ...]
    state: int = 0
    activations: int = 0
    overhead: int = 0

    @property
    def total(self) -> int:
        """All bytes that it has to hold."""
        return self.used + self.state + self.activations + self.overhead


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where each part of a model goes.

    Attributes:
        strategy: how it was found; None for a map that somebody wrote.
        device_map: (module or tensor name, device) pairs that cover every tensor, in the order of definition.
        devices: what each device holds, also those that hold nothing.
        crossings: how often execution goes from one device to another, in the order of definition.
        notes: decisions and doubts that a reader should know of.
    """

    strategy: str | None
    device_map: tuple[tuple[str, Device], ...]
    devices: tuple[DeviceUse, ...]
    crossings: int
    notes: tuple[str, ...] = ()

    @property
    def offloaded(self) -> int:
        """Bytes that are not on the accelerators; without any, bytes that are not on the CPU."""
        off = [DeviceType.CPU, DeviceType.DISK] if any(_computes(use) for use in self.devices) else [DeviceType.DISK]
        return sum(use.used for use in self.devices if use.device.type in off)

    @property
    def fits(self) -> bool:
        """Whether no device is given more than it may hold."""
        return not over_budget(self.devices)

    @property
    def on_disk(self) -> int:
        """Bytes on disk."""
        return sum(use.used for use in self.devices if use.device.type is DeviceType.DISK)

    @property
    def fullest(self) -> Fraction:
        """The used part of the accelerator that has the least left; without any, of the CPU."""
        accelerators = [use for use in self.devices if _computes(use)]
        computing = accelerators or [use for use in self.devices if use.device.type is DeviceType.CPU]
        return max((Fraction(use.total, use.budget) for use in computing if use.budget), default=Fraction(0))


def _computes(use: DeviceUse) -> bool:
    return is_accelerator(use.device) and bool(use.used or use.budget)


def make_placement(
    tree: ModuleTree,
    device_map: Mapping[str, Device],
    budgets: Budgets,
    *,
    strategy: str | None,
    notes: tuple[str, ...] = (),
    runtime: Runtime | None = None,
) -> Placement:
    """Add up what ``device_map`` puts on each device, and note what it splits."""
    limits: dict[Device, int | None] = dict(budgets.devices)
    limits[Device.disk()] = None
    for device in device_map.values():
        limits.setdefault(device, None)
    used = bytes_per_device(tree, device_map)
    beside = {} if runtime is None else needs(tree, device_map, runtime.footprint)
    for device in beside:
        limits.setdefault(device, 0)  # what would have to run the model may hold nothing
    uses = tuple(
        DeviceUse(
            device=device,
            used=used.get(device, 0),
            budget=limit,
            modules=tuple(name for name, d in device_map.items() if d == device),
            state=beside[device].state if device in beside else 0,
            activations=beside[device].activations if device in beside else 0,
            overhead=runtime.overhead.get(device, 0) if runtime and (used.get(device) or device in beside) else 0,
        )
        for device, limit in limits.items()
    )
    return Placement(
        strategy=strategy,
        device_map=tuple(device_map.items()),
        devices=uses,
        crossings=_crossings(tree, device_map),
        notes=(
            *tree.notes,
            *budgets.notes,
            *notes,
            *_skipped_cpu(uses),
            *_not_offloaded(tree, device_map),
            # a greedy map can be, by the buffers that upstream forgets to count when it splits the module around them
            *over_budget(uses),
            *_parted_ties(tree, device_map),
        ),
    )


def to_hf(device_map: Collection[tuple[str, Device]]) -> dict[str, HfDevice]:
    """The map as ``from_pretrained(device_map=…)`` takes it: a numbered accelerator is its id."""
    return {
        name: device.id if device.type in NUMBERED and device.id is not None else str(device)
        for name, device in device_map
    }


def bytes_per_device(tree: ModuleTree, device_map: Mapping[str, Device]) -> dict[Device, int]:
    """Bytes of the tensors on each device; what the map leaves out is kept on the CPU, as transformers does."""
    return add_up(tree, lambda tensor: device_of(tensor.name, device_map) or Device.cpu())


def add_up(tree: ModuleTree, place: Callable[[Tensor], Device]) -> dict[Device, int]:
    """Bytes on each device when ``place`` says where a tensor is."""
    size = counted_bytes(tree)
    used: dict[Device, int] = {}
    for tensor in tensors(tree.root):
        device = place(tensor)
        used[device] = used.get(device, 0) + size[tensor.name]
    return used


def _crossings(tree: ModuleTree, device_map: Mapping[str, Device]) -> int:
    """Of weights alone: a buffer is used by what is around it. A tied weight is used in each of its places."""
    size = counted_bytes(tree)
    targets = {target for target, _ in tree.ties}
    weights = [t.name for m in walk(tree.root) for t in m.parameters if size[t.name] or t.name in targets]
    devices = [device_of(name, device_map) or Device.cpu() for name in weights]
    return sum(1 for here, there in pairwise(devices) if here != there)


def validate(tree: ModuleTree, device_map: Mapping[str, Device], available: Collection[Device]) -> tuple[str, ...]:
    """Why ``device_map`` can't be used for the model on a machine that has the ``available`` devices.

    Returns:
        Every finding, a line each: unknown modules, devices that are not there, tensors without a device. Empty when
        the map holds.
    """
    known = set(names(tree.root))
    findings = [f"{key!r} is no module or tensor of {tree.class_name}" for key in device_map if key not in known]

    here = ", ".join(str(device) for device in available)
    missing: dict[Device, list[str]] = {}
    for key, device in device_map.items():
        if device not in available:
            missing.setdefault(device, []).append(key or "the whole model")
    findings += [
        f"{device} is not on this machine (it has {here}): needed for {shorten(keys)}"
        for device, keys in missing.items()
    ]

    findings += [
        f"{target} and {source} are one tensor, but on {there} and {here}: transformers can't run it so"
        for target, source, there, here in split_ties(tree.ties, device_map)
        if holder(there, here) is None
    ]

    unplaced = tree.unplaced or frozenset()
    homeless = [
        tensor.name
        for tensor in tensors(tree.root)
        if device_of(tensor.name, device_map) is None and not any(tensor.name.endswith("." + n) for n in unplaced)
    ]
    if homeless:
        findings.append(f"no device for {len(homeless)} tensors: {shorten(homeless)}")
    return tuple(findings)


def find_faults(tree: ModuleTree, device_map: Mapping[str, Device]) -> tuple[str, ...]:
    """What is wrong with a map that could be loaded all the same: ties and blocks that are split.

    A tied weight is held once, on the accelerator. A no-split block adds up tensors of all its parts: spread over
    accelerators it fails when it runs; with parts offloaded it works if the rest is on the device that runs those.
    """
    found = [
        f"{target} on {there} and {source} on {here} are one tensor: it would be on {held}"
        for target, source, there, here in split_ties(tree.ties, device_map)
        if (held := holder(there, here)) is not None
    ]
    for module in walk(tree.root):
        if module.class_name not in tree.no_split:
            continue
        devices = dict.fromkeys(device_of(t.name, device_map) for t in tensors(module))
        if len(devices) > 1:
            where = ", ".join(str(device) for device in devices if device is not None)
            found.append(f"{module.name}, a {module.class_name}, must not be split, and is on {where}")
    return tuple(found)


def over_budget(uses: Collection[DeviceUse]) -> tuple[str, ...]:
    """The devices that are given more than they may hold."""
    return tuple(
        f"{use.device} is given {format_bytes(use.total)}, {format_bytes(use.total - use.budget)} more than the "
        f"{format_bytes(use.budget)} that it may hold"
        for use in uses
        if use.budget is not None and use.total > use.budget and use.device.type != DeviceType.DISK
    )


def shorten(many: Collection[str], most: int = 3) -> str:
    """The first ``most`` names, and how many more there are."""
    shown = ", ".join(list(many)[:most])
    return shown if len(many) <= most else f"{shown} and {len(many) - most} more"


def disjoint(tree: ModuleTree, device_map: Mapping[str, Device]) -> dict[str, Device]:
    """The same map without a key above another: such a key is replaced by those of its parts.

    transformers looks keys up as regular expressions without a boundary: with both "layers" and "layers.1" in a map, it
    takes the weights of "layers.10" for those of "layers.1".
    """
    nested = {key for key in device_map if any(other != key and is_under(other, key) for other in device_map)}
    if not nested:
        return dict(device_map)
    found: dict[str, Device] = {}

    def expand(module: Module, device: Device | None) -> None:
        device = device_map.get(module.name, device)
        inner = any(key != module.name and is_under(key, module.name) for key in device_map)
        if device is not None and not inner:
            found[module.name] = device
        elif inner:
            for tensor in (*module.parameters, *module.buffers):
                if at := device_map.get(tensor.name, device):
                    found[tensor.name] = at
            for child in module.children:
                expand(child, device)

    expand(tree.root, None)
    return found


def _skipped_cpu(uses: Collection[DeviceUse]) -> list[str]:
    used = {use.device: use.used for use in uses}
    if Device.cpu() in used or not used[Device.disk()]:
        return []
    return ["no memory is given for cpu, so what does not fit elsewhere goes straight to disk"]


def _not_offloaded(tree: ModuleTree, device_map: Mapping[str, Device]) -> list[str]:
    devices = set(device_map.values())
    refused = sorted({str(device.type) for device in devices} & tree.no_offload)
    if not refused or devices == {Device.cpu()}:
        return []
    return [f"transformers refuses to load {tree.quantisation} weights with a part on {' or '.join(refused)}"]


def _parted_ties(tree: ModuleTree, device_map: Mapping[str, Device]) -> list[str]:
    return [
        f"{target} on {there} and {source} on {here} are one tensor: "
        + (f"loaded, it is on {held}" if (held := holder(there, here)) else "transformers can't run it so")
        for target, source, there, here in split_ties(tree.ties, device_map)
    ]


def split_ties(
    ties: Iterable[tuple[str, str]], device_map: Mapping[str, Device]
) -> list[tuple[str, str, Device, Device]]:
    """(target, source, the target's device, the source's) of tied tensors that are not on one device."""
    found = []
    for target, source in ties:
        there, here = device_of(target, device_map), device_of(source, device_map)
        if there is not None and here is not None and there != here:
            found.append((target, source, there, here))
    return found


def holder(there: Device, here: Device) -> Device | None:
    """Which of two devices holds a tied weight that a map puts on both: the accelerator, if the other is the CPU.

    None where it can't run. accelerate ties what is loaded once more, to the one that it finds first: on two
    accelerators each module but one then has its weight on another device than its inputs, and on disk it has none.
    """
    accelerators = [device for device in (there, here) if is_accelerator(device)]
    return accelerators[0] if len(accelerators) == 1 and Device.cpu() in (there, here) else None
