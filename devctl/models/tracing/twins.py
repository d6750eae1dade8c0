"""Blocks of a model that are alike: the first two run, the others answer in their shape.

A trace of a hundred equal layers then costs no more than one of two. Imports torch: to be imported inside functions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

_PLAIN = (str, int, float, bool, tuple, type(None))
"""Attributes of these types say of a block what it is."""

RUN = 2
"""How many of a kind run: the first is given the embeddings themselves, which others still hold beside their input."""


@dataclass(slots=True, eq=False)
class _Block:
    name: str
    forward: Callable[..., Any]
    kind: Hashable
    twin: _Block | None = None
    shape: Any = None
    calls: int = 0


class TwiceInAStepError(Exception):
    """A block runs more than once in a step, so that its outputs are no pattern for another's."""


@dataclass(slots=True)
class Repeats:
    """Which block answers like which other, by name, once the first step is done."""

    twins: dict[str, str] = field(default_factory=dict)
    _run: int = RUN
    _blocks: list[_Block] = field(default_factory=list)
    _kinds: dict[Hashable, list[_Block]] = field(default_factory=lambda: defaultdict(list))
    _settled: bool = False

    def next_step(self) -> None:
        """A step begins; what ran in the first one runs in the others, which need its states."""
        self._settled = any(block.calls for block in self._blocks)
        for block in self._blocks:
            block.calls = 0

    def call(self, block: _Block, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        block.calls += 1
        if block.calls > 1:
            raise TwiceInAStepError(block.name)
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        if not self._settled:
            alike = self._kinds[block.kind, _signature(args, kwargs)]
            if len(alike) >= self._run:
                block.twin = alike[-1]
                self.twins[block.name] = block.twin.name
            else:
                alike.append(block)
        if block.twin is not None:
            return _copy(block.twin.shape, given)
        out = block.forward(*args, **kwargs)
        block.shape = _shape(out, given)
        return out


def kinds(model: torch.nn.Module, names: Iterable[str], *, few: bool = False) -> dict[str, Hashable]:
    """The kind of each of the blocks ``names`` of the model: those of one kind that are given alike are alike.

    Args:
        few: whether only a list in a config with an entry for every block says something of each. A shorter one, like
            that of the architectures, sets the first blocks apart, whose peaks may well be others.
    """
    configs = [m.config for m in model.modules() if hasattr(m, "config")]
    unique = list({id(config): config for config in configs}.values())
    found = {}
    for name in names:
        least = len(model.get_submodule(name.rpartition(".")[0])._modules) if few else 0
        found[name] = _kind(name, model.get_submodule(name), unique, least)
    return found


@contextmanager
def repeats(model: torch.nn.Module, of_kind: Mapping[str, Hashable], run: int = RUN) -> Iterator[Repeats]:
    """Let the blocks of the model that are alike answer for one another, after the first ``run`` of a kind.

    Args:
        of_kind: as `kinds` says.
    """
    found = Repeats(_run=run)
    for name, kind in of_kind.items():
        module = model.get_submodule(name)
        block = _Block(name, module.forward, kind)
        found._blocks.append(block)
        module.forward = _answering(found, block)
    try:
        yield found
    finally:
        for name in of_kind:
            del model.get_submodule(name).forward


def _answering(found: Repeats, block: _Block) -> Callable[..., Any]:
    return lambda *args, **kwargs: found.call(block, args, kwargs)


def _kind(name: str, block: torch.nn.Module, configs: Iterable[Any], least: int) -> Hashable:
    """What two blocks must share to be alike: their place's list, all that is in them, and what configs say of it.

    Configs say it in lists, of which those with fewer than ``least`` entries are not looked at.
    """
    parent, _, last = name.rpartition(".")
    index = int(last) if last.isdigit() else -1
    told = tuple(
        str(value[index])
        for config in configs
        for _, value in sorted(_said_by(config).items())
        if isinstance(value, list | tuple) and len(value) > index >= 0 and len(value) >= least
    )
    inside = tuple((key, _attributes(module, index)) for key, module in block.named_modules())
    return parent, told, _sizes((*block.named_parameters(), *block.named_buffers())), inside


def _said_by(config: Any) -> Mapping[str, Any]:
    """What a config says by name; some modules have a plain mapping by that name."""
    if isinstance(config, Mapping):
        return {str(key): value for key, value in config.items()}
    return getattr(config, "__dict__", {})


def _attributes(module: torch.nn.Module, index: int) -> Hashable:
    """What is in a module itself; what is below it has attributes of its own."""
    own = _sizes((*module._parameters.items(), *module._buffers.items()))
    plain = tuple(
        (key, str(value))
        for key, value in sorted(vars(module).items())
        if not key.startswith("_") and isinstance(value, _PLAIN) and not _is_index(key, value, index)
    )
    return type(module).__qualname__, own, plain


def _sizes(named: Iterable[tuple[str, torch.Tensor | None]]) -> Hashable:
    return tuple((name, tuple(tensor.shape), tensor.dtype) for name, tensor in named if tensor is not None)


def _is_index(key: str, value: Any, index: int) -> bool:
    return type(value) is int and value == index and any(part in key for part in ("idx", "index", "layer", "id"))


def _signature(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Hashable:
    leaves, spec = tree_flatten((args, kwargs))
    return str(spec), tuple(
        (tuple(leaf.shape), leaf.dtype) if isinstance(leaf, torch.Tensor) else _plain(leaf) for leaf in leaves
    )


def _plain(value: Any) -> Hashable:
    return value if isinstance(value, str | int | float | bool | None) else type(value).__qualname__


def _shape(out: Any, given: list[torch.Tensor]) -> Any:
    """An output without its tensors: the place of those that were given, sizes and strides of the new."""
    leaves, spec = tree_flatten(out)
    places = {id(tensor): place for place, tensor in enumerate(given)}
    shapes = []
    for leaf in leaves:
        if not isinstance(leaf, torch.Tensor):
            shapes.append(("value", leaf))
        elif id(leaf) in places:
            shapes.append(("given", places[id(leaf)]))
        else:
            shapes.append(("new", (tuple(leaf.shape), leaf.stride(), leaf.dtype)))
    return shapes, spec


def _copy(shape: Any, given: list[torch.Tensor]) -> Any:
    shapes, spec = shape
    leaves = []
    for what, value in shapes:
        if what == "new":
            leaves.append(torch.empty_strided(value[0], value[1], dtype=value[2]))
        else:
            leaves.append(given[value] if what == "given" else value)
    return tree_unflatten(leaves, spec)
