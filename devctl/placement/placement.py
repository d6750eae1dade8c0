"""A placement: the device map, the bytes it puts on each device, and whether a map holds for a model."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import pairwise

from devctl.devices import Device, DeviceType
from devctl.models.tree import ModuleTree, Tensor
from devctl.placement.budget import NUMBERED, Budgets, is_accelerator
from devctl.placement.device_map import AnyMap, FrozenMap
from devctl.placement.greedy.decisions import Trail
from devctl.placement.judge import compared, holder, split_ties
from devctl.placement.parallel.host_device import HostDevice
from devctl.placement.runtime import Runtime, needs, unallocated
from devctl.units import format_bytes

HfDevice = int | str
"""A device as a Hugging Face ``device_map`` has it: a GPU's id, or "cpu", "disk", "mps"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What one device holds, in bytes.

    Attributes:
        used: bytes that the weights and buffers placed there are held with.
        state: bytes of KV cache and recurrent states beside them, where a workload is planned for.
        activations: the most bytes that are alive beside those, offloaded weights that are there to be used among them.
        unallocated: bytes that torch's allocator reserves by default beside those that it gives out. They are not part
            of the total, as its expandable segments do without most of them.
        overhead: bytes that the device's libraries take for themselves.
        loading: the most bytes that it holds while the model is loaded: its weights, the parts of the one that is made
            last, and what the libraries take. They are gone when the model runs.
    """

    used: int
    state: int = 0
    activations: int = 0
    unallocated: int = 0
    overhead: int = 0
    loading: int = 0

    @property
    def total(self) -> int:
        """All bytes that it has to hold while the model runs."""
        return self.used + self.state + self.activations + self.overhead

    @property
    def with_gaps(self) -> int:
        """The same with what torch's allocator reserves by default beside what it gives out."""
        return self.total + self.unallocated

    @property
    def most(self) -> int:
        """All bytes that it has to hold at any time."""
        return max(self.total, self.loading)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceUse(Load):
    """What a placement puts on one device.

    Attributes:
        budget: bytes that it may hold; None where nothing limits it.
        modules: the map's keys that are there, in the order of definition.
    """

    device: Device
    budget: int | None
    modules: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where each part of a model goes.

    Attributes:
        strategy: how it was found; None for a map that somebody wrote.
        device_map: the device of modules and tensors, which cover every tensor, in the order of definition.
        devices: what each device holds, also those that hold nothing.
        crossings: how often execution goes from one device to another, in the order of definition.
        notes: decisions and doubts that a reader should know of.
        trail: how a greedy strategy came to it.
    """

    strategy: str | None
    device_map: FrozenMap
    devices: tuple[DeviceUse, ...]
    crossings: int
    notes: tuple[str, ...] = ()
    trail: Trail | None = field(default=None, repr=False, compare=False)

    @property
    def offloaded(self) -> int:
        """Bytes that are not on the accelerators; without any, bytes that are not on the CPU."""
        off = [DeviceType.CPU, DeviceType.DISK] if any(_computes(use) for use in self.devices) else [DeviceType.DISK]
        return sum(use.used for use in self.devices if use.device.type in off)

    @property
    def fits(self) -> bool:
        """Whether no device is given more than it may hold."""
        return not any(map(_is_over, self.devices))

    @property
    def on_disk(self) -> int:
        """Bytes on disk."""
        return sum(use.used for use in self.devices if use.device.type is DeviceType.DISK)

    @property
    def fullest(self) -> Fraction:
        """The used part of the accelerator that has the least left; without any, of the CPU."""
        accelerators = [use for use in self.devices if _computes(use)]
        computing = accelerators or [use for use in self.devices if use.device.type is DeviceType.CPU]
        return max((Fraction(use.most, use.budget) for use in computing if use.budget), default=Fraction(0))


def _computes(use: DeviceUse) -> bool:
    return is_accelerator(use.device) and bool(use.used or use.budget)


def make_placement(
    tree: ModuleTree,
    device_map: AnyMap,
    budgets: Budgets,
    *,
    strategy: str | None,
    notes: tuple[str, ...] = (),
    runtime: Runtime | None = None,
) -> Placement:
    """Add up what ``device_map`` puts on each device, and note what it splits."""
    return told(weigh(tree, device_map, budgets, runtime), tree, budgets, strategy=strategy, notes=notes)


def weigh(tree: ModuleTree, device_map: AnyMap, budgets: Budgets, runtime: Runtime | None = None) -> Placement:
    """The same without a word: numbers alone, and no names of modules by device; enough to choose among many."""
    device_map = FrozenMap.of(device_map)
    limits: dict[Device, int | None] = dict(budgets.devices)
    limits[Device.disk()] = None
    for device in device_map.devices:
        limits.setdefault(device, None)
    used, is_nested, is_whole = _used(tree, device_map)
    extra = _while_loading(tree, device_map, by_keys=is_whole and not is_nested)
    beside = {} if runtime is None else needs(tree, device_map, runtime.footprint)
    for device in beside:
        limits.setdefault(device, 0)  # what would have to run the model may hold nothing
    for device in extra:
        limits.setdefault(device, None)
    libraries = {} if runtime is None else {d: n for d, n in runtime.overhead.items() if used.get(d) or d in beside}
    gaps = {} if runtime is None else {d: unallocated(runtime.footprint, d) for d in beside}
    uses = tuple(
        DeviceUse(
            device=device,
            used=used.get(device, 0),
            budget=limit,
            modules=(),
            state=beside[device].state if device in beside else 0,
            activations=beside[device].activations if device in beside else 0,
            unallocated=gaps.get(device, 0),
            overhead=libraries.get(device, 0),
            loading=used.get(device, 0) + extra.get(device, 0) + libraries.get(device, 0),
        )
        for device, limit in limits.items()
    )
    crossings = _crossings_of_nested(tree, device_map) if is_nested else _crossings(tree, device_map)
    return Placement(strategy=None, device_map=device_map, devices=uses, crossings=crossings)


def told(
    weighed: Placement,
    tree: ModuleTree,
    budgets: Budgets,
    *,
    strategy: str | None,
    notes: tuple[str, ...] = (),
    trail: Trail | None = None,
) -> Placement:
    """A placement that was weighed, whole: with the names of modules by device, and all that there is to note."""
    device_map, uses = weighed.device_map, weighed.devices
    keys: dict[Device, list[str]] = {use.device: [] for use in uses}
    before: Device | None = None
    there: list[str] = []
    for name, device in device_map.pairs:
        if device is not before:
            there, before = keys[device], device
        there.append(name)
    return replace(
        weighed,
        strategy=strategy,
        devices=tuple(replace(use, modules=tuple(keys[use.device])) for use in uses),
        notes=(
            *tree.notes,
            *budgets.notes,
            *notes,
            *_skipped_cpu(uses),
            *_not_offloaded(tree, device_map),
            # a greedy map can be, by the buffers that upstream forgets to count when it splits the module around them
            *over_budget(uses),
            *tight(uses),
            *_parted_ties(tree, device_map),
        ),
        trail=trail,
    )


def worth(placement: Placement) -> tuple[bool, int, int, Fraction, int]:
    """The less, the better: it fits, little is offloaded, little of that is on disk, there is room, it moves little."""
    return not placement.fits, placement.offloaded, placement.on_disk, placement.fullest, placement.crossings


def to_hf(device_map: Collection[tuple[str, Device]]) -> dict[str, HfDevice]:
    """The map as ``from_pretrained(device_map=…)`` takes it: a numbered accelerator is its id."""
    return {name: hf_device(device) for name, device in device_map}


def hf_device(device: Device) -> HfDevice:
    """A device as Hugging Face's libraries take it: a numbered accelerator is its id; one of several hosts is none."""
    if isinstance(device, HostDevice):
        return str(device)
    return device.id if device.type in NUMBERED and device.id is not None else str(device)


