"""The modules of a model as plain data: names, bytes, ties, and the blocks that must not be split."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from devctl.models.sharding import Sharding


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
        held: bytes that it is held with once it is loaded and has been used, scales and the like that belong to it
            among them; None where those are ``nbytes``.
        shape: sizes of its dimensions.
        dtype: torch's name without ``torch.``, like "bfloat16".
        persistent: whether it is in the state dict; False only for some buffers.
        same_as: name under which the very same tensor was met before, when a module is registered twice.
        beside: bytes that adapters hold on the device of its module, which no planner of transformers counts.
        loading: bytes beyond those that are held for a while, as it is made from what a checkpoint has; of a target of
            a tie, those that it has until the weights are tied, once all are loaded.
    """

    name: str
    kind: TensorKind
    nbytes: int
    shape: tuple[int, ...]
    dtype: str
    persistent: bool = True
    same_as: str | None = None
    held: int | None = None
    loading: int = 0
    beside: int = 0


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
        ties: (target, source) names of tensors that become one when the weights are tied; the planner of transformers
            counts no bytes for a target.
        untied: targets of ties that are held as weights of their own all the same, as the checkpoint has them and they
            differ. transformers plans them as tied, and compares them once loaded, for which both have to be on one
            device.
        no_split: classes of modules whose forward needs all of them on one device.
        unplaced: names, within a no-split module, of parameters that may stay out of the map
            (``_no_placement_params``); None where the model knows no such thing.
        quantisation: how the weights are quantised, like "gptq" or "nf4"; None where they are not.
        budget_share: the share of every budget that transformers plans with, once it has balanced them
            (``HfQuantizer.adjust_max_memory``); 1 where the model is not quantised.
        no_offload: "cpu" and "disk", where transformers refuses to load a part of the model
            (``HfQuantizer.validate_environment``).
        unpacked: bytes of the model where transformers unpacks its weights as it loads them, for want of hardware that
            their quantisation needs; None where it does not.
        packed_as: how the checkpoint's weights are quantised, where this is the tree of what transformers unpacks.
        notes: what a reader of a plan should know about how the tree was made.
        attention: how the model attends where nothing else is asked for, in transformers' words; None where that is not
            known.
        attentions: all ways that its class has.
        sharding: how transformers shards it over ranks; None where that was not looked at, as of a live module.
    """

    root: Module
    class_name: str
    dtype: str
    ties: tuple[tuple[str, str], ...] = ()
    untied: frozenset[str] = frozenset()
    no_split: frozenset[str] = frozenset()
    unplaced: frozenset[str] | None = None
    quantisation: str | None = None
    budget_share: float = 1.0
    no_offload: frozenset[str] = frozenset()
    unpacked: int | None = None
    packed_as: str | None = None
    notes: tuple[str, ...] = ()
    attention: str | None = None
    attentions: tuple[str, ...] = ()
    sharding: Sharding | None = None
    _index: "TreeIndex | None" = field(default=None, init=False, repr=False, compare=False)

    @property
    def index(self) -> "TreeIndex":
        """What is looked up in the tree again and again: made when it is first asked for, and kept."""
        if self._index is None:
            object.__setattr__(self, "_index", _indexed(self.root, self.ties, self.untied, self.no_split))
        assert self._index is not None
        return self._index


Part = tuple[tuple[str, ...], tuple[str, ...]]
"""(keys of a map, names of its tensors) of what is not to be split: a no-split module, a leaf, or tensors in others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Modules and tensors that share a device.

    Attributes:
        names: their names, as keys of a device map, in the order of definition.
        nbytes: bytes that their weights and buffers are held with, tied ones counted once.
        brought: the most of those that are at once where they run, when they are held elsewhere.
        runtime: bytes that they need beside those where they run.
    """

    names: tuple[str, ...]
    nbytes: int
    brought: int
    runtime: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeIndex:
    """A tree by name, from one walk through it.

    Attributes:
        modules: every module by name, parents first, in the order of definition.
        tensors: every tensor, in the order of definition.
        places: where each module and tensor is in the order of definition.
        spans: for each module and tensor (first, behind the last) of its tensors in ``tensors``.
        weights: how many of the tensors before each place are weights: parameters with bytes of their own, or tied.
        nbytes: bytes under every module and of every tensor, each byte counted once in the model.
        held: the same of what is held once the model is loaded and has run.
        own: bytes of the tensors directly in each module, counted so.
        most_own: the most of those, in the modules within the model.
        brought: the most bytes held of parameters in each module and what is within it, on one way down: what is there
            at once where each module's tensors are brought when its forward begins, and let go of when it ends.
        making: the most bytes that are held for a while as one of the parameters under a module, or a tensor, is made;
            without those for which there are none.
        making_whole: the same with the parameter itself.
        until_tied: targets of ties that have bytes until all is loaded, and those bytes.
        unsplit: names of the modules of classes that must not be split.
        parts: what is placed whole, in the order of definition.
        same: (target, source) names of tensors that share a device: tied, or registered twice.
        blocks: parts that share a device, in the order in which the model defines, and so nearly always runs, their
            first ones. Parts with tied tensors are one block, at the place of the first of them. What has no bytes goes
            with the block before it.
        block_at: the number of the block of each key of ``parts``.
    """

    modules: Mapping[str, Module]
    tensors: tuple[Tensor, ...]
    places: Mapping[str, int]
    spans: Mapping[str, tuple[int, int]]
    weights: tuple[int, ...]
    nbytes: Mapping[str, int]
    held: Mapping[str, int]
    own: Mapping[str, int]
    most_own: int
    brought: Mapping[str, int]
    making: Mapping[str, int]
    making_whole: Mapping[str, int]
    until_tied: tuple[tuple[str, int], ...]
    unsplit: tuple[str, ...]
    parts: tuple[Part, ...]
    same: tuple[tuple[str, str], ...]
    blocks: tuple[Block, ...]
    block_at: Mapping[str, int]

    def tensors_of(self, name: str) -> tuple[Tensor, ...]:
        """The tensors of the module or tensor ``name`` and below, in the order of definition."""
        start, stop = self.spans[name]
        return self.tensors[start:stop]


def _indexed(
    root: Module, ties: tuple[tuple[str, str], ...], untied: frozenset[str], no_split: frozenset[str]
) -> TreeIndex:
    targets = {target for target, _ in ties}
    tied = targets - untied
    modules: dict[str, Module] = {}
    found: list[Tensor] = []
    places: dict[str, int] = {}
    spans: dict[str, tuple[int, int]] = {}
    weights = [0]
    nbytes: dict[str, int] = {}
    more: dict[str, int] = {}  # held, beyond those
    own: dict[str, int] = {}
    brought: dict[str, int] = {}
    parts: list[Part] = []
    place = 0

    def add(module: Module, whole: bool) -> None:
        nonlocal place
        start, is_part = len(found), whole and is_atomic(module, no_split)
        modules[module.name] = module
        places[module.name] = place
        place += 1
        size = 0
        for tensor in (*module.parameters, *module.buffers):
            counted = 0 if tensor.same_as or tensor.name in targets else tensor.nbytes
            spans[tensor.name] = len(found), len(found) + 1
            found.append(tensor)
            places[tensor.name] = place
            place += 1
            nbytes[tensor.name] = counted
            beyond = held_bytes(tensor) - counted if counted or tensor.name in untied else tensor.beside
            if beyond:
                more[tensor.name] = beyond
            size += counted
            is_weight = tensor.kind is TensorKind.PARAMETER and (counted > 0 or tensor.name in targets)
            weights.append(weights[-1] + is_weight)
        own[module.name] = size
        direct = tuple(tensor.name for tensor in found[start:])
        if whole and not is_part and direct:
            parts.append((tuple(name for name in direct if not is_runtime(name)), direct))
        below = 0
        for child in module.children:
            add(child, whole and not is_part)
            size += nbytes[child.name]
            below = max(below, brought[child.name])
        nbytes[module.name] = size
        brought[module.name] = sum(map(held_bytes, module.parameters)) + below
        spans[module.name] = start, len(found)
        if is_part:
            parts.append(((module.name,), tuple(tensor.name for tensor in found[start:])))

    add(root, True)
    same = (*ties, *((tensor.name, tensor.same_as) for tensor in found if tensor.same_as is not None))
    held = _and_more(nbytes, more)
    made = [t for t in found if t.loading and nbytes[t.name] and t.name not in dict(ties)]
    blocks = _blocks(parts, same, held, brought)
    return TreeIndex(
        modules=modules,
        tensors=tuple(found),
        places=places,
        spans=spans,
        weights=tuple(weights),
        nbytes=nbytes,
        held=held,
        own=own,
        most_own=max((nbytes for name, nbytes in own.items() if name), default=0),
        brought=brought,
        making=_most((t.name, t.loading) for t in made),
        making_whole=_most((t.name, t.loading + held_bytes(t) - t.beside) for t in made),
        until_tied=tuple((t.name, t.loading) for t in found if t.loading and t.name in tied),
        unsplit=tuple(module.name for module in modules.values() if module.class_name in no_split),
        parts=tuple(parts),
        same=same,
        blocks=blocks,
        block_at={name: at for at, block in enumerate(blocks) for name in block.names},
    )


def held_bytes(tensor: Tensor) -> int:
    """Bytes that a tensor is held with, and what adapters hold beside it."""
    return (tensor.nbytes if tensor.held is None else tensor.held) + tensor.beside


def _most(sizes: Iterable[tuple[str, int]]) -> dict[str, int]:
    """The most bytes by name, and of all that the names are in."""
    found: dict[str, int] = {}
    for name, nbytes in sizes:
        at = name
        while nbytes > found.get(at, 0):
            found[at] = nbytes
            if not at:
                break
            at = at.rpartition(".")[0]
    return found


def _and_more(nbytes: dict[str, int], more: Mapping[str, int]) -> dict[str, int]:
    """Bytes by name with ``more`` of some tensors, and of all that they are in."""
    if not more:
        return nbytes
    found = dict(nbytes)
    for name, change in more.items():
        at = name
        found[at] += change
        while at:
            at = at.rpartition(".")[0]
            found[at] += change
    return found


def _blocks(
    parts: Sequence[Part], same: Sequence[tuple[str, str]], size: Mapping[str, int], brought: Mapping[str, int]
) -> tuple[Block, ...]:
    blocks: list[Block] = []
    empty: list[str] = []
    waiting = 0  # what the empty ones need where they run
    last: list[str] = []  # names of the last block, which what has no bytes is added to

    def close() -> None:
        if blocks and len(last) > len(blocks[-1].names):
            blocks[-1] = replace(blocks[-1], names=tuple(last))

    for members in _groups(parts, same):
        names = [name for at in members for name in parts[at][0]]
        nbytes = runtime = 0
        for at in members:
            for name in parts[at][1]:
                if is_runtime(name):
                    runtime += size[name]
                else:
                    nbytes += size[name]
        if nbytes:
            close()
            last = empty + names
            # a module's tensors are brought together, those of tied modules one after the other
            most = max(_brought(parts[at], size, brought) for at in members)
            blocks.append(Block(names=tuple(last), nbytes=nbytes, brought=most, runtime=runtime + waiting))
            empty, waiting = [], 0
        elif blocks:
            last += names
            if runtime:
                blocks[-1] = replace(blocks[-1], runtime=blocks[-1].runtime + runtime)
        else:
            empty += names
            waiting += runtime
    close()
    return tuple(blocks) if blocks or not empty else (Block(names=tuple(empty), nbytes=0, brought=0, runtime=waiting),)


def _brought(part: Part, size: Mapping[str, int], brought: Mapping[str, int]) -> int:
    """The most bytes of a part that are at once where it runs, when it is held elsewhere."""
    keys, inner = part
    if len(keys) == 1 and keys[0] in brought:
        return brought[keys[0]]
    return sum(size[name] for name in inner if not is_runtime(name))


def _groups(parts: Sequence[Part], same: Sequence[tuple[str, str]]) -> Sequence[Sequence[int]]:
    """The parts that share tensors, by their numbers; each group at the place of its first."""
    leader = list(range(len(parts)))
    if not same:
        return [[at] for at in leader]
    owner = {name: at for at, (_, inner) in enumerate(parts) for name in inner}

    def find(at: int) -> int:
        while leader[at] != at:
            leader[at] = leader[leader[at]]
            at = leader[at]
        return at

    for target, source in same:
        if target in owner and source in owner:
            first, second = sorted((find(owner[target]), find(owner[source])))
            leader[second] = first
    groups: dict[int, list[int]] = {}
    for at in range(len(parts)):
        groups.setdefault(find(at), []).append(at)
    return list(groups.values())


RUNTIME = "devctl_runtime"
"""The buffer that stands for what a block needs beside its weights; no key of a map goes into a block and names it."""


def is_runtime(name: str) -> bool:
    """Whether a tensor stands for what a block needs beside its weights."""
    return name.rpartition(".")[2] == RUNTIME


def is_atomic(part: Module | Tensor, no_split: frozenset[str]) -> bool:
    """Whether ``part`` is placed whole or not at all: a tensor, a leaf, or a no-split block."""
    return isinstance(part, Tensor) or not part.children or part.class_name in no_split


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
    index = tree.index
    return {tensor.name: index.nbytes[tensor.name] for tensor in index.tensors}


def sizes(tree: ModuleTree) -> Mapping[str, int]:
    """Bytes under every module and of every tensor, by name, each byte counted once in the model."""
    return tree.index.nbytes
