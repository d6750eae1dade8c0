"""The fastest placement against every placement of one run a device, and its bound."""

from itertools import pairwise, product

from hypothesis import given, settings
from hypothesis import strategies as st

from devctl.placement.optimal import latency
from devctl.placement.optimal.latency import MOVE, fastest
from devctl.placement.optimal.solve import Row
from tests.marks import examples
from tests.placement.optimal.test_optimal import judge


def seconds(row, rates, devices):
    moves = sum(1 for here, there in pairwise(devices) if here != there)
    on, gpus = row.read or row.moved, len(rates) - 2
    taken = [(on if device < gpus else row.moved)[at] / rates[device] for at, device in enumerate(devices)]
    return sum(taken) + moves * MOVE


@settings(max_examples=examples(150), deadline=None)
@given(
    st.lists(st.sampled_from([1000, 3000, 7000]), min_size=1, max_size=6).map(tuple),
    st.lists(st.tuples(st.integers(0, 12_000), st.sampled_from([10**8, 4 * 10**8, 9 * 10**8])), min_size=1, max_size=3),
    st.none() | st.integers(0, 20_000),
    st.none() | st.lists(st.sampled_from([0, 10, 500, 1000]), min_size=6, max_size=6),
)
def test_no_run_each_is_faster(sizes, gpus, cpu, read):
    row = Row(held=sizes, moved=sizes, brought=sizes, read=None if read is None else tuple(read[: len(sizes)]))
    budgets, memory = [budget for budget, _ in gpus], [rate for _, rate in gpus]
    rates = [*memory, 10**7, 10**6]
    found = fastest(row, budgets, cpu, memory, 10**7, 10**6)
    assert judge(row, budgets, cpu, found.devices) is not None
    assert abs(found.seconds - seconds(row, rates, found.devices)) < 1e-9
    runs = []
    for devices in product(range(len(budgets) + 2), repeat=len(sizes)):
        judged = judge(row, budgets, cpu, devices)
        if judged is not None and judged[1] and (cpu is not None or len(budgets) not in devices):
            runs.append(seconds(row, rates, devices))
    assert found.seconds <= min(runs) + 1e-9
    assert found.bound <= found.seconds + 1e-9


def test_a_search_that_ends_early_fills_the_fastest_first(monkeypatch):
    monkeypatch.setattr(latency, "_STEPS", 1)
    row = Row(held=(5,) * 4, moved=(5,) * 4, brought=(5,) * 4)
    found = fastest(row, [20, 10, 10], None, [10, 30, 20], 1, 1)
    assert found.devices == (1, 1, 2, 2)


def test_what_is_not_read_takes_no_time_on_an_accelerator_and_is_brought_whole():
    row = Row(held=(100, 100), moved=(100, 100), brought=(100, 100), read=(10, 100))
    assert fastest(row, [200], None, [10], 1, 1).seconds == 11
    assert fastest(row, [100], 200, [10], 1, 1).devices in {(1, 1), (0, 1), (1, 0)}
    slow = fastest(row, [200, 200], None, [10, 20], 1, 1)
    assert slow.devices == (1, 1)
    assert slow.bound == 5.5