def bytes_per_device(tree: ModuleTree, device_map: AnyMap) -> dict[Device, int]:
    """Bytes of the tensors on each device; what the map leaves out is kept on the CPU, as transformers does."""
    frozen, cpu = FrozenMap.of(device_map), Device.cpu()
    return add_up(tree, lambda tensor: frozen.device_of(tensor.name) or cpu)


def add_up(tree: ModuleTree, place: Callable[[Tensor], Device]) -> dict[Device, int]:
    """Bytes on each device when ``place`` says where a tensor is."""
    size = tree.index.held
    used: dict[Device, int] = {}
    for tensor in tree.index.tensors:
        device = place(tensor)
        used[device] = used.get(device, 0) + size[tensor.name]
    return used


def loaded_beside(tree: ModuleTree, device_map: AnyMap) -> dict[Device, int]:
    """Bytes that each device holds for a while, as the model is loaded, beside its weights; without those of none."""
    return _while_loading(tree, FrozenMap.of(device_map), by_keys=False)


def _while_loading(tree: ModuleTree, device_map: FrozenMap, *, by_keys: bool) -> dict[Device, int]:
    """The same; parameters are made one after another, and what goes to the disk is made on the CPU.

    Args:
        by_keys: whether no key is above another, and they cover all.
    """
    index, cpu, disk = tree.index, Device.cpu(), Device.disk()
    found: dict[Device, int] = {}
    if index.making:
        pairs = (
            device_map.pairs
            if by_keys
            else [(t.name, device_map.device_of(t.name) or cpu) for t in index.tensors if t.name in index.making]
        )
        for key, device in pairs:
            if key in index.making:
                there, nbytes = (cpu, index.making_whole[key]) if device == disk else (device, index.making[key])
                found[there] = max(found.get(there, 0), nbytes)
    for name, nbytes in index.until_tied:
        device = device_map.device_of(name) or cpu
        if device != disk:
            found[device] = found.get(device, 0) + nbytes
    return found


