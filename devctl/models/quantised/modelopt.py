"""Bytes of models that NVIDIA's ModelOpt quantises, by arithmetic: other engines than transformers load them."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from devctl.models.quantised.counting import CannotCountError, Counting, Tensors, replace_tensors

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

METHOD = "modelopt"
FILE = "hf_quant_config.json"
"""The file in which ModelOpt says what it did, beside a config that may not say it."""


@dataclass(frozen=True, slots=True)
class _Packing:
    """How a weight is kept.

    Attributes:
        bits: of an element.
        dtype: torch's name of the dtype that holds the elements.
        block: elements of a row, and rows, that have a scale together; 0 is all of them.
        scale: torch's name of the dtype of a scale.
        scalars: float32 numbers of the whole weight, like a scale of the scales, or of the inputs.
        smoothed: whether each input has a factor in the model's dtype.
    """

    bits: int
    dtype: str
    block: tuple[int, int]
    scale: str = "float32"
    scalars: int = 0
    smoothed: bool = False


_WHOLE, _ROW = (0, 0), (0, 1)
_PACKINGS = {
    "FP8": _Packing(8, "float8_e4m3fn", _WHOLE, scalars=1),
    "FP8_PER_CHANNEL_PER_TOKEN": _Packing(8, "float8_e4m3fn", _ROW),
    "FP8_PB_WO": _Packing(8, "float8_e4m3fn", (128, 128)),
    "FP8_PB_REAL": _Packing(8, "float8_e4m3fn", (128, 128)),
    "NVFP4": _Packing(4, "uint8", (16, 1), "float8_e4m3fn", scalars=2),
    "NVFP4_AWQ": _Packing(4, "uint8", (16, 1), "float8_e4m3fn", scalars=2, smoothed=True),
    "NVFP4_SVDQUANT": _Packing(4, "uint8", (16, 1), "float8_e4m3fn", scalars=2, smoothed=True),
    "W4A16_NVFP4": _Packing(4, "uint8", (16, 1), "float8_e4m3fn", scalars=1),
    "W4A8_NVFP4_FP8": _Packing(4, "uint8", (32, 1), "float8_e4m3fn", scalars=2),
    "W4A8_MXFP4_FP8": _Packing(4, "uint8", (32, 1), "uint8", scalars=1),
    "MXFP4": _Packing(4, "uint8", (32, 1), "uint8"),
    "MXFP8": _Packing(8, "float8_e4m3fn", (32, 1), "uint8"),
    "W4A16_AWQ": _Packing(4, "uint8", (128, 1), "", smoothed=True),
    "W4A8_AWQ": _Packing(4, "uint8", (128, 1), "", scalars=2, smoothed=True),
    "INT4_AWQ": _Packing(4, "uint8", (128, 1), "", smoothed=True),
    "W8A16": _Packing(8, "int8", _ROW),
    "W8A8_SQ_PER_CHANNEL": _Packing(8, "int8", _ROW, scalars=1, smoothed=True),
}
"""By ModelOpt's name of the algorithm (modelopt 0.33, ``export/quant_utils.py``).

