"""The blocks of a model: what goes to one device whole, in the order in which it runs."""

from collections.abc import Iterator
from dataclasses import dataclass

from devctl.models.tree import Module, ModuleTree, Tensor, counted_bytes, tensors


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Modules and tensors that share a device.

    Attributes:
        names: their names, as keys of a device map, in the order of definition.
        nbytes: bytes of their weights and buffers, tied ones counted once.
        runtime: bytes that they need beside those where they run.
    """

    names: tuple[str, ...]
    nbytes: int
    runtime: int = 0


RUNTIME = "devctl_runtime"
"""The buffer that stands for what a block needs beside its weights; no key of a map goes into a block and names it."""


def is_atomic(part: Module | Tensor, no_split: frozenset[str]) -> bool:
    """Whether ``part`` is placed whole or not at all: a tensor, a leaf, or a no-split block."""
    return isinstance(part, Tensor) or not part.children or part.class_name in no_split


def blocks_of(tree: ModuleTree) -> tuple[Block, ...]:
    """The blocks of a model, in the order in which it defines, and so nearly always runs, their first parts.

    A block is a module that must not be split, a leaf, or the tensors directly in a module that may be split. Blocks
    with tied tensors are one, at the place of the first of them. What has no bytes goes with the block before it.
    """
    parts = list(parts_of(tree))
    size = counted_bytes(tree)
    owner = {name: index for index, (_, inner) in enumerate(parts) for name in inner}
    leader = list(range(len(parts)))

    def find(index: int) -> int:
        while leader[index] != index:
            index = leader[index]
        return index

    same = [(t.name, t.same_as) for t in tensors(tree.root) if t.same_as is not None]
    for target, source in (*tree.ties, *same):
        if target in owner and source in owner:
            first, second = sorted((find(owner[target]), find(owner[source])))
            leader[second] = first

    groups: dict[int, list[int]] = {}
    for index in range(len(parts)):
        groups.setdefault(find(index), []).append(index)
    blocks: list[Block] = []
    empty: tuple[str, ...] = ()
    waiting = 0  # what the empty ones need where they run
    for members in groups.values():
        names = tuple(name for index in members for name in parts[index][0])
        inner = [name for index in members for name in parts[index][1]]
        nbytes = sum(size[name] for name in inner if not is_runtime(name))
        runtime = sum(size[name] for name in inner if is_runtime(name))
        if nbytes:
            blocks.append(Block(names=empty + names, nbytes=nbytes, runtime=runtime + waiting))
            empty, waiting = (), 0
        elif blocks:
            last = blocks[-1]
            blocks[-1] = Block(names=last.names + names, nbytes=last.nbytes, runtime=last.runtime + runtime)
        else:
            empty, waiting = empty + names, waiting + runtime
    return tuple(blocks) if blocks or not empty else (Block(names=empty, nbytes=0, runtime=waiting),)


def is_runtime(name: str) -> bool:
    """Whether a tensor stands for what a block needs beside its weights."""
    return name.rpartition(".")[2] == RUNTIME


def parts_of(tree: ModuleTree) -> Iterator[tuple[list[str], list[str]]]:
    """(keys of the map, names of the tensors) of each part that is not to be split, in the order of definition."""
    return _parts(tree.root, tree.no_split)


def _parts(module: Module, no_split: frozenset[str]) -> Iterator[tuple[list[str], list[str]]]:
    if is_atomic(module, no_split):
        yield [module.name], [t.name for t in tensors(module)]
        return
    if direct := [t.name for t in (*module.parameters, *module.buffers)]:
        yield [name for name in direct if not is_runtime(name)], direct
    for child in module.children:
        yield from _parts(child, no_split)
