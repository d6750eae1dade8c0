"""Loops over a text, cut short: a loop of ten thousand equal rounds holds no more than its first and its last.

Linear attention and state spaces go over a text token by token, or chunk by chunk, where no kernel does it. Such a loop
calls ``range``, so what stands for ``range`` in the model's own code gives the first rounds and the last, with the
numbers that they have. What a round leaves behind, like a piece of a list that is joined after the loop, is held for
the rounds between as well. Whether that is the same as all rounds is for the caller to check, on a text so short that
all can run. Imports torch: to be imported inside functions.
"""

from __future__ import annotations

import builtins
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

_FIRST, _LAST = 4, 3
"""Rounds that run: what one leaves behind is seen once those before it hold what all hold."""
FEWEST = _FIRST + _LAST + 1
"""Rounds of the shortest loop that can be cut."""
MANY = 64
"""Rounds of a loop that is cut where nothing else is asked for."""

JOINS = (torch.stack, torch.cat, torch.concat)


class Loops:
    """What stands for ``range`` while a model reads ``tokens`` tokens.

    Attributes:
        strides: tokens to a round, of the loops that were cut.
    """

    def __init__(self, tokens: int, held: Callable[[], int], fewest: int) -> None:
        """Cut the loops of ``fewest`` rounds and more; ``held`` says how many bytes are alive."""
        self.strides: set[int] = set()
        self._tokens = tokens
        self._held = held
        self._fewest = fewest
        self._skipped = 0
        self._is_open = False
        self._between: Any = None

    def __call__(self, *bounds: Any) -> Any:
        rounds = builtins.range(*bounds)
        stride = _stride(self._tokens, len(rounds))
        if len(rounds) < self._fewest or stride is None:
            return rounds
        self.strides.add(stride)
        return self._cut(rounds)

    def _cut(self, rounds: range) -> Iterator[int]:
        left = 0
        for number in rounds[:_FIRST]:
            before = self._held()
            yield number
            left = self._held() - before
        self._skipped = len(rounds) - _FIRST - _LAST
        self._is_open = True
        if left > 0:  # of a dtype that is no integer's: those are real
            self._between = torch.empty(left * self._skipped, dtype=torch.float8_e4m3fn)
        yield from rounds[-_LAST:]

    def join(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor | None:
        """The pieces of a loop that was cut, joined as if it had not been; None for any other call of ``func``."""
        pieces: Sequence[torch.Tensor] = args[0] if args else kwargs.get("tensors", ())
        if not self._is_open or func not in JOINS or len(pieces) != _FIRST + _LAST:
            return None
        dim = args[1] if len(args) > 1 else kwargs.get("dim", 0)
        shape = list(pieces[0].shape)
        if func is torch.stack:
            shape.insert(dim if dim >= 0 else len(shape) + 1 + dim, len(pieces) + self._skipped)
        else:
            shape[dim] = sum(piece.shape[dim] for piece in pieces) + self._skipped * pieces[2].shape[dim]
        pieces[2].of_rounds_between = self._between  # type: ignore[attr-defined] # which lives as long as the pieces
        self._between, self._is_open = None, False
        return pieces[0].new_empty(shape)


def _stride(tokens: int, rounds: int) -> int | None:
    """Tokens to a round of a loop over ``tokens``: a power of two; None for a loop over something else."""
    if rounds < 1:
        return None
    stride = 1 << max(0, round(tokens / rounds) - 1).bit_length()
    return stride if abs(rounds * stride - tokens) <= stride else None


@contextmanager
def standing_in(model: torch.nn.Module, loops: Loops | None) -> Iterator[None]:
    """Let ``loops`` stand for ``range`` in the files that the modules of ``model`` are defined in."""
    if loops is None:
        yield
        return
    names = {type(module).__module__ for module in model.modules()}
    places = [vars(sys.modules[name]) for name in names if not name.startswith("torch.") and name in sys.modules]
    before = [(place, place["range"]) for place in places if "range" in place]
    for place in places:
        place["range"] = loops
    try:
        yield
    finally:
        for place in places:
            del place["range"]
        for place, value in before:
            place["range"] = value
