"""Quantised models: what a checkpoint's ``quantization_config``, or ``--quantize``, makes of the built model.

A method whose modules are transformers' own is prepared by transformers' own quantizer. One whose modules come from
another library is counted by ``packing``, so that a machine without the library or a GPU can plan for one that has
them. Imports torch and transformers, inside functions.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from devctl.errors import UsageError
from devctl.models.files.checkpoint import Checkpoint
from devctl.models.files.resolve import ModelSource
from devctl.models.plain import in_plain_words
from devctl.models.quantised.counting import CannotCountError, Counting, dtype_name
from devctl.models.quantised.settings import method_of, settings_beside, settings_of
from devctl.models.tree import ModuleTree, sizes
from devctl.units import format_bytes

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel


class Quantize(StrEnum):
    """What ``from_pretrained(quantization_config=…)`` can quantise as it loads, named for ``--quantize``."""

    INT8 = "int8"
    NF4 = "nf4"
    FP4 = "fp4"
    FP8 = "fp8"
    MXFP4 = "mxfp4"
    FBGEMM_FP8 = "fbgemm-fp8"
    EETQ_INT8 = "eetq-int8"
    TORCHAO_INT8 = "torchao-int8"
    TORCHAO_INT4 = "torchao-int4"
    TORCHAO_FLOAT8 = "torchao-float8"
    QUANTO_INT8 = "quanto-int8"
    QUANTO_INT4 = "quanto-int4"
    QUANTO_INT2 = "quanto-int2"
    QUANTO_FLOAT8 = "quanto-float8"


@dataclass(frozen=True, slots=True, kw_only=True)
class OnTheFly:
    """The configuration that a value of ``--quantize`` stands for, and how it is written in Python."""

    settings: dict[str, Any]
    written: str


def _torchao(kind: str, **data: Any) -> OnTheFly:
    arguments = ", ".join(f"{name}={value}" for name, value in data.items())
    return OnTheFly(
        settings={"quant_method": "torchao", "quant_type": {"default": {"_type": kind, "_data": data}}},
        written=f"TorchAoConfig({kind}({arguments})), with the library torchao",
    )


def _quanto(weights: str) -> OnTheFly:
    return OnTheFly(
        settings={"quant_method": "quanto", "weights": weights},
        written=f'QuantoConfig("{weights}"), with the library optimum-quanto',
    )


def _bitsandbytes(**arguments: Any) -> OnTheFly:
    text = ", ".join(f"{name}={value!r}".replace("'", '"') for name, value in arguments.items())
    return OnTheFly(
        settings={"quant_method": "bitsandbytes", **arguments},
        written=f"BitsAndBytesConfig({text}), with the library bitsandbytes",
    )


ON_THE_FLY = {
    Quantize.INT8: _bitsandbytes(load_in_8bit=True),
    Quantize.NF4: _bitsandbytes(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
    Quantize.FP4: _bitsandbytes(load_in_4bit=True, bnb_4bit_quant_type="fp4"),
    Quantize.FP8: OnTheFly(settings={"quant_method": "fp8"}, written="FineGrainedFP8Config()"),
    Quantize.MXFP4: OnTheFly(settings={"quant_method": "mxfp4"}, written="Mxfp4Config(), with the library kernels"),
    Quantize.FBGEMM_FP8: OnTheFly(
        settings={"quant_method": "fbgemm_fp8"}, written="FbgemmFp8Config(), with the library fbgemm-gpu"
    ),
    Quantize.EETQ_INT8: OnTheFly(settings={"quant_method": "eetq"}, written="EetqConfig(), with the library kernels"),
    Quantize.TORCHAO_INT8: _torchao("Int8WeightOnlyConfig"),
    Quantize.TORCHAO_INT4: _torchao("Int4WeightOnlyConfig", group_size=128),
    Quantize.TORCHAO_FLOAT8: _torchao("Float8WeightOnlyConfig"),
    Quantize.QUANTO_INT8: _quanto("int8"),
    Quantize.QUANTO_INT4: _quanto("int4"),
    Quantize.QUANTO_INT2: _quanto("int2"),
    Quantize.QUANTO_FLOAT8: _quanto("float8"),
}

BUILT_IN = ("fp8", "mxfp8", "fbgemm_fp8", "mxfp4", "bitnet", "eetq", "gemma", "nvfp4", "metal", "higgs")
"""Methods whose modules are transformers' own, so that its quantizer can prepare a model on the meta device here."""

