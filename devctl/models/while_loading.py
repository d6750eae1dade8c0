"""Bytes that ``from_pretrained`` holds for a while beside each parameter that it makes, rather than reads as it is.

Parameters are made one after another: experts that a checkpoint has one by one are stacked into one tensor, packed
weights are unpacked, plain ones are quantised. While it does one of these, transformers holds the parts beside the
whole (``core_model_loading``). What it only reads needs nothing beside it: a dtype is changed on the way to a device.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from devctl.models.quantised.counting import Counting

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")

_FLOAT32 = 4

_QUANTISING = {
    # the absolute maximum of each block of 64, in float32, and once more to quantise it
    "bitsandbytes_4bit": 2 * _FLOAT32 / 64,
    # a copy in float16
    "bitsandbytes_8bit": 2.0,
}
"""Bytes for an element that a method takes beside the plain and the packed weight, as its library does it."""

_MOST_QUANTISING = 3 * _FLOAT32 + 1 / 64
"""Bytes for an element of any other: the weight in float32, scaled, and clamped, and scales of blocks
(``Fp8Quantize``)."""

_MXFP4_AT_ONCE = 32768 * 1024 * 32
"""Elements that ``convert_moe_packed_tensors`` unpacks at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Made:
    """A parameter that a conversion makes.

    Attributes:
        operations: names of the conversion's classes, in their order.
        parts: how many patterns of names its parts have.
        others: names of what is made with it.
    """

    operations: tuple[str, ...]
    parts: int
    others: tuple[str, ...] = ()


def held_while_made(
    model: PreTrainedModel,
    stored: Collection[str],
    counting: Counting | None = None,
    unpacked: Mapping[str, Any] | None = None,
) -> dict[str, int]:
    """Bytes beyond its own, by parameter, that are held while it is made; without those that need none.

    A target of a tie that the checkpoint has beside its source is held until the weights are tied, at the end.

    Args:
        model: as it was built on the meta device, and as it is once quantised.
        stored: names of the checkpoint's tensors; where none is known, it is taken to have what the model's own
            conversions read.
        unpacked: the settings of a quantisation that transformers unpacks as it loads.
    """
    named = {
        name: tensor
        for tensors in (model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False))
        for name, tensor in tensors
    }
    plain = {} if counting is None else counting.plain
    size = {name: plain.get(name, tensor.numel() * tensor.element_size()) for name, tensor in named.items()}
    quantizer = _unpacking(unpacked) if unpacked is not None else None if counting is None else counting.quantizer
    try:
        made, kept = _conversions(model, stored, named, quantizer)
    except Exception:  # noqa: BLE001 - the rules may be of a model that brings its own code
        made, kept = {}, frozenset()
    found = {name: _converting(how, named[name], size, name) for name, how in made.items()}
    if counting is not None:
        for name, nbytes in plain.items():
            found[name] = max(
                # fused before it is quantised, it is there twice, and the packed one is not yet
                nbytes + found.get(name, 0) - counting.planned.get(name, 0),
                _quantising(counting, named[name], nbytes),
            )
    for target, source in dict(model.all_tied_weights_keys).items():
        if target in kept and source in kept and target in size:
            found[target] = size[target]
    return {name: nbytes for name, nbytes in found.items() if nbytes > 0}


def _unpacking(settings: Mapping[str, Any]) -> Any:
    """transformers' quantizer of a checkpoint, told to unpack it; None where it has none for it."""
    from transformers.quantizers.auto import AutoHfQuantizer

    try:
        quantizer: Any = AutoHfQuantizer.from_config(copy.deepcopy(dict(settings)), pre_quantized=True)
    except Exception:  # noqa: BLE001 - each quantizer has its own way to say no
        return None
    quantizer.quantization_config.dequantize = True
    return quantizer


