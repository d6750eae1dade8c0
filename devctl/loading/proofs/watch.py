"""Watching the blocks of a model as it runs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from devctl.loading.proofs.compare import floats
from devctl.models.tree import Module, ModuleTree, is_under, tensors, walk

if TYPE_CHECKING:
    import torch

Before = Callable[[str, tuple[Any, ...], dict[str, Any]], None]
"""Given a block's name and the arguments of its forward."""

After = Callable[[str, Any], None]
"""Given a block's name and what its forward returned."""


def block_names(tree: ModuleTree) -> tuple[str, ...]:
    """The blocks of a model that a fault is looked for in: what has a forward of its own, and tensors.

    A no-split block is one, and so is a numbered layer without any within it; what is left is taken leaf by leaf.
    """
    found: list[str] = []

    def visit(module: Module) -> None:
        if next(tensors(module), None) is None:
            return
        numbered = module.name.rpartition(".")[2].isdecimal()
        holds_blocks = any(m.class_name in tree.no_split for m in walk(module) if m is not module)
        if module.class_name in tree.no_split or not module.children or (numbered and not holds_blocks):
            found.append(module.name)
            return
        for child in module.children:
            visit(child)

    visit(tree.root)
    return tuple(found)


def block_of(tensor: str, blocks: Collection[str]) -> str:
    """The block that a tensor is in; of one that is in none, its module."""
    return next((block for block in blocks if is_under(tensor, block)), tensor.rpartition(".")[0])


@contextmanager
def watching(
    model: torch.nn.Module, blocks: Collection[str], after: After, before: Before | None = None
) -> Iterator[None]:
    """Be told of every block as it runs."""

    def watch_before(name: str) -> Callable[..., None]:
        def hook(_: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if before is not None:
                before(name, args, kwargs)

        return hook

    def watch_after(name: str) -> Callable[..., None]:
        def hook(_: torch.nn.Module, __: Any, output: Any) -> None:
            after(name, output)

        return hook

    modules = dict(model.named_modules())
    with ExitStack() as stack:
        for name in blocks:
            if (module := modules.get(name)) is None:
                continue
            if before is not None:
                stack.callback(module.register_forward_pre_hook(watch_before(name), with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(watch_after(name)).remove)
        yield


def first_nonfinite(model: torch.nn.Module, blocks: Collection[str], forward: Callable[[], object]) -> str | None:
    """The first block whose output has a NaN or an infinity, as ``forward`` runs once more."""
    found: list[str] = []

    def look(name: str, output: Any) -> None:
        if not found and any(not bool(tensor.isfinite().all()) for _, tensor in floats(output)):
            found.append(name)

    with watching(model, blocks, look):
        forward()
    return found[0] if found else None


def first_unsteady(model: torch.nn.Module, blocks: Collection[str], forward: Callable[[], object]) -> str | None:
    """The first block whose output is another when ``forward`` runs twice; None where both runs agree."""
    runs: list[list[tuple[str, list[int]]]] = []

    def add(name: str, output: Any) -> None:
        # a checksum stands for a tensor: keeping the outputs of all blocks would take the memory of many forwards
        runs[-1].append((name, [_checksum(tensor) for _, tensor in floats(output)]))

    for _ in range(2):
        runs.append([])
        with watching(model, blocks, add):
            forward()
    return next((name for (name, first), (_, second) in zip(*runs, strict=False) if first != second), None)


def _checksum(tensor: torch.Tensor) -> int:
    import zlib

    import torch

    return zlib.crc32(tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
