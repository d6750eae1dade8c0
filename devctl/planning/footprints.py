"""The footprints of a model: traced once, and kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from devctl.errors import ModelError, TooFewTokensError, UntracedError
from devctl.models.adapters import Adapter
from devctl.models.cache import footprint_key, is_untraced, load_footprint, store_footprint, store_untraced
from devctl.models.files.resolve import ModelSource
from devctl.models.footprint import BlockFootprint, Footprint, Workload
from devctl.models.own_code import ExitedError, contained
from devctl.planning.building import BUILDING, read
from devctl.planning.progress import reporter
from devctl.planning.request import ModelRequest

if TYPE_CHECKING:
    import torch

    from devctl.models.skeleton import Skeleton

PREFILL = 4001
"""Tokens of a prefill that is looked at alone: as long as no dimension of a weight, from which it tells its own."""

_MOST_TOKENS = 2**20
"""Tokens in all that are traced: their ids are real, and take memory."""

_FAR = (64, 1024, 4096)
"""Sequences that are traced to see how many of them grow."""

_MOST_IMAGES = 32
"""Images in all that are traced: models go over them one after another."""

_FEW = 64
"""Integers, at most, by whose values an input is known."""


@dataclass(slots=True)
class Footprints:
    """The footprints of one model, traced as they are asked for."""

    request: ModelRequest
    source: ModelSource | None
    skeleton: Skeleton | None = None
    """The model, if it was built already, and is not quantised."""
    adapters: tuple[Adapter, ...] = ()
    """What computes beside it."""
    built: bool = False
    """Whether the model was built for this, so that frameworks are imported: what is looked for now is soon found."""
    _found: dict[Workload, Footprint] = field(default_factory=dict)
    _prefills: dict[Workload, Footprint | None] = field(default_factory=dict)

    def of(self, workload: Workload) -> Footprint:
        """What the model holds beside its weights while it does ``workload``.

        Raises:
            UntracedError: its code can't be run on fake tensors.
        """
        batch = workload.batch_size
        if batch > _anchors(workload)[1] and (
            batch * workload.context_length > _MOST_TOKENS or batch > self._most_with_images(workload)
        ):
            return self.scaled(workload)
        return self._exact(workload)

    def _most_with_images(self, workload: Workload) -> float:
        """The most sequences whose images are traced; without images, there is no end."""
        if workload.images is not None:
            images = workload.images.count
        else:
            # a few sequences are never many images: whether there are any is known from one
            images = int(workload.batch_size > _MOST_IMAGES and self._exact(_one(workload)).image_tokens > 0)
        return max(_anchors(workload)[1] + 1, _MOST_IMAGES // images) if images else math.inf

    def of_run(self, workload: Workload, given: Mapping[str, torch.Tensor]) -> Footprint:
        """The same on ``given`` inputs, which ``workload`` has the sizes of.

        Raises:
            UntracedError: its code can't be run on fake tensors.
        """
        return self._kept_or_traced(workload, given)

    def scaled(self, workload: Workload) -> Footprint:
        """The same without a trace of its own: on the line through one sequence and two, or, where they are padded, as
        one never is, two and three.

        A peak is the most of many sums that grow with the batch, each at a pace of its own: many sequences may take
        more than that line says, and never more than the line between fewer and more of them. That is taken where the
        first does not meet what many are traced to take.
        """
        anchors = _anchors(workload)
        if workload.batch_size <= anchors[1]:
            return self._exact(workload)
        one, two = (self._exact(replace(workload, batch_size=batch)) for batch in anchors)
        far = next((b for b in _FAR if b >= workload.batch_size), 0)
        if far * workload.context_length > _MOST_TOKENS:
            far = max(anchors[1] + 1, _MOST_TOKENS // workload.context_length)
        most = self._most_with_images(workload)
        far = int(min(far, most))
        many = self._exact(replace(workload, batch_size=far))
        straight = between(one, two, far)
        # where images are what is many, fewer were traced than there are, and tell whether the line holds
        beyond = workload.batch_size > far and far != most
        ends = (one, two) if beyond or is_met(straight, many) else (two, many)
        found = between(*ends, workload.batch_size)
        # what a few sequences fit into without a gap, many may not
        gaps = -(-many.unallocated * workload.batch_size // many.workload.batch_size)
        return replace(found, rounded=max(found.rounded, many.rounded), unallocated=max(found.unallocated, gaps))

    def least_context(self, workload: Workload) -> int:
        """Tokens of the shortest context that has room for the images that are asked for, and a token of text.

        Raises:
            UntracedError: as `of`.
            UsageError: the model takes no such images.
        """
        least = workload.new_tokens + 1
        if workload.images is None or not workload.images.count:
            return least
        try:
            return self._exact(replace(workload, batch_size=1)).image_tokens + least
        except TooFewTokensError as error:
            return error.needed

    def _exact(self, workload: Workload) -> Footprint:
        workload = _as_known(workload)
        if workload not in self._found:
            self._found[workload] = self._kept_or_traced(workload)
        return self._found[workload]

    def of_prefill(self, workload: Workload) -> Footprint | None:
        """The same of the prompt of ``workload`` alone; None where that is not soon found, or the model reads no text.

        Whatever is kept, the answer is the same: nothing else that is known of the model tells it.
        """
        short = _prefill_of(workload)
        if short not in self._prefills:
            self._prefills[short] = self._kept_or_traced_prefill(short)
        return self._prefills[short]

    def keep_prefill(self, workload: Workload) -> None:
        """Look for it while the model is built, so that no later plan has to build it again for this alone."""
        if not self.built and self.skeleton is None:
            return
        if _prefill_of(workload) not in self._prefills and self._key(workload) is not None:
            self.of_prefill(workload)

    def _kept_or_traced_prefill(self, short: Workload) -> Footprint | None:
        key = self._key(short, "prefill")
        if key is not None:
            if (kept := load_footprint(key)) is not None:
                return kept
            if is_untraced(key):
                return None
        from devctl.models.tracing.trace import trace_prefill

        try:
            with BUILDING, reporter().status("looking at what a text takes"), contained():
                found = trace_prefill(self._with_adapters(self._plain()), short)
        except (UntracedError, ExitedError):
            if key is not None:
                store_untraced(key)
            return None
        except ModelError:  # it can't be built any more, and what is kept of it was asked for
            return None
        if key is not None:
            store_footprint(key, found)
        return found

    def _key(self, workload: Workload, part: object = None) -> str | None:
        if not self.request.cache or self.source is None:
            return None
        return footprint_key(
            self.source,
            _as_known(workload),
            dtype=self.request.dtype,
            model_class=self.request.model_class,
            trust_remote_code=self.request.trust_remote_code,
            part=part if not self.adapters else [part, peft_version(), [each.identity for each in self.adapters]],
        )

    def _with_adapters(self, skeleton: Skeleton) -> Skeleton:
        """``skeleton`` with what computes beside it.

        Raises:
            UntracedError: PEFT, which computes it, is not installed.
        """
        if self.adapters and peft_version() is None:
            raise UntracedError(
                f"what the adapter {self.adapters[0].name} computes is traced with PEFT, which is not installed"
            )
        return replace(skeleton, adapters=self.adapters)

    def _kept_or_traced(self, workload: Workload, given: Mapping[str, torch.Tensor] | None = None) -> Footprint:
        key = self._key(workload, None if given is None else {name: _told(name, t) for name, t in given.items()})
        if key is not None and (kept := load_footprint(key)) is not None:
            return kept
        with BUILDING:
            found = self._traced(workload, given)
        if key is not None:
            store_footprint(key, found)
        return found

    def _traced(self, workload: Workload, given: Mapping[str, torch.Tensor] | None) -> Footprint:
        skeleton = self._plain()
        from devctl.models.tracing.trace import trace_footprint

        try:
            with reporter().status(f"tracing what {workload.context_length:,} tokens hold in memory"), contained():
                return trace_footprint(self._with_adapters(skeleton), workload, given=given)
        except ExitedError as error:
            raise UntracedError(str(error)) from error

    def _plain(self) -> Skeleton:
        """The model, not quantised: what it computes is the same.

        Raises:
            UntracedError: it is a module that no class of transformers builds.
            ModelError: it can't be built.
        """
        if self.skeleton is None:
            if self.source is None:
                raise UntracedError("the module is not what a class of transformers builds from its config")
            from devctl.models.skeleton import Purpose

            self.skeleton = read(self.source, replace(self.request, quantize=None), Purpose.RANDOM)
        return self.skeleton


def peft_version() -> str | None:
    """The version of the PEFT that is installed; None where none is."""
    try:
        return version("peft")
    except PackageNotFoundError:
        return None


def _as_known(workload: Workload) -> Workload:
    """The same by the one name that it is known by: one sequence is never padded."""
    return replace(workload, padded=False) if workload.batch_size == 1 else workload


def _prefill_of(workload: Workload) -> Workload:
    """The prompt of ``workload``, or the first of it, and a token."""
    tokens = min(workload.context_length - 1, PREFILL)
    return _as_known(replace(workload, context_length=tokens + 1, new_tokens=1))


def _one(workload: Workload) -> Workload:
    return replace(workload, batch_size=1)


def _anchors(workload: Workload) -> tuple[int, int]:
    """The batches through which the line of all others is drawn."""
    return (2, 3) if workload.padded else (1, 2)


def _told(name: str, tensor: torch.Tensor) -> list[object]:
    """What an input is known by: its shape, and of a few integers that are no text, like an image's grid, all."""
    is_small = not tensor.is_floating_point() and tensor.numel() <= _FEW and name != "input_ids"
    return [list(tensor.shape), tensor.tolist() if is_small else None]


