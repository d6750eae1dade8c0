"""A model spread over devices: is every tensor where the map says, and does it compute what the CPU computes?"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from devctl.devices import Device
from devctl.loading.run.out_of_memory import is_out_of_memory, release
from devctl.models.footprint import Footprint
from devctl.placement import Budgets, Placement, Strategy, place
from devctl.placement.placement import tight
from devctl.placement.runtime import Runtime
from tests.boards.asking import Ask
from tests.boards.cards import Card, NoSegmentsError, devctl_device
from tests.boards.measuring import ONLY_EXPANDABLE, Job, Subject, work
from tests.boards.records import MIB, Row, equal, holds, skipped, told

TOKENS = 8
ROOMY = 2**40
CPU = Device.cpu()


def load_on(subject: Subject, device_map: Mapping[str, Device], folder: Path) -> Any:
    """The model with random weights, the same each time, on a map.

    Raises:
        LoadError: it can't be loaded.
    """
    from devctl.loading.weights import loader
    from devctl.loading.weights.loader import LoadFormat

    folder.mkdir(parents=True, exist_ok=True)
    module, _ = loader.load(
        subject.source,
        subject.skeleton,
        device_map,
        load_format=LoadFormat.DUMMY,
        folder=folder,
        on_progress=lambda _: None,
    )
    return module


def inputs_for(subject: Subject, new: int) -> Any:
    """A short text."""
    from devctl.loading.run.inputs import prepare

    return prepare(subject.source, subject.skeleton, prompt=None, new_tokens=new, trust_remote_code=False)


@dataclass(slots=True)
class Proofs:
    """A model on the CPU, that others are held against.

    Attributes:
        cards: those that maps may name.
        folder: for weights on disk.
    """

    subject: Subject
    cards: Sequence[Card]
    folder: Path
    _reference: Any = None
    _tokens: Any = None

    def reference(self) -> Any:
        """The model on the CPU, and the tokens that it makes there."""
        if self._reference is None:
            self._reference = load_on(self.subject, {"": CPU}, self.folder)
            if self._reference.can_generate():
                self._tokens = work(self._reference, inputs_for(self.subject, TOKENS), "cpu", TOKENS).tolist()
        return self._reference

    def prove(self, title: str, device_map: Mapping[str, Device]) -> Iterator[Row]:
        """Load on a map, look every tensor up, and compare every block, the outputs and the tokens."""
        from devctl.loading.measure import device_bytes
        from devctl.loading.proofs.places import find_places, find_ties
        from devctl.loading.proofs.reference import Reference, verify
        from devctl.loading.proofs.watch import block_names
        from devctl.loading.run.smoke import forward_arguments
        from devctl.loading.weights.loader import main_device

        subject, reference = self.subject, self.reference()
        inputs = inputs_for(subject, TOKENS)
        with ExitStack() as stack:
            stack.enter_context(self.cards[0].running())
            module = load_on(subject, device_map, self.folder / title.replace(" ", "-").replace(",", ""))
            self.cards[0].tame(module)
            places = find_places(module, device_map)
            main = main_device(module, device_map)
            wrong = [f"{each.name}: {each.actual}, not {each.expected}" for each in places.misplaced]
            yield holds(title, "tensors where the map says", not wrong, why="; ".join(wrong[:3]) or f"{places.count}")
            ties = find_ties(module, subject.skeleton.tree)
            yield holds(title, "ties", not ties.untied, why=", ".join(ties.untied))
            for each in device_bytes(subject.skeleton.tree, device_map, main, places):
                yield equal(
                    title,
                    f"weights on {each.device.type}",
                    each.predicted,
                    each.measured,
                    unit="B",
                    why=str(each.device),
                )
            at = self.cards[main.id or 0].place
            found = verify(
                module,
                reference,
                forward_arguments(module, inputs, _Place(at)),
                block_names(subject.skeleton.tree),
                dtype=subject.skeleton.tree.dtype,
                kind=Reference.RAM,
            )
            yield _compared(title, "blocks as on the CPU", found.first_wrong is None, found.worst_block, found.blocks)
            output = found.worst_output
            is_right = output is not None and not output.is_too_much
            yield _compared(title, "outputs as on the CPU", is_right, output, 1)
            if self._tokens is not None:
                made = work(module, inputs, at, TOKENS).cpu().tolist()
                same = sum(a == b for a, b in zip(chain(*made), chain(*self._tokens), strict=True))
                yield told(title, "tokens as on the CPU", same, predicted=sum(map(len, self._tokens)))
            del module
        gc.collect()


@dataclass(frozen=True, slots=True)
class _Place:
    """What is asked of a device that takes inputs: its name to torch."""

    name: str

    def __str__(self) -> str:
        return self.name


def _compared(title: str, claim: str, is_met: bool, worst: Any, count: int) -> Row:
    excess = getattr(getattr(worst, "worst", worst), "excess", None)
    where = getattr(worst, "block", "")
    told_ = "nothing was compared" if worst is None else f"{count} compared, the worst {where}".strip()
    how = "" if excess is None else f" at {excess:.2g} of what is allowed"
    return holds(title, claim, is_met and worst is not None, why=f"{told_}{how}")


def budgets(cards: Sequence[Card], shares: Sequence[float], whole: int, cpu: int) -> Budgets:
    """Of a model of ``whole`` bytes, what each card may hold, and the CPU."""
    gpus = tuple((devctl_device(card), int(whole * share)) for card, share in zip(cards, shares, strict=True))
    return Budgets(devices=(*gpus, (CPU, cpu)), given=True)


def by_every_strategy(proofs: Proofs, title: str, may_hold: Budgets) -> Iterator[Row]:
    """Every strategy's map; those that are alike are tried once."""
    maps: dict[Any, list[str]] = {}
    for strategy in Strategy:
        placement = place(proofs.subject.skeleton.tree, may_hold, strategy)
        maps.setdefault(placement.device_map, []).append(str(strategy))
    for device_map, names in maps.items():
        yield from proofs.prove(f"{title}, {', '.join(names)}", dict(device_map))


