"""How the bytes of a quantised model are counted, whatever the method."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

INT32_BITS = 32

Tensors = dict[str, tuple[tuple[int, ...], str]]
"""Shape and dtype of a module's tensors, by name."""


class CannotCountError(Exception):
    """Neither transformers here nor devctl knows what a method makes of a model; says why."""


@dataclass(slots=True, kw_only=True)
class Counting:
    """How the bytes of a quantised model are counted.

    Attributes:
        planned: bytes that transformers' planner counts for a tensor, by name, where they are not those of the tensor
            as it was built.
        dtypes: torch's names of the dtypes in which those tensors are kept.
        hidden: bytes that are held for a tensor once it is loaded, beyond what is planned, like scales; may be less
            than 0.
        unpacked: bytes that are held for it beyond those once it has been used.
        budget_share: the share of every budget that transformers plans with (``adjust_max_memory``).
        no_offload: "cpu" and "disk", where transformers refuses to load such a model partly there.
        without: bytes of the model where transformers unpacks it for want of hardware; None where it does not.
        notes: what a reader should know.
        quantizer: transformers' own, once it has prepared the model; None where devctl counts in its stead.
        method: transformers' name of the method.
        plain: bytes of each tensor as it is before it is quantised while loading, by name.
    """

    planned: dict[str, int] = field(default_factory=dict)
    dtypes: dict[str, str] = field(default_factory=dict)
    hidden: dict[str, int] = field(default_factory=dict)
    unpacked: dict[str, int] = field(default_factory=dict)
    budget_share: float = 1.0
    no_offload: frozenset[str] = frozenset()
    without: int | None = None
    notes: list[str] = field(default_factory=list)
    quantizer: Any = None
    method: str = ""
    plain: dict[str, int] = field(default_factory=dict)

    def hide(self, name: str, nbytes: int) -> None:
        """Count ``nbytes`` more as held for a tensor once it is loaded."""
        self.hidden[name] = self.hidden.get(name, 0) + nbytes

    @property
    def all_hidden(self) -> int:
        """Bytes that are held for all tensors once they are loaded, beyond what is planned."""
        return sum(self.hidden.values())

    def held(self, name: str, planned: int, wider: int = 0) -> int | None:
        """Bytes that a tensor is held with; None where those are the ``planned`` ones.

        Args:
            wider: bytes that loading adds to it because it is kept in another dtype than it was built in.
        """
        more = wider + self.hidden.get(name, 0) + self.unpacked.get(name, 0)
        return planned + more if more else None


def replace_tensors(model: PreTrainedModel, name: str, tensors: Tensors) -> None:
    """Put a module with these tensors, and nothing else, in the place of the one called ``name``."""
    import torch

    module = torch.nn.Module()
    for tensor, (shape, dtype) in tensors.items():
        module.register_buffer(tensor, torch.empty(shape, dtype=getattr(torch, dtype), device="meta"))
    model.set_submodule(name, module)


def dtype_name(dtype: torch.dtype) -> str:
    """torch's name of a dtype, like bfloat16."""
    return str(dtype).removeprefix("torch.")