def is_met(line: Footprint, traced: Footprint) -> bool:
    """Whether a line comes to no less than what was traced, but for a part in a thousand of the largest."""
    most = max((max(block.most, block.state) for block in traced.blocks), default=0) // 1000
    there = {block.name: block for block in line.blocks}
    pairs = [(line.output, traced.output), (line.square, traced.square)]
    pairs += [(line.most, traced.most)] if line.most else []
    for block in traced.blocks:
        if (other := there.get(block.name)) is None:
            return False
        pairs += [(other.prefill, block.prefill), (other.decode, block.decode), (other.again, block.again)]
        apart = {name: figures for name, *figures in other.apart}
        pairs += [pair for name, *own in block.apart for pair in zip(apart.get(name, (0, 0)), own, strict=True)]
    return all(figure >= real - most for figure, real in pairs)


def between(one: Footprint, two: Footprint, batch: int) -> Footprint:
    """The footprint of ``batch`` sequences, as a line through those of ``one`` and ``two``, never rounded down."""
    more, step = batch - one.workload.batch_size, two.workload.batch_size - one.workload.batch_size
    second = {block.name: block for block in two.blocks}

    def line(a: int, b: int) -> int:
        return max(0, a - (a - b) * more // step)

    blocks = tuple(
        BlockFootprint(
            name=a.name,
            prompt_state=line(a.prompt_state, b.prompt_state),
            state=line(a.state, b.state),
            prefill=line(a.prefill, b.prefill),
            decode=line(a.decode, b.decode),
            again=line(a.again, b.again),
            apart=tuple(_line_apart(a, b, line)),
        )
        for a in one.blocks
        if (b := second.get(a.name))
    )
    return replace(
        one,
        blocks=blocks,
        output=line(one.output, two.output),
        square=line(one.square, two.square),
        # gaps are not on a line; they are as the sequences are, or more
        unallocated=max(line(one.unallocated, two.unallocated), -(-two.unallocated * batch // two.workload.batch_size)),
        most=line(one.most, two.most) if one.most and two.most else 0,
        # how many blocks there are, and what is left over in each, is as with the sequences that were traced
        rounded=max(one.rounded, two.rounded),
        given_back=max(line(one.given_back, two.given_back), -(-two.given_back * batch // two.workload.batch_size)),
        exact=one.exact and two.exact,
        notes=tuple(dict.fromkeys((*one.notes, *two.notes))),
        workload=replace(one.workload, batch_size=batch),
    )


def _line_apart(
    one: BlockFootprint, two: BlockFootprint, line: Callable[[int, int], int]
) -> Iterator[tuple[str, int, int]]:
    second = {other: figures for other, *figures in two.apart}
    for other, first, last in one.apart:
        if other in second:
            yield other, line(first, second[other][0]), line(last, second[other][1])