@dataclass(slots=True)
class Halfway:
    """A box on which the weights have room and the workload has not: half of what it takes is missing.

    Attributes:
        footprint: of the workload.
    """

    ask: Ask
    subject: Subject
    cards: Sequence[Card]
    job: Job
    footprint: Footprint

    def placed(self, strategy: Strategy, limit: int, *, counted: bool) -> Placement:
        """Where a strategy puts it, by the weights alone or by the workload too."""
        runtime = Runtime(footprint=self.footprint, overhead={}) if counted else None
        may_hold = Budgets(devices=(*((devctl_device(c), limit) for c in self.cards), (CPU, ROOMY)), given=True)
        return place(self.subject.skeleton.tree, may_hold, strategy, None, runtime)

    def fullest(self, *, counted: bool) -> int:
        """Bytes on the fullest card when they are as evenly spread as can be."""
        placement = self.placed(Strategy.OPTIMAL, ROOMY, counted=counted)
        gpus = [devctl_device(card) for card in self.cards]
        return max(use.total for use in placement.devices if use.device in gpus)

    def rows(self, title: str) -> Iterator[Row]:
        """transformers' default runs out of memory there; the plans that count the workload run as they say."""
        limit = (self.fullest(counted=False) + self.fullest(counted=True)) // 2
        said = f"with {limit // MIB} MiB a card"
        ran, how = self.by_weights(self.placed(Strategy.AUTO, limit, counted=False), limit)
        yield holds(title, "auto by weights runs out", not ran, why=f"{said}, {how}")
        for strategy in (Strategy.AUTO, Strategy.OPTIMAL):
            claim, placement = f"{strategy} by workload runs", self.placed(strategy, limit, counted=True)
            expandable = bool(tight(placement.devices))
            plan = f"{said}, {placement.offloaded // MIB} MiB offloaded; the plan says"
            if not placement.fits:
                yield holds(title, claim, False, why=f"{plan} that it does not fit")
                continue
            plan += f" {ONLY_EXPANDABLE}" if expandable else " that it fits by default"
            try:
                ran = self.runs(placement, limit, expandable=expandable)
            except NoSegmentsError as error:
                yield skipped(title, claim, f"{plan}, and {error.message}")
                continue
            yield holds(title, claim, ran, why=f"{plan}, and so it was run{'' if ran else ': out of memory'}")

    def by_weights(self, placement: Placement, limit: int) -> tuple[bool, str]:
        """Whether the job runs with the least that can be lost to gaps, and how that was tried."""
        try:
            return self.runs(placement, limit, expandable=True), "with expandable segments"
        except NoSegmentsError:
            return self.runs(placement, limit, expandable=False), "by default"

    def runs(self, placement: Placement, limit: int, *, expandable: bool) -> bool:
        """Whether the job runs so where tensors may have ``limit`` bytes of each card.

        Raises:
            NoSegmentsError: it should be with expandable segments, and there are none.
        """
        from devctl.loading.run.inputs import prepare
        from devctl.loading.weights.loader import main_device

        device_map = dict(placement.device_map)
        inputs = prepare(
            self.subject.source,
            self.subject.skeleton,
            prompt=None,
            new_tokens=self.job.new,
            trust_remote_code=False,
            batch_size=self.job.batch,
            context_length=self.job.context - self.job.new,
            padding=self.job.batch > 1,
        )
        module: Any = None
        with ExitStack() as stack:
            stack.enter_context(self.cards[0].running())
            for card in self.cards:
                stack.enter_context(card.segments(expandable=expandable))
            for card in self.cards:
                card.empty()
                stack.enter_context(card.limited(limit + card.reserved_now()))
            try:
                module = load_on(self.subject, device_map, self.ask.folder / "halfway")
                self.cards[0].tame(module)
                place_ = self.cards[main_device(module, device_map).id or 0].place
                work(module, inputs, place_, self.job.new + 1)
            except Exception as error:
                if not (is_out_of_memory(error) or "out of memory" in str(error)):
                    raise
                release(error)
                return False
            finally:
                module = None
                gc.collect()
        return True


def halfway(ask: Ask, subject: Subject, cards: Sequence[Card], job: Job) -> Halfway:
    """The same, with the workload traced; libraries have taken what they keep."""
    import torch

    for card in cards:
        card.warm((getattr(torch, subject.dtype), torch.float32))
    asked = subject.question(cards[0], job)
    return Halfway(ask, subject, cards, job, asked.footprints.of(asked.workload))
