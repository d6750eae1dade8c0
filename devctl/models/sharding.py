"""How transformers shards a model over ranks, as plain data: which tensor or module has which style.

A plan for tensor parallelism gives styles to modules and to parameters. Those of parameters decide how many bytes a
rank has; those of modules decide what their forward does. The layers of a model have one name in it, with "*" for their
numbers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any

from devctl.models import kept

_NUMBER = re.compile(r"\.\d+(?=\.|$)")


class Cut(StrEnum):
    """How a tensor is cut into the ranks' parts."""

    WHOLE = "whole"
    """Every rank has all of it."""
    ROWS = "rows"
    """By its last dimension but one; a vector by its only one."""
    COLUMNS = "columns"
    """By its last dimension."""
    FIRST = "first"
    """By its first dimension."""
    SECOND = "second"
    """By its second dimension."""
    PACKED_ROWS = "packed rows"
    """As rows, but each half of them by itself: the two are a gate and what it is for."""
    PACKED_COLUMNS = "packed columns"
    """As columns, each half of them by itself; a vector is not cut."""


CUTS: Mapping[str, Cut] = {
    "colwise": Cut.ROWS,
    "colwise_gather_output": Cut.ROWS,
    "colwise_rep": Cut.ROWS,
    "rowwise": Cut.COLUMNS,
    "rowwise_split_input": Cut.COLUMNS,
    "rowwise_rep": Cut.COLUMNS,
    "embedding_rowwise": Cut.FIRST,
    "embedding_colwise": Cut.SECOND,
    "packed_colwise": Cut.PACKED_ROWS,
    "packed_rowwise": Cut.PACKED_COLUMNS,
    "grouped_gemm": Cut.FIRST,
    "ep_dispatch_experts": Cut.WHOLE,
    "sequence_parallel": Cut.WHOLE,
    "replicated_with_grad_allreduce": Cut.WHOLE,
    "mla_kv_a_proj": Cut.WHOLE,
    "all_reduce": Cut.WHOLE,
    "moe_tp_experts": Cut.WHOLE,
    "moe_identity_expert": Cut.WHOLE,
    "local_params": Cut.WHOLE,
    "replicate": Cut.WHOLE,
}
"""What each style of transformers 5.23 does to a parameter (``shard_param`` in ``distributed/tensor_parallel.py`` and
``distributed/expert_parallel.py``)."""


KEY_HEADS = "key/value heads"
"""What the heads of a KV cache are called."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What ranks share out whole: heads of attention, or blocks that a kernel takes.

    Attributes:
        what: what they are called, like "key/value heads".
        count: how many.
    """

    what: str
    count: int


Styles = tuple[tuple[str, str], ...]
"""(name with "*" for numbers, style)."""


@dataclass(frozen=True, kw_only=True)
class Sharding:
    """How transformers shards a model.

    Attributes:
        tensor: the styles with tensor parallelism; empty where the model has no plan for it.
        experts: the styles with expert parallelism beside it; empty where the model has no plan for that.
        heads: what has to be divided evenly with tensor parallelism.
        widths: what has to be divided evenly where experts are cut, and not shared out.
        expert_counts: how many experts a layer has, of those that are shared out with expert parallelism.
        refusal: why it can't be sharded, in words; None where it can, or has no plan.
        release: the transformers whose plan it is.
    """

    tensor: Styles = ()
    experts: Styles = ()
    heads: tuple[Parts, ...] = ()
    widths: tuple[Parts, ...] = ()
    expert_counts: tuple[int, ...] = ()
    refusal: str | None = None
    release: str = ""

    @cached_property
    def _tables(self) -> tuple[dict[str, str], dict[str, str]]:
        return dict(self.tensor), dict(self.experts)

    def style_of(self, name: str, *, experts: bool) -> str | None:
        """The style of the module or parameter ``name``; None where the plan does not say it.

        Args:
            experts: whether there is expert parallelism too.
        """
        return self._tables[experts].get(generic(name))

    def styles(self, *, experts: bool) -> Iterator[str]:
        """Every style of the plan once, in its order."""
        return iter(dict.fromkeys(self._tables[experts].values()))

    def to_json(self) -> dict[str, Any]:
        """What is kept of it."""
        return {
            "tensor": self.tensor,
            "experts": self.experts,
            "heads": [[heads.what, heads.count] for heads in self.heads],
            "widths": [[width.what, width.count] for width in self.widths],
            "expert_counts": self.expert_counts,
            "refusal": self.refusal,
            "release": self.release,
        }


def parse_sharding(data: Any) -> Sharding:
    """What ``to_json`` gave.

    Raises:
        ValueError, KeyError, TypeError: it is not that.
    """
    return Sharding(
        tensor=tuple((kept.text(name), kept.text(style)) for name, style in data["tensor"]),
        experts=tuple((kept.text(name), kept.text(style)) for name, style in data["experts"]),
        heads=tuple(Parts(what=kept.text(what), count=kept.size(count)) for what, count in data["heads"]),
        widths=tuple(Parts(what=kept.text(what), count=kept.size(count)) for what, count in data["widths"]),
        expert_counts=tuple(map(kept.size, data["expert_counts"])),
        refusal=None if data["refusal"] is None else kept.text(data["refusal"]),
        release=kept.text(data["release"]),
    )


def generic(name: str) -> str:
    """``name`` with "*" for the numbers of layers and experts, as the rules of a plan have it."""
    return _NUMBER.sub(".*", name)


def cut_of(style: str | None, parameter: str) -> Cut:
    """How a parameter of this style is cut.

    Args:
        parameter: the last part of its name: a bias that is added after a sum over the ranks is not cut.

    Raises:
        KeyError: no such style is known.
    """
    if style is None:
        return Cut.WHOLE
    cut = CUTS[style]
    return Cut.WHOLE if cut is Cut.COLUMNS and parameter == "bias" else cut


def share(size: int, ranks: int, rank: int) -> int:
    """How much of ``size`` a rank has: all have as much, rounded up, until nothing is left."""
    chunk = -(-size // ranks)
    return max(0, min(chunk, size - chunk * rank))


def cut_shape(shape: tuple[int, ...], cut: Cut, ranks: int, rank: int) -> tuple[int, ...]:
    """The shape of a rank's part of a tensor of this ``shape``."""
    if cut is Cut.WHOLE or not shape:
        return shape
    is_vector = len(shape) == 1
    at = {
        Cut.ROWS: 0 if is_vector else -2,
        Cut.COLUMNS: -1,
        Cut.FIRST: 0,
        Cut.SECOND: 1,
        Cut.PACKED_ROWS: 0 if is_vector else -2,
        Cut.PACKED_COLUMNS: -1,
    }[cut]
    if is_vector and cut in (Cut.SECOND, Cut.PACKED_COLUMNS):
        return shape
    found = list(shape)
    if cut in (Cut.PACKED_ROWS, Cut.PACKED_COLUMNS) and not is_vector:
        half = -(-shape[at] // 2)
        found[at] = share(half, ranks, rank) + share(shape[at] - half, ranks, rank)
    else:
        found[at] = share(shape[at], ranks, rank)
    return tuple(found)