def _used(tree: ModuleTree, device_map: FrozenMap) -> tuple[dict[Device, int], bool, bool]:
    """The same from what is under each key, whether any key is above another, and whether they cover all."""
    size, is_nested = tree.index.held, False
    rest = size[""]
    used = dict.fromkeys(device_map.devices, 0)
    before, sum_before = Device.cpu(), 0
    used.setdefault(before, 0)
    for key, device in device_map.pairs:
        nbytes = size.get(key)
        if nbytes is None:
            continue
        if device is not before:
            used[before] += sum_before
            before, sum_before = device, 0
        sum_before += nbytes
        above = device_map.above(key)
        if above is None:
            rest -= nbytes
        else:
            is_nested = True
            used[device_map[above]] -= nbytes
    used[before] += sum_before
    used[Device.cpu()] += rest
    return used, is_nested, not rest


def _crossings(tree: ModuleTree, device_map: FrozenMap) -> int:
    """Of weights alone: a buffer is used by what is around it. A tied weight is used in each of its places."""
    spans, weights = tree.index.spans, tree.index.weights
    found, at, before, cpu = 0, 0, None, Device.cpu()
    runs = [(*spans[key], device) for key, device in device_map.pairs if key in spans]
    for start, stop, device in [*sorted(runs, key=lambda run: run[:2]), (len(weights) - 1, len(weights) - 1, cpu)]:
        left_out = [cpu] if weights[start] > weights[at] else []
        for there in [*left_out, device] if weights[stop] > weights[start] else left_out:
            found += before is not None and there is not before and there != before
            before = there
        at = stop
    return found


def _crossings_of_nested(tree: ModuleTree, device_map: FrozenMap) -> int:
    """The same of a map with keys above others, tensor by tensor."""
    weights, cpu = tree.index.weights, Device.cpu()
    devices = [
        device_map.device_of(tensor.name) or cpu
        for tensor, before, after in zip(tree.index.tensors, weights, weights[1:], strict=False)
        if after > before
    ]
    return sum(1 for here, there in pairwise(devices) if here is not there and here != there)


def over_budget(uses: Collection[DeviceUse]) -> tuple[str, ...]:
    """The devices that are given more than they may hold, as the model runs or as it is loaded."""
    return tuple(_over(use, use.budget) for use in uses if use.budget is not None and _is_over(use))


SEGMENTS = "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True"
"""What lets torch's allocator of an accelerator do without most gaps.

The newer name, PYTORCH_ALLOC_CONF, is not heeded for this by every torch that knows it (pytorch/pytorch issue 183387).
"""


def tight(uses: Collection[DeviceUse]) -> tuple[str, ...]:
    """A line where devices have room for all that is asked of torch's allocator, and not for the gaps that it leaves
    there by default."""
    lacking = {
        use.device: use.with_gaps - use.budget
        for use in uses
        if use.budget is not None and use.total <= use.budget < use.with_gaps
    }
    if not lacking:
        return ()
    worst = max(lacking, key=lambda device: lacking[device])
    reserved = max(use.unallocated for use in uses if use.device in lacking)
    some = ", ".join(map(str, [*lacking][:_MOST_NAMED]))
    more = f" and {len(lacking) - _MOST_NAMED} more" if len(lacking) > _MOST_NAMED else ""
    return (
        f"what is on {some}{more} fits only with {SEGMENTS}; by default torch's allocator reserves up to "
        f"{format_bytes(reserved)} in gaps, {format_bytes(lacking[worst])} more than is left on {worst}",
    )


_MOST_NAMED = 3


def _over(use: DeviceUse, budget: int) -> str:
    runs = use.total > budget
    need = use.total if runs else use.loading
    held = f"is given {format_bytes(need)}" if runs else f"holds {format_bytes(need)} while the model is loaded"
    return f"{use.device} {held}, {format_bytes(need - budget)} more than the {format_bytes(budget)} that it may hold"


def _is_over(use: DeviceUse) -> bool:
    return use.budget is not None and use.most > use.budget and use.device.type != DeviceType.DISK


def _skipped_cpu(uses: Collection[DeviceUse]) -> list[str]:
    used = {use.device: use.used for use in uses}
    if Device.cpu() in used or not used[Device.disk()]:
        return []
    return ["no memory is given for cpu, so what does not fit elsewhere goes straight to disk"]


def _not_offloaded(tree: ModuleTree, device_map: FrozenMap) -> list[str]:
    devices = set(device_map.devices)
    refused = sorted({str(device.type) for device in devices} & tree.no_offload)
    if not refused or devices == {Device.cpu()}:
        return []
    return [f"transformers refuses to load {tree.quantisation} weights with a part on {' or '.join(refused)}"]


def _parted_ties(tree: ModuleTree, device_map: FrozenMap) -> list[str]:
    both = compared(tree)
    return [
        f"{target} is on {there} and {source} on {here}: the checkpoint has both, which transformers can't compare so"
        if target in both
        else f"{target} on {there} and {source} on {here} are one tensor: "
        + (f"loaded, it is on {held}" if (held := holder(there, here)) else "transformers can't run it so")
        for target, source, there, here in split_ties(tree.ties, device_map)
    ]
