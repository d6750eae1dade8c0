"""What runs beside the weights, device by device: KV cache, activations, and what the libraries take."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from devctl.devices import Device
from devctl.models.footprint import BlockFootprint, Footprint, peak_beside_weights
from devctl.models.tree import Module, ModuleTree, TensorKind, held_bytes
from devctl.placement.budget import NUMBERED, Budgets, accelerators_of, is_accelerator
from devctl.placement.counted import common_need
from devctl.placement.device_map import AnyMap, FrozenMap


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What a device holds beside weights, in bytes.

    Attributes:
        state: KV cache and recurrent states when the context is full.
        activations: the most that is alive beside that, offloaded weights that are there to be used among it.
    """

    state: int
    activations: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """What is planned for beside the weights.

    Attributes:
        footprint: what the blocks hold while they do their work.
        overhead: bytes that each device's libraries take: the context of CUDA or HIP, and workspaces.
    """

    footprint: Footprint
    overhead: Mapping[Device, int]


def unallocated(footprint: Footprint, device: Device) -> int:
    """What torch's allocator reserves on ``device`` beside what it gives out, where its rules are known."""
    return footprint.unallocated if device.type in NUMBERED else 0


def rounded(footprint: Footprint, device: Device) -> int:
    """By how much what torch's allocator gives out on ``device`` is more than what is asked for."""
    return footprint.rounded if device.type in NUMBERED else 0


def less(budgets: Budgets, runtime: Runtime, kept: Mapping[Device, int] | None = None) -> Budgets:
    """What is left for blocks on each device: without the common need, what the libraries take, and what is ``kept``.

    Args:
        kept: bytes that a device holds for blocks that are offloaded.
    """
    return less_kept(budgets, free_for_blocks(budgets, runtime), kept or {})


def free_for_blocks(budgets: Budgets, runtime: Runtime) -> list[tuple[Device, int]]:
    """The same with nothing kept, by device; negative where more is taken than there is."""
    common = common_need(runtime.footprint)
    runs = set(accelerators_of(budgets)) or {Device.cpu()}
    return [
        (
            device,
            size
            - runtime.overhead.get(device, 0)
            - (common + rounded(runtime.footprint, device) if device in runs else 0),
        )
        for device, size in budgets.devices
    ]


def less_kept(budgets: Budgets, free: Iterable[tuple[Device, int]], kept: Mapping[Device, int]) -> Budgets:
    """The same from what is ``free`` with nothing kept."""
    left = tuple((device, max(0, size - kept.get(device, 0))) for device, size in free)
    # what is counted needs no share kept free for it
    return replace(budgets, devices=left, given=True)


def main_of(device_map: AnyMap) -> Device:
    """The device that takes the inputs, and runs what is offloaded: the first accelerator of the map, else the CPU."""
    used = [device for device in FrozenMap.of(device_map).devices if is_accelerator(device)]
    return min(used, key=lambda device: device.id or 0, default=Device.cpu())


def brought_weights(tree: ModuleTree, device_map: AnyMap, names: Iterable[str]) -> dict[str, int]:
    """Bytes of weights that the main device is given while it runs blocks, of those that are offloaded.

    accelerate brings the tensors of a module when its forward begins, and lets go of them when it ends: at once there
    are those of a module and of what it is within.
    """
    device_map, index = FrozenMap.of(device_map), tree.index
    main = main_of(device_map)
    fetched = [device for device in device_map.devices if device != main and not is_accelerator(device)]
    if not fetched:
        return {}
    cut = device_map.cut

    def at_once(module: Module) -> int:
        if module.name not in cut:
            return index.brought[module.name] if device_map.device_of(module.name) in fetched else 0
        own = sum(held_bytes(t) for t in module.parameters if device_map.device_of(t.name) in fetched)
        return own + max(map(at_once, module.children), default=0)

    found = {name: at_once(index.modules[name]) for name in names if name in index.modules}
    return {name: nbytes for name, nbytes in found.items() if nbytes}


