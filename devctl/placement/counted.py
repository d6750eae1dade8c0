"""A model as the searches see it: what its parts need beside their weights is counted as bytes of theirs.

KV cache and activations count as the weights do. A block's state goes where the block goes, so it is given to the block
as bytes of its own. What a block needs while it executes is not added up over blocks; the most common need is taken off
every device's budget, and what a block needs beyond that is given to the block too. For blocks that are alike that is
exact; it never counts less than is needed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from devctl.models.footprint import BlockFootprint, Footprint, Workload
from devctl.models.tree import RUNTIME, Block, Module, ModuleTree, Tensor, TensorKind, is_atomic, is_runtime


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """What is placed, and its bytes.

    Attributes:
        tree: the model; what parts need is a buffer of theirs only where a buffer may be placed without its module.
        extra: bytes that modules need beside their weights where they run.
        size: bytes of every module and tensor where it runs.
        moved: the same elsewhere.
        largest: bytes of the largest no-split module, or of the tensors directly in one module, where they run.
        runtime: bytes that each block needs beside its weights.
    """

    tree: ModuleTree
    extra: Mapping[str, int]
    size: Mapping[str, int]
    moved: Mapping[str, int]
    largest: int
    runtime: tuple[int, ...]

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The blocks of the tree, in its order."""
        return self.tree.index.blocks


def as_it_is(tree: ModuleTree, *, held: bool = False) -> Counted:
    """The model with the bytes that transformers' planner counts for its tensors.

    Args:
        held: with what they are held with.
    """
    size = tree.index.held if held else tree.index.nbytes
    return Counted(
        tree=tree,
        extra={},
        size=size,
        moved=_without_runtime(tree, size),
        largest=_largest(tree, {}, size),
        runtime=tuple(block.runtime for block in tree.index.blocks),
    )


def counted(tree: ModuleTree, footprint: Footprint, *, needs: bool = True) -> Counted:
    """The model with what is held, and each block's state and what it needs beyond the common need as bytes of it.

    Args:
        needs: whether to count that need; it is there only while the block executes, perhaps before there is any state.
    """
    index, extra = tree.index, _extra(tree, footprint, needs=needs)
    if is_atomic(tree.root, tree.no_split) or tree.unplaced:
        return replace(as_it_is(_with_buffers(tree, extra), held=True), extra=extra)
    size = dict(index.held)
    runtime = [0] * len(index.blocks)
    for name, nbytes in extra.items():
        key, at = name, name
        while key not in index.block_at:
            key = key.rpartition(".")[0]
        runtime[index.block_at[key]] += nbytes
        while at:
            size[at] += nbytes
            at = at.rpartition(".")[0]
        size[""] += nbytes
    return Counted(
        tree=tree,
        extra=extra,
        size=size,
        moved=index.held,
        largest=_largest(tree, extra, size),
        runtime=tuple(runtime),
    )


def common_need(footprint: Footprint) -> int:
    """The bytes that most blocks need while they execute."""
    needs = Counter(block.most for block in footprint.blocks if block.name)
    return max(needs, key=lambda need: (needs[need], need), default=0)


_MOST_KEPT = 6
"""Sizes of room to load that are tried: models have few kinds of blocks."""


def ways_to_load(tree: ModuleTree) -> Iterator[tuple[Counted, int]]:
    """The model with what its parts hold for a while as they are loaded as bytes of theirs, and what each device keeps.

    Parameters are made one after another, so that what one takes is not added up: so much is kept on every device, and
    what a part takes beyond that is its own. How much is best kept depends on the map: what any part takes is tried,
    the most common first. A tied weight that a checkpoint has twice is there until all is loaded, and counts as held.
    None where nothing is held but the weights.
    """
    index = tree.index
    if not index.making and not index.until_tied:
        return
    of_parts = {keys[0]: index.making.get(keys[0], 0) for keys, _ in index.parts if keys}
    twice: dict[str, int] = {}
    for name, nbytes in index.until_tied:
        part = next((keys[0] for keys, inner in index.parts if keys and name in inner), "")
        twice[part] = twice.get(part, 0) + nbytes
    for kept, _ in Counter(of_parts.values()).most_common(_MOST_KEPT):
        blocks = tuple(
            BlockFootprint(name=name, state=twice.get(name, 0) + max(0, making - kept))
            for name, making in of_parts.items()
        )
        yield counted(tree, Footprint(workload=Workload(context_length=1, new_tokens=0), blocks=blocks)), kept


def with_runtime(tree: ModuleTree, footprint: Footprint, *, needs: bool = True) -> ModuleTree:
    """The same as a tree, whose blocks have a buffer for it."""
    return _with_buffers(tree, _extra(tree, footprint, needs=needs))


def _extra(tree: ModuleTree, footprint: Footprint, *, needs: bool) -> dict[str, int]:
    """The bytes that modules are given, where there are any; only of modules that are not to be split."""
    common, modules = common_need(footprint), tree.index.modules
    # a sliding window is cut off only after prefill, which holds all of the prompt's keys and values
    own = {b.name: max(b.state, b.prompt_state) + needs * max(0, b.most - common) for b in footprint.blocks}
    extra, rest = {}, 0
    for name, nbytes in own.items():
        if (module := modules.get(name)) is not None and is_atomic(module, tree.no_split):
            extra[name] = nbytes
        else:
            rest += nbytes
    # what belongs to no block is where the model begins to run
    rest = max(rest, needs * (footprint.output - common))
    first = next((keys[0] for keys, _ in tree.index.parts if keys and keys[0] in modules), "")
    extra[first] = extra.get(first, 0) + rest
    return {name: nbytes for name, nbytes in extra.items() if nbytes}


def _with_buffers(tree: ModuleTree, extra: Mapping[str, int]) -> ModuleTree:
    def changed(module: Module) -> Module:
        size = extra.get(module.name, 0)
        buffers = module.buffers
        if size:
            name = f"{module.name}.{RUNTIME}" if module.name else RUNTIME
            buffers += (
                Tensor(name=name, kind=TensorKind.BUFFER, nbytes=size, shape=(size,), dtype="uint8", persistent=False),
            )
        return replace(module, buffers=buffers, children=tuple(changed(child) for child in module.children))

    return replace(tree, root=changed(tree.root))


def _without_runtime(tree: ModuleTree, size: Mapping[str, int]) -> Mapping[str, int]:
    """The bytes of modules without those of the buffers that stand for needs beside the weights."""
    if not any(block.runtime for block in tree.index.blocks):
        return size
    found = dict(size)
    for tensor in tree.index.tensors:
        if is_runtime(tensor.name):
            at = tensor.name
            while at:
                at = at.rpartition(".")[0]
                found[at] -= size[tensor.name]
    return found


def _largest(tree: ModuleTree, extra: Mapping[str, int], size: Mapping[str, int]) -> int:
    index = tree.index
    blocks = max((size[name] for name in index.unsplit), default=0)
    with_extra = max((index.own[name] + nbytes for name, nbytes in extra.items() if name), default=0)
    return max(blocks, with_extra, index.most_own)
