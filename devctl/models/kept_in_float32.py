"""What transformers keeps in float32 when it loads a model in a narrower dtype, and plans as narrow all the same.

Imports torch and transformers, inside functions.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from devctl.models.quantised.counting import Counting, dtype_name
from devctl.units import format_bytes

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def bytes_more(
    model: PreTrainedModel, dtype: torch.dtype, counting: Counting | None = None, *, random: bool = False
) -> dict[str, int]:
    """Bytes that loading adds to tensors of ``model``, by name, because its class keeps them in float32.

    Parameters and buffers of a checkpoint alike, where their name has one of the class's patterns anywhere in it
    (``_keep_in_fp32_modules``, in float16 only, and ``_keep_in_fp32_modules_strict``; transformers 5,
    ``core_model_loading.convert_and_load_state_dict_in_model``). The bytes are fewer than 0 for what is wider, as a
    counter is that becomes a float. What shares a tied weight has none of its own.

    Args:
        dtype: in which the model is built.
        counting: of a quantised model, whose packed tensors stay as they are.
        random: whether the weights are made up: buffers are not among those, and stay as they are built.
    """
    import torch
    from transformers.core_model_loading import build_glob_alternation

    plan = model._get_dtype_plan(dtype)
    if not plan:
        return {}
    pattern: re.Pattern[str] = build_glob_alternation(list(plan))[0]
    found = {}
    for name, tensor in model.named_parameters() if random else model.state_dict(keep_vars=True).items():
        if name in model.all_tied_weights_keys or not pattern.search(name):
            continue
        if counting is not None and (name in counting.planned or not tensor.is_floating_point()):
            continue
        if more := tensor.numel() * (torch.float32.itemsize - tensor.element_size()):
            found[name] = more
    return found


def note_on(model: PreTrainedModel, dtype: torch.dtype, more: dict[str, int]) -> list[str]:
    """A note on the bytes that ``bytes_more`` found, which the planner of transformers does not know of."""
    extra = sum(more.values())
    if extra <= 0:
        return []
    return [
        f"{', '.join(sorted(model._get_dtype_plan(dtype)))} stay in float32 when loaded: {format_bytes(extra)} more "
        f"than the {dtype_name(dtype)} sizes that transformers plans with"
    ]