_FALLS_BACK = {
    "fp8": "a GPU of compute capability 8.9, or an XPU",
    "mxfp8": "a GPU of compute capability 8.9, or an XPU",
    "mxfp4": "a GPU of compute capability 7.5 with triton and kernels",
    "metal": "Apple's GPU",
}
"""Methods whose checkpoints transformers unpacks where there is no such hardware."""


def wanted_settings(
    config: PreTrainedConfig,
    source: ModelSource,
    quantize: Quantize | None,
    checkpoint: Checkpoint,
    notes: list[str],
) -> dict[str, Any] | None:
    """The settings of the checkpoint's quantisation, or of the one that is asked for.

    Raises:
        UsageError: both.
    """
    settings = settings_of(config) or settings_beside(source, checkpoint, notes)
    if quantize is None:
        return settings
    if settings is not None:
        raise UsageError(
            f"{source.location} is quantised already ({method_of(settings) or 'by an unknown method'}): "
            "leave out --quantize"
        )
    return ON_THE_FLY[quantize].settings


def loads_here(settings: dict[str, Any]) -> bool:
    """Whether transformers, as it is here, would load the checkpoint quantised: it has the library and the hardware."""
    import torch
    from transformers.quantizers.auto import AutoHfQuantizer

    try:
        quantizer = AutoHfQuantizer.from_config(copy.deepcopy(settings), pre_quantized=True)
        quantizer.validate_environment(device_map=None, weights_only=True)
    except Exception:  # noqa: BLE001 - each quantizer has its own way to say no
        return False
    on_cpu = not (torch.cuda.is_available() or torch.xpu.is_available())
    unpacked = method_of(settings) == "mxfp4" and on_cpu  # Mxfp4HfQuantizer decides that later
    return not unpacked and not getattr(quantizer.quantization_config, "dequantize", False)


def built_dtype(settings: dict[str, Any], dtype: torch.dtype) -> torch.dtype:
    """The dtype in which transformers builds such a model when ``dtype`` is asked for (``update_dtype``)."""
    import torch

    # FbgemmFp8HfQuantizer; the others take any, or raise. AWQ's change, on a GPU, is to a dtype of the same size
    return torch.bfloat16 if method_of(settings) == "fbgemm_fp8" else dtype


def quantise(model: PreTrainedModel, dtype: torch.dtype, settings: dict[str, Any], *, on_the_fly: bool) -> Counting:
    """Make of ``model``, as it was built on the meta device, what it is once quantised, and say how to count it.

    Args:
        on_the_fly: whether the weights are quantised as they are loaded, not in the checkpoint.

    Raises:
        CannotCountError: the method is unknown, or its settings are; the model may be half-way.
    """
    from devctl.models.quantised.methods import METHODS  # which a plan that was made before does without

    method = method_of(settings)
    plain = _bytes(model)
    before = {name: (tensor.numel(), tensor.element_size()) for name, tensor in model.named_parameters()}
    try:
        if method == "compressed-tensors" or (method.startswith("bitsandbytes") and not on_the_fly):
            _unfuse_experts(model, method.partition("_")[0])
        if method in METHODS:
            counting = METHODS[method](model, settings, dtype)
        elif method in BUILT_IN:
            counting = _by_transformers(model, dtype, settings, on_the_fly=on_the_fly)
        else:
            raise CannotCountError(f"devctl can't count {method or 'a method without a name'}")
    except CannotCountError:
        raise
    except Exception as error:  # transformers' own code, on settings that anybody may have written
        raise CannotCountError(in_plain_words(error)) from error
    counting.no_offload = _no_offload(method, settings, on_the_fly=on_the_fly)
    counting.method = method
    if on_the_fly:
        counting.plain = dict(_quantised(model, before, counting))
    if on_the_fly and not counting.planned and _bytes(model) == plain:
        counting.notes.append(f"{type(model).__name__} has no module that {method} quantises: its size is as without")
    elif not on_the_fly and method in _FALLS_BACK and not settings.get("dequantize"):
        counting.without = plain
        counting.notes.append(
            f"{method} weights need {_FALLS_BACK[method]}; elsewhere transformers unpacks them to "
            f"{dtype_name(dtype)}: {format_bytes(plain)} in all"
        )
    return counting


