"""The planner of the transformers that is installed, asked where devctl's maps are not known to be its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING

from devctl.models.compared import is_compared, keep_comparison
from devctl.models.tree import ModuleTree
from devctl.placement.installed import Installed, agrees, planned_otherwise
from devctl.placement.placement import Placement

if TYPE_CHECKING:
    from devctl.models.skeleton import Skeleton


def planner_of(skeleton: Skeleton) -> Installed:
    """The installed planner, for a model that is built."""
    from devctl.models.upstream import ask

    return Installed(release=version("transformers"), ask=partial(ask, skeleton))


def planner_for(
    key: str | None, tree: ModuleTree, skeleton: Skeleton | None, build: Callable[[], Skeleton]
) -> Installed:
    """The installed planner, for a model that may not be built yet.

    Args:
        key: under which the tree is kept; None where it is not.
        skeleton: the model, where it is built; it is asked about then in any case.
        build: builds it, once the first question is put, where devctl's maps are not known to be the planner's own.
    """
    quantised = tree.quantisation is not None
    if skeleton is not None:
        here = planner_of(skeleton)
        if key is not None and not is_compared(key, quantised=quantised):
            keep_comparison(key, quantised=quantised, equal=agrees(tree, here))
        return here
    found: list[Installed | None] = []

    def ask(memory: Mapping[int | str, int], strategy: str, given: bool) -> Mapping[str, int | str] | str | None:
        if not found:
            found.append(None if is_compared(key, quantised=quantised) else planner_of(build()))
        return None if found[0] is None else found[0].ask(memory, strategy, given)

    return Installed(release=version("transformers"), ask=ask)


def remember(key: str | None, tree: ModuleTree, placement: Placement) -> None:
    """Keep that the model is planned otherwise here, so that the next plan asks too."""
    if planned_otherwise(placement.notes):
        keep_comparison(key, quantised=tree.quantisation is not None, equal=False)
