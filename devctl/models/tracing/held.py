"""What torch's caching allocator of an accelerator holds at the most: by default, and where its segments grow."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from devctl.models.tracing.expandable import LARGE_PAGE, least_pages
from devctl.models.tracing.segments import NOTHING, Loaded, Request, least_within, most_allocated, replay

_WEIGHTS = -1
"""The number of the storage that stands for all weights: in segments that grow they lie one beside the other."""


@dataclass(frozen=True, slots=True)
class Held:
    """What an allocator holds at the most while requests are met, in bytes.

    Attributes:
        allocated: what was asked for and not taken back yet, without weights.
        rounded: by how much more the blocks are that it gives out for that, and for the weights. torch counts these.
        gaps: what it has to reserve beside those blocks.
        given_back: what it reserves beside that where memory is not short, and gives back where it is.
        paged: what it has to reserve beside what was asked for where its segments grow (``expandable_segments``), and a
            page for what is not followed, like small tensors among the weights, which have pages of their own.
    """

    allocated: int = 0
    rounded: int = 0
    gaps: int = 0
    given_back: int = 0
    paged: int = 0

    @property
    def tops(self) -> tuple[int, int, int, int, int]:
        """What is allocated, given out in blocks, reserved at the least, and reserved where memory is not short; and
        what is reserved where segments grow."""
        given = self.allocated + self.rounded
        return (
            self.allocated,
            given,
            given + self.gaps,
            given + self.gaps + self.given_back,
            self.allocated + self.paged,
        )

    @property
    def pages(self) -> int:
        """What it has to reserve where segments grow, beside what blocks are by default."""
        return max(0, self.paged - self.rounded)

    @classmethod
    def of(cls, tops: Sequence[int]) -> Held:
        """What has these ``tops``; one that is below another that it has to hold is raised to that."""
        *by_default, growing = tops
        allocated, given, reserved, most = accumulate(by_default, max)
        return cls(allocated, given - allocated, reserved - given, most - reserved, max(0, growing - allocated))

    @classmethod
    def most(cls, steps: Sequence[Held]) -> Held:
        """The highest tops of all ``steps``."""
        return cls.of([max(tops) for tops in zip(*(each.tops for each in steps), strict=True)])


def held(ways: Iterable[Sequence[Request]], layouts: Sequence[Loaded] = (NOTHING,)) -> Held:
    """The most that is held in any of some ways to make the requests of a step, beside weights.

    Args:
        layouts: ways in which the weights may lie: as transformers puts them there first, whose blocks are counted.
    """
    steps = []
    for requests in ways:
        growing = _growing(requests, layouts[0].nbytes)
        usual, *others = (_held(requests, loaded, growing) for loaded in layouts)
        allocated, given, *_ = usual.tops
        steps += [usual, *(Held.of((allocated, given, *other.tops[2:])) for other in others)]
    return Held.most(steps) if steps else Held()


def _growing(requests: Sequence[Request], weights: int) -> int:
    """Bytes that are needed beside so many of ``weights`` where segments grow: in those it is one how weights lie."""
    there = ((_WEIGHTS, weights),) if weights else ()
    return least_pages([*there, *requests], weights + most_allocated(requests)) + LARGE_PAGE - weights


def _held(requests: Sequence[Request], loaded: Loaded, growing: int) -> Held:
    free = replay(requests, None, loaded)
    least = least_within(requests, free.most_reserved, loaded)
    beside = (each - loaded.nbytes for each in (free.most_given, least, free.most_reserved))
    return Held.of((most_allocated(requests), *beside, growing))
