"""Steps of the instrument on simulated devices, told as JSON; a process of its own, as the devices stay registered.

``python -m tests.boards.on_simulated CASE ...``
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from tests import small_models
from tests.boards import models, pretended
from tests.boards.asking import Ask, try_all
from tests.boards.journal import read
from tests.boards.measuring import Job, Make, Predicted, load, open_subject, run, try_job
from tests.boards.pretended import PretendedCard
from tests.boards.records import MIB, Cell, Row
from tests.boards.steps import edge, overhead, peaks, placement, several

_SEES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
_READS = {**_SEES, "vocab_size": 512, "max_position_embeddings": 256, "pad_token_id": 0, "model_type": "llama"}


def _llava() -> Any:
    return models.wide(
        "LlavaForConditionalGeneration",
        text_config=_READS,
        vision_config={**_SEES, "image_size": 56, "patch_size": 14, "model_type": "clip_vision_model"},
        image_token_id=511,
        vision_feature_layer=-1,
    )


TINY: dict[str, Make] = {"llava": _llava}
_MEASURED: dict[str, Make] = dict(small_models.MEASURED)
TINY |= {name: _MEASURED[name] for name in ("llama", "mixtral", "t5", "bert")}
JOBS = (Job(context=192), Job(context=70, new=6, batch=3), Job(context=96, attention="eager"))


def of_peaks(ask: Ask, name: str) -> Iterable[Row]:
    return peaks.architecture(ask, name, TINY[name], "float32", JOBS[:2])


def eager(ask: Ask) -> Iterable[Row]:
    """The scores are written out, which takes more than attention in tiles."""
    subject = open_subject("llama", ask.folder / "eager", TINY["llama"], "float32")
    yield from try_job(load(subject, ask.card, "eager"), "llama, eager", JOBS[2])


def no_room(ask: Ask) -> Iterable[Row]:
    """What is planned not to fit runs out of memory, and so does what a plan says of less than it takes."""
    subject = open_subject("llama", ask.folder / "room", TINY["llama"], "float32")
    loaded = load(subject, ask.card)
    job, card = Job(context=512), cast(PretendedCard, ask.card)
    predicted = subject.predict(card, job)
    card.said_room = predicted.whole - MIB
    with card.limited(predicted.peak - MIB):
        yield from try_job(loaded, "one MiB less", job)
        card.said_room = pretended.TOTAL
        yield from try_job(loaded, "planned for more than there is", job)
    card.said_room = predicted.whole - MIB
    yield from try_job(loaded, "refused, and runs", job)
    card.said_room = pretended.TOTAL


def no_weights(ask: Ask) -> Iterable[Row]:
    """A large model whose weights do not go onto the card."""
    once = peaks.Once(ask, "tiny", "sdpa")
    subject = open_subject("tiny", ask.folder / "tiny", TINY["llama"], "float32")
    once.subject = lambda: subject  # type: ignore[method-assign]
    with ask.card.limited(4 * MIB):
        yield from once.run("no weights", JOBS[0])
    yield from once.run("weights", JOBS[0])


def raising(ask: Ask) -> Iterable[Row]:
    """Cells of which one raises, one runs out of memory, and both others are tried."""
    import torch

    def fail() -> Iterable[Row]:
        yield from ()
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore of it")

    def exhaust() -> Iterable[Row]:
        with ask.card.running(), ask.card.limited(MIB):
            torch.zeros(MIB, device=ask.card.place)
        yield from ()

    cells = (
        Cell(subject="before", work=partial(of_peaks, ask, "bert")),
        Cell(subject="fails", work=fail),
        Cell(subject="out of memory", work=exhaust),
        Cell(subject="after", work=partial(eager, ask)),
    )
    path = ask.folder / "journal.jsonl"
    try_all(iter(cells), path, ask.cards)
    try_all(iter(cells), path, ask.cards)  # nothing is tried twice
    assert read(path).is_done
    return read(path).rows


def wrong_plan(ask: Ask) -> Iterable[Row]:
    """A plan that is wrong on purpose is found out."""
    subject = open_subject("llama", ask.folder / "wrong", TINY["llama"], "float32")
    loaded = load(subject, ask.card)
    right = subject.predict(ask.card, JOBS[0])
    measured = run(loaded, JOBS[0])
    from tests.boards.measuring import judged

    def told(title: str, **changed: int | bool) -> Iterable[Row]:
        predicted: Predicted = replace(right, **changed)
        return judged(title, predicted, measured, loaded.weights, room=1 << 40)

    yield from told("right")
    yield from told("weights", weights=right.weights + 1)
    yield from told("state", state=right.state - 1)
    yield from told("peak", peak=right.peak * 97 // 100)
    yield from told("process", whole=right.whole + 301 * MIB)


def of_edge(ask: Ask) -> Iterable[Row]:
    for expandable in (False, True):
        yield from edge.edge(ask, "llama", TINY["llama"], expandable=expandable, dtype="float32", beside=6 * MIB)


def of_placement(ask: Ask, name: str) -> Iterable[Row]:
    return placement.model(ask, name, small_models.TINY[name], dtype="float32")


def on_two(ask: Ask) -> Iterable[Row]:
    return several.over_all(ask, "llama", small_models.TINY["llama"], dtype="float32")


def runs_out(ask: Ask, where: str) -> Iterable[Row]:
    job = Job(context=192, new=6, batch=2)
    module = {"one": placement, "two": several}[where]
    found: Iterable[Row] = module.runs_out(ask, "llama", small_models.BOXED["llama"], dtype="float32", job=job)
    return found


def whole_process(ask: Ask) -> Iterable[Row]:
    return overhead.context(ask)


CASES: dict[str, Callable[[Ask], Iterable[Row]]] = {
    **{f"peaks {name}": partial(of_peaks, name=name) for name in TINY},
    "eager": eager,
    "no room": no_room,
    "no weights": no_weights,
    "raising": raising,
    "wrong plan": wrong_plan,
    "edge": of_edge,
    "overhead": whole_process,
    "placement llama": partial(of_placement, name="llama"),
    "placement mixtral": partial(of_placement, name="mixtral"),
    "runs out on one": partial(runs_out, where="one"),
    "runs out on two": partial(runs_out, where="two"),
    "on two": on_two,
    "placement t5": partial(of_placement, name="t5"),
}


def main() -> None:
    cards = pretended.open_cards()
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        ask = Ask(cards=cards, folder=Path(folder), checkout=Path(__file__).parents[2])
        for name in sys.argv[1:] or CASES:
            found[name] = [asdict(row) for row in CASES[name](ask)]
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
