"""What a process takes of a board before its first tensor, and what its libraries take after that."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from tests.boards.asking import Ask
from tests.boards.cards import Card
from tests.boards.records import MIB, PROCESS, Board, Cell, Row, Step, Verdict, told

ROUND = 16 * MIB
"""What the constant is rounded up to, as those are that are known."""

_BESIDE = "{}, less what torch's allocator reserved"


def context(ask: Ask) -> Iterator[Row]:
    """Bytes after each thing that makes a library take some, tensors not counted; and the constant for this board."""
    import torch

    card = ask.card
    most = 0
    with card.running():
        torch.zeros(1, device=card.place)  # which makes the context
        for title, make in _stages(card):
            make()
            card.wait()
            held, free, workspaces = card.held(), card.free(), card.allocated()
            # what torch's allocator holds is taken off, and what it gave to libraries is put back: no tensor is there
            by_driver = None if held.nbytes is None else held.nbytes - card.reserved_now()
            by_torch = card.room() - free - card.reserved_now()
            yield told("a process", f"{title}, by the driver", by_driver, unit="B", why=_BESIDE.format(held.how))
            yield told("a process", f"{title}, by mem_get_info", by_torch, unit="B", why=_BESIDE.format("the board's"))
            yield told(
                "a process", f"{title}, workspaces", workspaces, unit="B", why="torch allocated them for libraries"
            )
            most = max(most, (by_driver if by_driver is not None else by_torch) + workspaces)
    yield constant(most, card.overhead(), card.board())


def constant(measured: int, counted: int, board: Board) -> Row:
    """What a plan counts for the libraries, workspaces included, which has to be enough and may be 300 MiB too much.

    It tells the line that goes into `devctl.planning.question.OVERHEAD` for this board.
    """
    rounded = -(-measured // ROUND) * ROUND
    whole = -(-measured // MIB)
    is_met = measured <= counted <= measured + PROCESS
    return Row(
        subject="a process",
        claim="the constant of a plan",
        verdict=Verdict.MET if is_met else Verdict.MISSED,
        predicted=counted,
        measured=measured,
        unit="B",
        target="enough",
        error=counted / measured - 1 if measured else None,
        why=f'for the table: "{board.compute_capability}": {rounded // MIB} * 2**20,  # {board.name}, {whole}',
    )


def _stages(card: Card) -> Iterator[tuple[str, Callable[[], object]]]:
    import torch

    kept = []

    def product(dtype: torch.dtype) -> None:
        one = torch.ones((512, 512), dtype=dtype, device=card.place)
        kept.append(one @ one)
        kept.clear()

    def attention() -> None:
        one = torch.ones((1, 8, 512, 64), dtype=torch.bfloat16, device=card.place)
        torch.nn.functional.scaled_dot_product_attention(one, one, one, is_causal=True)

    def convolution() -> None:
        one = torch.ones((1, 3, 224, 224), dtype=torch.bfloat16, device=card.place)
        torch.nn.functional.conv2d(one, torch.ones((16, 3, 16, 16), dtype=torch.bfloat16, device=card.place), stride=16)

    yield "context", lambda: None
    yield "first product in bf16", partial(product, torch.bfloat16)
    yield "first product in fp16", partial(product, torch.float16)
    yield "first product in fp32", partial(product, torch.float32)
    yield "first attention", attention
    yield "first convolution", convolution


def _cells(ask: Ask) -> Iterator[Cell]:
    yield Cell(subject="a process", work=partial(context, ask))


STEPS = (
    Step(
        name="overhead/context",
        what="context, and what libraries take with their first product, attention and convolution",
        seconds=20,
        rank=1,
        cells=_cells,
    ),
)