def _conversions(
    model: PreTrainedModel, stored: Collection[str], named: Mapping[str, torch.Tensor], quantizer: Any
) -> tuple[dict[str, _Made], frozenset[str]]:
    """What is converted, by the parameter's name, and the names of what the checkpoint has.

    Layers have the same names but for their numbers, so that one of each is looked up: a checkpoint may have 90,000.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    by_form: dict[str, list[str]] = {}
    for name in named:
        by_form.setdefault(_form(name), []).append(name)
    mapping: list[Any] = get_model_conversion_mapping(model, hf_quantizer=quantizer)
    converters = [m for m in mapping if isinstance(m, WeightConverter)]
    if not stored:
        # the quantizer's own conversions take any name
        own: list[Any] = get_model_conversion_mapping(model)
        return dict(_by_targets([m for m in own if isinstance(m, WeightConverter)], named)), frozenset()
    renamings = [m for m in mapping if isinstance(m, WeightRenaming)]
    of_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    known = dict(named)
    parts: dict[str, set[str]] = {}
    there: set[str] = set()
    for name in {_form(name): name for name in stored}.values():
        new, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, known)
        there.add(_form(new))
        if pattern is not None:
            parts.setdefault(_form(new), set()).add(pattern)
    made = {}
    for form, patterns in parts.items():
        converter = of_pattern[next(iter(patterns))]
        for name in by_form.get(form, ()):
            made[name] = _made(converter, name, len(patterns), named)
    return made, frozenset(name for form in there for name in by_form.get(form, ()))


def _form(name: str) -> str:
    """A name with the numbers of layers and experts left out."""
    return _NUMBER.sub("#", name)


def _made(converter: Any, name: str, parts: int, named: Collection[str]) -> _Made:
    first, *more = converter.target_patterns
    others = tuple(other for target in more if (other := name.replace(first, target)) in named and other != name)
    return _Made(operations=tuple(type(op).__name__ for op in converter.operations), parts=parts, others=others)


def _by_targets(converters: Collection[Any], named: Collection[str]) -> Iterator[tuple[str, _Made]]:
    """The parameters that conversions make by the names that they give, where no checkpoint says what there is."""
    for converter in converters:
        first = re.escape(converter.target_patterns[0].lstrip(".")).replace(r"\*", ".*").replace(r"\\1", ".*")
        pattern = re.compile(rf"(?:^|\.|(?<=_)){first}(?!\w)")
        for name in named:
            if pattern.search(name):
                yield name, _made(converter, name, len(converter.source_patterns), named)


def _converting(how: _Made, tensor: torch.Tensor, size: Mapping[str, int], name: str) -> int:
    """Bytes beyond a parameter's own while it is made: as a rule, its parts beside the whole."""
    whole = size[name] + sum(size[other] for other in how.others)
    if "Mxfp4Deserialize" in how.operations:
        return 2 * whole  # as they are stored, and once more on their way into another layout
    unpack = next((op for op in how.operations if op.endswith("Dequantize")), None)
    if unpack is None:
        return whole
    if how.parts < 2:
        return 0  # without scales it is none of the packed ones
    count, itemsize = tensor.numel(), tensor.element_size()
    if unpack == "Mxfp4Dequantize":
        return _unpacking_mxfp4(count, itemsize)
    if unpack == "Fp8Dequantize" and "MergeModulelist" in how.operations:
        of_one = count // max(1, tensor.shape[0] if tensor.dim() else 1)
        return max(whole, count + 2 * _FLOAT32 * of_one)
    # the packed one, the same in float32, and that scaled
    return count + 2 * _FLOAT32 * count + (0 if unpack == "Fp8Dequantize" else whole)


def _unpacking_mxfp4(count: int, itemsize: int) -> int:
    """The packed weight, its scales as they are stored and as int32, and either of two: the numbers to look up with
    the half that they find, or the whole in its last layout."""
    at_once = min(count, _MXFP4_AT_ONCE)
    stored = math.ceil(count / 2) + math.ceil(count / 32) + 4 * math.ceil(count / 32)
    return stored + max(itemsize * count, 2 * at_once + itemsize * at_once // 2)


def _quantising(counting: Counting, tensor: torch.Tensor, plain: int) -> int:
    """The plain weight, and what it takes to quantise it."""
    return plain + math.ceil(tensor.numel() * _QUANTISING.get(counting.method, _MOST_QUANTISING))
