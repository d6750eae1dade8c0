"""Bytes of models that a library of its own quantises, by arithmetic: the library need not be here.

Which modules a method takes is asked of transformers, as its quantizer does; how their tensors are packed is written
down below, from the library that each function names. Imports torch and transformers, inside functions.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from devctl.models.quantised.compressed_tensors import count_compressed
from devctl.models.quantised.counting import INT32_BITS, CannotCountError, Counting, Tensors, replace_tensors
from devctl.models.quantised.modelopt import METHOD, count_modelopt

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_SHARE = 0.9
"""``adjust_max_memory`` of transformers' quantizers for bitsandbytes, torchao and quanto."""


def _bitsandbytes_4bit(model: PreTrainedModel, settings: dict[str, Any], dtype: torch.dtype) -> Counting:
    """Half a byte an element is planned; loaded are also a float32 for each block of 64, and a table of 16 of them.

    Double quantisation keeps a byte for each block, a float32 for each 256 blocks, a table of 256 and an offset
    (bitsandbytes 0.50, ``functional.quantize_4bit``).
    """
    counting = Counting(budget_share=_SHARE)
    for name, module in _bitsandbytes_linears(model, settings):
        count = module.weight.numel()
        _plan(counting, name, module, count // 2, "uint8")
        blocks = math.ceil(count / 64)
        double = settings.get("bnb_4bit_use_double_quant")
        scales = blocks + 4 * math.ceil(blocks / 256) + 4 * 256 + 4 if double else 4 * blocks
        counting.hide(f"{name}.weight", 64 + scales)
    return counting


def _bitsandbytes_8bit(model: PreTrainedModel, settings: dict[str, Any], dtype: torch.dtype) -> Counting:
    """A byte an element is planned; loaded is also a float32 for each row (bitsandbytes 0.50, ``Int8Params.SCB``)."""
    counting = Counting(budget_share=_SHARE)
    for name, module in _bitsandbytes_linears(model, settings):
        _plan(counting, name, module, module.weight.numel(), "int8")
        counting.hide(f"{name}.weight", 4 * _features(module)[1])
    return counting


def _bitsandbytes_linears(model: PreTrainedModel, settings: dict[str, Any]) -> list[tuple[str, Any]]:
    import torch
    from transformers.pytorch_utils import Conv1D

    skipped = _skipped(model, settings.get("llm_int8_skip_modules"))
    return [(n, m) for n, m in _taken(model, skipped) if type(m) is torch.nn.Linear or isinstance(m, Conv1D)]


def _torchao(model: PreTrainedModel, settings: dict[str, Any], dtype: torch.dtype) -> Counting:
    """Planned is half a byte an element where the configuration's name says 4-bit weights, else a byte.

    Loaded is also, for int8 and float8, a float32 for each row and int8's zero point, and for int4 a scale and a zero
    point in bfloat16 for each group (torchao 0.18, ``Int8Tensor``, ``Float8Tensor``, ``Int4TilePackedTo4dTensor``).
    """
    import torch
    from transformers.quantizers.quantizers_utils import should_convert_module

    quant_type = settings.get("quant_type") or {}
    kind = quant_type.get("default", quant_type) if isinstance(quant_type, dict) else quant_type
    data = kind.get("_data") if isinstance(kind, dict) else settings.get("quant_type_kwargs")
    data = data if isinstance(data, dict) else {}
    kind = str(kind.get("_type") or "") if isinstance(kind, dict) else str(kind)
    found = re.search(r"(\d)_?weight", kind.lower())
    if found is None or "Fqn" in kind:
        raise CannotCountError(f"torchao's {kind or 'quant_type'} says no one size")
    # torchao keeps these four bits in an int8 each; transformers plans with half a byte, where it reads such a kind
    unpacked = "dynamicactivationint4" in kind.lower().replace("_", "")
    four = found[1] == "4" and not (unpacked and isinstance(quant_type, str))
    embeddings = bool(settings.get("include_input_output_embeddings"))
    skipped = _skipped(model, settings.get("modules_to_not_convert"))
    if embeddings:
        ends = {id(model.get_input_embeddings()), id(model.get_output_embeddings())}  # type: ignore[no-untyped-call]
        names = {name for name, module in model.named_modules() if id(module) in ends}
        skipped = [name for name in skipped if name not in names]
    classes = (torch.nn.Linear, torch.nn.Embedding) if embeddings else (torch.nn.Linear,)
    counting = Counting(budget_share=_SHARE)
    for name, module in model.named_modules():
        if isinstance(module, classes) and should_convert_module(f"{name}.weight", skipped):
            rows, columns = module.weight.shape
            count = module.weight.numel()
            _plan(counting, name, module, count // 2 if four else count, "uint8" if four else "int8")
            groups = rows * math.ceil(columns / int(data.get("group_size") or 128))
            scales = 4 * groups if four else rows * (4 if "float8" in kind.lower() else 5)
            counting.hide(f"{name}.weight", scales + (count - count // 2 if four and unpacked else 0))
    return counting


def _quanto(model: PreTrainedModel, settings: dict[str, Any], dtype: torch.dtype) -> Counting:
    """The weights' bits are planned, and two scalars, ``input_scale`` and ``output_scale``, that each module gets.

    Loaded is also a scale for each row, or of int4 and int2 a scale and a shift for each group of up to 128
    (optimum-quanto 0.2.7, ``WeightQBytesTensor``, ``WeightQBitsTensor``).
    """
    import torch

    bits = {"int8": 8, "float8": 8, "int4": 4, "int2": 2}.get(str(settings.get("weights", "int8")))
    if bits is None:
        raise CannotCountError(f"quanto has no weights {settings.get('weights')!r}")
    counting = Counting(budget_share=_SHARE)
    for name, module in _taken(model, _skipped(model, settings.get("modules_to_not_convert"))):
        if not isinstance(module, torch.nn.Linear):
            continue
        count = module.weight.numel()
        _plan(counting, name, module, count * bits // 8, "int8" if bits == 8 else "uint8")
        for buffer in ("input_scale", "output_scale"):
            module.register_buffer(buffer, torch.ones((), dtype=dtype, device="meta"))
        inputs, outputs = _features(module)
        group = next((g for g in (128, 64, 32) if inputs % g == 0), inputs)
        counting.hide(f"{name}.weight", dtype.itemsize * (outputs if bits == 8 else 2 * count // group))
    return counting


def _gptq(model: PreTrainedModel, settings: dict[str, Any], dtype: torch.dtype) -> Counting:
    """``qweight`` and ``qzeros`` of int32, ``scales`` of float16, ``g_idx`` of int32, in place of a block's Linear.

    Which modules: those in the blocks that optimum 2.3 knows by name (``GPTQQuantizer.convert_model``); how they are
    packed: gptqmodel 7.7, ``GPTQQuantLinear``.
    """
    bits, group = _bits_and_group(settings)
    kept = [name for names in settings.get("modules_in_block_to_quantize") or [] for name in names]
    counting = Counting()
    if settings.get("dynamic"):
        counting.notes.append(
            'gptq\'s rules for single modules ("dynamic") are not counted: all are taken to have its bits'
        )
    for name, module in _block_linears(model, settings):
        if not kept or any(name.endswith(end) for end in kept):
            replace_tensors(model, name, _gptq_tensors(module, bits, group))
    return counting


def _awq(model: PreTrainedModel, settings: dict[str, Any], dtype: torch.dtype) -> Counting:
    """As GPTQ, packed along the other side, and without ``g_idx`` (gptqmodel 7.7, ``AWQuantLinear``)."""
    import torch

    bits, group = _bits_and_group(settings)
    skipped = _skipped(model, settings.get("modules_to_not_convert"), add_default_skips=True)
    for name, module in _taken(model, skipped):
        if isinstance(module, torch.nn.Linear):
            replace_tensors(model, name, _awq_tensors(module, bits, group))
    return Counting()


def _auto_round(model: PreTrainedModel, settings: dict[str, Any], dtype: torch.dtype) -> Counting:
    """In the packing of GPTQ or AWQ that ``packing_format`` names; ``extra_config`` has the bits of single modules."""
    bits, group = _bits_and_group(settings)
    extra = settings.get("extra_config") or {}
    tensors_of = _awq_tensors if "awq" in str(settings.get("packing_format")) else _gptq_tensors
    for name, module in _block_linears(model, settings):
        own = int((extra.get(name) or {}).get("bits", bits))
        if own < 16:
            replace_tensors(model, name, tensors_of(module, own, group))
    return Counting(notes=["auto-round's own rules for single modules are counted only where its config has them"])


def _gptq_tensors(module: Any, bits: int, group: int) -> Tensors:
    inputs, outputs = _features(module)
    groups = math.ceil(inputs / (group if group > 0 else inputs))
    packed: Tensors = {
        "qweight": ((math.ceil(inputs * bits / INT32_BITS), outputs), "int32"),
        "qzeros": ((groups, math.ceil(outputs * bits / INT32_BITS)), "int32"),
        "scales": ((groups, outputs), "float16"),
        "g_idx": ((inputs,), "int32"),
    }
    return packed | ({} if module.bias is None else {"bias": ((outputs,), "float16")})


def _awq_tensors(module: Any, bits: int, group: int) -> Tensors:
    inputs, outputs = _features(module)
    groups = inputs // (group if group > 0 else inputs)
    columns = math.ceil(outputs * bits / INT32_BITS)
    packed: Tensors = {
        "qweight": ((inputs, columns), "int32"),
        "qzeros": ((groups, columns), "int32"),
        "scales": ((groups, outputs), "float16"),
    }
    return packed | ({} if module.bias is None else {"bias": ((outputs,), "float16")})


_BLOCKS = (
    "transformer.h",
    "model.decoder.layers",
    "gpt_neox.layers",
    "model.layers",
    "model.language_model.layers",
    "h",
    "decoder.layers",
    "layers",
)
"""How the names of blocks begin, the first that a model has (optimum 2.3, ``gptq.constants``)."""


def _block_linears(model: PreTrainedModel, settings: dict[str, Any]) -> list[tuple[str, Any]]:
    import torch
    from transformers.pytorch_utils import Conv1D

    names = [name for name, _ in model.named_modules()]
    block = settings.get("block_name_to_quantize")
    prefix = block if isinstance(block, str) and "," not in block else None
    prefix = prefix or next((p for p in _BLOCKS if any(name.startswith(p) for name in names)), None)
    if prefix is None:
        raise CannotCountError(f"{type(model).__name__} has no blocks of a known name")
    return [
        (name, module)
        for name, module in model.named_modules()
        if name.startswith(prefix) and (type(module) is torch.nn.Linear or isinstance(module, Conv1D))
    ]


def _bits_and_group(settings: dict[str, Any]) -> tuple[int, int]:
    try:
        # AWQ's first configs say w_bit and q_group_size
        bits = settings.get("bits", settings.get("w_bit", 4))
        return int(bits), int(settings.get("group_size", settings.get("q_group_size", 128)))
    except (TypeError, ValueError):
        raise CannotCountError("its bits or group_size is no number") from None


def _skipped(model: PreTrainedModel, named: list[str] | None, *, add_default_skips: bool = False) -> list[str]:
    """Modules that a quantizer leaves alone: those named, else the head, what is tied, and the last."""
    from transformers.quantizers.base import HfQuantizer

    kept: Any = model._keep_in_fp32_modules
    found: list[str] = HfQuantizer.get_modules_to_not_convert(model, named, kept, add_default_skips)
    return found


def _taken(model: PreTrainedModel, skipped: list[str]) -> Iterator[tuple[str, Any]]:
    from transformers.quantizers.quantizers_utils import should_convert_module

    yield from ((name, module) for name, module in list(model.named_modules()) if should_convert_module(name, skipped))


def _features(module: Any) -> tuple[int, int]:
    """Inputs and outputs of a Linear, or of the Conv1D that stands for one."""
    if hasattr(module, "in_features"):
        return int(module.in_features), int(module.out_features)
    inputs, outputs = module.weight.shape
    return int(inputs), int(outputs)


def _plan(counting: Counting, name: str, module: Any, planned: int, dtype: str) -> None:
    counting.planned[f"{name}.weight"] = planned
    counting.dtypes[f"{name}.weight"] = dtype


METHODS: dict[str, Callable[[PreTrainedModel, dict[str, Any], torch.dtype], Counting]] = {
    "bitsandbytes_4bit": _bitsandbytes_4bit,
    "bitsandbytes_8bit": _bitsandbytes_8bit,
    "torchao": _torchao,
    "quanto": _quanto,
    "gptq": _gptq,
    "awq": _awq,
    "auto-round": _auto_round,
    "compressed-tensors": count_compressed,
    METHOD: count_modelopt,
}
"""What each method makes of a model, by transformers' name for it."""
