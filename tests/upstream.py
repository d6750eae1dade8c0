"""What transformers itself answers: its own planner, on the model that its own ``from_pretrained`` built."""

import contextlib
import logging
from dataclasses import dataclass
from typing import Any
from unittest import mock

import accelerate.utils.modeling
import transformers.integrations.accelerate
import transformers.modeling_utils

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


class _OrderedSet(dict, metaclass=_OrderedMeta):  # type: ignore[type-arg]
    """A set that keeps its order.

    The planner goes through a set of tie groups, so for a model that has several its answer can differ from run to run
    (PYTHONHASHSEED). It is asked with the groups in the model's order, which is devctl's.
    """

    def __init__(self, items: Any = ()) -> None:
        super().__init__(dict.fromkeys(items))


@dataclass(frozen=True)
class Upstream:
    """The model that ``from_pretrained`` built, just before it planned."""

    model: Any

    def plan(self, strategy: str, max_memory: dict[int | str, int | str] | None) -> dict[str, int | str]:
        """The map for ``from_pretrained(device_map=strategy, max_memory=max_memory)``.

        Raises:
            UpstreamError: transformers raised.
        """
        given = None if max_memory is None else dict(max_memory)
        try:
            with mock.patch.object(transformers.integrations.accelerate, "set", _OrderedSet, create=True):
                return dict(transformers.modeling_utils._get_device_map(self.model, str(strategy), given, None))
        except (IndexError, KeyError, ValueError) as error:
            raise UpstreamError(repr(error)) from error


def ask(skeleton: Skeleton) -> Upstream:
    """Let ``from_pretrained`` build the model, without weights."""
    built = []

    def capture(model: Any, *args: Any) -> None:
        built.append(model)
        raise _BuiltError

    with mock.patch.object(transformers.modeling_utils, "_get_device_map", capture), contextlib.suppress(_BuiltError):
        skeleton.model_class.from_pretrained(
            None, config=skeleton.config, state_dict={}, dtype=skeleton.config.dtype, device_map="auto"
        )
    return Upstream(model=built[0])


def ours(skeleton: Skeleton, strategy: Strategy, max_memory: dict[int | str, int]) -> Placement:
    """devctl's placement for the same question."""
    budgets = {Device.gpu(k) if isinstance(k, int) else Device.from_str(k): v for k, v in max_memory.items()}
    return place(skeleton.tree, from_max_memory(budgets), strategy)


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
