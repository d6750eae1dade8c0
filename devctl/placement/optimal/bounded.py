"""What the searches for the best placement share: bounded work, and the smallest largest fraction."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeVar

_T = TypeVar("_T")

_HALVINGS = 20


class TooMuchWorkError(Exception):
    """A search took more steps than it was given."""


@dataclass(slots=True)
class Work:
    """Steps that a search may still take: counted, not timed, so that its answer is always the same."""

    left: int

    def take(self, steps: int) -> None:
        """Spend ``steps``.

        Raises:
            TooMuchWorkError: they are not there.
        """
        self.left -= steps
        if self.left < 0:
            raise TooMuchWorkError


def limits_at(budgets: Sequence[int], fraction: Fraction) -> list[int]:
    """The most bytes on each device that are no more than ``fraction`` of its budget."""
    return [budget * fraction.numerator // fraction.denominator for budget in budgets]


def below(budgets: Sequence[int], fraction: Fraction) -> list[int]:
    """The most bytes on each device that are less than ``fraction`` of its budget."""
    return [max(0, (budget * fraction.numerator - 1) // fraction.denominator) for budget in budgets]


def largest_fraction(budgets: Sequence[int], used: Sequence[int]) -> Fraction:
    """The used part of the device that is fullest; 0 where nothing is used."""
    most, of = 0, 1
    for u, b in zip(used, budgets, strict=True):
        if u * of > most * b:
            most, of = u, b
    return Fraction(most, of)


def smallest_fraction(
    budgets: Sequence[int],
    first: _T,
    least: Fraction,
    fraction_of: Callable[[_T], Fraction],
    solve: Callable[[list[int]], _T | None],
) -> tuple[_T, Fraction | None]:
    """The solution whose fullest device is least full.

    Args:
        first: any solution.
        least: a fraction that no solution is below.
        solve: a solution that puts no more than the given bytes on each device; None where there is none. It may raise
            `TooMuchWorkError`.

    Returns:
        The best solution found; and, where the search ended before it was sure, a fraction that none is below.
    """
    best, low = first, least
    try:
        if fraction_of(best) > least and (found := solve(limits_at(budgets, least))) is not None:
            return found, None
        for _ in range(_HALVINGS):
            middle = Fraction(int((low + fraction_of(best)) / 2 * 2**32), 2**32)
            if not low < middle < fraction_of(best):
                break
            if (found := solve(limits_at(budgets, middle))) is not None:
                best = found
            else:
                low = middle
        while fraction_of(best) > least and (found := solve(below(budgets, fraction_of(best)))) is not None:
            best = found
    except TooMuchWorkError:
        return best, low
    return best, None
