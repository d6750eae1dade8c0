"""What the transformers that is installed plans: its own planner, asked about a model that is built already.

The planner is private and differs from release to release, so that what it may do here is found out by asking, and
what goes wrong is an answer too. Imports torch and transformers, inside functions.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from devctl.errors import first_line

if TYPE_CHECKING:
    from devctl.models.skeleton import Skeleton

HfMap = dict[str, int | str]
"""A ``device_map`` as transformers makes it: a numbered accelerator is its id."""


def ask(skeleton: Skeleton, max_memory: Mapping[int | str, int], strategy: str, given: bool) -> HfMap | str | None:
    """The map of ``from_pretrained(device_map=strategy, max_memory=max_memory)``, in the installed release.

    No device is probed: each has the memory that is given. Nothing of transformers is replaced, not even for a while,
    so that other threads may load models meanwhile; its planner runs as a copy with a namespace of its own.

    Args:
        max_memory: bytes of each device, accelerators by id, then "mps", "cpu", "disk".
        strategy: "auto", "balanced", "balanced_low_0" or "sequential".
        given: whether a user wrote ``max_memory``; measured bytes come to the planner as if it had probed for them.

    Returns:
        The map. A sentence, where the planner raises or can't be found. None where there is nothing to ask: the weights
        are quantised, by a method whose quantizer is not built here, or the built model was not kept.
    """
    if skeleton.model is None or (skeleton.tree.quantisation is not None and skeleton.quantizer is None):
        return None
    import transformers

    release = f"transformers {transformers.__version__}"
    quantizer = None if skeleton.quantizer is None else _Quantizer(skeleton.quantizer)
    try:
        planner = _own_copy(dict(max_memory))["_get_device_map"]
    except (ImportError, KeyError):
        return f"{release} keeps its planner elsewhere, and was not asked: the map is devctl's own"
    try:
        return dict(planner(skeleton.model, strategy, dict(max_memory) if given else None, quantizer))
    except Exception as error:  # noqa: BLE001 - a planner that raises is an answer: it does so in from_pretrained too
        why = f"{type(error).__name__} ({first_line(error)})"
        return f"{release} raises {why} where it plans this: the map is devctl's own"


def _own_copy(limits: dict[int | str, int]) -> dict[str, Any]:
    """The names of transformers' ``integrations/accelerate.py``, its functions bound to them and not to the module.

    In it ``get_max_memory`` tells ``limits``, no GPU answers, tie groups keep the model's order, and nothing is logged.
    """
    from transformers.integrations import accelerate as original

    names = dict(vars(original))
    for name, value in vars(original).items():
        if isinstance(value, types.FunctionType) and value.__globals__ is vars(original):
            names[name] = _rebound(value, names)
    names |= {
        "get_max_memory": lambda max_memory=None: dict(limits if max_memory is None else max_memory),
        "is_torch_xpu_available": lambda *_, **__: False,
        "logger": _Silence(),
        "set": _OrderedSet,
        "torch": _TorchWithoutDevices(names["torch"]),
    }
    return names


def _rebound(function: types.FunctionType, names: dict[str, Any]) -> types.FunctionType:
    copy = types.FunctionType(function.__code__, names, function.__name__, function.__defaults__, function.__closure__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


class _OrderedMeta(type):
    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, set | dict)


class _OrderedSet(dict[Any, None], metaclass=_OrderedMeta):
    """A set that keeps its order.

    The planner goes through its tie groups in the order of a set, which differs from run to run (``PYTHONHASHSEED``);
    here that is the order of the model.
    """

    def __init__(self, items: Any = ()) -> None:
        super().__init__(dict.fromkeys(items))


class _Silence:
    """A logger that says nothing, whatever it is told."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


class _NoDevices:
    """``torch.cuda`` or ``torch.xpu`` of a machine that has none: nothing is there, reserved or allocated."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: 0


class _TorchWithoutDevices:
    """torch, but for its accelerators."""

    cuda = xpu = _NoDevices()

    def __init__(self, torch: Any) -> None:
        self._torch = torch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._torch, name)


class _Quantizer:
    """A quantizer that counts, and does not ask for the library, the GPU or the places that loading takes."""

    def __init__(self, quantizer: Any) -> None:
        self._quantizer = quantizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._quantizer, name)

    def validate_environment(self, *_: Any, **__: Any) -> None:
        """Says yes."""
