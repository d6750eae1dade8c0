"""Seconds: a load beside the disk's and the link's rates and a bare script, and tokens beside what is foretold."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from tests.benchmarks.load import BARE
from tests.boards import models
from tests.boards.asking import Ask
from tests.boards.cards import Card, devctl_device
from tests.boards.measuring import Make
from tests.boards.outside import ask, ask_devctl
from tests.boards.records import MIB, NOT_SIMULATED, Cell, Needs, Row, Step, equal, skipped, told
from tests.boards.reports import decode_rate, predicted_rate, report_of

TOKENS = 64
COPIED = 256 * MIB


def save(folder: Path, make: Make) -> None:
    """Write a checkpoint of random weights, once."""
    import torch

    if (folder / "config.json").exists():
        return
    model_class, config = make()
    config.dtype = torch.bfloat16
    torch.manual_seed(0)
    model_class(config).to(torch.bfloat16).eval().save_pretrained(folder)


def rates(card: Card, folder: Path) -> Iterator[Row]:
    """What devctl measures of the disk and the link, and what torch copies over that link."""
    done = ask_devctl("list", "--benchmark", "--json", "--offload-folder", str(folder))
    document = done.document()
    disk = next((each["read_speed"] for each in document["disks"] if each["use"] == "offload folder"), None)
    yield told("this box", "disk", disk, unit="B/s", why="read past the page cache, by devctl list --benchmark")
    device = str(devctl_device(card))
    link = next((gpu["host_to_device"] for gpu in document["accelerators"] if gpu["device"] == device), None)
    yield told(
        "this box", "link", copied(card), predicted=link, unit="B/s", why="by torch, beside devctl list --benchmark"
    )


def copied(card: Card) -> float:
    """Bytes a second that torch copies from pinned memory to the card; the best of five."""
    import torch

    sent = torch.empty(COPIED, dtype=torch.uint8, pin_memory=not card.simulated)
    best = 0.0
    with card.running():
        for _ in range(5):
            start = time.perf_counter()
            sent.to(card.place)
            card.wait()
            best = max(best, COPIED / (time.perf_counter() - start))
    return best


def load_rate(folder: Path, where: Mapping[str, int | str], *, beside: Mapping[str, float | None]) -> Iterator[Row]:
    """A load of the checkpoint in ``folder``, in bytes a second; and the whole command beside a bare script."""
    path = folder / "map.json"
    path.write_text(json.dumps(dict(where)), encoding="utf-8")
    start = time.perf_counter()
    done = ask_devctl("load", str(folder), "--map", str(path), "--max-new-tokens", "32", "--json")
    whole = time.perf_counter() - start
    report = report_of(done)
    yield equal("a load", "exit code", 0, done.code, why=done.said if done.code else "")
    rate = report["loaded_bytes"] / report["load_seconds"]
    known = {name: each for name, each in beside.items() if each}
    slowest = min(known.values(), default=None)
    why = ", ".join(f"{name} {each / 1e9:.3g} GB/s" for name, each in known.items())
    yield told("a load", "rate", rate, predicted=slowest, unit="B/s", why=f"in the page cache; measured: {why or '–'}")
    start = time.perf_counter()
    bare = ask([sys.executable, "-c", BARE, str(folder), str(path), "2"], seconds=240)
    seconds = time.perf_counter() - start
    if bare.code:
        yield skipped("a load", "the whole command", f"the bare script failed: {bare.said}")
        return
    yield told(
        "a load", "the whole command", whole, predicted=seconds, unit="s", why="predicted is a bare script's time"
    )


def decode(title: str, model: str, where: Mapping[str, int | str], folder: Path) -> Iterator[Row]:
    """Tokens a second of one sequence, beside what a plan for the objective latency foretells."""
    folder.mkdir(parents=True, exist_ok=True)
    path, report = folder / "map.json", folder / "plan.json"
    path.write_text(json.dumps(dict(where)), encoding="utf-8")
    done = ask_devctl(
        *("load", model, "--map", str(path), "--load-format", "dummy", "--max-new-tokens", str(TOKENS)),
        *("--repeat", "3", "--warmup", "1", "--json"),
    )
    found = decode_rate(report_of(done))
    planned = ask_devctl("plan", model, "--strategy", "optimal", "--objective", "latency", "--report", str(report))
    if planned.code:
        yield skipped(title, "tokens a second, foretold", planned.said)
        yield told(title, "tokens a second", found, unit="tokens/s")
        return
    notes: list[str] = json.loads(report.read_text(encoding="utf-8"))["notes"]
    yield told(
        title,
        "tokens a second",
        found,
        predicted=predicted_rate(notes),
        unit="tokens/s",
        why="the plan counts the reading of weights alone: a real run takes longer",
    )


def _of(rows: Iterator[Row], found: dict[str, Any]) -> Iterator[Row]:
    for row in rows:
        found[row.claim] = row.measured
        yield row


def _loading(asked: Ask) -> Iterator[Cell]:
    folder = asked.folder / "checkpoint"
    known: dict[str, Any] = {}

    def load() -> Iterator[Row]:
        if asked.card.simulated:
            yield skipped("a load", "rate", NOT_SIMULATED)
            return
        save(folder, partial(models.wide, "LlamaForCausalLM", num_hidden_layers=32, vocab_size=32_000))
        yield from load_rate(folder, {"": asked.card.index}, beside=known)

    yield Cell(subject="rates", work=lambda: _of(rates(asked.card, asked.folder), known))
    yield Cell(subject="a load", work=load)


def _decoding(asked: Ask) -> Iterator[Cell]:
    for name in ("tiny-llama", "llama-3.1-8b"):
        at = str(asked.checkout / "tests" / "configs" / name)
        work = partial(_decode, asked, name, at)
        yield Cell(subject=name, work=work)


def _decode(asked: Ask, name: str, at: str) -> Iterator[Row]:
    if asked.card.simulated:
        yield skipped(name, "tokens a second", NOT_SIMULATED)
        return
    yield from decode(name, at, {"": asked.card.index}, asked.folder / f"decode-{name}")


STEPS = (
    Step(
        name="speed/load",
        what="load's rate beside the disk's and the link's, and the command beside a bare script",
        seconds=80,
        rank=5,
        cells=_loading,
        needs=Needs(disk=4 * 2**30),
    ),
    Step(
        name="speed/decode",
        what="decoded tokens a second beside what the objective latency foretells",
        seconds=100,
        rank=5,
        cells=_decoding,
        needs=Needs(memory=20 * 2**30),
    ),
)
