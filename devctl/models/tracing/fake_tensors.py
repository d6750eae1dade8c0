"""Fake tensors that a model can run on. They have shapes and no memory, but small integer tensors are real.

Modelling code reads small integer tensors (positions, masks, image grids) and decides on shapes by their values, so
these are really computed. An integer that follows from weights, which are not here, is taken to be zero. This file
imports torch, so it is imported inside functions only.
"""

from __future__ import annotations

import logging
import warnings
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.distributions import Distribution
from torch.overrides import TorchFunctionMode
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from devctl.models.footprint import Kernels, Workload
from devctl.models.tracing.cpu_scratch import of_product
from devctl.models.tracing.fused_attention import attention
from devctl.models.tracing.loops import JOINS, Loops
from devctl.models.tracing.recorder import Recorder, operands

_KNOWN_ELEMENTS = 1 << 20
"""Integer tensors are real up to this many elements, or up to four elements a token where that is more."""
_GUESSED_ELEMENTS = 1 << 16
"""Integer tensors whose values follow from weights are real, and all zero, up to this many elements."""

_INTEGERS = {torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8}
_log = logging.getLogger("torch._subclasses.fake_tensor")
_aten = torch.ops.aten
_FACTORIES = {_aten.linspace.default, _aten.arange.default, _aten.arange.start, _aten.arange.start_step}
_OF_NO_VALUES = {
    _aten.ones_like.default,
    _aten.zeros_like.default,
    _aten.full_like.default,
    _aten.new_ones.default,
    _aten.new_zeros.default,
    _aten.new_full.default,
}
_SHAPED_BY_VALUES = {
    _aten.nonzero.default,
    _aten.masked_select.default,
    _aten.unique_consecutive.default,
    _aten._unique2.default,
    _aten.unique_dim.default,
    _aten.bincount.default,
    _aten.repeat_interleave.Tensor,
}


