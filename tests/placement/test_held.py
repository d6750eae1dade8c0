"""What tensors are held with beyond what transformers plans with."""

from dataclasses import replace

from devctl.devices import Device
from devctl.models.tree import Module
from devctl.placement import Strategy, place
from devctl.placement.budget import from_max_memory
from devctl.placement.placement import make_placement
from tests.trees import layers

GPU0, GPU1, CPU, DISK = Device.gpu(0), Device.gpu(1), Device.cpu(), Device.disk()


def holding(tree, more):
    """The tree, each of whose parameters is held with ``more`` bytes than are planned."""

    def changed(module: Module) -> Module:
        return replace(
            module,
            parameters=tuple(replace(p, held=p.nbytes + more) for p in module.parameters if p.nbytes),
            children=tuple(map(changed, module.children)),
        )

    return replace(tree, root=changed(tree.root))


FOUR = holding(layers(10, 10, 10, 10), 1)
"""Four blocks of two halves of 5 bytes, each held with 6."""


def used(placement):
    return {str(use.device): use.used for use in placement.devices if use.used}


def test_a_device_holds_all_that_its_tensors_are_held_with():
    placement = make_placement(FOUR, {"": GPU0}, from_max_memory({GPU0: 47}), strategy=None)
    assert used(placement) == {"cuda:0": 48}
    assert not placement.fits
    assert "cuda:0 is given 48 B, 1 B more than the 47 B that it may hold" in placement.notes


def test_the_map_of_a_strategy_of_transformers_stays_its_own_and_does_not_fit():
    plain = place(layers(10, 10, 10, 10), from_max_memory({GPU0: 47, CPU: 90}), Strategy.SEQUENTIAL)
    placement = place(FOUR, from_max_memory({GPU0: 47, CPU: 90}), Strategy.SEQUENTIAL)
    assert placement.device_map == plain.device_map
    assert plain.fits
    assert not placement.fits


def test_optimal_places_what_is_held():
    assert used(place(FOUR, from_max_memory({GPU0: 48, CPU: 90}), Strategy.OPTIMAL)) == {"cuda:0": 48}
    # three blocks and, of the fourth, the half that is brought
    assert used(place(FOUR, from_max_memory({GPU0: 47, CPU: 90}), Strategy.OPTIMAL)) == {"cuda:0": 36, "cpu": 12}
    assert used(place(FOUR, from_max_memory({GPU0: 41, CPU: 90}), Strategy.OPTIMAL)) == {"cuda:0": 24, "cpu": 24}


def test_a_tied_tensor_is_held_once():
    tied = holding(layers(10, 10, embed=4, head=4, head_is_tied=True), 1)
    assert tied.index.held[""] == 4 + 1 + 2 * 12
    assert tied.index.nbytes[""] == 4 + 2 * 10


def test_a_tree_that_holds_what_is_planned_has_one_table_of_bytes():
    index = layers(10, 10).index
    assert index.held is index.nbytes
