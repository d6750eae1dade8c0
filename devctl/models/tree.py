"""The modules of a model as plain data: names, bytes, ties, and the blocks that must not be split."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum


class TensorKind(StrEnum):
    """Whether a tensor is trained or only kept."""

    PARAMETER = "parameter"
    BUFFER = "buffer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """A parameter or buffer of the built model.

    Attributes:
        name: full dotted name, as ``named_parameters`` gives it.
        nbytes: bytes that transformers' planner counts for it: those of its elements; of a quantised tensor fewer than
            its shape says.
        shape: sizes of its dimensions.
        dtype: torch's name without ``torch.``, like "bfloat16".
        persistent: whether it is in the state dict; False only for some buffers.
        same_as: name under which the very same tensor was met before, when a module is registered twice.
    """

    name: str
    kind: TensorKind
    nbytes: int
    shape: tuple[int, ...]
    dtype: str
    persistent: bool = True
    same_as: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """A module: its full dotted name ("" is the model), its class, the tensors directly in it, and its children."""

    name: str
    class_name: str
    parameters: tuple[Tensor, ...] = ()
    buffers: tuple[Tensor, ...] = ()
    children: tuple["Module", ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleTree:
    """A model before its weights: what planning needs to know of it.

    Attributes:
        root: the model.
        class_name: the model's class.
        dtype: the dtype that it is built in.
        ties: (target, source) names of tensors that become one when the weights are tied; a target has no bytes.
        no_split: classes of modules whose forward needs all of them on one device.
        unplaced: names, within a no-split module, of parameters that may stay out of the map
            (``_no_placement_params``); None where the model knows no such thing.
        quantisation: how the weights are quantised, like "gptq" or "nf4"; None where they are not.
        budget_share: the share of every budget that transformers plans with, once it has balanced them
            (``HfQuantizer.adjust_max_memory``); 1 where the model is not quantised.
        no_offload: "cpu" and "disk", where transformers refuses to load a part of the model
            (``HfQuantizer.validate_environment``).
        notes: what a reader of a plan should know about how the tree was made.
    """

    root: Module
    class_name: str
    dtype: str
    ties: tuple[tuple[str, str], ...] = ()
    no_split: frozenset[str] = frozenset()
    unplaced: frozenset[str] | None = None
    quantisation: str | None = None
    budget_share: float = 1.0
    no_offload: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()


def walk(module: Module) -> Iterator[Module]:
    """``module`` and all below it, parents first, in the order of definition."""
    yield module
    for child in module.children:
        yield from walk(child)


def tensors(module: Module) -> Iterator[Tensor]:
    """Every tensor of ``module`` and below, in the order of definition."""
    for m in walk(module):
        yield from m.parameters
        yield from m.buffers


def names(module: Module) -> Iterator[str]:
    """The name of every module and tensor, ``module`` among them, in the order of definition."""
    for m in walk(module):
        yield m.name
        yield from (t.name for t in (*m.parameters, *m.buffers))


def is_under(name: str, prefix: str) -> bool:
    """Whether the module or tensor ``name`` is ``prefix`` or within it; everything is within ""."""
    return not prefix or name == prefix or name.startswith(prefix + ".")


def counted_bytes(tree: ModuleTree) -> dict[str, int]:
    """Bytes that each tensor adds, by name: 0 for tie targets and for a tensor met before under another name."""
    targets = {target for target, _ in tree.ties}
    return {t.name: 0 if t.same_as or t.name in targets else t.nbytes for t in tensors(tree.root)}


def sizes(tree: ModuleTree) -> dict[str, int]:
    """Bytes under every module and of every tensor, by name, each byte counted once in the model."""
    found = counted_bytes(tree)

    def add_up(module: Module) -> int:
        own = sum(found[t.name] for t in (*module.parameters, *module.buffers))
        found[module.name] = own + sum(add_up(child) for child in module.children)
        return found[module.name]

    add_up(tree.root)
    return found
