"""Ways out are true, and the nearest there are: each is tried, and a little less is tried."""

import re

from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from devctl.devices import Device
from devctl.placement.budget import Budgets
from devctl.placement.optimal import ways_out as ways
from devctl.placement.optimal.ways_out import fits, ways_out
from tests.marks import examples
from tests.trees import layers

SIZES = st.lists(st.sampled_from([4, 10, 30]), min_size=2, max_size=8)


def budgets(gpus, cpu=None):
    devices = [*((Device.gpu(i), size) for i, size in enumerate(gpus)), *([] if cpu is None else [(Device.cpu(), cpu)])]
    return Budgets(devices=tuple(devices), given=True)


@settings(max_examples=examples(40), deadline=None)
@given(SIZES, st.integers(1, 40), st.integers(1, 3))
def test_larger_gpus(sizes, each, count):
    model = layers(*sizes)
    given_budgets = budgets([each] * count)
    assume(not fits(model, given_budgets, cpu_may_hold=False))
    line = next(line for line in ways_out(model, given_budgets, cpu_may_hold=False) if "have to hold" in line)
    needed = int(re.search(r"hold (\d+) B", line)[1])
    assert fits(model, budgets([needed] * count), cpu_may_hold=False)
    assert not fits(model, budgets([needed - 1] * count), cpu_may_hold=False)


@settings(max_examples=examples(40), deadline=None)
@example(sizes=[4, 30, 30, 30, 30, 30], gpus=[30])
@given(SIZES, st.lists(st.integers(1, 40), min_size=1, max_size=3))
def test_more_gpus(sizes, gpus):
    model = layers(*sizes)
    assume(not fits(model, budgets(gpus), cpu_may_hold=False))
    lines = [line for line in ways_out(model, budgets(gpus), cpu_may_hold=False) if "more GPU" in line]
    if not lines:  # no number of them would do, or more than anybody would buy
        most = [max(gpus)] * min(ways.MOST_MORE, ways.TIMES_MORE * len(gpus))
        assert not fits(model, budgets([*gpus, *most]), cpu_may_hold=False)
        return
    number = int(lines[0].split()[0])
    assert fits(model, budgets([*gpus, *[max(gpus)] * number]), cpu_may_hold=False)
    assert number == 1 or not fits(model, budgets([*gpus, *[max(gpus)] * (number - 1)]), cpu_may_hold=False)


def test_to_a_gpu_that_shares_the_ram_none_can_be_added():
    model, mac = layers(30, 30), Budgets(devices=((Device.mps(), 40),), given=True)
    for may in (True, False):
        (line,) = ways_out(model, mac, cpu_may_hold=may, of_host=[Device.mps()])
        assert line.startswith("mps would have to hold 60 B, 20 B more than it may, by --strategy optimal")
        assert line.endswith(", on a machine with more memory")
    assert "1 more GPU of 40 B" in " ".join(ways_out(model, mac, cpu_may_hold=False))


def test_beside_a_gpu_that_shares_the_ram_more_of_the_others_are_advised():
    both = budgets([40, 30])
    lines = ways_out(layers(30, 30, 30), both, cpu_may_hold=True, of_host=[Device.gpu(0)])
    assert not any(line.startswith("cpu") for line in lines)
    assert "1 more GPU of 30 B would hold the rest, by --strategy optimal" in lines


@settings(max_examples=examples(40), deadline=None)
@given(SIZES, st.lists(st.integers(0, 40), max_size=2), st.integers(0, 40))
def test_more_ram(sizes, gpus, cpu):
    model = layers(*sizes)
    assume(not fits(model, budgets(gpus, cpu), cpu_may_hold=True))
    line = next(line for line in ways_out(model, budgets(gpus, cpu), cpu_may_hold=True) if line.startswith("cpu"))
    needed = int(re.search(r"hold (\d+) B", line)[1])
    assert fits(model, budgets(gpus, needed), cpu_may_hold=True)
    assert not fits(model, budgets(gpus, needed - 1), cpu_may_hold=True)
