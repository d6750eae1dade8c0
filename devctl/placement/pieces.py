"""The pieces of a placed model, in its order: each with its bytes and the device that has it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from devctl.devices import Device
from devctl.models.tree import ModuleTree
from devctl.placement.placement import Placement


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A part of a model that is on one device: what must not be split, a leaf, or a tensor beside modules.

    Attributes:
        nbytes: bytes of its weights and buffers; 0 for one that is tied to another piece.
        tied: the tensor of another piece that it is one with; None where it has bytes of its own.
    """

    name: str
    nbytes: int
    device: Device
    tied: str | None = None


def pieces_of(tree: ModuleTree, placement: Placement) -> tuple[Piece, ...]:
    """Every piece that has a tensor, in the order of definition; their bytes add up to those of the model."""
    device_map, cpu = placement.device_map, Device.cpu()
    size, source = tree.index.held, dict(tree.index.same)
    cut = device_map.cut
    found = []
    for whole, whole_tensors in _wholes(tree):
        # what a map leaves out is kept on the CPU, as transformers does
        places = [device_map.device_of(name) or cpu for name in (whole_tensors if whole in cut else whole_tensors[:1])]
        is_cut = len(set(places)) > 1
        parts = [(name, [name]) for name in whole_tensors] if is_cut else [(whole, whole_tensors)][: len(places)]
        for (name, inside), device in zip(parts, places, strict=False):
            nbytes = sum(size[inner] for inner in inside)
            tied = None if nbytes else next((source[inner] for inner in inside if inner in source), None)
            found.append(Piece(name=name, nbytes=nbytes, device=device, tied=tied))
    return tuple(found)


def _wholes(tree: ModuleTree) -> Iterator[tuple[str, Sequence[str]]]:
    """(name, names of its tensors) of each module that is not to be split, and of each tensor beside modules."""
    for keys, inside in tree.index.parts:
        yield from ([(keys[0], inside)] if keys != inside else [(name, [name]) for name in inside])
