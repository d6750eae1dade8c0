"""Weights, state and peaks: predicted beside what the allocator and the driver count."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial

from tests.boards import models
from tests.boards.asking import Ask
from tests.boards.measuring import Job, Loaded, Make, Subject, failure_to_load, load, open_subject, try_job
from tests.boards.models import ATTENTIONS, BATCHES, CONTEXTS, DTYPES, FAMILIES, JOBS, LARGE
from tests.boards.records import Cell, Row, Step, told

_RANKS = {"decoders": 3, "experts": 4, "windows": 6, "encoder-decoders": 7, "seeing": 7}


def architecture(ask: Ask, name: str, make: Make, dtype: str, jobs: Iterable[Job] = JOBS) -> Iterator[Row]:
    """One small architecture in one dtype: loaded once, and run on every job."""
    subject = open_subject(name, ask.folder / f"{name}-{dtype}", make, dtype)
    loaded = load(subject, ask.card)
    for job in jobs:
        yield from try_job(loaded, f"{name}, {dtype}, {job}", job)


def _family(family: str, ask: Ask) -> Iterator[Cell]:
    for name, make in models.small(family).items():
        for dtype in DTYPES:
            yield Cell(subject=f"{name}, {dtype}", work=partial(architecture, ask, name, make, dtype))


class Once:
    """A large model that is loaded when the first cell runs, and stays for the others."""

    def __init__(self, ask: Ask, name: str, attention: str) -> None:
        self.ask, self.name, self.attention = ask, name, attention
        self._subject: Subject | None = None
        self._loaded: Loaded | None = None
        self.said = ""

    def subject(self) -> Subject:
        """The model without weights."""
        if self._subject is None:
            make, self.said = models.large(self.name, self.ask.card.room())
            self._subject = open_subject(self.name, self.ask.folder / self.name, make, "bfloat16")
        return self._subject

    def run(self, title: str, job: Job) -> Iterator[Row]:
        """One job of it."""
        subject = self.subject()
        if self._loaded is None:
            try:
                self._loaded = load(subject, self.ask.card, self.attention)
            except Exception as error:
                if "out of memory" not in str(error):
                    raise
                yield failure_to_load(title, subject.predict(self.ask.card, job), error)
                return
        yield told(title, "cut down to", self.said)
        yield from try_job(self._loaded, title, job)


def _large(name: str, attention: str, ask: Ask) -> Iterator[Cell]:
    once = Once(ask, name, attention)
    for context in CONTEXTS:
        for batch in BATCHES:
            job = Job(context=context, new=2, batch=batch, attention=attention)
            title = f"{name}, {job}"
            yield Cell(subject=title, work=partial(once.run, title, job))


STEPS = (
    *(
        Step(
            name=f"peaks/{family}",
            what=f"{len(of_family)} architectures, {len(JOBS)} workloads, bf16 and fp16",
            seconds=20 + 20 * len(of_family),
            rank=_RANKS.get(family, 8),
            cells=partial(_family, family),
        )
        for family, of_family in FAMILIES.items()
    ),
    *(
        Step(
            name=f"peaks/{name}-{attention}",
            what=f"{name} cut to the board: {len(CONTEXTS)} contexts × {len(BATCHES)} batches, {attention}",
            seconds=200,
            rank=2 if (name, attention) == (LARGE[0], ATTENTIONS[0]) else 5 + at,
            cells=partial(_large, name, attention),
        )
        for at, attention in enumerate(ATTENTIONS)
        for name in LARGE
    ),
)
