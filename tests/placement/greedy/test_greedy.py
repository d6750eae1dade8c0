"""The walk through the model, on trees of some bytes; test_parity asks transformers about real ones."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from devctl.devices import Device
from devctl.models.tree import TensorKind, sizes, tensors
from devctl.placement import Budgets, Strategy, place
from devctl.placement.placement import bytes_per_device, to_hf
from devctl.placement.strategy import device_of
from tests.trees import layers, random_trees, tree

CPU, DISK = Device.cpu(), Device.disk()


def budgets(*gpus, cpu=None, given=True):
    devices = [(Device.gpu(i), size) for i, size in enumerate(gpus)]
    return Budgets(devices=(*devices, *(() if cpu is None else ((CPU, cpu),))), given=given)


def hf(model, limits, strategy=Strategy.SEQUENTIAL):
    return to_hf(place(model, limits, strategy).device_map)


def test_all_on_one_device_is_one_key():
    assert hf(layers(10, 10, embed=5, head=5), budgets(100)) == {"": 0}


def test_sequential_keeps_room_for_the_largest_layer_on_the_first_gpu():
    # embed 5 + block 10 = 15 of 30 - 10 reserved; the next block would make 25 > 20
    assert hf(layers(10, 10, 10, embed=5, head=5), budgets(30, 100)) == {
        "embed": 0,
        "layers.0": 0,
        "layers.1": 1,
        "layers.2": 1,
        "head": 1,
    }


def test_what_fits_nowhere_goes_to_disk():
    # gpu: embed 4 of 12 - 4 for head; no block fits; cpu: 10 of 20 - 10 for the second block, which goes to disk
    assert hf(layers(10, 10, embed=4, head=4), budgets(16, cpu=20)) == {
        "embed": 0,
        "layers.0": "cpu",
        "layers.1": "disk",
        "head": "disk",
    }


def test_auto_is_balanced():
    model, limits = layers(10, 10, 10, 10, embed=4, head=4), budgets(100, 100)
    assert hf(model, limits, Strategy.AUTO) == hf(model, limits, Strategy.BALANCED)


def test_balanced_evens_out():
    # 48 bytes over 2 GPUs: 24 + 1.25 * 10 = 36 for the first, of which 10 are kept free
    placement = place(layers(10, 10, 10, 10, embed=4, head=4), budgets(100, 100), Strategy.BALANCED)
    assert {str(use.device): use.used for use in placement.devices} == {"cuda:0": 24, "cuda:1": 24, "disk": 0}


def test_balanced_low_0_leaves_the_first_gpu_low():
    placement = place(layers(*[10] * 8, embed=4, head=4), budgets(100, 100, 100), Strategy.BALANCED_LOW_0)
    used = {str(use.device): use.used for use in placement.devices}
    assert used["cuda:0"] < used["cuda:1"]
    assert used["disk"] == 0


def test_a_lone_gpu_with_measured_memory_keeps_a_tenth():
    model = layers(10, 10, 10, embed=5, head=5)  # 40 bytes: they fit 42, but not int(0.9 * 42) = 37
    fits = {"": 0}
    assert hf(model, budgets(42, given=True, cpu=100), Strategy.AUTO) == fits
    assert hf(model, budgets(42, given=False, cpu=100), Strategy.AUTO) != fits
    assert hf(model, budgets(42, given=False, cpu=100), Strategy.SEQUENTIAL) == fits


def test_a_quantizers_share_of_every_budget():
    # 20 of 22 fit; nine tenths of 22 are 19
    model = tree({"a": {"w": 10}, "b": {"w": 10}})
    assert hf(model, budgets(10, 22)) == {"": 1}
    assert hf(replace(model, budget_share=0.9), budgets(10, 22, cpu=30)) == {"a": 1, "b": "cpu"}


def test_the_share_is_taken_once_budgets_are_balanced():
    # an even share is 20 + 1.25 * 10 = 32, of which nine tenths are 28: two blocks and the room for a third
    model = replace(layers(10, 10, 10, 10), budget_share=0.9)
    assert hf(model, budgets(40, 40), Strategy.BALANCED) == {
        "layers.0": 0,
        **dict.fromkeys(["layers.1", "layers.2", "layers.3"], 1),
        "embed": 0,
        "head": 1,
    }


def test_blocks_are_not_split():
    model = layers(20, 20, embed=1, head=1)
    for size in range(0, 80, 3):
        for key in hf(model, budgets(size, size, cpu=size)):
            assert not key.startswith(("layers.0.", "layers.1."))


def test_tied_modules_stay_together():
    model = layers(10, 10, embed=8, head=8, head_is_tied=True)
    placement = place(model, budgets(30, 100), Strategy.SEQUENTIAL)
    device_map = dict(placement.device_map)
    assert device_of("embed.w", device_map) == device_of("head.w", device_map) == Device.gpu(0)
    assert sum(use.used for use in placement.devices) == 28  # the head adds nothing


TIED_TWICE = {
    "embed": {"w": 10},
    "one": {"w": 30},
    "two": {"w": 30},
    "head": {"bias": 2, "inner": {"w": 10, "bias": 2}},
}
TIES = [("head.inner.w", "embed.w"), ("head.inner.bias", "head.bias")]


def test_a_tie_to_something_already_placed_joins_it_and_says_so():
    # 11 of 41 are not kept for the largest layer: embed takes head.inner along, and head.bias is left for later
    model = tree(TIED_TWICE, ties=TIES)
    placement = place(model, budgets(41, cpu=100), Strategy.SEQUENTIAL)
    assert to_hf(placement.device_map) == {"embed": 0, "one": "cpu", "two": "cpu", "head": 0}
    assert any("IndexError" in note for note in placement.notes)


def test_a_tie_is_split_where_there_is_no_room_and_that_is_said():
    model = tree(TIED_TWICE | {"two": {"w": 1}}, ties=TIES)
    placement = place(model, budgets(41, cpu=100), Strategy.SEQUENTIAL)
    assert dict(placement.device_map)["head.bias"] == CPU
    assert any("head.inner.bias on cuda:0 and head.bias on cpu are one tensor" in note for note in placement.notes)


def test_lost_buffers_are_found_again():
    model = tree({"m": {"_steps": 1, "a": {"w": 10}, "b": {"w": 10}, "c": {"w": 10}}})
    placement = place(model, budgets(25, cpu=100), Strategy.SEQUENTIAL)
    assert to_hf(placement.device_map) == {"m.steps": 0, "m.a": 0, "m.b": "cpu", "m.c": "cpu"}
    assert any("loses m.steps" in note for note in placement.notes)


def test_parameters_that_may_stay_out_of_the_map():
    blocks = {"0:Block": {"huge": 100, "w": 2, "_b": 1}, "1:Block": {"w": 4}}
    model = tree({"layers": blocks}, no_split=["Block"], unplaced=["huge"])
    assert hf(model, budgets(20, 20, cpu=200)) == {"layers.0.b": 0, "layers.0.w": 0, "layers.1": 0}


def test_missing_block_class_is_noted():
    model = tree({"a": {"w": 1}, "b": {"w": 1}}, no_split=["Absent"])
    placement = place(model, budgets(10, 10), Strategy.AUTO)
    assert any("ValueError" in note for note in placement.notes)


def test_keys_are_in_the_order_of_definition():
    model = layers(10, 10, 10, embed=8, head=8, head_is_tied=True)
    keys = [key for key, _ in place(model, budgets(30, 100), Strategy.SEQUENTIAL).device_map]
    assert keys == ["embed", "layers.0", "layers.1", "layers.2", "head"]


LIMITS = st.builds(
    lambda gpus, cpu, given: Budgets(
        devices=(*((Device.gpu(i), n) for i, n in sorted(gpus.items())), *(() if cpu is None else ((CPU, cpu),))),
        given=given,
    ),
    st.dictionaries(st.integers(0, 4), st.integers(0, 120), max_size=4),
    st.none() | st.integers(0, 120),
    st.booleans(),
)


@given(random_trees(), LIMITS, st.sampled_from(Strategy))
def test_every_tensor_is_placed_once_and_within_the_budgets(model, limits, strategy):
    placement = place(model, limits, strategy)
    device_map = dict(placement.device_map)
    for each in tensors(model.root):
        assert device_of(each.name, device_map) is not None
    for key in device_map:
        assert not any(other != key and key.startswith(other + ".") for other in device_map), "one key above another"
    assert bytes_per_device(model, device_map) == {use.device: use.used for use in placement.devices if use.used} | {
        use.device: 0 for use in placement.devices if not use.used and use.device in bytes_per_device(model, device_map)
    }
    assert sum(use.used for use in placement.devices) == sizes(model)[""]
    forgotten = sum(t.nbytes for t in tensors(model.root) if t.kind is TensorKind.BUFFER)
    for use in placement.devices:
        over = 0 if use.budget is None else max(0, use.used - use.budget)
        assert over <= forgotten, "only by the buffers that upstream does not count"
        assert bool(over) == any(note.startswith(f"{use.device} is given") for note in placement.notes)


@given(random_trees(), LIMITS, st.sampled_from(Strategy))
def test_the_same_question_has_the_same_answer(model, limits, strategy):
    assert place(model, limits, strategy) == place(model, limits, strategy)
