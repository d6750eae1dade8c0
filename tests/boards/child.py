"""The process of one step: ``python -m tests.boards.child STEP JOURNAL``, or ``--describe`` for the box as JSON."""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import signal
import sys
import tempfile
import warnings
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

from tests.boards.asking import Ask, try_all
from tests.boards.records import Board, Box
from tests.boards.steps import find_step

PR_SET_PDEATHSIG = 1
CHECKOUT = Path(__file__).parents[2]


def end_with_parent() -> None:
    """Let this process end when the one that started it does, even where that is killed: two must not write at once."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def cards_module(on: str) -> ModuleType:
    """Where cards come from: "cuda", or "simulated"."""
    if on == "simulated":
        from tests.boards import pretended

        return pretended
    from tests.boards import cards

    return cards


def run(name: str, path: Path, on: str) -> None:
    """Try the cells of the step called ``name``, and write what they find to the journal at ``path``."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    # accelerators do not warm up a cache that a plan knows nothing of
    warnings.simplefilter("ignore")
    opened = cards_module(on).open_cards()
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory(prefix="devctl-boards-") as folder:
        ask = Ask(cards=opened, folder=Path(folder), checkout=CHECKOUT)
        try_all(find_step(name).cells(ask), path, opened)


def parse_box(text: str) -> Box:
    """What ``--describe`` printed.

    Raises:
        ValueError: it is no box.
    """
    try:
        data = json.loads(text)
        return Box(**{**data, "boards": tuple(Board(**board) for board in data["boards"])})
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a box: {error}") from None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", nargs="?")
    parser.add_argument("journal", nargs="?", type=Path)
    parser.add_argument("--describe", action="store_true")
    parser.add_argument("--on", default="cuda", choices=("cuda", "simulated"))
    given = parser.parse_args()
    end_with_parent()
    if given.describe:
        json.dump(asdict(cards_module(given.on).describe()), sys.stdout)
    else:
        run(given.step, given.journal, given.on)


if __name__ == "__main__":
    main()
