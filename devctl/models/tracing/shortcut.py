"""Plain operations on fake tensors, answered without the detours of torch's fake mode.

The fake mode goes over each operation in Python: it looks for values, symbols, constants and devices, and asks a cache
by all that is known of each operand. For operations on fake tensors of floats, all on one device, it comes to what the
kernel for the meta device says; to ask that alone takes a fraction of the time. Imports torch: to be imported inside
functions.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, in_kernel_invocation_manager
from torch.utils._python_dispatch import TorchDispatchMode

from devctl.models.tracing.recorder import Recorder

_aten = torch.ops.aten
_DEVICE = torch.ops.prim.device.default

RESHAPES = frozenset({_aten._unsafe_view.default, _aten.view.default})
"""Views of other sizes. To a size of 1 the fake mode gives another stride than the kernel, so that it is asked once."""

VIEWS = frozenset(
    {
        _aten.expand.default,
        _aten.permute.default,
        _aten.select.int,
        _aten.slice.Tensor,
        _aten.squeeze.dim,
        _aten.t.default,
        _aten.transpose.int,
        _aten.unsqueeze.default,
    }
)
"""Other views of the first operand."""

MAKERS = frozenset(
    {
        _aten._to_copy.default,
        _aten.add.Tensor,
        _aten.addmm.default,
        _aten.bmm.default,
        _aten.cat.default,
        _aten.clone.default,
        _aten.div.Tensor,
        _aten.exp.default,
        _aten.gelu.default,
        _aten.mean.dim,
        _aten.mm.default,
        _aten.mul.Tensor,
        _aten.neg.default,
        _aten.pow.Tensor_Scalar,
        _aten.rsqrt.default,
        _aten.sigmoid.default,
        _aten.silu.default,
        _aten.softplus.default,
        _aten.sub.Tensor,
        _aten.sum.dim_IntList,
        _aten.tanh.default,
    }
)
"""Operations that make a tensor, laid out as the sizes, strides and dtypes of their operands decide."""

_KEYWORDS = frozenset({"alpha", "approximate", "beta", "dtype", "memory_format"})
"""What they may be told by name: nothing of a device."""

Layout = tuple[torch.Size, tuple[int, ...], torch.dtype]
"""Sizes, strides and dtype."""
Layouts = dict[Hashable, Layout]
"""Of what an operation gave, by itself and all that decides on them."""


class Shortcut(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Answers plain operations at once, and leaves all others to the modes that were entered before it.

    Args:
        recorder: is told of each operation that is answered here.
        layouts: of what was given so far; what is found here is added.
    """

    def __init__(self, recorder: Recorder, layouts: Layouts) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._recorder = recorder
        self._layouts = layouts
        self._ways = {
            **dict.fromkeys(RESHAPES, self._reshaped),
            **dict.fromkeys(VIEWS, _on_meta),
            **dict.fromkeys(MAKERS, self._made),
        }

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is _DEVICE and type(args[0]) is FakeTensor:
            self._recorder.begin()
            return args[0].fake_device
        way = self._ways.get(func)
        first = None if way is None or not _KEYWORDS.issuperset(kwargs) else _first_of(args)
        meta = None if way is None or first is None else way(func, args, kwargs, first.fake_mode)
        if first is not None and meta is not None:
            self._recorder.begin()
            out = FakeTensor(first.fake_mode, meta, first.fake_device)
            self._recorder.end(func, args, out)
            return out
        out = func(*args, **kwargs)
        if first is not None and func in RESHAPES:
            self._layouts[(func, *_told(args))] = out.shape, out.stride(), out.dtype
        return out

    def _reshaped(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], mode: Any) -> torch.Tensor | None:
        """What ``func`` gives on the meta device; None where its strides are not known yet."""
        layout = self._layouts.get((func, *_told(args)))
        if layout is not None:
            with in_kernel_invocation_manager(mode):
                return torch.as_strided(args[0], layout[0], layout[1], args[0].storage_offset())
        meta = _on_meta(func, args, kwargs, mode)
        # the stride of a size that is larger than 1 is no matter of taste
        return meta if meta is not None and min(meta.shape, default=1) > 1 else None

    def _made(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], mode: Any) -> torch.Tensor | None:
        """What ``func`` gives on the meta device; None where it gives no floats, or fails."""
        key = func, *_told(args), *_told(kwargs.items())
        if (layout := self._layouts.get(key)) is not None:
            shape, stride, dtype = layout
            with in_kernel_invocation_manager(mode):
                return torch.empty_strided(shape, stride, dtype=dtype, device="meta")
        meta = _on_meta(func, args, kwargs, mode)
        if meta is not None:
            self._layouts[key] = meta.shape, meta.stride(), meta.dtype
        return meta


def _on_meta(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], mode: Any) -> torch.Tensor | None:
    """What the kernel of ``func`` for the meta device gives; None where it gives no floats, or fails."""
    dtype = kwargs.get("dtype")
    if dtype is not None and not dtype.is_floating_point:
        return None
    try:
        with in_kernel_invocation_manager(mode):
            meta: torch.Tensor = func(*args, **kwargs)
    except Exception:  # noqa: BLE001 - the fake mode meets it too, and says it in words that are known
        return None
    return meta if meta.is_floating_point() else None


def _first_of(args: tuple[Any, ...]) -> Any:
    """The first operand, if all operands are fake tensors of floats without known values, on one device; else None."""
    first = args[0][0] if isinstance(args[0], list | tuple) and args[0] else args[0]
    if type(first) is not FakeTensor:
        return None
    for tensor in _tensors(args):
        is_plain = type(tensor) is FakeTensor and tensor.constant is None and tensor.is_floating_point()
        if not is_plain or tensor.fake_device != first.fake_device:
            return None
    return first


def _tensors(args: tuple[Any, ...]) -> Iterator[Any]:
    for each in args:
        if isinstance(each, torch.Tensor):
            yield each
        elif isinstance(each, list | tuple):
            yield from (one for one in each if isinstance(one, torch.Tensor))


def _told(values: Any) -> Iterator[Hashable]:
    """What decides on a layout, of each of ``values``: 1 is told apart from 1.0 and True, which are equal."""
    for each in values:
        if isinstance(each, torch.Tensor):
            yield each.dtype, each.shape, each.stride()
        elif isinstance(each, list | tuple):
            yield tuple(_told(each))
        else:
            yield type(each), each
