"""A model on the meta device, or among fake tensors, with PEFT's own layers for its adapters.

What they are beside was read from the adapters' files: PEFT is told that alone, and no pattern of an adapter's config.
Imports torch and PEFT: to be imported inside functions.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from devctl.models.adapted import Beside, find_beside
from devctl.models.adapters import Adapter
from devctl.models.tree import ModuleTree

if TYPE_CHECKING:
    from devctl.models.skeleton import Skeleton

_OF_ADAPTERS = re.compile(r"\.(lora_\w+|trainable_tokens_\w+)\.")


def with_adapters(model: Any, skeleton: Skeleton) -> Any:
    """``model`` with the layers of the adapters of ``skeleton``, all of which compute.

    Raises:
        Exception: whatever PEFT does not like of it.
    """
    if not skeleton.adapters:
        return model
    from peft import inject_adapter_in_model
    from peft.tuners.tuners_utils import BaseTunerLayer

    on_meta = next(model.parameters()).device.type == "meta"
    names = [f"adapter{number}" for number, _ in enumerate(skeleton.adapters)]
    for name, adapter in zip(names, skeleton.adapters, strict=True):
        beside = find_beside(skeleton.tree, adapter)
        if beside.modules or beside.tokens:
            config = _settings(skeleton.tree, adapter, beside)
            with _left_where_made(BaseTunerLayer), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of what a plan is about, as several adapters
                inject_adapter_in_model(config, model, adapter_name=name, low_cpu_mem_usage=on_meta)
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            module.set_adapter([name for name in names if name in module._all_available_adapter_names()])
    _settle(model, torch.float64 if skeleton.tree.dtype == "float64" else torch.float32)
    return model


@contextmanager
def _left_where_made(layer: Any) -> Iterator[None]:
    """What PEFT adds is not moved to its module: fake tensors that somebody refers to can't be moved in their place."""
    move = layer._move_adapter_to_device_of_base_layer
    layer._move_adapter_to_device_of_base_layer = lambda *_, **__: None
    try:
        yield
    finally:
        layer._move_adapter_to_device_of_base_layer = move


def _settle(model: Any, dtype: torch.dtype) -> None:
    """Have what PEFT adds where the model is, in the dtype that it has once the weights are there."""
    device = next(model.parameters()).device
    for name, module in model.named_modules():
        for places in (module._parameters, module._buffers):
            for own, tensor in places.items():
                if tensor is not None and _OF_ADAPTERS.search(f".{name}.{own}."):
                    made = torch.empty(tensor.shape, dtype=dtype, device=device)
                    is_weight = isinstance(tensor, torch.nn.Parameter)
                    places[own] = torch.nn.Parameter(made, requires_grad=False) if is_weight else made


def _settings(tree: ModuleTree, adapter: Adapter, beside: Beside) -> Any:
    """What PEFT makes the same layers from."""
    from peft import LoraConfig

    plain, inside = {}, set()
    for name, parts in beside.modules.items():
        rank = next(tensor.shape[0] for part, tensor in parts.items() if part in ("lora_A.weight", "lora_embedding_A"))
        module = tree.index.modules[name.replace(".base_layer", "")]
        experts = {t.shape[0] for t in module.parameters if len(t.shape) == 3} if adapter.parameters else set()
        if not experts:
            plain[name] = rank
        elif all(rank != adapter.rank * each for each in experts):
            raise ValueError("its parameters are of several ranks")
        else:
            inside.add(name)
    return LoraConfig(
        r=adapter.rank,
        rank_pattern={re.escape(name): rank for name, rank in plain.items()},
        target_modules=list(plain) or None,
        target_parameters=list(adapter.parameters) if inside else None,
        trainable_token_indices={name: list(range(tensor.shape[0])) for name, tensor in beside.tokens.items()} or None,
        use_dora=adapter.dora,
        lora_bias=adapter.bias,
        init_lora_weights=False,
        inference_mode=True,
    )
