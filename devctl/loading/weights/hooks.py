"""accelerate's hooks, which hold what is offloaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def hooks_of(module: torch.nn.Module) -> list[Any]:
    """accelerate's hooks on ``module``; a sequential one stands for several."""
    hook = getattr(module, "_hf_hook", None)
    return list(getattr(hook, "hooks", [hook]))
