"""What a load's own run should hold beside the weights: its very inputs, traced as a plan's workload is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from devctl.devices import Device
from devctl.models.footprint import Footprint, Kernels, Workload, peak_bytes
from devctl.models.tree import ModuleTree
from devctl.placement.budget import is_accelerator
from devctl.placement.runtime import main_of, needs

if TYPE_CHECKING:
    from devctl.loading.run.inputs import Inputs
    from devctl.models.skeleton import Skeleton


def workloads(
    skeleton: Skeleton,
    inputs: Inputs,
    device_map: Mapping[str, Device],
    new_tokens: int,
    *,
    attention: str | None = None,
) -> tuple[Workload, ...]:
    """What is run: a forward, and where the peak of that is measured, as on accelerators, the generate too.

    Args:
        attention: how the model is asked to attend; None for what transformers chooses.
    """
    on_accelerator = is_accelerator(main_of(device_map))
    text = inputs.tensors.get("input_ids")
    prompt = 1 if text is None else text.shape[1]
    kernels = Kernels.ACCELERATOR if on_accelerator else Kernels.CPU
    forward = Workload(
        context_length=prompt,
        batch_size=inputs.batch_size,
        new_tokens=0,
        kernels=kernels,
        padded=inputs.padded,
        attention=attention,
    )
    if not (on_accelerator and new_tokens and inputs.generates and skeleton.model_class.can_generate()):
        return (forward,)
    steps = max(1, new_tokens - 1)  # the last token is not read
    return forward, replace(
        forward,
        context_length=prompt + steps,
        new_tokens=steps,
        generation=inputs.generation,
        prefill_chunk=inputs.prefill_chunk,
    )


def beside_weights(
    tree: ModuleTree, device_map: Mapping[str, Device], footprints: Iterable[Footprint]
) -> dict[Device, int]:
    """The most bytes beside its weights that each device holds which computes, in any of the runs."""
    found: dict[Device, int] = {}
    for footprint in footprints:
        for device, nbytes in _beside(tree, device_map, footprint).items():
            found[device] = max(found.get(device, 0), nbytes)
    return found


def _beside(tree: ModuleTree, device_map: Mapping[str, Device], footprint: Footprint) -> dict[Device, int]:
    main = main_of(device_map)
    if not is_accelerator(main):
        return {main: peak_bytes(footprint)}  # weights on disk are mapped where they are
    return {device: need.state + need.activations for device, need in needs(tree, device_map, footprint).items()}
