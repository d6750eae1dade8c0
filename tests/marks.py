"""Marks of single cases, and how many examples are tried."""

import hypothesis
import pytest


def slow(*values):
    """The same values, as cases of ``parametrize`` that are only run with the slow tests; a tuple is of several."""
    return [pytest.param(*(v if isinstance(v, tuple) else (v,)), marks=pytest.mark.slow) for v in values]


def one_in(count, values, *, whole=False):
    """All of the values, as cases of which one in ``count`` is among the fast tests, the first to begin with.

    A case that is slow already stays so, and isn't counted. A tuple is of several values, unless it is said to be a
    value as a ``whole``.
    """
    cases, plain = [], 0
    for value in values:
        is_case = isinstance(value, type(pytest.param()))
        if is_case and value.marks:
            cases.append(value)
            continue
        if plain % count:
            cases += slow(value.values if is_case else (value,) if whole else value)
        else:
            cases.append(value)
        plain += 1
    return cases


def examples(count):
    """So many examples of hypothesis; of the fast tests alone the share that its profile has of a hundred."""
    return count * hypothesis.settings().max_examples // 100
