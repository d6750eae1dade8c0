"""How far two answers of a model are apart, and how far they may be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance:
    """How far values may be from a reference: this share of each value, plus this share of the mean size of all.

    Attributes:
        block: for one block that is given the same inputs.
        outputs: for a whole model, through which the rounding of every block adds up.
    """

    block: float
    outputs: float


_TOLERANCES = {
    "float64": Tolerance(block=1e-9, outputs=1e-8),
    "float32": Tolerance(block=1e-4, outputs=1e-3),
    "float16": Tolerance(block=1e-2, outputs=5e-2),
}
_COARSE = Tolerance(block=3e-2, outputs=1e-1)
"""bfloat16's, which rounds to 8 bits, and that of anything coarser."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """The largest differences between the values of a tensor and those that it should have.

    Attributes:
        absolute: None where a value that should be finite is not, or the shapes differ.
        relative: to the value that differs; None where that is 0, or ``absolute`` is None.
        excess: the largest difference in units of what is allowed, so that more than 1 is too much; None where
            ``absolute`` is.
    """

    name: str
    absolute: float | None
    relative: float | None
    excess: float | None

    @property
    def is_too_much(self) -> bool:
        """Whether it is more than rounding explains."""
        return self.excess is None or self.excess > 1


def tolerance_of(dtype: str) -> Tolerance:
    """The tolerance for a model that computes in ``dtype``, torch's name without ``torch.``."""
    return _TOLERANCES.get(dtype, _COARSE)


def compare(name: str, found: torch.Tensor, expected: torch.Tensor, allowed: float) -> Difference:
    """Compare two floating tensors on the CPU; ``allowed`` is a share of each value and of the mean size of all."""
    import torch

    unlike = Difference(name=name, absolute=None, relative=None, excess=None)
    if found.shape != expected.shape:
        return unlike
    # torch.equal would call a NaN unequal to itself
    if torch.equal(found, expected) or not found.numel():
        return Difference(name=name, absolute=0.0, relative=0.0, excess=0.0)
    wide = torch.float64 if expected.dtype == torch.float64 else torch.float32
    found, expected = found.to(wide), expected.to(wide)
    known = expected.isfinite()
    same = known | (found == expected) | (found.isnan() & expected.isnan())
    if not bool(same.all()) or not bool(found[known].isfinite().all()):
        return unlike
    found, expected = found[known], expected[known]
    if not expected.numel():
        return Difference(name=name, absolute=0.0, relative=0.0, excess=0.0)
    apart, size = (found - expected).abs(), expected.abs()
    worst = int(apart.argmax())
    absolute = float(apart[worst])
    smallest = torch.finfo(wide).tiny
    excess = float((apart / (allowed * (size + size.mean())).clamp(min=smallest)).max()) if absolute else 0.0
    relative = absolute / float(size[worst]) if float(size[worst]) else None
    return Difference(name=name, absolute=absolute, relative=relative, excess=excess)


def worst(differences: list[Difference]) -> Difference | None:
    """The difference that is the most beyond what is allowed; the first of equals."""
    return max(differences, key=lambda d: float("inf") if d.excess is None else d.excess, default=None)


def compare_all(
    found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], allowed: float
) -> list[Difference]:
    """Every expected tensor beside the one found by its name; one that is missing differs."""
    unlike = (
        Difference(name=name, absolute=None, relative=None, excess=None) for name in expected if name not in found
    )
    return [*(compare(n, found[n], tensor, allowed) for n, tensor in expected.items() if n in found), *unlike]


def floats(value: Any, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """The floating tensors within a model's output, with their names, like "logits" or "hidden_states[2]"."""
    import torch

    if isinstance(value, torch.Tensor):
        if value.is_floating_point():
            yield name or "output", value
    elif hasattr(value, "items"):
        for key, item in value.items():
            yield from floats(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from floats(item, f"{name or 'output'}[{index}]")


def kept(value: Any) -> dict[str, torch.Tensor]:
    """The floating tensors within an output, on the CPU, so that an accelerator need not hold them."""
    return {path: tensor.detach().cpu() for path, tensor in floats(value)}
