"""``optimal`` against brute force, on the cases where transformers does worse, and where its searches end early."""

from dataclasses import replace
from fractions import Fraction
from itertools import pairwise, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devctl.devices import Device
from devctl.models.tree import is_under, tensors
from devctl.placement import Strategy, place
from devctl.placement.budget import Budgets, from_max_memory, parse_max_memory
from devctl.placement.optimal import solve as row_module
from devctl.placement.optimal.solve import Row, solve
from devctl.placement.placement import to_hf, worth
from devctl.placement.strategy import device_of
from tests.marks import examples
from tests.trees import layers, random_trees, tree


def judge(row, budgets, cpu, devices):
    """(bytes off, bytes on disk), whether it is one run a device, fraction, moves; None if it does not hold."""
    count = len(budgets)
    used, on_cpu, moved, on_disk, brought, from_disk = [0] * count, 0, 0, 0, 0, 0
    for held, away, at_once, device in zip(row.held, row.moved, row.brought, devices, strict=True):
        if device < count:
            used[device] += held
            continue
        moved, brought = moved + away, max(brought, at_once)
        if device == count:
            on_cpu += away
        else:
            on_disk, from_disk = on_disk + away, max(from_disk, at_once)
    if any(u > b for u, b in zip(used, budgets, strict=True)) or (on_cpu and (cpu is None or on_cpu > cpu)):
        return None
    main = next((device for device, u in enumerate(used) if u), None)
    if main is not None and moved and used[main] + brought > budgets[main]:
        return None
    if main is None and on_cpu and on_disk and on_cpu + from_disk > cpu:
        return None
    fraction = max((Fraction(u, b) for u, b in zip(used, budgets, strict=True) if u), default=Fraction(0))
    moves = sum(1 for here, there in pairwise(devices) if here != there)
    return (moved, on_disk), moves + 1 == len(set(devices)), fraction, moves


def brute_force(row, budgets, cpu):
    """The best of all placements there are."""
    good = []
    for devices in product(range(len(budgets) + 2), repeat=len(row.held)):
        if (judged := judge(row, budgets, cpu, devices)) is not None:
            good.append((*judged, devices))
    least = min(bytes_off for bytes_off, *_ in good)
    good = [way for way in good if way[0] == least]
    runs = [way for way in good if way[1]]
    return min((way[2], way[3], way[4]) for way in runs or good)


@st.composite
def problems(draw):
    """Few blocks of few sizes, unequal budgets near what is needed, and a CPU that is large, small or not there."""
    sizes = draw(st.lists(st.integers(1, 12), min_size=1, max_size=4))
    moved = draw(st.lists(st.sampled_from(sizes), min_size=1, max_size=6))
    extra = {size: draw(st.integers(0, 3)) if draw(st.booleans()) else 0 for size in sizes}
    held = tuple(size + extra[size] for size in moved)
    budgets = draw(st.lists(st.integers(0, sum(held)), max_size=3))
    if budgets and draw(st.booleans()):
        budgets = [budgets[0]] * len(budgets)
    cpu = draw(st.none() | st.integers(0, 2 * sum(moved)))
    brought = {size: draw(st.integers(0, size)) for size in sizes}
    return Row(held=held, moved=tuple(moved), brought=tuple(brought[size] for size in moved)), budgets, cpu


def check_against_brute_force(problem):
    row, budgets, cpu = problem
    best = solve(row, budgets, cpu)
    if not budgets or all(device >= len(budgets) for device in best.devices):
        # the CPU holds the weights alone
        row = replace(row, held=row.moved) if not budgets else row
    _, _, fraction, moves = judge(row, budgets, cpu, best.devices)
    assert (fraction, moves, best.devices) == brute_force(row, budgets, cpu)
    assert (best.off_bound, best.fraction_bound, best.moves_bound) == (None, None, None)


@settings(max_examples=examples(150), deadline=None)
@given(problems())
def test_no_placement_is_better(problem):
    check_against_brute_force(problem)


@pytest.mark.slow
@settings(max_examples=3_000, deadline=None)
@given(problems())
def test_no_placement_is_better_in_many(problem):
    check_against_brute_force(problem)


@settings(max_examples=examples(120), deadline=None)
@given(random_trees(), st.lists(st.integers(0, 80), max_size=3), st.none() | st.integers(0, 80))
def test_every_tensor_has_a_place_and_ties_share_one(model, gpus, cpu):
    budgets = {Device.gpu(i): size for i, size in enumerate(gpus)} | ({} if cpu is None else {Device.cpu(): cpu})
    if not budgets:
        return
    placement = place(model, from_max_memory(budgets), Strategy.OPTIMAL)
    found = dict(placement.device_map)
    for block in model.index.blocks:
        assert len({device_of(name, found) for name in block.names}) == 1
        assert device_of(block.names[0], found) is not None
    known = {t.name for t in tensors(model.root)}
    for target, source in model.ties:
        if target not in known or source not in known:
            continue
        assert device_of(target, found) == device_of(source, found)
    for use in placement.devices:
        assert use.device == Device.disk() or use.used <= use.budget
    for strategy in Strategy:
        other = place(model, from_max_memory(budgets), strategy)
        # a greedy map may exceed a budget, by the buffers that upstream forgets
        if gpus and not any("more than the" in note or "are one tensor" in note for note in other.notes):
            assert worth(placement) <= worth(other) or keeps_no_room(model, other), strategy


