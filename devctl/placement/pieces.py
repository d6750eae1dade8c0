"""The pieces of a placed model, in its order: each with its bytes and the device that has it."""

from collections.abc import Iterator
from dataclasses import dataclass

from devctl.devices import Device
from devctl.models.tree import ModuleTree, counted_bytes, tensors
from devctl.placement.blocks import parts_of
from devctl.placement.placement import Placement
from devctl.placement.strategy import device_of


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
    device_map = dict(placement.device_map)
    size = counted_bytes(tree)
    source = dict(tree.ties) | {t.name: t.same_as for t in tensors(tree.root) if t.same_as is not None}
    found = []
    for whole, whole_tensors in _wholes(tree):
        # what a map leaves out is kept on the CPU, as transformers does
        places = [device_of(name, device_map) or Device.cpu() for name in whole_tensors]
        cut = len(set(places)) > 1
        parts = [(name, [name]) for name in whole_tensors] if cut else [(whole, whole_tensors)][: len(places)]
        for (name, inside), device in zip(parts, places, strict=False):
            nbytes = sum(size[inner] for inner in inside)
            tied = None if nbytes else next((source[inner] for inner in inside if inner in source), None)
            found.append(Piece(name=name, nbytes=nbytes, device=device, tied=tied))
    return tuple(found)


def _wholes(tree: ModuleTree) -> Iterator[tuple[str, list[str]]]:
    """(name, names of its tensors) of each module that is not to be split, and of each tensor beside modules."""
    for keys, inside in parts_of(tree):
        yield from ([(keys[0], inside)] if keys != inside else [(name, [name]) for name in inside])
