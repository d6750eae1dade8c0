"""Maps over a board, the CPU and the disk: tensors where the map says, and outputs as on the CPU."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from devctl.placement import Strategy, place
from devctl.placement.placement import to_hf
from tests.boards import models
from tests.boards.asking import Ask
from tests.boards.measuring import Job, Make, Subject, open_subject
from tests.boards.outside import ask_devctl
from tests.boards.proving import Proofs, budgets, by_every_strategy, halfway
from tests.boards.records import NOT_SIMULATED, Cell, Needs, Row, Step, skipped
from tests.boards.reports import of_load

MODELS = {
    "llama": ("decoders", "LlamaForCausalLM"),
    "mixtral": ("experts", "MixtralForCausalLM"),
    "t5": ("encoder-decoders", "T5ForConditionalGeneration"),
}
HALF, SOME = 0.5, 0.3
"""Of the weights, what the board may hold, and the CPU; the rest is on disk."""

JOB = Job(context=1024, new=4, batch=4)


def model(ask: Ask, name: str, make: Make, *, dtype: str = "bfloat16") -> Iterator[Row]:
    """One model on the first board, the CPU and the disk, by every strategy."""
    subject = open_subject(name, ask.folder / f"placement-{name}", make, dtype)
    whole = _whole(subject)
    proofs = Proofs(subject, ask.cards[:1], ask.folder / f"disk-{name}")
    yield from by_every_strategy(proofs, name, budgets(ask.cards[:1], (HALF,), whole, int(whole * SOME)))


def _whole(subject: Subject) -> int:
    return subject.skeleton.tree.index.held[""]


def runs_out(ask: Ask, name: str, make: Make, *, dtype: str = "bfloat16", job: Job = JOB) -> Iterator[Row]:
    """Where transformers' default runs out of memory, and a plan that counts the workload does not."""
    subject = open_subject(name, ask.folder / f"halfway-{name}", make, dtype)
    yield from halfway(ask, subject, ask.cards[:1], job).rows(f"{name} on a board and the CPU")


def command(ask: Ask, name: str, make: Make) -> Iterator[Row]:
    """``devctl load --verify`` on a map over the board, the CPU and the disk."""
    if ask.card.simulated:
        yield skipped(name, "devctl load --verify", NOT_SIMULATED)
        return
    folder = ask.folder / f"command-{name}"
    subject = open_subject(name, folder, make, "bfloat16")
    whole = _whole(subject)
    placement = place(subject.skeleton.tree, budgets(ask.cards[:1], (HALF,), whole, int(whole * SOME)), Strategy.AUTO)
    device_map = to_hf(placement.device_map)
    yield from by_command(f"{name}, devctl load", folder, device_map, "bf16", workspaces=ask.card.workspaces())


def by_command(
    title: str, folder: Path, device_map: Mapping[str, int | str], dtype: str, *, workspaces: int = 0
) -> Iterator[Row]:
    """What ``devctl load --verify`` says of the model in ``folder`` with random weights on a map."""
    path = folder / "map.json"
    path.write_text(json.dumps(dict(device_map)), encoding="utf-8")
    done = ask_devctl(
        *("load", str(folder), "--map", str(path), "--dtype", dtype),
        *("--load-format", "dummy", "--verify", "--json"),
    )
    yield from of_load(title, done, workspaces=workspaces)


def _cells(name: str, ask: Ask) -> Iterator[Cell]:
    family, class_name = MODELS[name]
    make = models.small(family)[class_name]
    yield Cell(subject=f"{name}, every strategy", work=partial(model, ask, name, make))
    if name != "t5":
        yield Cell(subject=f"{name}, where auto runs out", work=partial(runs_out, ask, name, make))
    yield Cell(subject=f"{name}, devctl load", work=partial(command, ask, name, make))


STEPS = tuple(
    Step(
        name=f"placement/{name}",
        what=f"{class_name} over a board, the CPU and the disk by every strategy, and where auto runs out of memory",
        seconds=90,
        rank=3 if name == "llama" else 6,
        cells=partial(_cells, name),
        needs=Needs(disk=2 * 2**30),
    )
    for name, (_, class_name) in MODELS.items()
)
