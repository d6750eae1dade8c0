"""Two boards or more: copies between them, maps over all, and ranks over NCCL."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import permutations
from pathlib import Path
from typing import Any

from tests.boards import models
from tests.boards.asking import Ask
from tests.boards.cards import devctl_device
from tests.boards.measuring import Job, Make, open_subject
from tests.boards.outside import ask_devctl
from tests.boards.proving import Proofs, budgets, by_every_strategy, halfway
from tests.boards.records import Cell, Needs, Row, Step, equal, holds, told
from tests.boards.steps.inventory import listed

ROOM = 1.3
"""What all boards together may hold of a model, so that it goes onto them, and onto no one alone."""


def copies(ask: Ask) -> Iterator[Row]:
    """Random bytes from each board to each other: every one that arrived, beside every one that was sent."""
    from devctl.loading.proofs.copies import check_copies

    for found in check_copies([devctl_device(card) for card in ask.cards]):
        title = f"{found.source} to {found.target}"
        yield equal(title, f"bytes of {found.nbytes >> 20} MiB that changed", 0, found.changed)


def peers(ask: Ask) -> Iterator[Row]:
    """Which board can read which other's memory: devctl's list beside torch."""
    import torch

    inventory = listed()
    links = inventory.links
    by_device = {inventory.accelerators[at].device: row for row, at in enumerate(links.accelerators)}
    for one, other in permutations(ask.cards, 2):
        here, there = devctl_device(one), devctl_device(other)
        title = f"{here} to {there}"
        known = here in by_device and there in by_device
        listed_ = links.p2p[by_device[here]][by_device[there]] if known else None
        yield equal(title, "peer access", listed_, torch.cuda.can_device_access_peer(one.index, other.index))
        path = links.path[by_device[here]][by_device[there]] if known else None
        yield told(title, "path", None if path is None else str(path))


def over_all(ask: Ask, name: str, make: Make, *, dtype: str = "bfloat16") -> Iterator[Row]:
    """One model over all boards, by every strategy; and with too little for all of it, the rest on the CPU."""
    subject = open_subject(name, ask.folder / f"all-{name}", make, dtype)
    whole = subject.skeleton.tree.index.held[""]
    proofs = Proofs(subject, ask.cards, ask.folder / f"all-disk-{name}")
    each = ROOM / len(ask.cards)
    shares = (each,) * len(ask.cards)
    yield from by_every_strategy(proofs, f"{name} over all boards", budgets(ask.cards, shares, whole, whole))
    less = tuple(share / 2 for share in shares)
    yield from by_every_strategy(proofs, f"{name} over all boards and the CPU", budgets(ask.cards, less, whole, whole))


def runs_out(ask: Ask, name: str, make: Make, *, dtype: str = "bfloat16", job: Job | None = None) -> Iterator[Row]:
    """Where transformers' default runs out of memory on one of two boards, and a plan that counts does not."""
    subject = open_subject(name, ask.folder / f"out-{name}", make, dtype)
    asked = job or Job(context=1024, new=4, batch=4)
    yield from halfway(ask, subject, ask.cards[:2], asked).rows(f"{name} on two boards and the CPU")


def ranks(ask: Ask, kind: str, make: Make, *, boards: str | None = None) -> Iterator[Row]:
    """Two ranks of one model: planned, started by ``devctl load`` on this machine, and held against one process.

    Args:
        kind: "tp" or "pp".
        boards: like "2x24GiB"; None is the first two of this machine.
    """
    folder = ask.folder / f"ranks-{kind}"
    _save(folder, make)
    size = f"2x{ask.card.room() // 2**20}MiB" if boards is None else boards
    where = ("--devices", size, "--tp", "2") if kind == "tp" else ("--devices", f"here:{size}")
    planned = ask_devctl("plan", str(folder), *where, "--context-length", "256")
    title = f"{kind} over two ranks"
    yield equal(title, "plan's exit code", 0, planned.code, why=planned.said if planned.code else "")
    if planned.code:
        return
    plan = folder / f"{kind}.json"
    plan.write_text(planned.out, encoding="utf-8")
    done = ask_devctl("load", str(folder), "--map", str(plan), "--json", seconds=300)
    backend = "gloo" if ask.card.simulated else "nccl"
    yield from of_ranks(title, done.code, done.said, done.document() if done.out else None, backend)


def of_ranks(title: str, code: int, said: str, report: Any, backend: str) -> Iterator[Row]:
    """What became of a load over ranks."""
    yield equal(title, "load's exit code", 0, code, why="" if code == 0 else said)
    if report is None:
        return
    yield equal(title, "backend", backend, str(report["backend"]))
    yield holds(title, "tokens and logits as in one process", report["ok"] is True, why=str(report["reference_said"]))


def _save(folder: Path, make: Make) -> None:
    import torch

    model_class, config = make()
    config.dtype = torch.bfloat16
    torch.manual_seed(0)
    model_class(config).to(torch.bfloat16).eval().save_pretrained(folder)


def _pairs(ask: Ask) -> Iterator[Cell]:
    yield Cell(subject="copies", work=partial(copies, ask))
    yield Cell(subject="peers", work=partial(peers, ask))


def _all(ask: Ask) -> Iterator[Cell]:
    llama = models.small("decoders")["LlamaForCausalLM"]
    mixtral = models.small("experts")["MixtralForCausalLM"]
    yield Cell(subject="llama over all", work=partial(over_all, ask, "llama", llama))
    yield Cell(subject="llama, where auto runs out", work=partial(runs_out, ask, "llama", llama))
    yield Cell(subject="mixtral over all", work=partial(over_all, ask, "mixtral", mixtral))


def _ranks(ask: Ask) -> Iterator[Cell]:
    llama = models.small("decoders")["LlamaForCausalLM"]
    for kind in ("tp", "pp"):
        yield Cell(subject=kind, work=partial(ranks, ask, kind, llama))


STEPS = (
    Step(
        name="placement/pairs",
        what="copies and peer access between every two boards",
        seconds=40,
        rank=2,
        cells=_pairs,
        needs=Needs(boards=2),
    ),
    Step(
        name="placement/all-boards",
        what="maps over all boards by every strategy, and where auto runs out of memory on two",
        seconds=150,
        rank=3,
        cells=_all,
        needs=Needs(boards=2, disk=2 * 2**30),
    ),
    Step(
        name="placement/ranks",
        what="tensor and pipeline parallelism over two boards by NCCL, beside one process",
        seconds=120,
        rank=4,
        cells=_ranks,
        needs=Needs(boards=2, disk=2 * 2**30),
    ),
)