def forced_dtype(settings: dict[str, Any], dtype: torch.dtype, notes: list[str]) -> torch.dtype:
    """The dtype in which transformers builds such a model, with a note where that is not ``dtype``."""
    forced = built_dtype(settings, dtype)
    if forced != dtype:
        notes.append(f"{method_of(settings)} models are built in {dtype_name(forced)} only")
    return forced


def notes_on(tree: ModuleTree, counting: Counting, quantize: Quantize | None) -> list[str]:
    """What a reader of a plan should know of how ``tree`` was counted."""
    notes = list(counting.notes)
    if quantize is not None:
        notes.insert(0, f"--quantize {quantize} stands for {ON_THE_FLY[quantize].written}")
    total = sizes(tree)[""]
    hidden = counting.all_hidden
    if abs(hidden) * 1000 > total:
        notes.append(
            f"{tree.quantisation} weights hold {format_bytes(abs(hidden))} "
            f"{'more' if hidden > 0 else 'less'} once loaded than transformers plans with: "
            f"{format_bytes(total + hidden)} in all"
        )
    if counting.budget_share != 1:
        notes.append(
            f"transformers plans with {counting.budget_share:.0%} of every budget for {tree.quantisation} weights"
        )
    return notes


def note_on_unpacked(tree: ModuleTree) -> str:
    """A note that weights are planned as transformers unpacks them, where it lacks what they need."""
    return (
        f"{tree.packed_as} weights need {_FALLS_BACK[tree.packed_as or '']}: here transformers unpacks them to "
        f"{tree.dtype}, {format_bytes(tree.index.held[''])} in all"
    )


def uncounted(settings: dict[str, Any], quantize: Quantize | None, dtype: torch.dtype, reason: str) -> str:
    """A note that a quantisation is left out, and why."""
    what = (
        f"--quantize {quantize}" if quantize else f"the checkpoint's quantisation ({method_of(settings) or 'unnamed'})"
    )
    return f"{what} is not counted, {reason}: sizes are those of {dtype_name(dtype)}"


def _by_transformers(
    model: PreTrainedModel, dtype: torch.dtype, settings: dict[str, Any], *, on_the_fly: bool
) -> Counting:
    """Let transformers' quantizer replace the modules, and ask it for the size of every element."""
    from transformers.quantizers.auto import AutoHfQuantizer

    quantizer: Any = AutoHfQuantizer.from_config(copy.deepcopy(settings), pre_quantized=not on_the_fly)
    # its environment is not asked for: the plan may be for another machine. On a CPU, Mxfp4HfQuantizer unpacks unless
    # it is to use kernels, and on CUDA if it is
    with _without_kernels():
        quantizer.preprocess_model(
            model=model,
            dtype=dtype,
            device_map="auto",
            checkpoint_files=None,
            use_kernels=not _is_built_for_accelerators(),
        )
    counting = Counting(budget_share=quantizer.adjust_max_memory({"cpu": 1.0})["cpu"], quantizer=quantizer)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        own = tensor.numel() * tensor.element_size()
        planned = int(tensor.numel() * quantizer.param_element_size(model, name, tensor))
        if planned != own:
            counting.planned[name] = planned
            # what is still as wide as the model's dtype is quantised as it is loaded; the rest is as it will be
            if not (name.endswith(".weight") and tensor.dtype == dtype):
                counting.hide(name, own - planned)
    if method_of(settings) == "mxfp4":
        _hide_mxfp4_scales(model, counting)
    if method_of(settings) == "eetq" and on_the_fly:
        _show_eetq_as_int8(model, counting)
    return counting


