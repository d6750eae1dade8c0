"""The blocks of a model: what goes to one device whole, in the order in which it runs."""

from devctl.models.tree import Block, ModuleTree

__all__ = ["Block", "blocks_of"]


def blocks_of(tree: ModuleTree) -> tuple[Block, ...]:
    """The blocks of a model, in the order in which it defines, and so nearly always runs, their first parts."""
    return tree.index.blocks
