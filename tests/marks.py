"""Marks of single cases."""

import pytest


def slow(*values):
    """The same values, as cases of ``parametrize`` that are only run with the slow tests; a tuple is of several."""
    return [pytest.param(*(v if isinstance(v, tuple) else (v,)), marks=pytest.mark.slow) for v in values]


def one_in(count, values, *, whole=False):
    """All of the values, as cases of which one in ``count`` is among the fast tests, the first to begin with.

    A value that is a case already (``slow``) stays what it is, and isn't counted. A tuple is of several, unless it is
    said to be a value as a ``whole``.
    """
    cases, plain = [], 0
    for value in values:
        if isinstance(value, type(pytest.param())):
            cases.append(value)
            continue
        cases += slow((value,) if whole else value) if plain % count else [value]
        plain += 1
    return cases
