"""What devices hold while a model is loaded, on trees that a reader can add up in the head."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devctl.devices import Device
from devctl.models.footprint import Footprint
from devctl.models.tree import Module
from devctl.placement import Budgets, Strategy, place
from devctl.placement.placement import loaded_beside, make_placement, over_budget, weigh
from devctl.placement.runtime import Runtime
from tests.marks import examples
from tests.placement.test_runtime import footprint
from tests.trees import layers

CPU, DISK, GPU0, GPU1 = Device.cpu(), Device.disk(), Device.gpu(0), Device.gpu(1)


def loading(model, **bytes_of):
    """The tree with bytes that are held for a while as a tensor is made, by name with ``__`` for a dot."""
    wanted = {name.replace("__", "."): nbytes for name, nbytes in bytes_of.items()}

    def changed(module: Module) -> Module:
        return replace(
            module,
            parameters=tuple(replace(t, loading=wanted.get(t.name, 0)) for t in module.parameters),
            children=tuple(map(changed, module.children)),
        )

    return replace(model, root=changed(model.root))


MODEL = loading(layers(10, 10, 10, embed=4, head=4), layers__0__a__w=5, layers__1__a__w=7, layers__1__b__w=3)
MAP = {"embed": GPU0, "layers.0": GPU0, "layers.1": GPU0, "layers.2": GPU1, "head": GPU1}


def budgets(**most):
    named = {"gpu0": GPU0, "gpu1": GPU1, "cpu": CPU}
    devices = tuple((named[name], nbytes) for name, nbytes in most.items())
    return Budgets(devices=devices, given=devices)


def test_a_device_holds_its_weights_and_the_most_that_one_of_them_takes():
    found = weigh(MODEL, MAP, budgets(gpu0=100, gpu1=100))
    assert [(use.device, use.used, use.loading) for use in found.devices[:2]] == [(GPU0, 24, 31), (GPU1, 14, 14)]
    assert found.fits


@pytest.mark.parametrize("device_map", [MAP, {"": GPU1, "embed": GPU0, "layers.0": GPU0, "layers.1": GPU0}])
def test_it_is_the_same_with_keys_above_others(device_map):
    assert loaded_beside(MODEL, device_map) == {GPU0: 7}
    assert weigh(MODEL, device_map, budgets(gpu0=100, gpu1=100)).devices[0].loading == 31


def test_tensors_that_the_map_leaves_out_are_made_on_the_cpu():
    found = weigh(MODEL, {"embed": GPU0, "layers.0": GPU0}, budgets(gpu0=100, cpu=100))
    assert [use.loading for use in found.devices[:2]] == [14 + 5, 24 + 7]


def test_what_goes_to_the_disk_is_made_on_the_cpu():
    found = weigh(MODEL, {**MAP, "layers.1": DISK}, budgets(gpu0=100, gpu1=100, cpu=100))
    assert {use.device: use.loading for use in found.devices} == {GPU0: 14 + 5, GPU1: 14, CPU: 5 + 7, DISK: 10}


def test_the_target_of_a_tie_is_held_until_all_is_loaded():
    model = loading(layers(10, embed=4, head=4, head_is_tied=True), head__w=4, layers__0__a__w=5)
    assert loaded_beside(model, {"": GPU0}) == {GPU0: 4 + 5}
    assert loaded_beside(replace(model, untied=frozenset({"head.w"})), {"": GPU0}) == {GPU0: 5}


def test_a_device_that_holds_too_much_only_while_loading_does_not_fit():
    found = weigh(MODEL, MAP, budgets(gpu0=30, gpu1=14))
    assert not found.fits
    (line,) = over_budget(found.devices)
    assert line == "cuda:0 holds 31 B while the model is loaded, 1 B more than the 30 B that it may hold"
    assert line in make_placement(MODEL, MAP, budgets(gpu0=30, gpu1=14), strategy=None).notes
    assert weigh(MODEL, MAP, budgets(gpu0=31, gpu1=14)).fits


def test_the_run_is_told_where_that_is_too_much_too():
    (line,) = over_budget(weigh(MODEL, MAP, budgets(gpu0=20, gpu1=14)).devices)
    assert line == "cuda:0 is given 24 B, 4 B more than the 20 B that it may hold"


def runtime(found: Footprint, **overhead):
    return Runtime(footprint=found, overhead={GPU0: overhead.get("gpu0", 0)})


def test_states_and_activations_are_not_there_yet_and_libraries_are():
    beside = footprint(("layers.0", 6, 0), ("layers.1", 6, 0))
    (use, *_) = weigh(MODEL, MAP, budgets(gpu0=100, gpu1=100), runtime(beside, gpu0=2)).devices
    assert use.loading == 24 + 7 + 2
    assert use.most == max(use.total, use.loading) == use.total == 24 + 12 + 2


@pytest.mark.parametrize("strategy", list(Strategy))
def test_room_is_kept_for_loading_where_a_workload_is_planned_for(strategy):
    found = place(MODEL, budgets(gpu0=38, cpu=100), strategy, None, runtime(footprint(("layers.0", 0, 0))))
    assert found.fits
    (use, *_) = found.devices
    assert use.loading <= 38
    assert found.offloaded


@pytest.mark.parametrize(
    ("sizes", "made", "room"),
    [
        ((2, 2, 2, 1), (1, 7, 18, 0), (20, 20)),  # one block by itself, for what it takes as it is made
        ((10, 10, 10, 10), (8, 8, 8, 8), (32, 32)),
        ((10, 10, 10, 10), (0, 0, 0, 20), (34, 34)),  # the other half of the model has to be with the light ones
        ((5, 5, 5, 5), (30, 0, 0, 0), (20, 40)),
    ],
)
def test_optimal_of_weights_alone_finds_a_split_that_loads(sizes, made, room):
    model = loading(layers(*sizes, embed=4, head=4), **{f"layers__{n}__a__w": b for n, b in enumerate(made) if b})
    there = budgets(gpu0=room[0], gpu1=room[1])
    found = place(model, there, Strategy.OPTIMAL)
    assert found.fits
    assert not found.offloaded
    assert all(use.loading <= use.budget for use in found.devices[:2])


@settings(max_examples=examples(30))
@given(
    sizes=st.lists(st.integers(1, 20), min_size=4, max_size=4),
    made=st.lists(st.integers(0, 30), min_size=4, max_size=4),
    room=st.tuples(st.integers(20, 90), st.integers(20, 90)),
)
def test_optimal_loads_where_the_model_fits_beside_what_any_of_it_takes(sizes, made, room):
    model = loading(layers(*sizes, embed=4, head=4), **{f"layers__{n}__a__w": b for n, b in enumerate(made) if b})
    less = budgets(gpu0=max(0, room[0] - max(made)), gpu1=max(0, room[1] - max(made)))
    found = place(model, budgets(gpu0=room[0], gpu1=room[1]), Strategy.OPTIMAL)
    if not place(layers(*sizes, embed=4, head=4), less, Strategy.OPTIMAL).offloaded:
        assert found.fits
        assert not found.offloaded
    for other in Strategy:
        assert not place(model, budgets(gpu0=room[0], gpu1=room[1]), other).fits or found.fits


def test_optimal_keeps_room_for_loading_where_the_weights_alone_need_none():
    model = loading(layers(10, 10, 10, 10, embed=4, head=4), layers__0__a__w=16)
    there = budgets(gpu0=28, gpu1=28, cpu=100)
    found = place(model, there, Strategy.OPTIMAL)
    assert found.fits
    assert 0 < found.offloaded <= 10
    assert place(model, budgets(gpu0=30, gpu1=34), Strategy.OPTIMAL).offloaded == 0