@settings(max_examples=examples(100), deadline=None)
@given(random_trees(), st.lists(st.integers(0, 80), min_size=1, max_size=3), st.none() | st.integers(0, 80))
def test_a_greedy_plan_says_how_much_less_optimal_offloads_and_only_then(model, gpus, cpu):
    """Its note is of a search for less alone, which ends early where there is none."""
    budgets = from_max_memory(
        {Device.gpu(i): size for i, size in enumerate(gpus)} | ({} if cpu is None else {Device.cpu(): cpu})
    )
    best = place(model, budgets, Strategy.OPTIMAL)
    for strategy in (Strategy.AUTO, Strategy.BALANCED_LOW_0, Strategy.SEQUENTIAL):
        found = place(model, budgets, strategy)
        less = found.offloaded - best.offloaded
        told = [f"{less} B are offloaded that need not be: --strategy optimal keeps them"]
        said = [note for note in found.notes if "need not be" in note]
        assert said == (told if best.fits and less > 0 else [])


def keeps_no_room(model, placement):
    """Whether a placement splits a block, or has no room on its main device to run what it offloads."""
    devices = dict(placement.device_map)
    main = next((use for use in placement.devices if use.device.type in ("cuda", "cpu") and use.used), None)
    elsewhere = {Device.cpu(), Device.disk()} - {main.device if main else None}
    off = [b.brought for b in model.index.blocks if device_of(b.names[0], devices) in elsewhere]
    for block in model.index.blocks:
        parts = [t.name for t in tensors(model.root) if any(is_under(t.name, name) for name in block.names)]
        if len({device_of(name, devices) for name in parts}) > 1:
            return True
    return main is not None and main.used + max(off, default=0) > main.budget


def optimal(model, max_memory):
    return place(model, from_max_memory(parse_max_memory([max_memory])), Strategy.OPTIMAL)


def by_device(placement):
    return {str(use.device): use.used for use in placement.devices if use.used}


def test_the_room_for_an_offloaded_layer_is_kept_only_if_one_is_offloaded():
    model = layers(10, 10, 10, 10)
    assert by_device(optimal(model, "0=20B,1=20B,cpu=100B")) == {"cuda:0": 20, "cuda:1": 20}
    assert by_device(place(model, from_max_memory(parse_max_memory(["0=20B,1=20B,cpu=100B"])), Strategy.AUTO)) == {
        "cuda:0": 10,
        "cuda:1": 20,
        "cpu": 10,
    }
    assert by_device(optimal(model, "0=20B,1=10B,cpu=100B")) == {"cuda:0": 10, "cuda:1": 10, "cpu": 20}


def test_unequal_devices_are_filled_to_the_same_fraction():
    assert by_device(optimal(layers(*[10] * 8), "0=120B,1=40B,cpu=100B")) == {"cuda:0": 60, "cuda:1": 20}


def test_what_is_tied_stays_together():
    placement = optimal(layers(10, 10, embed=10, head_is_tied=True), "0=20B,1=20B,cpu=100B")
    assert to_hf(placement.device_map) == {"embed": 0, "layers.0": 0, "layers.1": 1, "head": 0}


def test_only_a_packing_fits():
    # one run each would be 7+7 and 4+4 at best
    placement = optimal(layers(7, 7, 4, 4), "0=11B,1=11B,cpu=100B")
    assert by_device(placement) == {"cuda:0": 11, "cuda:1": 11}
    assert to_hf(placement.device_map) == {"embed": 0, "layers.0": 0, "layers.1": 1, "layers.2": 1, "layers.3": 0} | {
        "head": 0
    }


def test_without_an_accelerator_the_cpu_is_filled():
    placement = optimal(layers(10, 10, 10, 10), "cpu=35B")
    assert by_device(placement) == {"cpu": 30, "disk": 10}  # room is kept for half of a block, brought from disk
    assert by_device(optimal(layers(10, 10, 10, 10), "cpu=40B")) == {"cpu": 40}


def test_a_tiny_first_accelerator_does_not_run_the_offloaded():
    placement = optimal(layers(10, 10, 10, 10), "0=9B,1=30B,cpu=100B")
    assert by_device(placement) == {"cuda:1": 20, "cpu": 20}


def test_blocks_are_cut_where_a_model_may_be_cut():
    model = tree(
        {"x": 1, "part": {"y": 2, "_z": 3, "a:Block": {"b": {"w": 4}, "c": {"w": 5}}, "leaf": {"w": 6}, "act": {}}},
        no_split=["Block"],
        ties=[("part.leaf.w", "x")],
    )
    assert [(block.names, block.nbytes) for block in model.index.blocks] == [
        (("x", "part.leaf"), 1),
        (("part.y", "part.z"), 5),
        (("part.a", "part.act"), 9),
    ]


def test_a_model_without_bytes_has_a_place():
    assert to_hf(optimal(tree({"a": {}, "b": {}}), "0=10B").device_map) == {"": 0}


def test_a_search_that_ends_early_says_what_is_not_known(monkeypatch):
    monkeypatch.setattr(row_module, "_STEPS", 4)
    placement = optimal(layers(*range(3, 40)), "0=100B,1=90B,2=81B,cpu=1000B")
    off = by_device(placement)["cpu"]
    bound = sum(range(3, 40)) - 271
    assert any(f"{off} B are offloaded" in note and f"less than {bound} B" in note for note in placement.notes)
    assert any("the fullest device" in note for note in placement.notes)
    assert all(use.used <= use.budget for use in placement.devices if use.budget is not None)


def test_a_measured_lone_gpu_is_filled_as_by_sequential_though_auto_keeps_a_tenth():
    budgets = Budgets(devices=((Device.gpu(0), 40), (Device.cpu(), 100)), given=False)
    assert by_device(place(layers(10, 10, 10, 10), budgets, Strategy.SEQUENTIAL)) == {"cuda:0": 40}
    assert by_device(place(layers(10, 10, 10, 10), budgets, Strategy.OPTIMAL)) == {"cuda:0": 40}
