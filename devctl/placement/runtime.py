"""What runs beside the weights, made part of the question: KV cache and activations count as the weights do.

A block's state goes where the block goes, so it is given to the block as bytes of its own. What a block needs while it
executes is not added up over blocks; the most common need is taken off every device's budget, and what a block needs
beyond that is given to the block too. For blocks that are alike that is exact; it never counts less than is needed.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from devctl.devices import Device
from devctl.models.footprint import BlockFootprint, Footprint, peak_beside_weights
from devctl.models.tree import Module, ModuleTree, Tensor, TensorKind, names, tensors, walk
from devctl.placement.blocks import RUNTIME, is_atomic
from devctl.placement.budget import Budgets, is_accelerator
from devctl.placement.strategy import device_of


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


def common_need(footprint: Footprint) -> int:
    """The bytes that most blocks need while they execute."""
    needs = Counter(block.most for block in footprint.blocks if block.name)
    return max(needs, key=lambda need: (needs[need], need), default=0)


def with_runtime(tree: ModuleTree, footprint: Footprint, *, needs: bool = True) -> ModuleTree:
    """The tree with each block's state, and what it needs beyond the common need, as bytes of the block.

    Args:
        needs: whether to count that need; it is there only while the block executes, perhaps before there is any state.
    """
    common = common_need(footprint)
    # a sliding window is cut off only after prefill, which holds all of the prompt's keys and values
    states = {b.name: max(b.state, b.prompt_state) for b in footprint.blocks}
    own = {b.name: states[b.name] + needs * max(0, b.most - common) for b in footprint.blocks}
    known = [module for module in walk(tree.root) if module.name in own and is_atomic(module, tree.no_split)]
    placed = {module.name for module in known}
    # what belongs to no block is where the model begins to run
    rest = sum(size for name, size in own.items() if name not in placed)
    rest = max(rest, needs * (footprint.output - common))
    first = next((module.name for module in walk(tree.root) if is_atomic(module, tree.no_split)), "")
    extra = {module.name: own[module.name] for module in known}
    extra[first] = extra.get(first, 0) + rest
    return replace(tree, root=_with(tree.root, extra))


def _with(module: Module, extra: Mapping[str, int]) -> Module:
    size = extra.get(module.name, 0)
    buffers = module.buffers
    if size:
        name = f"{module.name}.{RUNTIME}" if module.name else RUNTIME
        buffers += (
            Tensor(name=name, kind=TensorKind.BUFFER, nbytes=size, shape=(size,), dtype="uint8", persistent=False),
        )
    return replace(module, buffers=buffers, children=tuple(_with(child, extra) for child in module.children))


def less(budgets: Budgets, runtime: Runtime, kept: Mapping[Device, int] | None = None) -> Budgets:
    """What is left for blocks on each device: without the common need, what the libraries take, and what is ``kept``.

    Args:
        kept: bytes that a device holds for blocks that are offloaded.
    """
    common = common_need(runtime.footprint)
    accelerators = [device for device, size in budgets.devices if is_accelerator(device) and size > 0]
    runs = accelerators or [Device.cpu()]
    left = []
    for device, size in budgets.devices:
        taken = runtime.overhead.get(device, 0) + (common if device in runs else 0)
        taken += (kept or {}).get(device, 0)
        left.append((device, max(0, size - taken)))
    # what is counted needs no share kept free for it
    return replace(budgets, devices=tuple(left), given=True)


def main_of(device_map: Mapping[str, Device]) -> Device:
    """The device that takes the inputs, and runs what is offloaded: the first accelerator of the map, else the CPU."""
    used = [device for device in device_map.values() if is_accelerator(device)]
    return min(used, key=lambda device: device.id or 0, default=Device.cpu())


def brought_weights(tree: ModuleTree, device_map: Mapping[str, Device], names: Iterable[str]) -> dict[str, int]:
    """Bytes of weights that the main device is given while it runs blocks, of those that are offloaded.

    accelerate brings the tensors of a module when its forward begins, and lets go of them when it ends: at once there
    are those of a module and of what it is within.
    """
    main = main_of(device_map)

    def at_once(module: Module) -> int:
        own = sum(t.nbytes for t in module.parameters if _is_fetched(device_of(t.name, device_map), main))
        return own + max(map(at_once, module.children), default=0)

    modules = {module.name: module for module in walk(tree.root)}
    found = {name: at_once(modules[name]) for name in names if name in modules}
    return {name: nbytes for name, nbytes in found.items() if nbytes}


def _is_fetched(device: Device | None, main: Device) -> bool:
    return device is not None and device != main and not is_accelerator(device)


def needs(
    tree: ModuleTree, device_map: Mapping[str, Device], footprint: Footprint, *, weights: bool = True
) -> dict[Device, Need]:
    """What each device that computes holds beside weights; the offloaded runs, and keeps its state, on the main one.

    Args:
        weights: whether to count offloaded weights while they are used.
    """
    main = main_of(device_map)
    known = set(names(tree.root))
    there: dict[Device, list[BlockFootprint]] = {}
    for block in footprint.blocks:
        device = _device_of(tree, block.name, device_map) if block.name in known else None
        there.setdefault(device if device is not None and is_accelerator(device) else main, []).append(block)
    found = {}
    for device, blocks in there.items():
        state = sum(block.state for block in blocks)
        there_to_run = [block.name for block in blocks] if weights and device == main else []
        brought = brought_weights(tree, device_map, there_to_run)
        # accelerate copies what the model returns to where its inputs were
        returned = footprint.output if device == main else 0
        found[device] = Need(state=state, activations=max(returned, peak_beside_weights(blocks, brought) - state))
    return found


def _device_of(tree: ModuleTree, name: str, device_map: Mapping[str, Device]) -> Device | None:
    """Where a module is; one that is spread is where its first tensor is."""
    if (device := device_of(name, device_map)) is not None:
        return device
    module = next(module for module in walk(tree.root) if module.name == name)
    return next((device for t in tensors(module) if (device := device_of(t.name, device_map)) is not None), None)
