"""One rank of a model that several share: its part of the weights, and what their forward does with it.

The ranks are not there: what they would send is made here, in the shape that it has, with the copies that transformers
5.23 and torch's DTensor make of it. The rank is the first, which has the largest part of everything.

Imports torch: to be imported inside functions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from devctl.models.footprint import Workload
from devctl.models.sharding import Sharding, cut_of, cut_shape, share

_Forward = Callable[..., Any]


class UnshardedError(Exception):
    """What the model does on a rank is not known."""


class _Last:
    """What the last exchange between the ranks sent and received.

    That is let go of when somebody waits for the exchange, as code on an accelerator does at once. Threads of a library
    may keep it longer, so that it is counted until the next exchange: more than what is needed, and rarely less than
    what is there. (gloo's were seen to keep some for two.)
    """

    def __init__(self) -> None:
        self._held: tuple[torch.Tensor, ...] = ()

    def hold(self, *tensors: Any) -> None:
        """An exchange of ``tensors``."""
        self._held = tuple(each for each in tensors if isinstance(each, torch.Tensor))

    def let_go(self, *_: Any) -> None:
        """The model is done, and gives its output to somebody who waits for it."""
        self._held = ()


def shard(model: Any, sharding: Sharding | None, workload: Workload) -> Any:
    """``model`` as the first of the workload's ranks has it; as it is where there is one rank.

    Raises:
        UnshardedError: it has no plan, or a style whose forward is not known.
    """
    ranks, dispatches = workload.tensor_parallel, workload.expert_parallel > 1
    if ranks == 1:
        return model
    if sharding is None or not sharding.tensor:
        raise UnshardedError(f"how {type(model).__name__} is sharded is not known")
    last = _Last()
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        for own, parameter in list(module.named_parameters(recurse=False)):
            cut = cut_of(sharding.style_of(prefix + own, experts=dispatches), own)
            shape = cut_shape(tuple(parameter.shape), cut, ranks, 0)
            if shape != tuple(parameter.shape):
                module._parameters[own] = torch.nn.Parameter(parameter.new_empty(shape), requires_grad=False)
        style = sharding.style_of(name, experts=dispatches) if name else None
        if style == "ep_dispatch_experts":
            module.num_experts //= ranks
            module._is_expert_parallel = True
        if style is not None:
            _install(module, style, ranks, last)
    model.register_forward_hook(last.let_go)
    model._tp_size = ranks  # generate divides a static cache by it
    return model


def _install(module: Any, style: str, ranks: int, last: _Last) -> None:
    """Let a module's forward do what the style does on a rank."""
    if style in _AS_IT_IS:
        return
    if style not in _FORWARDS:
        raise UnshardedError(f"what a {type(module).__name__} holds as {style!r} is not known")
    module.forward = _FORWARDS[style](module, module.forward, ranks, last)


def _gathers(module: Any, forward: _Forward, ranks: int, last: _Last) -> _Forward:
    """Columns of the output from all ranks: received one rank after the other, then put side by side."""

    def run(x: torch.Tensor) -> Any:
        part = forward(x)
        if ranks * part.shape[-1] != module.out_features:
            part = torch.cat([part, part.new_empty((*part.shape[:-1], 0))], dim=-1)  # padded to the largest
        received = part.new_empty((ranks * part.shape[0], *part.shape[1:]))
        last.hold(part, received)
        return torch.cat(received.chunk(ranks), dim=-1)[..., : module.out_features]

    return run


def _reduces(module: Any, forward: _Forward, _: int, last: _Last) -> _Forward:
    """A sum over the ranks, in place; a bias is added to it."""

    def run(x: torch.Tensor) -> Any:
        bias, module._parameters["bias"] = module._parameters.get("bias"), None
        try:
            output = forward(x)
        finally:
            module._parameters["bias"] = bias
        last.hold(output)
        return output if bias is None else output + bias

    return run


def _splits_and_reduces(module: Any, forward: _Forward, ranks: int, last: _Last) -> _Forward:
    """The same of a rank's own columns of an input that all have."""
    reduced = _reduces(module, forward, ranks, last)

    def run(x: torch.Tensor) -> Any:
        return reduced(x[..., : share(module.in_features, ranks, 0)].clone())

    return run


def _looks_up_rows(module: Any, forward: _Forward, _: int, last: _Last) -> _Forward:
    """Ids of other ranks' rows are masked, and the sum over the ranks is a copy."""

    def run(ids: torch.Tensor) -> Any:
        is_other = ids.new_ones(ids.shape, dtype=torch.bool)
        # it is a row of the whole table, which may be another rank's; torch looks for it among those here
        padding, module.padding_idx = getattr(module, "padding_idx", None), None
        try:
            return _summed(forward(ids.masked_fill(is_other, 0)), last)
        finally:
            module.padding_idx = padding

    return run


def _summed(part: torch.Tensor, last: _Last) -> torch.Tensor:
    """A sum over the ranks that is a copy."""
    found = part.clone()
    last.hold(part, found)
    return found


def _looks_up_columns(module: Any, forward: _Forward, ranks: int, last: _Last) -> _Forward:
    """As gathered columns of an output."""

    def run(ids: torch.Tensor) -> Any:
        part = forward(ids)
        received = part.new_empty((ranks * part.shape[0], *part.shape[1:]))
        last.hold(part, received)
        return torch.cat(received.chunk(ranks), dim=-1)[..., : module.embedding_dim]

    return run


def _sums(_: Any, forward: _Forward, __: int, last: _Last) -> _Forward:
    """A sum over the ranks of what a module gives."""

    def run(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        return _summed(output, last) if isinstance(output, torch.Tensor) else output

    return run


def _sums_in_place(_: Any, forward: _Forward, __: int, last: _Last) -> _Forward:
    """The same without a copy."""

    def run(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        last.hold(output)
        return output

    return run


def _copies(_: Any, forward: _Forward, __: int, ___: _Last) -> _Forward:
    """An output that is put together anew."""

    def run(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        return output.clone() if isinstance(output, torch.Tensor) else output

    return run


def _scales(_: Any, forward: _Forward, ranks: int, __: _Last) -> _Forward:
    def run(x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return forward(x / ranks, *args, **kwargs)

    return run


def _dispatches(module: Any, forward: _Forward, _: int, last: _Last) -> _Forward:
    """All tokens go through the rank's own experts, those for others without a weight (``AllReduceEP``)."""
    own = module.num_experts

    def run(hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor) -> Any:
        is_other = (top_k_index // own) != 0
        local = torch.where(is_other, own, top_k_index % own)
        found = forward(hidden_states, local, top_k_weights.masked_fill(is_other, 0.0))
        last.hold(found)
        return found.to(hidden_states.dtype)

    return run


_AS_IT_IS = frozenset(
    {
        "colwise",
        "packed_colwise",
        "packed_rowwise",
        "grouped_gemm",
        "local_params",
        "replicate",
        "replicated_with_grad_allreduce",
    }
)
"""Styles whose forward takes nothing beside what the module's own does."""

_FORWARDS: dict[str, Callable[[Any, _Forward, int, _Last], _Forward]] = {
    "colwise_gather_output": _gathers,
    "colwise_rep": _gathers,
    "rowwise": _reduces,
    "rowwise_split_input": _splits_and_reduces,
    "rowwise_rep": _splits_and_reduces,
    "embedding_rowwise": _looks_up_rows,
    "embedding_colwise": _looks_up_columns,
    "mla_kv_a_proj": _copies,
    "all_reduce": _sums,
    "moe_tp_experts": _sums_in_place,
    "moe_identity_expert": _scales,
    "ep_dispatch_experts": _dispatches,
}
