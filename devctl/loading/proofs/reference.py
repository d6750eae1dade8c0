"""Is the answer right: the placed model beside the same one on the CPU."""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from devctl.devices import Device
from devctl.errors import LoadError, first_line
from devctl.loading.proofs.compare import Difference, Tolerance, compare_all, kept, tolerance_of, worst
from devctl.loading.proofs.watch import watching
from devctl.loading.run.smoke import as_load_errors

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


class Reference(StrEnum):
    """Where the weights of the model are that the placed one is compared with; it computes on the CPU."""

    RAM = "ram"
    """All in RAM: the model runs as a whole, and its outputs are compared too."""
    DISK = "disk"
    """In the checkpoint, a block at a time: only blocks are compared, each with its real inputs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockDifference:
    """A block whose output is not what the CPU makes of the same inputs."""

    block: str
    worst: Difference


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """The placed model beside the same one on the CPU.

    Attributes:
        blocks: how many ran on both and were compared, each given the placed model's inputs.
        not_compared: blocks that did not run by themselves, or not on the CPU, and why.
        first_wrong: the first block, in the order in which they run, that differs too much.
        worst_block: the block that differs most, wrong or not.
        worst_output: the model's output that differs most; None where only blocks are compared.
    """

    reference: Reference
    tolerance: Tolerance
    blocks: int
    not_compared: tuple[str, ...]
    first_wrong: BlockDifference | None
    worst_block: BlockDifference | None
    worst_output: Difference | None

    @property
    def passed(self) -> bool:
        """Whether something was compared, and nothing differs too much."""
        outputs_agree = self.worst_output is None or not self.worst_output.is_too_much
        return self.first_wrong is None and outputs_agree and bool(self.blocks or self.worst_output)


def fits_in_ram(needed: int, on_cpu: int, available: int | None) -> bool:
    """Whether a second copy of the model, beside what the map puts on the CPU, leaves a tenth of the RAM free.

    All in bytes; ``available`` is what is free before the model is loaded, None where that is not known.
    """
    return available is not None and needed + on_cpu <= available * 9 // 10


def verify(
    model: PreTrainedModel,
    reference: PreTrainedModel,
    forward: dict[str, torch.Tensor],
    blocks: Sequence[str],
    *,
    dtype: str,
    kind: Reference,
) -> Verification:
    """Run the placed model, every block of it on the CPU too, and the whole on the CPU where ``reference`` is in RAM.

    Args:
        forward: the arguments of the forward, on the device where the placed model takes them.
        dtype: that the model computes in, which says how far the two may differ.

    Raises:
        LoadError: the placed model raised, or the reference did.
    """
    import torch

    tolerance = tolerance_of(dtype)
    arguments: dict[str, Any] = dict(forward)
    if "use_cache" in inspect.signature(model.forward).parameters:
        arguments["use_cache"] = False  # a cache is changed by the block that is given it
    beside = _Beside(reference=reference, tolerance=tolerance)
    with torch.inference_mode():
        torch.manual_seed(0)
        with as_load_errors(model), watching(model, blocks, beside.after, beside.before):
            found = kept(model(**arguments))
        output = None
        if kind is Reference.RAM:
            torch.manual_seed(0)
            try:
                expected = kept(reference(**_on_cpu(arguments)))
            except Exception as error:  # the model's own code, which may not run on the CPU
                raise LoadError(
                    f"the reference on the CPU failed: {type(error).__name__}: {first_line(error)}",
                    hint="leave out --verify",
                ) from error
            output = worst(compare_all(found, expected, tolerance.outputs))
    silent = [f"{name}: it did not run by itself" for name in blocks if name not in beside.ran]
    ranked = max(beside.found, key=lambda b: _excess(b.worst), default=None)
    return Verification(
        reference=kind,
        tolerance=tolerance,
        blocks=len({difference.block for difference in beside.found}),
        not_compared=(*beside.failed.values(), *silent),
        first_wrong=next((b for b in beside.found if b.worst.is_too_much), None),
        worst_block=ranked,
        worst_output=output,
    )


def _excess(difference: Difference) -> float:
    return float("inf") if difference.excess is None else difference.excess


@dataclass(slots=True, kw_only=True)
class _Beside:
    """Runs every block on the CPU too, as the placed one runs."""

    reference: PreTrainedModel
    tolerance: Tolerance
    given: dict[str, tuple[Any, Any, torch.Tensor]] = field(default_factory=dict)
    ran: set[str] = field(default_factory=set)
    found: list[BlockDifference] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    def before(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        import torch

        # with the state of the random numbers, for the few blocks that draw some
        self.given[name] = (_on_cpu(args), _on_cpu(kwargs), torch.get_rng_state())

    def after(self, name: str, output: Any) -> None:
        import torch

        args, kwargs, random_state = self.given.pop(name)
        self.ran.add(name)
        try:
            with torch.random.fork_rng(devices=[]):
                torch.set_rng_state(random_state)
                expected = kept(self.reference.get_submodule(name)(*args, **kwargs))
        except Exception as error:  # noqa: BLE001 - the model's own code, given what may not be of the CPU
            self.failed[name] = f"{name}: {type(error).__name__}: {first_line(error)}"
            return
        if (found := worst(compare_all(kept(output), expected, self.tolerance.block))) is not None:
            self.found.append(BlockDifference(block=name, worst=found))


def _on_cpu(value: Any) -> Any:
    """A copy of arguments with their tensors on the CPU, so that neither run changes what the other is given."""
    import torch

    copied = value
    if isinstance(value, torch.Tensor):
        copied = value.detach().to("cpu", copy=True)
    elif type(value) in (tuple, list, set):
        copied = type(value)(_on_cpu(item) for item in value)
    elif type(value) is dict:
        copied = {key: _on_cpu(item) for key, item in value.items()}
    elif hasattr(value, "items") and hasattr(value, "to_tuple"):  # a model's output, as a decoder is given an encoder's
        copied = type(value)(**{key: _on_cpu(item) for key, item in value.items()})
    elif not isinstance(value, str | int | float | torch.nn.Module):
        with contextlib.suppress(Exception):  # whatever a model hands to its parts
            copied = copy.deepcopy(value)
    return copied


def reference_map(kind: Reference) -> dict[str, Device]:
    """The device map of the reference."""
    return {"": Device.cpu() if kind is Reference.RAM else Device.disk()}
