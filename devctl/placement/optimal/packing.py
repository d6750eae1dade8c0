"""Which blocks go together on a device when one run each is not enough.

Packing is NP-hard, but real models have few kinds of blocks, one of them in a long run. The most numerous kind is left
out of the state: for every number of the others that the first devices hold, only the most of the numerous kind that
fit beside them is kept. That is exact: more of them is never worse.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import prod

from devctl.placement.optimal.bounded import TooMuchWorkError, Work

_MOST_STATES = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """Blocks that are alike.

    Attributes:
        held: bytes of one on an accelerator, more than 0.
        moved: bytes of one elsewhere, more than 0.
        brought: bytes of one at once on the device that runs it from elsewhere.
        count: how many there are.
    """

    held: int
    moved: int
    brought: int
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """How many of each kind go where.

    Attributes:
        counts: for each device, a count for each kind.
        on_cpu: the count of each kind on the CPU; the rest is on the disk.
        off: bytes that are on no accelerator.
        disk: bytes on disk.
    """

    counts: tuple[tuple[int, ...], ...]
    on_cpu: tuple[int, ...]
    off: int
    disk: int


class Packer:
    """The packings of kinds of blocks; what depends on the kinds alone is computed once.

    Raises:
        TooMuchWorkError: there are too many kinds.
    """

    def __init__(self, kinds: Sequence[Kind], work: Work) -> None:
        self.kinds = tuple(kinds)
        self.work = work
        self.many = max(range(len(kinds)), key=lambda k: (kinds[k].count, kinds[k].held), default=0)
        self.few = tuple(k for k in range(len(kinds)) if k != self.many)
        if prod(self.kinds[k].count + 1 for k in self.few) > _MOST_STATES:
            raise TooMuchWorkError
        self.vectors = list(product(*(range(self.kinds[k].count + 1) for k in self.few)))
        self.held = [self._sum(v, "held") for v in self.vectors]
        self.moved = [self._sum(v, "moved") for v in self.vectors]
        self._most: dict[int, int] = {}
        # what can be added to a state: vectors are numbered in mixed radix, where numbers add up as vectors do
        strides = [prod(self.kinds[k].count + 1 for k in self.few[i + 1 :]) for i in range(len(self.few))]
        self.addable = [
            [
                sum(parts)
                for parts in product(
                    *(
                        range(0, (self.kinds[k].count - n + 1) * stride, stride)
                        for n, k, stride in zip(vector, self.few, strides, strict=True)
                    )
                )
            ]
            for vector in self.vectors
        ]
        work.take(sum(len(added) for added in self.addable))

    def best(
        self, limits: Sequence[int], cpu: int | None, *, needs_first: bool = False, all_of: int | None = None
    ) -> Packing | None:
        """The packing with the fewest bytes off the devices, then the fewest on disk; None where there is none.

        Args:
            limits: bytes that each device may hold.
            cpu: bytes that the CPU may hold; None where there is none.
            needs_first: the first device has to hold something.
            all_of: every block of which more than so many bytes are brought has to be on a device.

        Raises:
            TooMuchWorkError: it would take more steps than there are.
        """
        layers = self._layers(limits, needs_first)
        if layers is None:
            return None
        many = self.kinds[self.many]
        full = len(self.vectors) - 1
        found: tuple[int, int, int, int] | None = None  # (bytes off, bytes on disk, state, the many on devices)
        for state, most in layers[-1].items():
            rest = full - state  # in mixed radix, the vector of what is left
            if all_of is not None and self._leaves_more(rest, many.count - most, all_of):
                continue
            off = self.moved[rest] + (many.count - most) * many.moved
            if found is not None and off > found[0]:
                continue
            disk = off - self._on_cpu(rest, many.count - most, cpu)[0]
            if found is None or (off, disk) < found[:2]:
                found = (off, disk, state, most)
        if found is None:
            return None
        off, disk, state, most = found
        on_cpu = self._on_cpu(full - state, many.count - most, cpu)[1]
        return Packing(counts=self._trace(layers, limits, state, most), on_cpu=on_cpu, off=off, disk=disk)

    def most(self, limit: int) -> int:
        """The most bytes that a device with ``limit`` alone keeps from being moved."""
        if limit not in self._most:
            self.work.take(len(self.vectors))
            many = self.kinds[self.many]
            self._most[limit] = max(
                moved + self._beside(held, limit) * many.moved
                for held, moved in zip(self.held, self.moved, strict=True)
                if held <= limit
            )
        return self._most[limit]

    def held_by(self, counts: Sequence[int]) -> int:
        """Bytes on an accelerator that holds so many of each kind."""
        return sum(number * kind.held for number, kind in zip(counts, self.kinds, strict=True))

    def _layers(self, limits: Sequence[int], needs_first: bool) -> list[dict[int, int]] | None:
        """Device after device: for each state that can be reached, the most of the numerous kind beside it."""
        count = self.kinds[self.many].count
        layers: list[dict[int, int]] = [{0: 0}]
        room: dict[int, list[int]] = {}
        for device, limit in enumerate(limits):
            fits = room.setdefault(limit, [self._beside(held, limit) for held in self.held])
            reached: dict[int, int] = {}
            known = reached.get
            for state, most in layers[-1].items():
                self.work.take(len(self.addable[state]))
                for added in self.addable[state]:  # millions of them: no calls in here that can be spared
                    beside = fits[added]
                    if beside < 0 or (needs_first and device == 0 and not added and not beside):
                        continue
                    total = most + beside
                    if total > count:  # noqa: PLR1730 - min() is a call
                        total = count
                    if known(state + added, -1) < total:
                        reached[state + added] = total
            if not reached:
                return None
            layers.append(reached)
        return layers

    def _beside(self, held: int, limit: int) -> int:
        """How many of the numerous kind fit beside ``held`` bytes; -1 where those do not fit."""
        if held > limit:
            return -1
        return min(self.kinds[self.many].count, (limit - held) // self.kinds[self.many].held)

    def _trace(
        self, layers: list[dict[int, int]], limits: Sequence[int], state: int, most: int
    ) -> tuple[tuple[int, ...], ...]:
        """The counts of each device that lead to ``state`` with ``most`` of the numerous kind; the first hold most."""
        found: list[tuple[int, ...]] = []
        for device in range(len(limits) - 1, -1, -1):
            for added in self.addable[len(self.vectors) - 1 - state]:  # all that are part of the state
                before = layers[device].get(state - added)
                if before is None:
                    continue
                taken = max(0, most - before)
                if taken <= self._beside(self.held[added], limits[device]):
                    found.append(self._counts(self.vectors[added], taken))
                    state, most = state - added, most - taken
                    break
        return tuple(reversed(found))

    def _leaves_more(self, rest: int, many_left: int, bound: int) -> bool:
        return (many_left > 0 and self.kinds[self.many].brought > bound) or any(
            n and self.kinds[k].brought > bound for n, k in zip(self.vectors[rest], self.few, strict=True)
        )

    def _on_cpu(self, rest: int, many_left: int, cpu: int | None) -> tuple[int, tuple[int, ...]]:
        """The most bytes of what is left that the CPU can hold, and the count of each kind."""
        nothing = (0,) * len(self.kinds)
        if cpu is None:
            return 0, nothing
        each = self.kinds[self.many].moved
        whole = self.moved[rest] + many_left * each
        if whole <= cpu:
            return whole, self._counts(self.vectors[rest], many_left)
        best = 0, nothing
        self.work.take(rest + 1)
        for part, vector in enumerate(self.vectors[: rest + 1]):
            if self.moved[part] > cpu or any(i > j for i, j in zip(vector, self.vectors[rest], strict=True)):
                continue
            beside = min(many_left, (cpu - self.moved[part]) // each)
            size = self.moved[part] + beside * each
            if size > best[0]:
                best = size, self._counts(vector, beside)
        return best

    def _counts(self, few: tuple[int, ...], many: int) -> tuple[int, ...]:
        counts = [0] * len(self.kinds)
        counts[self.many] = many
        for kind, number in zip(self.few, few, strict=True):
            counts[kind] = number
        return tuple(counts)

    def _sum(self, vector: Sequence[int], what: str) -> int:
        return sum(n * getattr(self.kinds[k], what) for n, k in zip(vector, self.few, strict=True))
