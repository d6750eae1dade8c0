"""Which bytes of a model are read to decode one token of one sequence. Pure: a tree in, bytes by tensor out.

Of a mixture of experts those are the experts that the router picks, beside what is shared by all; of an embedding one
row; nothing of an encoder, or of what looks at images and sounds, which have done their work by then. All else is read
whole. Where the tree does not say that less is read, all of it is: the sum is then too high, never too low.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from devctl.models.tree import Module, ModuleTree, Tensor, TensorKind, is_under

_LOOKS = frozenset({"visual", "vision_tower", "vision_model", "audio_tower", "multi_modal_projector"})
"""Names of modules that look at what is not text, in a model that also writes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reads:
    """What is not read a token.

    Attributes:
        saved: bytes that are not read, by tensor; those of all others are.
        experts: (those that a token is sent to, all) in a layer; None where there are none, or it is not known.
        unknown: whether there are experts, and not how many of them a token is sent to or which tensors are theirs, so
            that all are counted.
    """

    saved: Mapping[str, int]
    experts: tuple[int, int] | None = None
    unknown: bool = False

    def of(self, tree: ModuleTree, name: str) -> int:
        """Bytes read of the module or tensor ``name``."""
        index = tree.index
        return index.nbytes[name] - sum(self.saved.get(tensor.name, 0) for tensor in index.tensors_of(name))


def reads(tree: ModuleTree, per_token: int | None, *, has_encoder: bool = False) -> Reads:
    """What a token reads of ``tree``.

    Args:
        per_token: experts of a layer that a token is sent to, beside shared ones; None where that is not known.
        has_encoder: whether what is called an encoder has run before the first token is decoded.
    """
    saved: dict[str, int] = {}
    layers: set[tuple[int, int]] = set()
    unknown = False
    size = tree.index.nbytes
    for module in tree.index.modules.values():
        count = _experts_of(module)
        if not count:
            continue
        if per_token is None or per_token > count:
            unknown = True
            continue
        layers.add((per_token, count))
        for tensor in tree.index.tensors_of(module.name):
            if _is_of_an_expert(tensor, module, count):
                saved[tensor.name] = size[tensor.name] - -(-size[tensor.name] * per_token // count)
    for tensor in _looked_up(tree):
        saved[tensor.name] = size[tensor.name] - -(-size[tensor.name] // max(1, tensor.shape[0]))
    for name in _done_before(tree, has_encoder=has_encoder):
        saved |= {tensor.name: size[tensor.name] for tensor in tree.index.tensors_of(name)}
    shared = {name for pair in tree.index.same for name in pair}
    return Reads(
        saved={name: nbytes for name, nbytes in saved.items() if nbytes and name not in shared},
        experts=max(layers, default=None),
        unknown=unknown or (per_token is not None and not layers),
    )


def _experts_of(module: Module) -> int:
    """How many experts a module has of which a token is sent to some: in a list, or as a dimension; 0 for none."""
    last = module.name.rpartition(".")[2]
    if "shared" in last or not (last.endswith("experts") or module.class_name.endswith("Experts")):
        return 0
    numbered = [child for child in module.children if child.name.rpartition(".")[2].isdecimal()]
    if numbered:
        return len(numbered) if len(numbered) > 1 else 0
    stacked = {tensor.shape[0] for tensor in module.parameters if len(tensor.shape) == 3}
    return next(iter(stacked)) if len(stacked) == 1 and min(stacked) > 1 else 0


def _is_of_an_expert(tensor: Tensor, module: Module, count: int) -> bool:
    if any(
        child.name.rpartition(".")[2].isdecimal() and is_under(tensor.name, child.name) for child in module.children
    ):
        return True
    return len(tensor.shape) > 1 and tensor.shape[0] == count


def _looked_up(tree: ModuleTree) -> Iterator[Tensor]:
    for module in tree.index.modules.values():
        if module.class_name.endswith("Embedding"):
            yield from (
                tensor
                for tensor in module.parameters
                if tensor.kind is TensorKind.PARAMETER and len(tensor.shape) == 2 and tensor.name.endswith(".weight")
            )


def _done_before(tree: ModuleTree, *, has_encoder: bool) -> Iterator[str]:
    """Modules that have run before the first token is decoded."""
    names = {*_LOOKS, "encoder"} if has_encoder else _LOOKS
    for name in tree.index.modules:
        if name and name.rpartition(".")[2] in names and len(name.split(".")) <= 2:
            yield name