def brought_at_most(tree: ModuleTree, device_map: AnyMap) -> int:
    """The most bytes of offloaded weights that are on the main device at once."""
    index = tree.index
    device_map = FrozenMap.of(device_map)
    off = [device for device in device_map.devices if device != main_of(device_map) and not is_accelerator(device)]
    return max((block.brought for block in index.blocks if device_map.device_of(block.names[0]) in off), default=0)


def needs(tree: ModuleTree, device_map: AnyMap, footprint: Footprint, *, weights: bool = True) -> dict[Device, Need]:
    """What each device that computes holds beside weights; the offloaded runs, and keeps its state, on the main one.

    What an encoder hands on is copied to the device of the inputs by ``generate``, and to the main one by accelerate
    whenever the model is called. A user puts the inputs where the model's first weights are.

    Args:
        weights: whether to count offloaded weights while they are used.
    """
    device_map = FrozenMap.of(device_map)
    main = main_of(device_map)
    there: dict[Device, list[BlockFootprint]] = {}
    handed = _handed_on(footprint)
    before: Device | None = None
    blocks: list[BlockFootprint] = []
    for block in footprint.blocks:
        device = _device_of(tree, block.name, device_map)
        if device is None or not is_accelerator(device):
            device = main
        if device is not before:  # most follow one on the same device, and a device takes time to look up
            blocks = there.setdefault(device, [])
            before = device
        if block.name not in handed:
            blocks.append(block)
            continue
        copy = BlockFootprint(name=block.name, prompt_state=block.prompt_state, state=block.state)
        if device == main:
            blocks.append(block)
        else:
            # where it is made it is let go of, and what runs there later is given it from the main device
            moved = f"{block.name}, handed on"
            here = block.prefill + block.prompt_state
            blocks.append(replace(block, name=moved, prompt_state=0, state=0, prefill=here))
            there.setdefault(main, []).append(copy)
        home = _home_of(tree, device_map)
        if home is not None and home != main:
            there.setdefault(home, []).append(replace(copy, name=f"{block.name}, of the inputs"))
    found = {}
    for device, blocks in there.items():
        state = sum([block.state for block in blocks])
        there_to_run = [block.name for block in blocks] if weights and device == main else []
        brought = brought_weights(tree, device_map, there_to_run)
        # accelerate copies what the model returns to where its inputs were
        returned = footprint.output if device == main else 0
        peak = peak_beside_weights(blocks, brought)
        if len(there) == 1 and footprint.most and not brought:
            peak = min(peak, footprint.most)
        activations = max(returned, peak - state) + rounded(footprint, device)
        found[device] = Need(state=state, activations=activations)
    return found


def _handed_on(footprint: Footprint) -> Collection[str]:
    """Blocks that run once, and whose state those of every step are given: an encoder's last ones."""
    if not footprint.workload.new_tokens:
        return ()
    given = {other for block in footprint.blocks for other, first, last in block.apart if first > 0 and last > 0}
    if not given:
        return ()
    return {block.name for block in footprint.blocks if block.name in given and block.state and not block.decode}


def _home_of(tree: ModuleTree, device_map: FrozenMap) -> Device | None:
    """Where the model's first parameter is, as ``PreTrainedModel.device`` tells it; None where that is offloaded."""
    first = next((t.name for t in tree.index.tensors if t.kind is TensorKind.PARAMETER), None)
    device = None if first is None else device_map.device_of(first)
    return device if device is not None and is_accelerator(device) else None


def _device_of(tree: ModuleTree, name: str, device_map: FrozenMap) -> Device | None:
    """Where a module is; one that is spread is where its first tensor is, and one that there is not is nowhere."""
    if name not in tree.index.places:
        return None
    if (device := device_map.device_of(name)) is not None:
        return device
    return next((at for t in tree.index.tensors_of(name) if (at := device_map.device_of(t.name)) is not None), None)
