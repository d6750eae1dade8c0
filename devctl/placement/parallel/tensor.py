"""Tensor and expert parallelism: what each rank has of a model, as transformers 5.23 shards it.

A rank's part of a model is a tree of its own, with the same names and fewer bytes, so that all that is counted of a
model is counted of a rank in the same way.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from devctl.models.sharding import Cut, Sharding, cut_of, cut_shape, generic
from devctl.models.tree import Module, ModuleTree, Tensor, TensorKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """How many ranks share a model.

    Attributes:
        size: with tensor parallelism.
        experts: with expert parallelism; 1 for none. transformers needs a multiple of ``size`` that divides it, where
            there is no data parallelism beside: the same.
    """

    size: int
    experts: int = 1

    @property
    def dispatches(self) -> bool:
        """Whether experts are shared out whole."""
        return self.experts > 1


@dataclass(frozen=True, slots=True, kw_only=True)
class StyleBytes:
    """What the plan does to the tensors of one style.

    Attributes:
        style: as transformers calls it; None for tensors that the plan does not name.
        is_cut: whether the ranks have parts of them.
        nbytes: bytes of all of them, in the whole model.
        on_each: bytes on the rank that has most.
        rules: their names, with "*" for numbers, in the order of definition.
    """

    style: str | None
    is_cut: bool
    nbytes: int
    on_each: int
    rules: tuple[str, ...]

    def to_document(self) -> dict[str, Any]:
        """What documents say of it."""
        return {
            "style": self.style,
            "cut": self.is_cut,
            "bytes": self.nbytes,
            "on_each": self.on_each,
            "rules": list(self.rules),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorParallel:
    """A model that ranks share.

    Attributes:
        ranks: how many.
        bytes_per_rank: bytes of the weights and buffers of each rank.
        state_per_rank: bytes of KV cache and the like on each; 0 without a workload.
        sharded: what each style does, what is cut first.
    """

    ranks: Ranks
    bytes_per_rank: tuple[int, ...]
    state_per_rank: tuple[int, ...]
    sharded: tuple[StyleBytes, ...]

    @property
    def even(self) -> int:
        """Bytes of a rank if everything were cut evenly."""
        return -(-sum(style.nbytes for style in self.sharded) // self.ranks.size)

    def to_document(self) -> dict[str, Any]:
        """What a plan document says of it."""
        return {
            "size": self.ranks.size,
            "expert_parallel": self.ranks.experts,
            "bytes_per_rank": list(self.bytes_per_rank),
            "state_per_rank": list(self.state_per_rank),
            "sharded": [style.to_document() for style in self.sharded],
        }


def rank_tree(tree: ModuleTree, ranks: Ranks, rank: int) -> ModuleTree:
    """The part of ``tree`` that ``rank`` has: the same modules and tensors, with its shapes and bytes.

    Buffers, and parameters that the plan does not name, are whole on every rank. A tied weight is counted as before:
    where its source is.

    Raises:
        KeyError: the plan has a style that is not known.
    """
    sharding = tree.sharding or Sharding()

    def part(tensor: Tensor) -> Tensor:
        if tensor.kind is not TensorKind.PARAMETER:
            return tensor
        cut = _cut(sharding, tensor, ranks)
        shape = cut_shape(tensor.shape, cut, ranks.size, rank)
        if shape == tensor.shape:
            return tensor
        here, whole = math.prod(shape), math.prod(tensor.shape)

        def of(nbytes: int) -> int:
            return -(-nbytes * here // whole) if whole else 0

        return replace(
            tensor,
            shape=shape,
            nbytes=of(tensor.nbytes),
            held=None if tensor.held is None else of(tensor.held),
            # what a tensor is made of is cut as it is read
            loading=of(tensor.loading),
        )

    def visit(module: Module) -> Module:
        return replace(
            module,
            parameters=tuple(map(part, module.parameters)),
            children=tuple(map(visit, module.children)),
        )

    return replace(tree, root=visit(tree.root))


def rank_trees(tree: ModuleTree, ranks: Ranks) -> tuple[ModuleTree, ...]:
    """The part of every rank; those that have as much are one and the same value."""
    found: dict[tuple[tuple[int, ...], ...], ModuleTree] = {}
    parts = []
    for rank in range(ranks.size):
        part = rank_tree(tree, ranks, rank)
        parts.append(found.setdefault(tuple(t.shape for t in part.index.tensors), part))
    return tuple(parts)


def style_bytes(tree: ModuleTree, ranks: Ranks) -> tuple[StyleBytes, ...]:
    """What each style does to the bytes of ``tree``: those that are cut first, the most bytes first."""
    sharding = tree.sharding or Sharding()
    first = rank_tree(tree, ranks, 0).index
    whole: dict[tuple[bool, str | None], int] = {}
    here: dict[tuple[bool, str | None], int] = {}
    rules: dict[tuple[bool, str | None], dict[str, None]] = {}
    for tensor in tree.index.tensors:
        nbytes = tree.index.held[tensor.name]
        if not nbytes:
            continue
        is_parameter = tensor.kind is TensorKind.PARAMETER
        style = sharding.style_of(tensor.name, experts=ranks.dispatches) if is_parameter else None
        is_cut = is_parameter and _cut(sharding, tensor, ranks) is not Cut.WHOLE
        key = is_cut, style
        whole[key] = whole.get(key, 0) + nbytes
        here[key] = here.get(key, 0) + first.held[tensor.name]
        rules.setdefault(key, {})[generic(tensor.name)] = None
    found = [
        StyleBytes(style=key[1], is_cut=key[0], nbytes=nbytes, on_each=here[key], rules=tuple(rules[key]))
        for key, nbytes in whole.items()
    ]
    return tuple(sorted(found, key=lambda each: (not each.is_cut, -each.nbytes)))


def _cut(sharding: Sharding, tensor: Tensor, ranks: Ranks) -> Cut:
    style = sharding.style_of(tensor.name, experts=ranks.dispatches)
    return cut_of(style, tensor.name.rpartition(".")[2])
