"""Bytes of models that compressed-tensors quantises, by arithmetic: the library need not be here."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

from devctl.models.quantised.counting import (
    INT32_BITS,
    CannotCountError,
    Counting,
    Tensors,
    dtype_name,
    replace_tensors,
)
from devctl.models.quantised.modelopt import is_experts
from devctl.units import format_bytes

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def count_compressed(model: PreTrainedModel, settings: dict[str, Any], dtype: torch.dtype) -> Counting:
    """The tensors of each config group's scheme, in place of the weights of the Linear modules that it targets.

    From compressed-tensors 0.20: ``initialize_module_for_quantization`` and the compressors of its formats. At the
    first forward the library unpacks all of them again (``ModelCompressor.add_decompress_hook``).
    """
    import torch

    settings = settings.get("quantization_config") or settings
    if settings.get("dequantize") or settings.get("run_compressed") is False:
        return Counting()
    compressed = settings.get("quantization_status") == "compressed"
    ignored = settings.get("ignore") or []
    fused = 0
    unpacked: dict[str, int] = {}
    for name, module in list(model.named_modules()):
        if compressed and is_experts(name, module):
            fused += _experts_saved(name, module, settings)
            continue
        if not isinstance(module, torch.nn.Linear) or _matches(name, module, ignored):
            continue
        groups = (settings.get("config_groups") or {}).values()
        scheme = next((g for g in groups if _matches(name, module, g.get("targets") or [])), None)
        if scheme is None or not scheme.get("weights"):
            continue
        form = scheme.get("format") or settings.get("format") or "dense"
        tensors = _scheme_tensors(module, scheme, str(form), dtype_name(dtype), compressed=compressed)
        packed = sum(math.prod(shape) * getattr(torch, kind).itemsize for shape, kind in tensors.values())
        unpacked[f"{name}.{next(iter(tensors))}"] = module.weight.numel() * module.weight.element_size() - packed
        if module.bias is not None:
            tensors["bias"] = (tuple(module.bias.shape), dtype_name(module.bias.dtype))
        replace_tensors(model, name, tensors)
    counting = Counting()
    if unpacked and compressed:
        counting.unpacked = unpacked
        counting.notes.append(
            "compressed-tensors unpacks the weights at the first forward: "
            f"{format_bytes(max(0, sum(unpacked.values())))} more than transformers plans with are held from then on"
        )
    if fused:
        counting.notes.append(
            "transformers unpacks a layer's experts as it loads, to keep them in one tensor: "
            f"{format_bytes(fused)} more than the checkpoint has are planned here"
        )
    return counting


def _experts_saved(name: str, module: torch.nn.Module, settings: dict[str, Any]) -> int:
    """Bytes by which the checkpoint's experts are smaller than those of ``module``, where its schemes are of them."""
    each = f"{name}.0.down_proj"  # as they are in the checkpoint, a Linear each
    groups = (settings.get("config_groups") or {}).values()
    for group in groups:
        weights = group.get("weights") or {}
        targets = [target for target in group.get("targets") or [] if target != "Linear"]
        if not weights or ("Linear" not in group.get("targets", []) and not _named(each, targets)):
            continue
        if _named(each, settings.get("ignore") or []):
            continue
        bits = int(weights.get("num_bits") or 8)
        own = [weight for _, weight in module.named_parameters(recurse=False) if weight.dim() == 3]
        group_size = weights.get("group_size")
        scales = 16 / group_size if type(group_size) is int and group_size > 0 else 0
        return sum(int(weight.numel() * (8 * weight.element_size() - bits - scales)) // 8 for weight in own)
    return 0


def _named(name: str, targets: list[str]) -> bool:
    return any(
        re.match(target[3:], name) is not None if target.startswith("re:") else target == name for target in targets
    )


def _scheme_tensors(module: Any, scheme: dict[str, Any], form: str, dtype: str, *, compressed: bool) -> Tensors:
    """What a quantisation scheme keeps of a Linear's weight."""
    weights: dict[str, Any] = scheme["weights"]
    inputs, outputs = module.in_features, module.out_features
    bits = int(weights.get("num_bits") or 8)
    grouped: Tensors = {}
    if form in ("nvfp4-pack-quantized", "mxfp4-pack-quantized"):
        size = int(weights.get("group_size") or (16 if form.startswith("nvfp4") else 32))
        kind = "float8_e4m3fn" if form.startswith("nvfp4") else "uint8"
        grouped["weight_packed"] = ((outputs, math.ceil(inputs / 2)), "uint8")
        grouped["weight_scale"] = ((outputs, math.ceil(inputs / size)), kind)
        if form.startswith("nvfp4"):
            grouped["weight_global_scale"] = ((1,), "float32")
    else:
        scale = _scale_shape(weights, inputs, outputs)
        if not compressed or form == "dense":
            grouped["weight"] = ((outputs, inputs), dtype)
        elif form == "pack-quantized":
            grouped["weight_packed"] = ((outputs, math.ceil(inputs * bits / INT32_BITS)), "int32")
            grouped["weight_shape"] = ((2,), "int64")
        elif form in ("int-quantized", "float-quantized", "naive-quantized") and bits == 8:
            grouped["weight"] = ((outputs, inputs), "int8" if weights.get("type") == "int" else "float8_e4m3fn")
        else:
            raise CannotCountError(f"devctl can't count compressed-tensors' format {form!r} of {bits} bits")
        grouped["weight_scale"] = (scale, dtype)
        if not compressed or not weights.get("symmetric", True):
            grouped["weight_zero_point"] = (scale, "int8" if weights.get("type") == "int" else "float8_e4m3fn")
    activations = scheme.get("input_activations") or {}
    if activations.get("dynamic") == "local":
        grouped["input_global_scale"] = ((1,), "float32")
    elif activations and not activations.get("dynamic"):
        grouped["input_scale"] = ((1,), dtype)
    return grouped


def _scale_shape(weights: dict[str, Any], inputs: int, outputs: int) -> tuple[int, ...]:
    strategy = weights.get("strategy") or ("group" if weights.get("group_size") else "tensor")
    if strategy == "channel":
        return (outputs, 1)
    if strategy in ("group", "tensor_group"):
        return (outputs, math.ceil(inputs / int(weights["group_size"])))
    if strategy == "block":
        rows, columns = weights["block_structure"]
        return (math.ceil(outputs / rows), math.ceil(inputs / columns))
    if strategy == "tensor":
        return (1,)
    raise CannotCountError(f"devctl can't count compressed-tensors' strategy {strategy!r}")


def _matches(name: str, module: torch.nn.Module, targets: list[str]) -> bool:
    """Whether a target is the module's name, a class of it, or (``re:``) a pattern that its name begins with."""
    classes = {c.__name__ for c in type(module).__mro__}
    return any(
        re.match(target[3:], name) is not None if target.startswith("re:") else target == name or target in classes
        for target in targets
    )
