"""Whole layers, held against every cut that there is."""

from fractions import Fraction
from itertools import combinations_with_replacement

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devctl.devices import Device
from devctl.placement.budget import Budgets
from devctl.placement.whole_layers import Cut, Part, WholeLayers, cut_layers, place_layers

CPU = Device.cpu()


def gpu(number):
    return Device.gpu(number)


def budgets(*gpus, cpu=None):
    devices = [(gpu(number), size) for number, size in enumerate(gpus)]
    return Budgets(devices=(*devices, *([] if cpu is None else [(CPU, cpu)])), given=True)


def model(*layers, state=0, last=5, first=7, everywhere=0, tied=0, overhead=0, devices=4):
    return WholeLayers(
        first=(Part(name="first", nbytes=first),),
        layers=tuple(Part(name=f"blk.{at}", nbytes=size, state=state) for at, size in enumerate(layers)),
        last=(Part(name="last", nbytes=last),),
        everywhere=(Part(name="rope", nbytes=everywhere),),
        tied=tied,
        overhead={gpu(number): overhead for number in range(devices)},
    )


def shown(cut):
    return cut.on_cpu, [(device.id, start, end) for device, start, end in cut.runs]


def test_what_is_alike_is_cut_evenly():
    assert shown(cut_layers(model(*[10] * 8, last=0), budgets(100, 100))) == (0, [(0, 0, 4), (1, 4, 8)])


def test_what_makes_the_output_is_with_the_last_layer():
    assert shown(cut_layers(model(*[10] * 5, last=10), budgets(100, 100))) == (0, [(0, 0, 3), (1, 3, 5)])
    placed = place_layers(model(*[10] * 5, last=10), budgets(100, 100), Cut(on_cpu=0, runs=((gpu(0), 0, 5),)))
    assert placed.device_map["last"] == placed.device_map["blk.4"] == gpu(0)


def test_as_few_layers_as_may_be_are_on_the_cpu_and_they_are_the_first():
    cut = cut_layers(model(*[10] * 8, last=0), budgets(30, 30, cpu=1000))
    assert shown(cut) == (2, [(0, 2, 5), (1, 5, 8)])


def test_without_a_budget_none_is_on_the_cpu():
    cut = cut_layers(model(*[10] * 8, last=0), budgets(30, 30))
    assert cut.on_cpu == 0
    assert not place_layers(model(*[10] * 8, last=0), budgets(30, 30), cut).fits


def test_a_gpu_that_is_too_small_is_passed_over():
    assert shown(cut_layers(model(10, 10, last=0), budgets(5, 100))) == (0, [(1, 0, 2)])
    assert shown(cut_layers(model(10, last=0, overhead=60), budgets(50, 100))) == (0, [(1, 0, 1)])


def test_where_no_gpu_has_room_all_is_on_the_cpu():
    cut = cut_layers(model(10, 10, tied=7), budgets(5, 5, cpu=100))
    assert shown(cut) == (2, [])
    (use,) = [use for use in place_layers(model(10, 10, tied=7), budgets(5, 5, cpu=100), cut).devices if use.used]
    assert (use.device, use.used) == (CPU, 7 + 20 + 5)  # the embedding is the output there


def test_without_a_gpu_all_is_on_the_cpu():
    assert shown(cut_layers(model(10, 10), budgets(cpu=100))) == (2, [])
    assert shown(cut_layers(model(10, 10), budgets(0, cpu=100))) == (2, [])


def test_what_each_device_holds():
    parts = model(10, 20, 30, state=1, last=5, first=7, everywhere=2, tied=7, overhead=3)
    limits = budgets(100, 100, cpu=50)
    placed = place_layers(parts, limits, Cut(on_cpu=1, runs=((gpu(0), 1, 2), (gpu(1), 2, 3))))
    held = {str(use.device): (use.used, use.state, use.overhead, use.budget) for use in placed.devices}
    assert held == {
        "cuda:0": (20 + 2, 1, 3, 100),
        "cuda:1": (30 + 2 + 5 + 7, 1, 3, 100),
        "cpu": (7 + 10 + 2, 1, 0, 50),
    }
    assert [use.modules for use in placed.devices] == [("blk.1",), ("blk.2", "rope", "last"), ("first", "blk.0")]
    assert (placed.offloaded, placed.crossings, placed.fits) == (19, 2, True)


def test_a_gpu_with_nothing_has_a_row():
    placed = place_layers(model(10), budgets(5, 100), cut_layers(model(10), budgets(5, 100)))
    assert [(str(use.device), use.used) for use in placed.devices] == [("cuda:0", 0), ("cuda:1", 15), ("cpu", 7)]


def test_what_fits_nowhere_is_cut_all_the_same():
    parts = model(10, 10, overhead=50)
    placed = place_layers(parts, budgets(1), cut_layers(parts, budgets(1)))
    assert not placed.fits
    assert {device for _, device in placed.device_map} == {CPU, gpu(0)}


sizes = st.lists(st.integers(0, 60), min_size=1, max_size=7)
limits = st.lists(st.integers(1, 150), min_size=1, max_size=3)


def every_cut(count, on_cpu, devices):
    """All ways to give the layers behind the first ``on_cpu`` to ``devices`` in their order."""
    for ends in combinations_with_replacement(range(on_cpu, count + 1), devices - 1):
        bounds = (on_cpu, *ends, count)
        runs = ((gpu(at), bounds[at], bounds[at + 1]) for at in range(devices) if bounds[at + 1] > bounds[at])
        yield Cut(on_cpu=on_cpu, runs=tuple(runs))


@given(
    sizes,
    limits,
    st.integers(0, 9),
    st.integers(0, 20),
    st.integers(0, 3),
    st.integers(0, 9),
    st.none() | st.just(10**6),
)
def test_no_cut_is_better(layers, gpus, state, last, everywhere, overhead, cpu):
    parts = model(*layers, state=state, last=last, everywhere=everywhere, tied=4, overhead=overhead)
    here = budgets(*gpus, cpu=cpu)
    found = cut_layers(parts, here)
    placed = place_layers(parts, here, found)
    by_layers = {}
    for on_cpu in range(len(layers) + 1 if cpu else 1):
        cuts = every_cut(len(layers), on_cpu, len(gpus)) if on_cpu < len(layers) else [Cut(on_cpu=on_cpu, runs=())]
        fullest = [place.fullest for cut in cuts if (place := place_layers(parts, here, cut)).fits]
        if fullest:
            by_layers[on_cpu] = min(fullest)
    assert placed.fits == bool(by_layers)
    if by_layers:
        assert found.on_cpu == min(by_layers)
        assert placed.fullest <= by_layers[found.on_cpu] + Fraction(2, 150)


@pytest.mark.parametrize("count", [1, 512])
def test_the_most_layers_are_cut(count):
    cut = cut_layers(model(*[10] * count), budgets(*[10 * count] * 4))
    assert sum(end - start for _, start, end in cut.runs) == count
