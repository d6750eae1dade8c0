"""What a load's own run should hold beside the weights: its very inputs, traced as a plan's workload is."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from devctl.devices import Device
from devctl.models.footprint import Footprint, Kernels, Workload
from devctl.models.tree import ModuleTree, counted_bytes, walk
from devctl.placement.budget import is_accelerator
from devctl.placement.strategy import device_of
from devctl.placement.workload import main_of, needs

if TYPE_CHECKING:
    from devctl.loading.inputs import Inputs
    from devctl.models.skeleton import Skeleton


def workloads(
    skeleton: Skeleton, inputs: Inputs, device_map: Mapping[str, Device], new_tokens: int
) -> tuple[Workload, ...]:
    """What is run: a forward, and where the peak of that is measured, as on accelerators, the generate too."""
    on_accelerator = is_accelerator(main_of(device_map))
    text = inputs.tensors.get("input_ids")
    prompt = 1 if text is None else text.shape[1]
    kernels = Kernels.ACCELERATOR if on_accelerator else Kernels.CPU
    forward = Workload(context_length=prompt, batch_size=inputs.batch_size, new_tokens=0, kernels=kernels)
    if not (on_accelerator and new_tokens and inputs.generates and skeleton.model_class.can_generate()):
        return (forward,)
    steps = max(1, new_tokens - 1)  # the last token is not read
    generate = Workload(context_length=prompt + steps, batch_size=inputs.batch_size, new_tokens=steps, kernels=kernels)
    return forward, generate


def beside_weights(
    tree: ModuleTree, device_map: Mapping[str, Device], footprints: Collection[Footprint]
) -> dict[Device, int]:
    """The most bytes beside its weights that each device holds which computes, in any of the runs.

    Of weights that are offloaded, the device that runs them holds those of one module at a time.
    """
    found: dict[Device, int] = {}
    for footprint in footprints:
        for device, need in needs(tree, device_map, footprint).items():
            found[device] = max(found.get(device, 0), need.state + need.activations)
    main = main_of(device_map)
    if is_accelerator(main) and main in found:
        found[main] += _largest_fetched(tree, device_map)
    return found


def _largest_fetched(tree: ModuleTree, device_map: Mapping[str, Device]) -> int:
    size = counted_bytes(tree)
    return max(
        (
            sum(size[tensor.name] for tensor in module.parameters)
            for module in walk(tree.root)
            if any(not is_accelerator(device_of(t.name, device_map) or Device.cpu()) for t in module.parameters)
        ),
        default=0,
    )
