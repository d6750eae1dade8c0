"""What a checkpoint says of how it is quantised, whether transformers loads it so, and in how many bits."""

from __future__ import annotations

import contextlib
import json
import re
from typing import TYPE_CHECKING, Any

from devctl.errors import ModelError, first_line
from devctl.models.files.checkpoint import Checkpoint
from devctl.models.files.hub import MOST_CONFIG, fetch
from devctl.models.files.resolve import ModelSource, SourceKind
from devctl.models.quantised.by_headers import is_packed
from devctl.models.quantised.modelopt import FILE, METHOD, modelopt_settings
from devctl.models.quantised.modelopt import label_of as modelopt_label
from devctl.reading import read_document

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig


def settings_of(config: PreTrainedConfig) -> dict[str, Any] | None:
    """The ``quantization_config`` where ``from_pretrained`` looks for it: in the config, else in its text model's.

    Where there is none, MLX's own ``quantization``, which transformers does not read.
    """
    found = getattr(config, "quantization_config", None)
    if not found:
        with contextlib.suppress(ValueError, AttributeError):
            found = getattr(config.get_text_config(decoder=True), "quantization_config", None)
    if not found:
        of_mlx = getattr(config, "quantization", None)
        return {"quant_method": "mlx", **of_mlx} if isinstance(of_mlx, dict) and "bits" in of_mlx else None
    if not isinstance(found, dict):
        return {"quant_method": str(found)}
    return modelopt_settings(found) or dict(found)


def settings_beside(source: ModelSource, checkpoint: Checkpoint, notes: list[str]) -> dict[str, Any] | None:
    """ModelOpt's settings from the file that it writes beside a config; None where there is none.

    A checkpoint whose tensors are all plain is taken for what it is, whatever the file says. The hub is asked for the
    file where the tensors there are packed.
    """
    packed = is_packed(checkpoint.tensors)
    if checkpoint.tensors and not packed:
        return None
    path = source.config_path.parent / FILE
    if source.kind is SourceKind.HUB and packed and not path.is_file():
        with contextlib.suppress(ModelError):
            path = fetch(source.location, FILE, source.revision)
    if source.config_path.name != "config.json" or not path.is_file():
        return None
    try:
        data = json.loads(read_document(path, MOST_CONFIG))
    except (OSError, ValueError, RecursionError) as error:
        notes.append(f"{FILE} can't be read, and what it says of quantisation is not counted: {first_line(error)}")
        return None
    inner = data.get("quantization") if isinstance(data, dict) else None
    if not isinstance(inner, dict):
        notes.append(f'{FILE} has no "quantization", and what it says is not counted')
        return None
    # a model that is not quantised may have one too, for its KV cache
    if not inner.get("quant_algo"):
        return None
    return modelopt_settings({**data, "quant_method": "modelopt"})


def not_loaded(settings: dict[str, Any]) -> str | None:
    """Why no transformers of the installed release loads a checkpoint that is quantised so; None where it may."""
    import transformers
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

    release, method = f"transformers {transformers.__version__}", method_of(settings)
    kind = settings.get("quant_type")
    if not method:
        return f"{release} refuses a quantization_config without a quant_method"
    if method == "torchao" and isinstance(kind, str):
        return f"{release} no longer reads torchao's {kind!r}: a quant_type that is a string is refused"
    if method == "nvfp4":
        return f"{release} does not load weights that are in nvfp4 already"
    if method not in AUTO_QUANTIZATION_CONFIG_MAPPING:
        return f"{release} does not load {label_of(settings)} weights: it would take them for plain ones"
    return None


def label_of(settings: dict[str, Any]) -> str:
    """What a plan calls the method of a checkpoint."""
    if method_of(settings) == METHOD:
        return modelopt_label(settings)
    return method_of(settings) or "unnamed"


def method_of(settings: dict[str, Any]) -> str:
    """transformers' name of the method (``AutoQuantizationConfig.from_dict``); "" where the settings name none."""
    for load_in, bits in (("load_in_4bit", "4bit"), ("load_in_8bit", "8bit")):
        if settings.get(load_in):
            return f"bitsandbytes_{bits}"
    return str(settings.get("quant_method") or "")


def too_large(settings: dict[str, Any], dtype: torch.dtype) -> str:
    """By what factor sizes may be too large where a checkpoint's packed weights are counted as plain ones."""
    wide = dtype.itemsize * 8
    bits = _bits_named(settings)
    if bits is None:
        return f", which may be {wide // 8} to {wide // 2} times what the packed weights take"
    return f", up to {wide / bits:.3g} times what weights of {bits:g} bits take"


def _bits_named(settings: dict[str, Any]) -> float | None:
    """The fewest bits of a weight that any of ``settings`` names, under the names that methods use."""
    found: list[float] = []

    def look(value: object, key: str = "") -> None:
        if isinstance(value, dict):
            for name, inner in value.items():
                look(inner, str(name))
        elif isinstance(value, list):
            for inner in value:
                look(inner, key)
        elif key in _BITS and isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 16:
            found.append(float(value))
        elif key in _NAMES and isinstance(value, str) and (named := re.search(r"(?:int|fp|float)_?(\d+)", value)):
            found.append(float(named[1]))

    look(settings)
    codes, books, group = (settings.get(k) for k in ("nbits_per_codebook", "num_codebooks", "in_group_size"))
    if isinstance(codes, int) and isinstance(books, int) and isinstance(group, int) and group > 0:  # AQLM
        found.append(codes * books / group)
    return min((bits for bits in found if bits > 0), default=None)


_BITS = frozenset({"bits", "w_bit", "wbits", "nbits", "num_bits", "weight_bits", "bits_per_weight", "p"})
_NAMES = frozenset({"dtype", "weights", "quant_type", "weight_dtype", "forward_dtype", "linear_dtype"})
"""Under which settings name bits, and dtypes that have them in their names."""
