"""devctl's own map beside that of the transformers that is installed, which is the answer where the two differ."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from devctl.devices import Device
from devctl.models.tree import ModuleTree, is_under, sizes
from devctl.placement.budget import Budgets, from_max_memory
from devctl.placement.counted import as_it_is
from devctl.placement.device_map import FrozenMap
from devctl.placement.greedy.walk import greedy_map
from devctl.placement.placement import hf_device
from devctl.placement.strategy import OF_TRANSFORMERS, FoundMap, Strategy, collapse, device_of

_OTHERWISE = "plans this otherwise than devctl's transcription: its map is used"

_SHARES: tuple[Mapping[str, float], ...] = (
    {"cuda:0": 0.6, "cuda:1": 0.6, "cpu": 1.5},
    {f"cuda:{i}": 0.2 for i in range(8)} | {"cpu": 1.0},
    {"cuda:0": 1.1, "cuda:1": 0.2, "cpu": 0.5},
    {"cuda:0": 0.2, "cuda:1": 0.3, "cpu": 0.1},
    {"cuda:0": 0.7, "cpu": 1.0},
    {"cuda:0": 0.8, "cuda:1": 0.8, "cuda:2": 0.8, "cpu": 1.0},
    {"cpu": 0.8},
)
"""Machines that are tight, wide, uneven or without a GPU, as shares of a model's bytes."""

Ask = Callable[[Mapping[int | str, int], str, bool], Mapping[str, int | str] | str | None]
"""Asks for the map of (``max_memory``, strategy, whether a user gave that memory): the map, a sentence why there is
none, or None where nothing is to be asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """The planner of the transformers that is installed, for one model.

    Attributes:
        release: its version.
        ask: asks it; the answer depends on the question alone.
    """

    release: str
    ask: Ask


def as_installed(tree: ModuleTree, found: FoundMap, budgets: Budgets, strategy: Strategy, here: Installed) -> FoundMap:
    """``found``, or the installed planner's map where that is another one, with a note.

    Where both are equal, ``found`` stands with its order, so that the same input gives the same bytes. It stands as
    well where the planner raises or was not asked, which a note says. A tensor that the planner loses is put beside its
    module first. ``optimal`` is devctl's own, and stands.
    """
    if strategy not in OF_TRANSFORMERS:
        return found
    answer = here.ask(to_max_memory(budgets), str(strategy), budgets.given)
    if answer is None:
        return found
    if isinstance(answer, str):
        told = any("transformers raises" in note for note in found.notes)
        return found if told else replace(found, notes=(*found.notes, answer))
    theirs, lost = _completed(tree, _devices(answer, budgets))
    if theirs == dict(found.device_map.items()):
        # what was noted of another release's errors holds here only where something was lost
        return found if lost else replace(found, notes=())
    notes = [f"transformers {here.release} {_OTHERWISE}"]
    if lost:
        notes.append(
            f"transformers loses {', '.join(lost)} when it splits the module around it, and then refuses its own map; "
            "devctl puts it beside its module"
        )
    places = tree.index.places
    ordered = sorted(theirs.items(), key=lambda item: places.get(item[0], len(places)))
    return FoundMap(device_map=FrozenMap(tuple(ordered)), notes=tuple(notes))


def agrees(tree: ModuleTree, here: Installed) -> bool:
    """Whether devctl's own answers, notes too, are the installed planner's on machines of several kinds.

    ``balanced`` is ``auto`` by another name, in every release.
    """
    return all(
        as_installed(tree, found, budgets, strategy, here) == found
        for budgets in trial_budgets(tree)
        for strategy in (Strategy.AUTO, Strategy.BALANCED_LOW_0, Strategy.SEQUENTIAL)
        for found in [greedy_map(as_it_is(tree), budgets, strategy)]
    )


def trial_budgets(tree: ModuleTree) -> list[Budgets]:
    """Budgets on which planners that differ come to different maps of this model."""
    total = sizes(tree)[""]
    return [
        from_max_memory({Device.from_str(name): int(share * total) for name, share in shares.items()})
        for shares in _SHARES
    ]


def planned_otherwise(notes: tuple[str, ...]) -> str | None:
    """The note by which ``as_installed`` says that a map is not devctl's own; None where none does."""
    return next((note for note in notes if note.endswith(_OTHERWISE)), None)


def to_max_memory(budgets: Budgets) -> dict[int | str, int]:
    """``max_memory`` as transformers takes it: a numbered accelerator is its id."""
    return {hf_device(device): size for device, size in budgets.devices}


def _devices(answer: Mapping[str, int | str], budgets: Budgets) -> dict[str, Device]:
    known = {hf_device(device): device for device, _ in budgets.devices}
    return {name: known.get(value) or Device.from_str(str(value)) for name, value in answer.items()}


def _completed(tree: ModuleTree, theirs: dict[str, Device]) -> tuple[dict[str, Device], list[str]]:
    """``theirs`` with a device for every tensor, and those that had none; what is left out on purpose stays so."""
    if tree.unplaced is not None:
        return theirs, []
    lost = [tensor.name for tensor in tree.index.tensors if device_of(tensor.name, theirs) is None]
    if not lost:
        return theirs, []
    completed = dict(theirs)
    for name in lost:
        beside = name
        while beside:
            beside = beside.rpartition(".")[0]
            near = next((device for key, device in theirs.items() if is_under(key, beside)), None)
            if near is not None:
                completed[name] = near
                break
    return collapse(completed), lost
