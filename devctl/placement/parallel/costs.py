"""What a run of consecutive layers takes on its accelerator, with what is around the layers where it has that too."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from devctl.models.footprint import BlockFootprint, Footprint, peak_beside_weights
from devctl.models.tree import ModuleTree, TreeIndex
from devctl.placement.parallel.layers import Layers
from devctl.placement.placement import Load


@dataclass(frozen=True, slots=True, kw_only=True)
class Handed:
    """Bytes of the hidden states that a stage receives and sends: in prefill, and in a step after it."""

    prefill: int = 0
    decode: int = 0


class Costs:
    """What each run of layers takes, in bytes, without the overhead of the device that it is on.

    A stage that is not the first receives hidden states, which live as long as its layers run, where the embedding's
    output would; every stage hands on as many, and then holds the logits, which the last one sends to all. What runs on
    every stage (masks, position embeddings, the choice of a token) counts on each.

    Taking more layers never takes less: the search for stages rests on it.

    Args:
        held: bytes that modules and tensors are held with on a device, by name: of a tensor-parallel group, on its
            fullest one; None is all of them.
        footprint: what the blocks hold beside weights, on that device; None where only weights are counted.
    """

    def __init__(
        self,
        tree: ModuleTree,
        layers: Layers,
        *,
        footprint: Footprint | None = None,
        handed: Handed | None = None,
        held: Mapping[str, int] | None = None,
    ) -> None:
        self.layers = layers
        self.count = len(layers.names)
        self._held = _Held(tree, layers, tree.index.held if held is None else held)
        self._beside = None if footprint is None else _Beside(layers, footprint, handed or Handed())
        self._making = _Making(tree, layers)
        self._rounded, self._unallocated = (0, 0) if footprint is None else (footprint.rounded, footprint.unallocated)

    def load(self, first: int, end: int, overhead: int = 0) -> Load:
        """What the layers from ``first`` to before ``end`` take, on a device whose libraries take ``overhead``."""
        used = self._held.of(first, end)
        state, peak = (
            (0, 0) if self._beside is None else (self._beside.state(first, end), self._beside.peak(first, end))
        )
        return Load(
            used=used,
            state=state,
            activations=max(0, peak - state) + self._rounded,
            unallocated=self._unallocated,
            overhead=overhead,
            loading=used + self._making.of(first, end) + overhead,
        )

    def most(self, first: int, end: int) -> int:
        """All bytes that they take at any time, as ``load(first, end).most``."""
        beside = self._making.of(first, end)
        if self._beside is not None:
            peak, state = self._beside.peak(first, end), self._beside.state(first, end)
            beside = max(beside, max(peak, state) + self._rounded)
        return self._held.of(first, end) + beside


class _Held:
    """Weights and buffers. A tensor that is tied to one of another stage is held on both."""

    def __init__(self, tree: ModuleTree, layers: Layers, held: Mapping[str, int]) -> None:
        index = tree.index
        self.count = len(layers.names)
        self.before = [0, *accumulate(held[name] for name in layers.names)]
        self.first, self.last, self.everywhere = (
            sum(held[name] for name in names) for names in (layers.first, layers.last, layers.everywhere)
        )
        at: dict[str, int] = {}
        groups = [(layers.first, -1), (layers.last, self.count), *(((n,), i) for i, n in enumerate(layers.names))]
        for names, place in groups:
            for name in names:
                at |= {tensor.name: place for tensor in index.tensors_of(name)}
        sources = dict(index.same)
        tied: dict[str, dict[int, None]] = {}
        for target in sources:
            source = target
            while source in sources:
                source = sources[source]
            if target in at and source in at and not index.held[target]:
                tied.setdefault(source, {at[source]: None})[at[target]] = None
        self.tied = [
            (sorted(places), at[source], held[source] + _beside(index, held, source, at))
            for source, places in tied.items()
            if len(places) > 1
        ]

    def of(self, first: int, end: int) -> int:
        found = self.before[end] - self.before[first] + self.everywhere
        low, high = first, end
        if first == 0:
            found += self.first
            low = -1
        if end == self.count:
            found += self.last
            high = end + 1
        for places, home, nbytes in self.tied:
            if not low <= home < high and any(low <= place < high for place in places):
                found += nbytes
        return found


def _beside(index: TreeIndex, held: Mapping[str, int], source: str, at: Mapping[str, int]) -> int:
    """Bytes of the buffers of a tied embedding: the last stage has all of its module."""
    module = index.modules[source.rpartition(".")[0]]
    return sum(held[buffer.name] for buffer in module.buffers) if at[source] < 0 and module.name else 0


class _Making:
    """What is held for a while as the weights of a stage are made, beside them."""

    def __init__(self, tree: ModuleTree, layers: Layers) -> None:
        index = tree.index
        self.count = len(layers.names)
        self.is_there = bool(index.making or index.until_tied)
        if not self.is_there:
            return
        self.layers = RangeMax([index.making.get(name, 0) for name in layers.names])
        self.first, self.last = (
            max((index.making.get(name, 0) for name in names), default=0) for names in (layers.first, layers.last)
        )
        until = dict(index.until_tied)
        waiting = [sum(until.get(t.name, 0) for t in index.tensors_of(name)) for name in layers.names]
        self.waiting = [0, *accumulate(waiting)]
        self.waiting_first, self.waiting_last = (
            sum(until.get(t.name, 0) for name in names for t in index.tensors_of(name))
            for names in (layers.first, layers.last)
        )

    def of(self, first: int, end: int) -> int:
        if not self.is_there:
            return 0
        making, waiting = self.layers.most(first, end), self.waiting[end] - self.waiting[first]
        if first == 0:
            making, waiting = max(making, self.first), waiting + self.waiting_first
        if end == self.count:
            making, waiting = max(making, self.last), waiting + self.waiting_last
        return making + waiting


class _Beside:
    """What a stage holds beside weights while it runs.

    Every stage is counted as if it received hidden states: on the first the embedding's output is as large.
    """

    def __init__(self, layers: Layers, footprint: Footprint, handed: Handed) -> None:
        self.count = len(layers.names)
        self.handed, self.output = handed, footprint.output
        place_of = _places(layers)
        groups: dict[int | str, list[BlockFootprint]] = {
            place: [] for place in (*range(self.count), "first", "last", "everywhere")
        }
        in_layers = {b.name for b in footprint.blocks if isinstance(place_of(b.name), int)}
        embeddings = {b.name for b in footprint.blocks if place_of(b.name) == "first"}
        for block in footprint.blocks:
            place = place_of(block.name)
            receives = place not in ("first", "everywhere")
            groups[place].append(_received(block, embeddings, handed) if receives else block)
        # what else is around the layers has its part on every stage: it is broadcast, or made there anew
        self.groups = {
            place: [replace(b, apart=tuple(a for a in b.apart if a[0] in in_layers)) for b in blocks]
            for place, blocks in groups.items()
        }
        self.parted = any(first or last for at in self.groups.values() for b in at for _, first, last in b.apart)
        self.known: dict[tuple[int, int], int] = {}
        summed = {place: _summed(blocks) for place, blocks in self.groups.items()}
        self.first, self.last, self.everywhere = summed["first"], summed["last"], summed["everywhere"]
        each = [summed[place] for place in range(self.count)]
        self.prompts = [0, *accumulate(block.prompt_state for block in each)]
        self.states = [0, *accumulate(block.state for block in each)]
        self.prefills = RangeMax([self.prompts[i + 1] + block.prefill for i, block in enumerate(each)])
        self.agains = RangeMax([block.again for block in each])
        self.decodes = RangeMax([block.decode for block in each])

    def state(self, first: int, end: int) -> int:
        """What lives on from step to step when the context is full."""
        found = self.states[end] - self.states[first] + self.everywhere.state
        found += self.first.state if first == 0 else 0
        return found + (self.last.state if end == self.count else 0)

    def peak(self, first: int, end: int) -> int:
        """The most that is alive at once."""
        if self.parted:
            return self._parted(first, end)
        begun, again, decode = self.everywhere.prompt_state, self.everywhere.again, self.everywhere.decode
        prefill = begun + self.everywhere.prefill
        if first == 0:
            begun += self.first.prompt_state
            prefill = max(prefill, begun + self.first.prefill)
            again, decode = max(again, self.first.again), max(decode, self.first.decode)
        prefill = max(prefill, begun - self.prompts[first] + self.prefills.most(first, end))
        again, decode = max(again, self.agains.most(first, end)), max(decode, self.decodes.most(first, end))
        prompt = begun + self.prompts[end] - self.prompts[first]
        if end == self.count:
            prompt += self.last.prompt_state
            prefill = max(prefill, prompt + self.last.prefill)
            again, decode = max(again, self.last.again), max(decode, self.last.decode)
        state = self.state(first, end)
        return max(prefill, prompt + again, state + decode, self._handing(prompt, state))

    def _handing(self, prompt: int, state: int) -> int:
        """What is alive as a stage has sent its hidden states, and is given the logits."""
        return self.output + max(prompt + 2 * self.handed.prefill, state + 2 * self.handed.decode)

    def _parted(self, first: int, end: int) -> int:
        """The same of a model whose layers are given what others keep, which is copied from stage to stage."""
        if (first, end) not in self.known:
            around = [*self.groups["everywhere"], *(self.groups["first"] if first == 0 else [])]
            blocks = [*around, *(block for place in range(first, end) for block in self.groups[place])]
            blocks += self.groups["last"] if end == self.count else []
            prompt, state = sum(b.prompt_state for b in blocks), sum(b.state for b in blocks)
            self.known[first, end] = max(peak_beside_weights(blocks), self._handing(prompt, state))
        return self.known[first, end]


def _summed(blocks: Iterable[BlockFootprint]) -> BlockFootprint:
    """Blocks that run one after another as one, whose needs meet its own state as ``peak_beside_weights`` has it."""
    prompt = state = prefill = again = decode = 0
    for block in blocks:
        prompt += block.prompt_state
        state += block.state
        prefill = max(prefill, prompt + block.prefill)
        again, decode = max(again, block.again), max(decode, block.decode)
    return BlockFootprint(
        name="", prompt_state=prompt, state=state, prefill=prefill - prompt, decode=decode, again=again
    )


def _received(block: BlockFootprint, embeddings: Collection[str], handed: Handed) -> BlockFootprint:
    """A block beside hidden states that are received, and live as long as it runs, in place of the embedding's."""
    first = sum(nbytes for name, nbytes, _ in block.apart if name in embeddings)
    last = sum(nbytes for name, _, nbytes in block.apart if name in embeddings)
    return replace(
        block,
        prefill=max(0, block.prefill + first) + handed.prefill,
        decode=max(0, block.decode + last) + handed.decode,
        again=block.again + handed.prefill if block.again else 0,
    )


def _places(layers: Layers) -> Callable[[str], int | str]:
    """Which layer, or what around them, a module belongs to."""
    known: dict[str, int | str] = {name: at for at, name in enumerate(layers.names)}
    known |= dict.fromkeys(layers.first, "first") | dict.fromkeys(layers.last, "last")

    def place(name: str) -> int | str:
        while name and name not in known:
            name = name.rpartition(".")[0]
        return known.get(name, "everywhere")

    return place


class RangeMax:
    """The largest of consecutive numbers, from a table of those of 1, 2, 4, … of them."""

    def __init__(self, values: Sequence[int]) -> None:
        self.rows = [list(values)]
        width = 1
        while 2 * width <= len(values):
            row = self.rows[-1]
            self.rows.append([max(row[i], row[i + width]) for i in range(len(row) - width)])
            width *= 2

    def most(self, first: int, end: int) -> int:
        """The largest from ``first`` to before ``end``, at least one; no number is below 0."""
        level = (end - first).bit_length() - 1
        row = self.rows[level]
        return max(row[first], row[end - (1 << level)])
