"""What transformers itself answers: its own planner, on the model that its own ``from_pretrained`` built."""

import contextlib
import copy
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import accelerate.utils.modeling
import transformers.integrations.accelerate
import transformers.modeling_utils
from transformers.integrations import fbgemm_fp8, hub_kernels
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

from devctl.devices import Device
from devctl.models.skeleton import Skeleton
from devctl.placement import Placement, Strategy, place
from devctl.placement.budget import from_max_memory
from devctl.placement.placement import to_hf

accelerate.utils.modeling.logger.setLevel(logging.ERROR)  # it warns of GPUs that are not here, at every plan
transformers.integrations.accelerate.logger.setLevel(logging.ERROR)


class _BuiltError(BaseException):
    """Ends ``from_pretrained`` once the model is built."""


class UpstreamError(Exception):
    """transformers raised while it planned."""


class _OrderedMeta(type):
    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, set | dict)


class _OrderedSet(dict, metaclass=_OrderedMeta):
    """A set that keeps its order.

    The planner goes through a set of tie groups, so for a model that has several its answer can differ from run to run
    (PYTHONHASHSEED). It is asked with the groups in the model's order, which is devctl's.
    """

    def __init__(self, items: Any = ()) -> None:
        super().__init__(dict.fromkeys(items))


@dataclass(frozen=True)
class Upstream:
    """The model that ``from_pretrained`` built, and its quantizer, just before it planned."""

    model: Any
    quantizer: Any = None

    def plan(self, strategy: str, max_memory: dict[int | str, int | str] | None) -> dict[str, int | str]:
        """The map for ``from_pretrained(device_map=strategy, max_memory=max_memory)``.

        Raises:
            UpstreamError: transformers raised.
        """
        given = None if max_memory is None else dict(max_memory)
        try:
            with (
                mock.patch.object(transformers.integrations.accelerate, "set", _OrderedSet, create=True),
                any_environment(),
            ):
                planner = transformers.modeling_utils._get_device_map  # type: ignore[attr-defined]
                return dict(planner(self.model, str(strategy), given, self.quantizer))
        except (IndexError, KeyError, ValueError) as error:
            raise UpstreamError(repr(error)) from error


@contextlib.contextmanager
def any_environment() -> Iterator[None]:
    """Quantizers do not ask for their libraries, GPUs and kernels, which a plan needs none of."""
    with contextlib.ExitStack() as stack:
        # compressed-tensors' needs neither a GPU nor kernels, and notes there what it will do
        for quantizer in {*AUTO_QUANTIZER_MAPPING.values()} - {AUTO_QUANTIZER_MAPPING["compressed-tensors"]}:
            stack.enter_context(mock.patch.object(quantizer, "validate_environment", lambda *_, **__: None))
        stack.enter_context(mock.patch.object(hub_kernels, "get_kernel"))
        stack.enter_context(mock.patch.object(fbgemm_fp8, "get_quantize_fp8_per_row"))
        yield


def ask(skeleton: Skeleton, **arguments: Any) -> Upstream:
    """Let ``from_pretrained`` build the model, without weights; ``arguments`` are more of its own."""
    built = []

    def capture(model: Any, device_map: Any, max_memory: Any, quantizer: Any) -> None:
        built.append(Upstream(model=model, quantizer=quantizer))
        raise _BuiltError

    with (
        mock.patch.object(transformers.modeling_utils, "_get_device_map", capture),
        any_environment(),
        contextlib.suppress(_BuiltError),
    ):
        config = copy.deepcopy(skeleton.config)
        skeleton.model_class.from_pretrained(
            None, config=config, state_dict={}, dtype=config.dtype, device_map="auto", **arguments
        )
    return built[0]


def ours(skeleton: Skeleton, strategy: Strategy, max_memory: dict[int | str, int]) -> Placement:
    """devctl's placement for the same question."""
    return place(skeleton.tree, from_max_memory(to_devices(max_memory)), strategy)


def to_devices(max_memory: dict[int | str, int]) -> dict[Device, int]:
    """transformers' ``max_memory`` in devctl's devices."""
    return {Device.gpu(k) if isinstance(k, int) else Device.from_str(k): v for k, v in max_memory.items()}


def assert_parity(skeleton: Skeleton, upstream: Upstream, strategy: Strategy, max_memory: dict[int | str, int]) -> str:
    """Both maps are equal; or transformers raised or lost a tensor, and a note says so.

    Returns:
        "equal", "upstream raised" or "upstream lost buffers".
    """
    placement = ours(skeleton, strategy, max_memory)
    mine = to_hf(placement.device_map)
    case = f"{skeleton.tree.class_name} {strategy} {max_memory}"
    notes = " ".join(placement.notes)
    try:
        theirs = upstream.plan(strategy, max_memory)
    except UpstreamError as error:
        assert "transformers raises" in notes, f"{case}: {error} without a note"
        return "upstream raised"
    assert "transformers raises" not in notes, f"{case}: a note, but it did not raise"
    if mine == theirs:
        assert "transformers loses" not in notes, f"{case}: a note, but nothing was lost"
        return "equal"
    difference = {k: (theirs.get(k), mine.get(k)) for k in {*theirs, *mine} if theirs.get(k) != mine.get(k)}
    assert "transformers loses" in notes, f"{case}: {difference}"
    return "upstream lost buffers"
