"""Why each part went where it did, on trees whose sums can be done in the head."""

from hypothesis import given, settings
from hypothesis import strategies as st

from devctl.devices import Device
from devctl.models.tree import is_under, sizes, tensors
from devctl.placement import Budgets, Strategy, place
from devctl.placement.budget import from_max_memory, parse_max_memory
from devctl.placement.explain import explain
from devctl.placement.placement import Placement
from devctl.placement.strategy import device_of
from tests.marks import examples
from tests.placement.greedy.test_greedy import LIMITS, TIED_TWICE, TIES
from tests.trees import layers, random_trees, tree


def why(model, max_memory, strategy=Strategy.SEQUENTIAL):
    budgets = from_max_memory(parse_max_memory([max_memory]))
    return explain(model, budgets, place(model, budgets, strategy))


def told(explanation):
    """(first name, device, what is said), for each reason."""
    return [(reason.names[0], str(reason.device), *reason.because) for reason in explanation.reasons]


def test_a_device_without_room_is_left_and_what_follows_goes_along():
    # embed 5 + block 10 = 15 of 30, and 10 kept: 5 are left; for all the layers, 5 were kept for what is after them
    found = why(layers(10, 10, 10, embed=5, head=5), "0=30B,1=100B")
    assert told(found) == [
        ("embed", "cuda:0", "room for it on cuda:0, in its 30 B, 10 B of it kept for layers.0"),
        ("layers.0", "cuda:0", "layers was split: whole it needs 30 B, and cuda:0 had 20 B left"),
        (
            "layers.1",
            "cuda:1",
            "cuda:0 had 5 B left of its 30 B, 10 B of it kept for layers.2; 10 B are needed → next device",
        ),
    ]
    assert found.reasons[-1].names == ("layers.1", "layers.2", "head")
    assert [reason.nbytes for reason in found.reasons] == [5, 10, 25]
    assert found.rules == (
        "filled in this order, with no going back: cuda:0, cuda:1, disk",
        "room for the largest layer still to come is kept on cuda:0, to run it if it is offloaded",
    )


def test_an_even_share_is_an_addition():
    # 48 / 2 + 1.25 × 10 = 36
    found = why(layers(10, 10, 10, 10, embed=4, head=4), "0=100B,1=100B", Strategy.BALANCED)
    assert (
        "no more than an even share for cuda:0: 36 B, which is 48 B / 2 + 1.25 × the largest block's 10 B"
        in found.rules
    )
    assert told(found)[-1][2].startswith("cuda:0 had 2 B left of its share of 36 B, 10 B of it kept for layers.3")


def test_the_low_device_holds_what_the_others_can_not():
    found = why(layers(*[10] * 8, embed=4, head=4), "0=100B,1=30B,2=30B", Strategy.BALANCED_LOW_0)
    assert "cuda:0 is to hold what the others can't: 28 B" in found.rules


def test_a_lone_measured_device_keeps_a_tenth():
    model = layers(10, 10)
    budgets = Budgets(devices=((Device.gpu(0), 40),), given=False)
    found = explain(model, budgets, place(model, budgets, Strategy.AUTO))
    assert "cuda:0 keeps a tenth of the 40 B that it has free" in found.rules
    assert found.reasons[0].names == ("embed", "layers", "head")


def test_ties():
    found = why(layers(10, 10, embed=8, head=8, head_is_tied=True), "0=30B,1=100B")
    assert told(found)[0][3] == "head is tied to it, and beside it"
    assert told(found)[-1] == ("head", "cuda:0", "tied to embed, so beside it")
    found = why(tree(TIED_TWICE, ties=TIES), "0=41B,cpu=100B")
    assert any("tied to head.inner.bias on cuda:0, so beside it" in said for said in told(found))


def test_many_devices_without_room():
    found = why(layers(10, 10, embed=5), ",".join(f"{i}=1B" for i in range(9)) + ",cpu=100B")
    (reason,) = found.reasons
    assert len([said for said in reason.because if "next device" in said]) == 3
    assert reason.because[-1] == "cuda:3 to cuda:8 had no room either"
    assert found.rules[0] == "filled in this order, with no going back: cuda:0 to cuda:8, cpu, disk"


