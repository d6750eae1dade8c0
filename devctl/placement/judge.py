"""Does a map hold for a model, on the devices that there are?"""

from collections.abc import Collection, Iterable

from devctl.devices import Device
from devctl.models.tree import Module, ModuleTree
from devctl.placement.budget import is_accelerator
from devctl.placement.device_map import AnyMap, FrozenMap


def validate(tree: ModuleTree, device_map: AnyMap, available: Collection[Device]) -> tuple[str, ...]:
    """Why ``device_map`` can't be used for the model on a machine that has the ``available`` devices.

    Returns:
        Every finding, a line each: unknown modules, devices that are not there, tensors without a device. Empty when
        the map holds.
    """
    known, device_map = tree.index.places, FrozenMap.of(device_map)
    findings = [f"{key!r} is no module or tensor of {tree.class_name}" for key, _ in device_map if key not in known]

    here = ", ".join(str(device) for device in available)
    there = set(available)
    missing: dict[Device, list[str]] = {device: [] for device in device_map.devices if device not in there}
    for key, device in device_map if missing else ():
        if device in missing:
            missing[device].append(key or "the whole model")
    findings += [
        f"{device} is not on this machine (it has {here}): needed for {shorten(keys)}"
        for device, keys in missing.items()
    ]

    findings += unusable_ties(tree, device_map)

    unplaced = tuple(f".{name}" for name in tree.unplaced or ())
    homeless = [
        tensor.name
        for tensor in tree.index.tensors
        if device_map.device_of(tensor.name) is None and not tensor.name.endswith(unplaced)
    ]
    if homeless:
        findings.append(f"no device for {len(homeless)} tensors: {shorten(homeless)}")
    return tuple(findings)


def find_faults(tree: ModuleTree, device_map: AnyMap) -> tuple[str, ...]:
    """What is wrong with a map that could be loaded all the same: ties and blocks that are split.

    A tied weight is held once, on the accelerator. A no-split block adds up tensors of all its parts: spread over
    accelerators it fails when it runs; with parts offloaded it works if the rest is on the device that runs those.
    """
    device_map = FrozenMap.of(device_map)
    both = compared(tree)
    found = [
        f"{target} on {there} and {source} on {here} are one tensor: it would be on {held}"
        for target, source, there, here in split_ties(tree.ties, device_map)
        if target not in both and (held := holder(there, here)) is not None
    ]
    cut = device_map.cut
    for name in tree.index.unsplit:
        if name not in cut:
            continue  # no key goes into it
        devices = dict.fromkeys(device_map.device_of(tensor.name) for tensor in tree.index.tensors_of(name))
        if len(devices) > 1:
            where = ", ".join(str(device) for device in devices if device is not None)
            class_name = tree.index.modules[name].class_name
            found.append(f"{name}, a {class_name}, must not be split, and is on {where}")
    return tuple(found)


def shorten(many: Collection[str], most: int = 3) -> str:
    """The first ``most`` names, and how many more there are."""
    shown = ", ".join(list(many)[:most])
    return shown if len(many) <= most else f"{shown} and {len(many) - most} more"


def disjoint(tree: ModuleTree, device_map: AnyMap) -> dict[str, Device]:
    """The same map without a key above another: such a key is replaced by those of its parts.

    transformers looks keys up as regular expressions without a boundary: with both "layers" and "layers.1" in a map, it
    takes the weights of "layers.10" for those of "layers.1".
    """
    device_map = FrozenMap.of(device_map)
    cut = device_map.cut
    if not any(key in cut for key, _ in device_map):
        return dict(device_map)
    found: dict[str, Device] = {}

    def expand(module: Module, device: Device | None) -> None:
        device = device_map.get(module.name, device)
        inner = module.name in cut
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


def split_ties(ties: Iterable[tuple[str, str]], device_map: AnyMap) -> list[tuple[str, str, Device, Device]]:
    """(target, source, the target's device, the source's) of tied tensors that are not on one device."""
    found, frozen = [], FrozenMap.of(device_map)
    for target, source in ties:
        there, here = frozen.device_of(target), frozen.device_of(source)
        if there is not None and here is not None and there != here:
            found.append((target, source, there, here))
    return found


def compared(tree: ModuleTree) -> frozenset[str]:
    """Targets of ties that the checkpoint has beside their sources.

    transformers compares both once they are loaded, to tie them only if they are equal, and torch compares no tensors
    of two devices (``PreTrainedModel.tie_weights``).
    """
    return tree.untied | {name for name, _ in tree.index.until_tied}


def unusable_ties(tree: ModuleTree, device_map: AnyMap) -> list[str]:
    """Why a map that parts tied weights can't be loaded, or not run: a line for each such pair."""
    both, found = compared(tree), []
    for target, source, there, here in split_ties(tree.ties, device_map):
        if target in both:
            found.append(
                f"{target} is on {there} and {source} on {here}: the checkpoint has both, and transformers compares "
                "them once they are loaded, for which they have to be on one device"
            )
        elif holder(there, here) is None:
            found.append(
                f"{target} and {source} are one tensor, but on {there} and {here}: transformers can't run it so"
            )
    return found


def holder(there: Device, here: Device) -> Device | None:
    """Which of two devices holds a tied weight that a map puts on both: the accelerator, if the other is the CPU.

    None where it can't run. accelerate ties what is loaded once more, to the one that it finds first: on two
    accelerators each module but one then has its weight on another device than its inputs, and on disk it has none.
    """
    accelerators = [device for device in (there, here) if is_accelerator(device)]
    return accelerators[0] if len(accelerators) == 1 and Device.cpu() in (there, here) else None