class Guesses:
    """Remembers which real integer tensors are guesses, because their values follow from weights.

    Attributes:
        shaped: names of the operations whose output has a shape that weights decide.
        bounded: the most bytes that a kernel was taken to hold because it may.
    """

    def __init__(self) -> None:
        self._storages: weakref.WeakValueDictionary[int, torch.UntypedStorage] = weakref.WeakValueDictionary()
        self.shaped: set[str] = set()
        self.bounded = 0

    def add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        self._storages[storage._cdata] = storage

    def __contains__(self, tensor: torch.Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self._storages


class KnownIntegers(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Computes small integer tensors for real, and leaves all other operations to the fake mode.

    Where the fake mode would need values that a fake tensor does not have, an answer is made up.

    Args:
        recorder: is told of each operation. A mode of its own would be asked by way of torch's dispatcher, which takes
            as long as the answer.
    """

    def __init__(
        self, fake: FakeTensorMode, guesses: Guesses, *, tokens: int, recorder: Recorder | None = None
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._fake = fake
        self._guesses = guesses
        self._recorder = recorder
        # models look whether a mask of all tokens is all ones, and make a second one, of tokens², if it is not
        self._most = max(_KNOWN_ELEMENTS, 4 * tokens)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if self._recorder is None:
            return self._done(func, types, args, kwargs or {})
        self._recorder.begin()
        out = self._done(func, types, args, kwargs or {})
        self._recorder.end(func, args, out)
        return out

    def _done(self, func: Any, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What ``func`` gives."""
        given = operands((*args, *kwargs.values()))
        real = not any(isinstance(tensor, FakeTensor) for tensor in given)
        if not real and func in _OF_NO_VALUES and not args[0].is_floating_point():
            with no_dispatch():
                like = torch.zeros((), dtype=args[0].dtype).expand(args[0].shape)
            return self._done(func, types, (like, *args[1:]), kwargs)
        if func is _aten.index.Tensor and any(isinstance(i, torch.Tensor) and i.dtype == torch.bool for i in args[1]):
            args = (args[0], self._positions(args[1]))
        # given real tensors, the fake mode would compute a real result, however large: so it is given their fakes
        shapes = tree_map(self._shape_of, (args, kwargs)) if real and given else (args, kwargs)
        try:
            out = func(*shapes[0], **shapes[1])
        except (DataDependentOutputException, DynamicOutputShapeException):
            if func in _SHAPED_BY_VALUES and (not real or any(tensor in self._guesses for tensor in given)):
                self._guesses.shaped.add(str(func).partition(".")[2].partition(".")[0])
            return self._computed(func, args, kwargs, given) if real else self._answer(func, args)
        made = operands((out,))
        if real and made and not any(self._is_large(t, func) or _is_fake_float(t, func) for t in made):
            return self._computed(func, args, kwargs, given)
        if real or not any(tensor.dtype in _INTEGERS for tensor in made):
            return out
        return self._zero_integers(out, given, func)

    def _shape_of(self, leaf: Any) -> Any:
        """The fake of a tensor; anything else as it is."""
        return _like(leaf, self._fake) if isinstance(leaf, torch.Tensor) else leaf

    def _computed(self, func: Any, args: Any, kwargs: Any, given: list[torch.Tensor]) -> Any:
        """The real result of ``func``, which is a guess if one of its inputs is."""
        with no_dispatch():
            out = func(*args, **kwargs)
        if any(tensor in self._guesses for tensor in given):
            for tensor in operands((out,)):
                self._guesses.add(tensor)
        return out

    def _is_large(self, tensor: torch.Tensor, func: Any) -> bool:
        return tensor.numel() > self._most and not func.is_view

    def _positions(self, indices: Any) -> list[Any]:
        """``indices`` with each mask replaced by the positions that it selects, whose number the fake mode needs."""
        found: list[Any] = []
        for index in indices:
            if isinstance(index, torch.Tensor) and index.dtype == torch.bool:
                positions = self._done(_aten.nonzero.default, (), (index,), {})
                with nullcontext() if isinstance(positions, FakeTensor) else no_dispatch():
                    found.extend(positions.unbind(1))
            else:
                found.append(index)
        return found

    def _zero_integers(self, out: Any, given: list[torch.Tensor], func: Any) -> Any:
        """``out`` with real zeros in place of each small new integer tensor, whose values follow from fake ones."""
        if func._schema.is_mutable:
            return out
        storages = {tensor.untyped_storage()._cdata for tensor in given}

        def zero(leaf: Any) -> Any:
            if (
                not isinstance(leaf, FakeTensor)
                or leaf.dtype not in _INTEGERS
                or leaf.numel() > _GUESSED_ELEMENTS
                or leaf.untyped_storage()._cdata in storages
            ):
                return leaf
            with no_dispatch():
                made = torch.zeros(leaf.shape, dtype=leaf.dtype)
            self._guesses.add(made)
            return made

        return tree_map(zero, out)

    def _answer(self, func: Any, args: tuple[Any, ...]) -> Any:
        """A made-up result of ``func``, which needs values: the largest possible shape, or zero for a number.

        Raises:
            NotImplementedError: no result is known to be safe.
        """
        first = args[0]
        if func is _aten._local_scalar_dense.default:
            return False if first.dtype == torch.bool else 0.0 if first.is_floating_point() else 0
        if func is _aten.nonzero.default:
            return torch.empty((first.numel(), max(1, first.dim())), dtype=torch.long)
        if func is _aten.masked_select.default:
            return torch.empty(first.numel(), dtype=first.dtype)
        if func is _aten.equal.default:
            return False
        raise NotImplementedError(f"{func} depends on values")


def _like(tensor: torch.Tensor, mode: FakeTensorMode) -> Any:
    """A fake tensor of the shape, strides and dtype of ``tensor``, which may be real or on the meta device."""
    with no_dispatch():
        meta = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
        return FakeTensor(mode, meta, torch.device("cpu"))


def _is_fake_float(tensor: torch.Tensor, func: Any) -> bool:
    return (tensor.is_floating_point() or tensor.is_complex()) and func not in _FACTORIES


_SOFTMAX = {
    *(torch.nn.functional.softmax, torch.softmax, torch.special.softmax, torch.Tensor.softmax),
    *(torch.nn.functional.log_softmax, torch.log_softmax, torch.special.log_softmax, torch.Tensor.log_softmax),
}
"""All ways to call the one kernel; that of ``functional`` hides the one within it."""

_STOOD_IN_FOR = {
    torch._grouped_mm,
    torch.nn.functional.linear,
    torch.nn.functional.scaled_dot_product_attention,
    *_SOFTMAX,
    *JOINS,
}
"""What `KernelsOf` looks at; all that a model reads of a tensor comes by there as well."""


class KernelsOf(TorchFunctionMode):
    """Replaces operations whose real kernels allocate otherwise than the fake ones, or that have no fake one.

    - Attention on an accelerator (`fused_attention`).
    - Softmax on an accelerator: float16 is not copied to float32 first. bfloat16 is (``SoftMax.cpp``).
    - The grouped matrix product on every device: the fake one takes bfloat16 only.
    - A product in half precision on a CPU: oneDNN takes blocks, and packs an expert's weights.
    - What joins the pieces of a loop that was cut short.
    """

    def __init__(self, kernels: Kernels, guesses: Guesses, loops: Loops | None = None) -> None:
        super().__init__()
        self._guesses = guesses
        self._kernels = kernels
        self._accelerator = kernels.on_accelerator
        self._loops = loops

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in _STOOD_IN_FOR:
            return func(*args, **kwargs)
        if func is torch._grouped_mm and args[0].dim() == 2 and args[1].dim() == 3:
            if not self._accelerator:
                self._take(of_product(args[0].dtype, args[0].shape[0], *args[1].shape[1:], packed=True))
            return args[0].new_empty((args[0].shape[0], args[1].shape[-1]))
        if (
            self._loops is not None
            and self._loops.strides
            and (joined := self._loops.join(func, args, kwargs)) is not None
        ):
            return joined
        if (
            not self._accelerator
            and func is torch.nn.functional.linear
            and args[0].dtype in (torch.float16, torch.bfloat16)
        ):
            (columns, inner), rows = args[1].shape, args[0].numel() // args[0].shape[-1]
            self._take(of_product(args[0].dtype, rows, inner, columns))
        if self._accelerator:
            if func is torch.nn.functional.scaled_dot_product_attention:
                return attention(self._kernels, *args, **kwargs)
            if func in _SOFTMAX and _converts_within(*args, **kwargs):
                given = args[0] if args else kwargs["input"]
                return torch.empty(given.shape, dtype=torch.float32)
        return func(*args, **kwargs)

    def _take(self, nbytes: int) -> None:
        """Let a kernel take so many bytes for itself, and give them back."""
        if nbytes:
            self._guesses.bounded = max(self._guesses.bounded, nbytes)
            torch.empty(nbytes, dtype=torch.float8_e4m3fn)  # no integers: those are real


def _converts_within(input: Any, *rest: Any, **kwargs: Any) -> bool:
    """Whether softmax reads float16 and gives float32, which it does without a copy."""
    return input.dtype is torch.float16 and torch.float32 in (*rest, kwargs.get("dtype"))


class FakeWorld:
    """A context in which every tensor that is made is fake, except for small integer tensors."""

    def __init__(self, workload: Workload) -> None:
        self.guesses = Guesses()
        # the same mode each time that the world is entered: another one would copy the tensors of this one
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        self._tokens = workload.batch_size * workload.context_length
        self._kernels = workload.kernels

    def take_over(self, model: torch.nn.Module) -> bool:
        """Replace the tensors of ``model``, which was built on the meta device, by fake ones of this world.

        Returns:
            False if nothing was replaced, because the model has integer tensors: their values have to be known, and a
            tensor on the meta device has none.
        """
        held = [vars(module) for module in model.modules()]
        places = [place for each in held for place in (each["_parameters"], each["_buffers"], each)]
        found = [(place, name, t) for place in places for name, t in place.items() if isinstance(t, torch.Tensor)]
        if not all(tensor.is_floating_point() for _, _, tensor in found):
            return False
        made: dict[int, Any] = {}
        for place, name, tensor in found:
            if id(tensor) not in made:
                fake = made[id(tensor)] = _like(tensor, self._fake)
                fake._is_param = isinstance(tensor, torch.nn.Parameter)  # as Parameter itself does with a subclass
            place[name] = made[id(tensor)]
        return True

    @contextmanager
    def entered(self, loops: Loops | None = None, recorder: Recorder | None = None) -> Iterator[None]:
        """Let the code within run on fake tensors, with ``loops`` cut short; ``recorder`` is told of what is done."""
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(self._fake)
            stack.enter_context(KnownIntegers(self._fake, self.guesses, tokens=self._tokens, recorder=recorder))
            stack.enter_context(KernelsOf(self._kernels, self.guesses, loops))
            stack.callback(Distribution.set_default_validate_args, Distribution._validate_args)
            Distribution.set_default_validate_args(False)  # it would look at parameters that have no values
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")  # a model may warn of values, and these are not real
            stack.callback(_log.setLevel, _log.level)
            _log.setLevel(logging.CRITICAL)  # torch logs a failure before it raises it, and one report is enough
            yield