def _is_built_for_accelerators() -> bool:
    """Whether transformers takes this machine for one with an accelerator: torch is built for some, or has one."""
    import torch

    try:
        # of a build for CUDA it is CUDA, whether or not there is a GPU
        return torch.accelerator.current_accelerator() is not None
    except RuntimeError:  # how torch 2.6 says that there is none
        return False


def _unfuse_experts(model: PreTrainedModel, method: str) -> None:
    """Give experts that the method can't take fused a module each, as transformers does (Llama 4)."""
    from transformers.quantizers.base import HfQuantizer

    convert: Any = HfQuantizer._convert_model_for_quantization
    convert(SimpleNamespace(quantization_config=SimpleNamespace(quant_method=method)), model)


def _hide_mxfp4_scales(model: PreTrainedModel, counting: Counting) -> None:
    """A byte for every 32 weights, which are packed two in a byte; they are no parameters (``Mxfp4Deserialize``)."""
    from transformers.integrations.mxfp4 import Mxfp4GptOssExperts

    for name, module in model.named_modules():
        if isinstance(module, Mxfp4GptOssExperts):
            for weight in ("gate_up_proj", "down_proj"):
                counting.hide(f"{name}.{weight}", getattr(module, weight).numel() * 2 // 32)


def _show_eetq_as_int8(model: PreTrainedModel, counting: Counting) -> None:
    """EETQ keeps a byte for a weight that is planned as it was built; its quantizer names no size."""
    from transformers.integrations.eetq import EetqLinear

    for name, module in model.named_modules():
        if isinstance(module, EetqLinear):
            counting.hide(f"{name}.weight", -module.weight.numel() * (module.weight.element_size() - 1))


@contextlib.contextmanager
def _without_kernels() -> Iterator[None]:
    """While modules are replaced, transformers fetches their kernels from the hub; to plan takes none."""
    from transformers.integrations import fbgemm_fp8, hub_kernels

    gates: list[tuple[Any, str]] = [(hub_kernels, "get_kernel"), (fbgemm_fp8, "get_quantize_fp8_per_row")]
    before = [getattr(module, name) for module, name in gates]
    for module, name in gates:
        setattr(module, name, lambda *_, **__: None)
    try:
        yield
    finally:
        for (module, name), function in zip(gates, before, strict=True):
            setattr(module, name, function)


def _no_offload(method: str, settings: dict[str, Any], *, on_the_fly: bool) -> frozenset[str]:
    """Where ``validate_environment`` of transformers' quantizers refuses to put a part of the model."""
    if method.startswith("bitsandbytes") and settings.get("llm_int8_enable_fp32_cpu_offload"):
        return frozenset()
    if method == "torchao":
        return frozenset() if on_the_fly else frozenset({"disk"})
    if method == "mxfp4":
        return frozenset({"disk"}) if on_the_fly else frozenset()
    always = ("bitsandbytes_4bit", "bitsandbytes_8bit", "quanto", "bitnet", "eetq", "higgs", "nvfp4")
    as_loaded = ("fp8", "mxfp8", "fbgemm_fp8", "metal")
    refused = method in always or (on_the_fly and method in as_loaded)
    return frozenset({"cpu", "disk"}) if refused else frozenset()


def _quantised(
    model: PreTrainedModel, before: dict[str, tuple[int, int]], counting: Counting
) -> Iterator[tuple[str, int]]:
    """The parameters that are quantised, and the bytes of each before; those were (elements, bytes of one)."""
    for name, tensor in model.named_parameters():
        count, itemsize = before.get(name, (0, 0))
        now = counting.planned.get(name, tensor.numel() * tensor.element_size()) + counting.hidden.get(name, 0)
        if count and now != count * itemsize:
            yield name, count * itemsize


def _bytes(model: PreTrainedModel) -> int:
    """Bytes of all tensors as they are built, each tied one once."""
    named = (*model.named_parameters(), *model.named_buffers())
    return sum(t.numel() * t.element_size() for name, t in named if name not in model.all_tied_weights_keys)
