"""The layers of a model that stages are made of, and what is around them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from devctl.models.tree import Module, ModuleTree, Tensor, TensorKind, walk

_AFTER = re.compile(r"(^|\.)(\w*norm\w*|ln_f|score|\w*head|project_out|embed_out)$")
"""Names of what runs behind the layers, wherever it is defined: OPT has its last norm before them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layers:
    """The one list of layers of a model, and the modules and tensors around it, all in the order of definition.

    Attributes:
        container: the module whose children are the layers, like "model.layers".
        names: the layers.
        first: what the first stage has beside layers: embeddings.
        last: what the last stage has beside layers: the norm and the head.
        everywhere: what has no weights, and each stage has: rotary embeddings.
    """

    container: str
    names: tuple[str, ...]
    first: tuple[str, ...]
    last: tuple[str, ...]
    everywhere: tuple[str, ...]

    @property
    def odd(self) -> tuple[str, ...]:
        """What transformers' pipeline parallelism does not part among stages; nothing where it runs the model.

        It knows ``embed_tokens``, ``layers`` and ``norm`` of the base model, and ``lm_head`` beside it
        (``PipelineStage.find_rank_for_key``, ``apply_pipeline_parallelism``).
        """
        base, _, name = self.container.rpartition(".")
        wanted = {f"{base}.embed_tokens", f"{base}.norm", "lm_head"} if base else set()
        around = {*self.first, *self.last}
        missing = wanted - around - {*self.everywhere}  # a norm may have no weights
        layers = [self.container] if name != "layers" or not base or "." in base else []
        return (*layers, *sorted(around - wanted), *(f"no {each}" for each in sorted(missing)))


def layers_of(tree: ModuleTree) -> Layers | str:
    """The layers of ``tree`` and what is around them, or why it can't be cut into stages."""
    found = list(_lists(tree.root, tree.no_split))
    if not found:
        return f"{tree.class_name} has no list of layers"
    if len(found) > 1:
        return f"the layers of {tree.class_name} are in {len(found)} lists: {', '.join(each.name for each in found)}"
    container = found[0]
    first: list[str] = []
    last: list[str] = []
    everywhere: list[str] = []
    has_passed = False
    for part in _around(tree.root, container.name):
        if part is container:
            has_passed = True
        elif not _has_weights(part):
            everywhere.append(part.name)
        elif has_passed or is_behind(part.name):
            last.append(part.name)
        else:
            first.append(part.name)
    return Layers(
        container=container.name,
        names=tuple(child.name for child in container.children),
        first=tuple(first),
        last=tuple(last),
        everywhere=tuple(everywhere),
    )


def is_list(module: Module) -> bool:
    """Whether a module has numbered children, and no others."""
    return bool(module.children) and all(child.name.rpartition(".")[2].isdecimal() for child in module.children)


def largest_list(tree: ModuleTree, count: int | None = None) -> Module | None:
    """The largest of the modules with nothing but numbered children, of which there are ``count``; None is any."""
    lists = [m for m in walk(tree.root) if m.name and is_list(m) and count in (None, len(m.children))]
    return max(lists, key=lambda module: tree.index.held[module.name], default=None)


def is_behind(name: str) -> bool:
    """Whether a module of that name runs behind the layers, if it is beside them."""
    return _AFTER.search(name) is not None


def _lists(module: Module, no_split: frozenset[str]) -> Iterator[Module]:
    """The topmost modules whose children are numbered, and of which one is a block that is not to be split, or has
    modules within: a vision tower's layers are such, whether or not its class names its blocks.
    """
    children = module.children
    if is_list(module):
        if any(child.class_name in no_split or child.children for child in children):
            yield module
        return
    if module.class_name not in no_split:
        for child in children:
            yield from _lists(child, no_split)


def _around(module: Module, container: str) -> Iterator[Module | Tensor]:
    """The tensors and modules beside the way from ``module`` to the ``container``, and that itself."""
    yield from (*module.parameters, *module.buffers)
    for child in module.children:
        if child.name != container and container.startswith(f"{child.name}."):
            yield from _around(child, container)
        else:
            yield child


def _has_weights(part: Module | Tensor) -> bool:
    if isinstance(part, Tensor):
        return part.kind is TensorKind.PARAMETER
    return bool(part.parameters) or any(map(_has_weights, part.children))
