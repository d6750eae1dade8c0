"""Where a NaN comes from: the first weight that has one, wherever it is kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

from devctl.loading.weights.hooks import hooks_of

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def blame(model: PreTrainedModel) -> str:
    """A line on why outputs are not finite: the first weight that is not, in the order of definition."""
    count, first = 0, ""
    for module_name, module in model.named_modules():
        for local, tensor in module._parameters.items():
            if tensor is None:
                continue
            value = _value(module, local, tensor)
            if value is None or not value.is_floating_point() or bool(value.isfinite().all()):
                continue
            count += 1
            if not first:
                what = "NaN" if bool(value.isnan().any()) else "an infinity"
                name = f"{module_name}.{local}" if module_name else local
                first = f"{name} has {what} among its weights"
    if not count:
        return "every weight is finite, so the computation overflows: try --dtype bfloat16 or float32"
    more = f", and so have {count - 1} more" if count > 1 else ""
    return f"{first}{more}: the checkpoint is broken"


def _value(module: torch.nn.Module, name: str, tensor: torch.Tensor) -> torch.Tensor | None:
    """A module's own tensor, from its offload hook where it is not in memory."""
    if tensor.device.type != "meta":
        return tensor
    for hook in hooks_of(module):
        weights = getattr(hook, "weights_map", None)
        if weights is not None:
            found: torch.Tensor = weights[name]
            return found
    return None
