"""Where transformers' own plan is worse than it need be, on real models: what it does, and what ``optimal`` does."""

import functools

import pytest

from devctl.models.files.resolve import resolve
from devctl.models.skeleton import read_skeleton
from devctl.placement import Strategy, place
from devctl.placement.budget import from_max_memory, parse_max_memory
from tests.conftest import CONFIGS
from tests.marks import one_in

GIB = 2**30


@functools.cache
def tree(name):
    return read_skeleton(resolve(str(CONFIGS / name))).tree


def box(number, size):
    return ",".join(f"{i}={size}GiB" for i in range(number)) + ",cpu=2000GiB"


@pytest.mark.parametrize(
    ("model", "machine", "strategy", "spilled"),
    one_in(
        2,
        [
            # the share of each GPU ignores that one is larger
            ("llama-3.1-70b", "0=141GiB,1=24GiB,cpu=200GiB", Strategy.AUTO, 41.8),
            # room for the largest offloaded layer is kept, though nothing need be offloaded
            ("llama-3.1-8b", box(2, 8), Strategy.AUTO, 0.98),
            # balanced_low_0 sizes the first GPU exactly, and then reserves from it
            ("llama-3.1-70b", box(2, 80), Strategy.BALANCED_LOW_0, 3.55),
            ("llama-3.1-405b", box(8, 100), Strategy.BALANCED_LOW_0, 45.5),
        ],
    ),
)
def test_what_spills_and_need_not(model, machine, strategy, spilled):
    budgets = from_max_memory(parse_max_memory([machine]))
    theirs = place(tree(model), budgets, strategy)
    assert theirs.offloaded / GIB == pytest.approx(spilled, abs=0.05)
    assert any("are offloaded that need not be: --strategy optimal keeps them" in note for note in theirs.notes)
    best = place(tree(model), budgets, Strategy.OPTIMAL)
    assert best.offloaded == 0
    assert all(use.used <= use.budget for use in best.devices if use.budget is not None)


def test_what_is_lopsided_and_need_not_be():
    budgets = from_max_memory(parse_max_memory([box(8, 40)]))
    theirs = place(tree("mixtral-8x7b"), budgets, Strategy.AUTO)
    assert theirs.devices[7].used == 0
    best = place(tree("mixtral-8x7b"), budgets, Strategy.OPTIMAL)
    assert all(use.used for use in best.devices[:8])
    assert best.fullest < theirs.fullest