def test_the_disk_holds_the_rest():
    # cpu: the first block and 4 for the head are 14 of 20
    assert told(why(layers(10, 10, embed=4, head=4), "0=16B,cpu=20B"))[-1] == (
        "layers.1",
        "disk",
        "cpu had 6 B left of its 20 B, 4 B of it kept for head; 10 B are needed → next device",
        "the disk holds all that is left",
    )


def test_buffers_that_the_walk_loses():
    model = tree({"m": {"_steps": 1, "a": {"w": 10}, "b": {"w": 10}, "c": {"w": 10}}})
    assert ("m.steps", "cuda:0", "directly in a module that was split, so beside the first of its parts") in told(
        why(model, "0=25B,cpu=100B")
    )


def test_parameters_that_may_stay_out_of_the_map():
    blocks = {"0:Block": {"huge": 100, "w": 2, "_b": 1}, "1:Block": {"w": 4}}
    found = told(why(tree({"layers": blocks}, no_split=["Block"], unplaced=["huge"]), "0=20B,1=20B,cpu=200B"))
    assert ("layers.0.huge", "cpu", "left out of the map, as in transformers: it stays on the CPU") in found


def test_optimal_one_run_a_device():
    found = why(layers(*[10] * 8), "0=120B,1=40B,cpu=100B", Strategy.OPTIMAL)
    assert found.rules == (
        "all of the 80 B are on the accelerators, and nothing is offloaded",
        "each device has one run of blocks that follow each other",
        "the fullest device is cuda:0: 60 B of 120 B, 50.0%; it can't be less with one run a device",
    )
    assert told(found) == [
        ("embed", "cuda:0", "cuda:0 is 50.0% full with all that is there"),
        (
            "layers.6",
            "cuda:1",
            "with it cuda:0 would be 58.3% full, more than the fullest device",
            "cuda:1 is 50.0% full with all that is there",
        ),
    ]


def test_optimal_offloads_what_has_no_room():
    found = why(layers(10, 10, 10, 10), "0=20B,1=15B,cpu=15B", Strategy.OPTIMAL)
    assert found.rules[:3] == (
        "the accelerators may hold 35 B, and can hold at most 20 B of these 40 B",
        "5 B of cuda:0 are kept free for what is brought to it to run layers.2",
        "the most room left is 5 B, on cuda:0; the smallest offloaded block has 10 B",
    )
    assert told(found)[-2:] == [
        ("layers.2", "cpu", "the accelerators have no room for 10 B"),
        ("layers.3", "disk", "the accelerators have no room for 10 B", "nor has cpu: 5 B of its 15 B are left"),
    ]


def test_optimal_packs_and_keeps_ties():
    found = why(layers(7, 7, 4, 4), "0=11B,1=11B,cpu=100B", Strategy.OPTIMAL)
    assert any(rule.startswith("blocks are packed as they fit") for rule in found.rules)
    found = why(layers(10, 10, embed=10, head_is_tied=True), "0=20B,1=20B,cpu=100B", Strategy.OPTIMAL)
    assert told(found)[-1] == ("head", "cuda:0", "tied to embed, so beside it")


def test_a_map_that_somebody_wrote_is_not_explained():
    model, budgets = layers(10), from_max_memory(parse_max_memory(["0=20B"]))
    written = Placement(strategy=None, device_map=(("", Device.gpu(0)),), devices=(), crossings=0)
    assert explain(model, budgets, written).reasons == ()


@settings(max_examples=examples(120), deadline=None)
@given(random_trees(), LIMITS, st.sampled_from(Strategy))
def test_every_tensor_has_one_reason_that_names_its_device(model, limits, strategy):
    placement = place(model, limits, strategy)
    found = explain(model, limits, placement)
    device_map = dict(placement.device_map)
    for tensor in tensors(model.root):
        about = [r for r in found.reasons if any(is_under(tensor.name, name) for name in r.names)]
        assert [reason.device for reason in about] == [device_of(tensor.name, device_map)]
    assert sum(reason.nbytes for reason in found.reasons) == sizes(model)[""]
    assert all(reason.because for reason in found.reasons)
