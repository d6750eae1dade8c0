"""Marks of single cases."""

import pytest


def slow(*values):
    """The same values, as cases of ``parametrize`` that are only run with the slow tests; a tuple is of several."""
    return [pytest.param(*(v if isinstance(v, tuple) else (v,)), marks=pytest.mark.slow) for v in values]
