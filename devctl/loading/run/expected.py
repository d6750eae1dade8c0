"""What a load's own run should hold beside the weights: its very inputs, traced as a plan's workload is."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from devctl.devices import Device, DeviceType
from devctl.models.footprint import Footprint, Kernels, Workload, peak_bytes
from devctl.models.tree import ModuleTree
from devctl.models.whose_kernels import Build, kernels_on, parse_cudnn, parse_release, shuns_cudnn
from devctl.placement.budget import is_accelerator
from devctl.placement.runtime import main_of, needs, unallocated

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
    main = main_of(device_map)
    on_accelerator = is_accelerator(main)
    forward = _forward(inputs, kernels_here(main), attention)
    if not (on_accelerator and _generates(skeleton, inputs, new_tokens)):
        return (forward,)
    return forward, _generate(forward, inputs, new_tokens)


def generate_on_cpu(
    skeleton: Skeleton,
    inputs: Inputs,
    device_map: Mapping[str, Device],
    new_tokens: int,
    *,
    attention: str | None = None,
) -> Workload | None:
    """The generate on a CPU, where it may hold more than the forward, whose peak is measured there; None elsewhere.

    A greedy one holds no more: it keeps the scores of one place alone.
    """
    if is_accelerator(main_of(device_map)) or not inputs.generation or not _generates(skeleton, inputs, new_tokens):
        return None
    return _generate(_forward(inputs, Kernels.CPU, attention), inputs, new_tokens)


def kernels_here(device: Device) -> Kernels:
    """Whose kernels run on a device of this machine."""
    if not is_accelerator(device):
        return Kernels.CPU
    import torch

    if device.type is not DeviceType.GPU or torch.version.cuda is None or not torch.cuda.is_available():
        return Kernels.ACCELERATOR
    major, minor = torch.cuda.get_device_capability(device.id)
    cudnn = parse_cudnn(torch.backends.cudnn.version())  # type: ignore[no-untyped-call]
    build = Build(torch=parse_release(torch.__version__), cudnn=cudnn, shuns_cudnn=shuns_cudnn(os.environ))
    return kernels_on([f"{major}.{minor}"], build)


def _generates(skeleton: Skeleton, inputs: Inputs, new_tokens: int) -> bool:
    return bool(new_tokens) and inputs.generates and skeleton.model_class.can_generate()


def _forward(inputs: Inputs, kernels: Kernels, attention: str | None) -> Workload:
    text = inputs.tensors.get("input_ids")
    return Workload(
        context_length=1 if text is None else text.shape[1],
        batch_size=inputs.batch_size,
        new_tokens=0,
        kernels=kernels,
        padded=inputs.padded,
        attention=attention,
    )


def _generate(forward: Workload, inputs: Inputs, new_tokens: int) -> Workload:
    steps = max(1, new_tokens - 1)  # the last token is not read
    return replace(
        forward,
        context_length=forward.context_length + steps,
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


def gaps(device_map: Mapping[str, Device], footprints: Iterable[Footprint]) -> dict[Device, int]:
    """The most bytes that torch's allocator reserves by default beside what it gives out, in any of the runs."""
    found = tuple(footprints)
    return {
        device: max((unallocated(footprint, device) for footprint in found), default=0)
        for device in dict.fromkeys(device_map.values())
    }


def _beside(tree: ModuleTree, device_map: Mapping[str, Device], footprint: Footprint) -> dict[Device, int]:
    main = main_of(device_map)
    if not is_accelerator(main):
        return {main: peak_bytes(footprint)}  # weights on disk are mapped where they are
    return {device: need.state + need.activations for device, need in needs(tree, device_map, footprint).items()}