A scale of "" is in the model's dtype.
"""


def modelopt_settings(found: Mapping[str, Any]) -> dict[str, Any] | None:
    """ModelOpt's settings in one form, from either of its own; None where ``found`` is not of ModelOpt.

    They are in a config's ``quantization_config``, with ``quant_algo`` and ``ignore``, or in a file of their own, under
    ``quantization``, with ``exclude_modules``. An algorithm that is not named is told by the bits of its weights.
    """
    producer = found.get("producer")
    named = producer.get("name") if isinstance(producer, dict) else None
    if not str(found.get("quant_method") or "").startswith(METHOD) and named != METHOD:
        return None
    inner = found.get("quantization")
    said = {**found, **inner} if isinstance(inner, dict) else dict(found)
    excluded = said.get("exclude_modules") or said.get("ignore") or []
    layers = said.get("quantized_layers")
    scheme = said.get("kv_cache_quant_algo") or said.get("kv_cache_scheme")
    if isinstance(scheme, dict):
        scheme = f"{scheme.get('type', '')}{scheme.get('num_bits', '')}"
    weights = _group_weights(said)
    return {
        "quant_method": METHOD,
        "quant_algo": str(said.get("quant_algo") or _algorithm_of(weights) or ""),
        "group_size": said.get("group_size") or weights.get("group_size"),
        "exclude_modules": [str(name) for name in excluded] if isinstance(excluded, list) else [],
        "quantized_layers": layers if isinstance(layers, dict) else {},
        "kv_cache": str(scheme) if scheme else "",
    }


def _group_weights(said: Mapping[str, Any]) -> dict[str, Any]:
    """What the first of ``config_groups`` says of weights."""
    groups = said.get("config_groups")
    first = next(iter(groups.values()), None) if isinstance(groups, dict) else None
    weights = first.get("weights") if isinstance(first, dict) else None
    return weights if isinstance(weights, dict) else {}


def _algorithm_of(weights: Mapping[str, Any]) -> str | None:
    known = {"float8": "FP8", "float4": "NVFP4", "int4": "W4A16_AWQ", "int8": "W8A16"}
    return known.get(f"{weights.get('type')}{weights.get('num_bits')}")


def label_of(settings: Mapping[str, Any]) -> str:
    """What a plan calls the method, like "modelopt nvfp4"."""
    return f"{METHOD} {settings.get('quant_algo') or 'of no name'}".lower()


def count_modelopt(model: PreTrainedModel, settings: dict[str, Any], dtype: torch.dtype) -> Counting:
    """The packed tensors of each Linear, and of experts that transformers keeps in one, but for those excluded."""
    import torch

    from devctl.models.quantised.counting import dtype_name

    excluded = frozenset(_as_built(model, settings["exclude_modules"]))
    layers = {
        new: settings["quantized_layers"][old]
        for old in settings["quantized_layers"]
        for new in _as_built(model, [old])
    }
    counting = Counting()
    for name, module in list(model.named_modules()):
        own = layers.get(name)
        if layers and own is None and not is_experts(name, module):
            continue
        packing = _packing(settings, own if isinstance(own, dict) else _of_experts(name, layers))
        if packing is None or _is_excluded(name, excluded):
            continue
        if isinstance(module, torch.nn.Linear):
            replace_tensors(model, name, _linear_tensors(module, packing, dtype_name(dtype)))
        elif is_experts(name, module):
            for local, weight in module.named_parameters(recurse=False):
                if weight.dim() == 3:
                    counting.planned[f"{name}.{local}"] = _experts_bytes(weight.shape, local, packing, dtype)
                    counting.dtypes[f"{name}.{local}"] = packing.dtype
    if settings["kv_cache"]:
        counting.notes.append(
            f"the checkpoint is made for a KV cache in {settings['kv_cache'].lower()}: --kv-dtype counts with one"
        )
    return counting


def is_experts(name: str, module: torch.nn.Module) -> bool:
    """Whether a module keeps the weights of many experts, each in one tensor of three dimensions."""
    import torch

    return (
        not isinstance(module, torch.nn.modules.conv._ConvNd)
        and "expert" in f"{name.lower()} {type(module).__name__.lower()}"
        and any(weight.dim() == 3 for _, weight in module.named_parameters(recurse=False))
    )


def _packing(settings: Mapping[str, Any], own: Mapping[str, Any] | None) -> _Packing | None:
    """How a weight is packed; None where the layer of a mixed model is not."""
    algorithm = str((own or settings).get("quant_algo") or "").upper()
    if algorithm == "MIXED_PRECISION":
        return None
    found = _PACKINGS.get(algorithm)
    if found is None:
        raise CannotCountError(f"devctl does not know ModelOpt's {algorithm or 'method without a name'}")
    group = (own or settings).get("group_size")
    if type(group) is int and group > 0 and found.block[1] == 1 and found.block[0]:
        return _Packing(found.bits, found.dtype, (group, 1), found.scale, found.scalars, found.smoothed)
    return found


def _of_experts(name: str, layers: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The layer of a mixed model that is the first of the experts called ``name``."""
    return next((own for layer, own in layers.items() if layer.startswith(f"{name}.") and isinstance(own, dict)), None)


def _linear_tensors(module: Any, packing: _Packing, dtype: str) -> Tensors:
    inputs, outputs = module.in_features, module.out_features
    columns, rows = packing.block
    scales: tuple[int, ...] = ()
    if packing.block != _WHOLE:
        scales = (math.ceil(outputs / (rows or outputs)), math.ceil(inputs / (columns or inputs)))
    found: Tensors = {
        "weight": ((outputs, math.ceil(inputs * packing.bits / 8)), packing.dtype),
        "weight_scale": (scales, packing.scale or dtype),
    }
    for at in range(packing.scalars):
        found["input_scale" if at == 0 else "weight_scale_2"] = ((), "float32")
    if packing.smoothed:
        found["pre_quant_scale"] = ((inputs,), dtype)
    if module.bias is not None:
        found["bias"] = ((outputs,), dtype)
    return found


def _experts_bytes(shape: tuple[int, ...], local: str, packing: _Packing, dtype: torch.dtype) -> int:
    """Bytes of the weights of all experts as the checkpoint has them, each expert's on its own."""
    import torch

    experts, outputs, inputs = shape
    matrices = 2 if "gate_up" in local else 1
    outputs = math.ceil(outputs / matrices)
    columns, rows = packing.block
    scale = getattr(torch, packing.scale) if packing.scale else dtype
    scales = math.ceil(outputs / (rows or outputs)) * math.ceil(inputs / (columns or inputs))
    each = math.ceil(outputs * inputs * packing.bits / 8) + scales * scale.itemsize + packing.scalars * 4
    return int(experts) * matrices * (each + (inputs * dtype.itemsize if packing.smoothed else 0))


def _is_excluded(name: str, excluded: Iterable[str]) -> bool:
    """Whether a pattern is of the module or one around it, or of all experts in it."""
    return any(
        name == pattern or name.startswith(f"{pattern}.") or fnmatch.fnmatchcase(name, pattern) for pattern in excluded
    )


def _as_built(model: PreTrainedModel, names: Iterable[str]) -> Iterator[str]:
    """Names of the checkpoint's modules, and as the built model calls them (as ``FineGrainedFP8HfQuantizer`` does)."""
    from transformers.conversion_mapping import get_model_conversion_mapping

    renamings: list[Any] = list(get_model_conversion_mapping(model))
    for name in names:
        yield name
        new = f"{name}."
        for rename in renamings:
            new, _ = rename.rename_source_key(new)
        yield new.removesuffix(".")
