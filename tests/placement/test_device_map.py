"""The map that placement hands on."""

import pytest

from devctl.devices import Device
from devctl.placement import Strategy, place
from devctl.placement.budget import from_max_memory
from devctl.placement.device_map import FrozenMap
from devctl.placement.document import map_of
from devctl.placement.placement import bytes_per_device, make_placement
from tests.trees import layers, tree

HERE, THERE, CPU = Device.gpu(0), Device.gpu(1), Device.cpu()


def test_the_longest_key_above_a_name_decides():
    found = FrozenMap.of({"": CPU, "a": HERE, "a.b": THERE})
    assert [found.device_of(name) for name in ("a", "a.c", "a.b.w", "ab", "")] == [HERE, HERE, THERE, CPU, CPU]
    assert FrozenMap.of({"a": HERE}).device_of("b.a") is None


def test_it_yields_pairs_in_their_order_and_does_not_change_with_what_it_was_made_of():
    given = {"b": THERE, "a": HERE}
    found = FrozenMap.of(given)
    given["c"] = CPU
    assert list(found) == [("b", THERE), ("a", HERE)]
    assert dict(found) == {"b": THERE, "a": HERE}
    assert found == FrozenMap.of({"b": THERE, "a": HERE})
    assert len({found, FrozenMap.of(dict(found))}) == 1
    assert found.devices == (THERE, HERE)


def test_names_above_keys_are_cut_and_keys_themselves_are_not():
    assert FrozenMap.of({"a.b.c": HERE, "a.d": HERE, "e": CPU}).cut == {"", "a", "a.b"}


@pytest.mark.parametrize(
    ("device_map", "used", "crossings"),
    [
        ({"embed": HERE, "layers": THERE, "head": HERE}, {HERE: 30, THERE: 20}, 2),
        ({"": HERE, "layers.1": THERE}, {HERE: 40, THERE: 10}, 2),
        ({"": HERE, "layers": CPU, "layers.1": THERE}, {HERE: 30, CPU: 10, THERE: 10}, 3),
        ({"layers.0": HERE}, {HERE: 10, CPU: 40}, 2),
        ({"head": HERE, "no.such": THERE}, {HERE: 20, CPU: 30}, 1),
    ],
)
def test_bytes_by_key_are_those_by_tensor(device_map, used, crossings):
    model = layers(10, 10, embed=10, head=20)
    placement = make_placement(model, device_map, from_max_memory({HERE: 100, THERE: 100, CPU: 100}), strategy=None)
    assert {use.device: use.used for use in placement.devices if use.used} == used
    assert {d: n for d, n in bytes_per_device(model, device_map).items() if n} == used
    assert placement.crossings == crossings


def test_a_tree_is_indexed_once():
    model = layers(10, 10, embed=5)
    assert model.index is model.index
    assert model == layers(10, 10, embed=5), "the index is no part of what a tree is"
    assert [block.names for block in model.index.blocks] == [("embed",), ("layers.0",), ("layers.1", "head")]
    assert model.index.tensors_of("layers.1") == model.index.tensors[3:5]
    assert model.index.nbytes["layers"] == 20


def test_the_decisions_of_a_greedy_plan_are_kept_with_it():
    placement = place(tree({"a": {"w": 5}, "b": {"w": 5}}), from_max_memory({HERE: 5, CPU: 10}), Strategy.SEQUENTIAL)
    assert placement.trail is not None
    assert [decision.name for decision in placement.trail.decisions][-1] == "b"


def test_true_and_1_are_not_one_device():
    with pytest.raises(Exception, match="no device"):
        map_of({"a": 1, "b": True}, "it")
