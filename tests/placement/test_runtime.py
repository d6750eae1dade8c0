"""KV cache and activations in the plan, on trees and footprints that a reader can add up in the head."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devctl.devices import Device, DeviceType
from devctl.models.footprint import BlockFootprint, Footprint, Workload, peak_beside_weights
from devctl.placement import Strategy, place, place_within
from devctl.placement.budget import from_max_memory
from devctl.placement.counted import common_need, with_runtime
from devctl.placement.placement import worth
from devctl.placement.runtime import Need, Runtime, brought_weights, less, main_of, needs
from devctl.placement.strategy import OF_TRANSFORMERS
from tests.marks import examples
from tests.trees import layers, tree

WORK = Workload(context_length=8, new_tokens=1)


def footprint(*blocks):
    """From (name, state, need): a need is as large in prefill as in decode."""
    return Footprint(
        workload=WORK,
        blocks=tuple(
            BlockFootprint(name=name, prompt_state=state, state=state, prefill=need, decode=need)
            for name, state, need in blocks
        ),
    )


def budgets(*gpus, cpu=1000):
    return from_max_memory({Device.gpu(i): size for i, size in enumerate(gpus)} | {Device.cpu(): cpu})


def runtime(found, **overhead):
    return Runtime(footprint=found, overhead={Device.gpu(int(k[1:])): v for k, v in overhead.items()})


FOUR = footprint(*((f"layers.{i}", 5, 3) for i in range(4)))


@pytest.mark.parametrize("strategy", Strategy)
def test_state_goes_with_its_layer_and_a_need_is_counted_once_a_device(strategy):
    placement = place(layers(10, 10, 10, 10), budgets(100, 100), strategy, None, runtime(FOUR, g0=1, g1=1))
    for use in placement.devices[:2]:
        count = sum(name.startswith("layers") for name in use.modules) if use.modules != ("",) else 4
        if not count:
            continue
        assert (use.used, use.state, use.activations, use.overhead) == (10 * count, 5 * count, 3, 1)
        assert use.total == use.used + use.state + 3 + 1


def test_what_fits_by_weights_alone_is_placed_elsewhere_with_its_cache():
    model = layers(10, 10, 10, 10)
    assert place(model, budgets(44, 100), Strategy.SEQUENTIAL).devices[0].used == 40
    counted = place(model, budgets(44, 100), Strategy.SEQUENTIAL, None, runtime(FOUR))
    assert [use.used for use in counted.devices[:2]] == [10, 30]
    assert all(use.total <= use.budget for use in counted.devices[:2])


@pytest.mark.parametrize(("limit", "used"), [(58, 30), (57, 20)])
def test_what_is_offloaded_keeps_its_state_on_the_main_device(limit, used):
    placement = place(layers(10, 10, 10, 10), budgets(limit), Strategy.OPTIMAL, None, runtime(FOUR))
    gpu = placement.devices[0]
    assert gpu.used == used
    assert gpu.state == 20, "all of the cache, though some of the layers are on the CPU"
    assert gpu.activations == 3 + 5, "half a layer is brought at a time"
    assert placement.fits


@pytest.mark.parametrize("strategy", Strategy)
def test_room_is_kept_on_the_device_that_is_the_main_one(strategy):
    """The first accelerator is too small for any block: the second runs what is offloaded."""
    placement = place(layers(10, 10, 10, 10), budgets(6, 52), strategy, None, runtime(FOUR))
    assert [use.used for use in placement.devices[:1]] == [0]
    assert placement.offloaded
    assert placement.fits


def test_what_is_fetched_is_a_module_and_what_it_is_within():
    model = tree({"layer:Block": {"w": 4, "_b": 2, "a": {"w": 9}, "b": {"w": 5, "c": {"w": 6}}}, "head": {"w": 30}})
    here, there = Device.gpu(0), Device.cpu()
    assert brought_weights(model, {"layer": there, "head": here}, ["layer", "head", ""]) == {
        "layer": 4 + 5 + 6,
        "": 4 + 5 + 6,
    }
    assert brought_weights(model, {"layer": here, "head": Device.gpu(1)}, ["layer", "head"]) == {}
    assert brought_weights(model, {"layer.b": there, "layer": here, "head": here}, ["layer"]) == {"layer": 5 + 6}
    assert brought_weights(model, {"": there}, ["layer"]) == {}, "the CPU itself computes"
    assert brought_weights(model, {"layer": there, "head": Device.disk()}, ["layer", "head"]) == {"head": 30}


def test_a_state_that_a_block_is_given_is_copied_from_another_device():
    embed = BlockFootprint(name="embed", prefill=6)
    first = BlockFootprint(name="layers.0", state=5, prompt_state=5, prefill=3, decode=3)
    second = BlockFootprint(name="layers.1", prefill=9, decode=1, apart=(("layers.0", 5, 2), ("embed", -6, 0)))
    found = Footprint(workload=WORK, blocks=(embed, first, second))
    model, here, there = layers(10, 10, embed=10), Device.gpu(0), Device.gpu(1)
    assert needs(model, {"": here}, found)[here].activations == 9
    split = needs(model, {"embed": here, "layers.0": there, "layers.1": there}, found)
    assert split[there].activations == 9 - 6, "what it is not given is on the other device"
    split = needs(model, {"embed": here, "layers.0": here, "layers.1": there}, found)
    assert split[there].activations == 9 - 6 + 5
    assert second.most == 9 + 5, "whatever is where"


def test_what_an_encoder_hands_on_is_on_the_main_device_and_that_of_the_inputs():
    """``generate`` copies it to where its inputs are; accelerate, at every call, to the main device and each block."""
    encoder = BlockFootprint(name="layers.0", prompt_state=5, state=5, prefill=1)
    decoder = [
        BlockFootprint(name=f"layers.{i}", prompt_state=2, state=3, prefill=1, decode=1, apart=(("layers.0", 5, 5),))
        for i in (1, 2)
    ]
    found = Footprint(workload=WORK, blocks=(encoder, *decoder))
    model, main, there = layers(10, 10, 10, embed=10), Device.gpu(0), Device.gpu(1)

    def states(**devices):
        all_ = needs(model, {name.replace("_", "."): device for name, device in devices.items()}, found)
        return {device: (need.state, need.activations) for device, need in all_.items()}

    parts = {"embed": main, "layers_0": main, "layers_1": main, "layers_2": there}
    assert states(**parts) == {main: (8, 1), there: (3, 6)}
    parts |= {"layers_0": there}  # it is let go of there, and given anew to the block there
    assert states(**parts) == {main: (8, 1), there: (3, 6)}
    parts |= {"embed": there, "layers_0": main}  # where the inputs are it stays, and a block there is given one more
    assert states(**parts) == {main: (8, 1), there: (8, 6)}
    parts |= {"embed": Device.cpu()}
    assert states(**parts) == {main: (8, 1), there: (3, 6)}


def test_a_block_with_a_need_of_its_own():
    found = footprint(("layers.0", 5, 3), ("layers.1", 5, 3), ("head", 0, 30))
    assert common_need(found) == 3
    model = layers(10, 10, head=10)
    placement = place(model, budgets(43, 43), Strategy.OPTIMAL, None, runtime(found))
    assert [use.total for use in placement.devices[:2]] == [33, 40]
    assert placement.devices[1].modules == ("head",)


def test_what_a_model_returns_is_copied_to_the_main_device():
    blocks = (BlockFootprint(name="layers.0", prefill=3), BlockFootprint(name="head", prefill=30))
    found = Footprint(workload=WORK, blocks=blocks, output=30)
    model = layers(10, head=10)
    split = needs(model, {"embed": Device.gpu(0), "layers": Device.gpu(0), "head": Device.gpu(1)}, found)
    assert [split[Device.gpu(i)].activations for i in range(2)] == [30, 30]
    assert needs(model, {"": Device.gpu(0)}, found)[Device.gpu(0)].activations == 30


def test_what_belongs_to_no_block_is_where_the_model_begins():
    found = footprint(("", 2, 9), ("layers.0", 5, 3), ("layers.1", 5, 3))
    tree = with_runtime(layers(10, 10), found)
    assert tree.root.children[0].buffers[0].nbytes == 2 + 6
    there = needs(layers(10, 10), {"embed": Device.gpu(1), "layers": Device.gpu(2), "head": Device.gpu(2)}, found)
    assert there[Device.gpu(1)].state == 2
    assert there[Device.gpu(1)].activations == 9
    assert there[Device.gpu(2)].state == 10


def test_the_main_device():
    assert main_of({"a": Device.gpu(2), "b": Device.gpu(1), "c": Device.cpu()}) == Device.gpu(1)
    assert main_of({"a": Device.cpu(), "b": Device.disk()}) == Device.cpu()


def test_budgets_without_what_everything_needs():
    left = dict(less(budgets(20, 2), runtime(FOUR, g0=4), {Device.gpu(0): 5}).devices)
    assert left == {Device.gpu(0): 20 - 3 - 4 - 5, Device.gpu(1): 0, Device.cpu(): 1000}


NEEDS = st.tuples(st.integers(0, 6), st.integers(0, 9))


@settings(max_examples=examples(100), deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 9), NEEDS), min_size=1, max_size=6),
    st.lists(st.integers(10, 90), min_size=1, max_size=3),
    st.sampled_from(Strategy),
)
def test_no_device_is_given_more_than_it_has(blocks, gpus, strategy):
    model = layers(*(size for size, _ in blocks))
    found = footprint(*((f"layers.{i}", *need) for i, (_, need) in enumerate(blocks)))
    placement = place(model, budgets(*gpus), strategy, None, runtime(found))
    by_hand = {}
    offloaded = set()
    halves = {f"layers.{i}": size - size // 2 for i, (size, _) in enumerate(blocks)}
    device_map = dict(placement.device_map)
    main = main_of(device_map)
    for block in found.blocks:
        device = next((d for key, d in device_map.items() if key in ("", "layers", block.name)), None)
        by_hand.setdefault(device if device and device.type == "cuda" else main, []).append(block)
        if device and device.type != "cuda" and device != main:
            offloaded.add(block.name)
    for use in placement.devices:
        there = by_hand.get(use.device, [])
        brought = {name: nbytes for name, nbytes in halves.items() if use.device == main and name in offloaded}
        assert use.state + use.activations == peak_beside_weights(there, brought)
        assert use.budget is None or use.total <= use.budget or any("more than the" in note for note in placement.notes)
    alone = sum(size for size, _ in blocks) + peak_beside_weights(found.blocks)
    if strategy is Strategy.OPTIMAL and alone <= gpus[0]:
        assert all(use.budget is None or use.total <= use.budget for use in placement.devices)


@settings(max_examples=examples(100), deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 9), NEEDS), min_size=1, max_size=6),
    st.lists(st.integers(10, 90), min_size=1, max_size=3),
    st.integers(0, 40),
)
def test_no_strategy_of_transformers_does_better_than_optimal(blocks, gpus, cpu):
    model = layers(*(size for size, _ in blocks))
    found = runtime(footprint(*((f"layers.{i}", *need) for i, (_, need) in enumerate(blocks))))
    best = place(model, budgets(*gpus, cpu=cpu), Strategy.OPTIMAL, None, found)
    for strategy in OF_TRANSFORMERS:
        other = place(model, budgets(*gpus, cpu=cpu), strategy, None, found)
        assert (not best.fits, best.offloaded, best.on_disk) <= (not other.fits, other.offloaded, other.on_disk)
        if not best.fits:
            assert not any("need not be" in note for note in other.notes)


@settings(max_examples=examples(100), deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 9), NEEDS), min_size=1, max_size=6),
    st.lists(st.integers(10, 90), min_size=1, max_size=3),
    st.integers(0, 40),
    st.integers(0, 30),
)
def test_the_best_within_is_the_best_there_is_or_is_not_within(blocks, gpus, cpu, offloaded):
    model = layers(*(size for size, _ in blocks))
    found = runtime(footprint(*((f"layers.{i}", *need) for i, (_, need) in enumerate(blocks))))
    best = place(model, budgets(*gpus, cpu=cpu), Strategy.OPTIMAL, None, found)
    within = place_within(model, budgets(*gpus, cpu=cpu), found, offloaded)
    if best.fits and best.offloaded <= offloaded:
        assert within.fits
        assert within.offloaded <= offloaded
        assert worth(best) <= worth(within)  # which does not look for the fewest moves
    else:
        assert not within.fits or within.offloaded > offloaded
    assert sum(use.used for use in within.devices) == sum(use.used for use in best.devices)


def test_the_cpu_keeps_no_state_of_layers_that_an_accelerator_runs():
    """Four layers of 10 with states of 5: 20 bytes of RAM hold two layers, whose states are on the GPU."""
    model = layers(10, 10, 10, 10)
    for strategy in Strategy:
        limits = from_max_memory({Device.gpu(0): 58, Device.cpu(): 30})
        placement = place(model, limits, strategy, None, runtime(FOUR))
        assert placement.fits
        assert placement.on_disk == 0, strategy


def test_a_greedy_plan_is_tried_with_less_until_it_holds():
    """What is over is a byte at a time, and a layer is many."""
    model = layers(*(100,) * 8)
    many = footprint(*((f"layers.{i}", 0, 3) for i in range(8)))
    placement = place(model, budgets(401), Strategy.SEQUENTIAL, None, runtime(many))
    assert placement.fits
    assert placement.offloaded


def test_one_device_that_has_all_blocks_holds_no_more_than_is_ever_alive_at_once():
    found = replace(FOUR, most=18, rounded=2)
    on_one = needs(layers(10, 10, 10, 10), {"": Device.gpu(0)}, found)
    assert on_one == {Device.gpu(0): Need(state=20, activations=0 + 2)}
    assert needs(layers(10, 10, 10, 10), {"": Device.gpu(0)}, replace(found, most=22)) == {
        Device.gpu(0): Need(state=20, activations=2 + 2)
    }
    # more than the sum is not believed, and nothing is where it is not known
    for most in (99, 0):
        (alone,) = needs(layers(10, 10, 10, 10), {"": Device.gpu(0)}, replace(found, most=most)).values()
        assert alone == Need(state=20, activations=3 + 2)


def test_a_split_map_and_offloaded_weights_are_counted_by_their_blocks():
    found = replace(FOUR, most=1, rounded=2)
    split = {"layers.0": Device.gpu(0), **{f"layers.{i}": Device.gpu(1) for i in (1, 2, 3)}}
    assert needs(layers(10, 10, 10, 10), split, found) == {
        Device.gpu(0): Need(state=5, activations=3 + 2),
        Device.gpu(1): Need(state=15, activations=3 + 2),
    }
    offloaded = {"layers.0": Device.cpu(), **{f"layers.{i}": Device.gpu(0) for i in (1, 2, 3)}}
    assert needs(layers(10, 10, 10, 10), offloaded, found)[Device.gpu(0)] == Need(state=20, activations=8 + 2)


def test_blocks_of_the_allocator_are_rounded_where_its_rules_are_known():
    found = replace(FOUR, rounded=2)
    for device, more in ((Device.gpu(0), 2), (Device(DeviceType.XPU, 0), 2), (Device.mps(), 0), (Device.cpu(), 0)):
        assert needs(layers(10, 10, 10, 10), {"": device}, found)[device].activations == 3 + more


def test_room_is_kept_for_what_is_rounded():
    placement = place(layers(10, 10), budgets(40), Strategy.OPTIMAL, None, runtime(replace(FOUR, rounded=8)))
    assert placement.fits
    assert all(use.total <= use.budget for use in placement.devices if use.budget is not None)
