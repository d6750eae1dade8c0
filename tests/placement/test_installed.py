"""devctl's map beside another planner's."""

import pytest

from devctl.devices import Device
from devctl.placement import Budgets, Installed, Strategy, place
from devctl.placement.budget import from_max_memory
from devctl.placement.counted import as_it_is
from devctl.placement.explain import explain
from devctl.placement.greedy.walk import greedy_map
from devctl.placement.installed import agrees, as_installed, to_max_memory
from devctl.placement.placement import to_hf
from devctl.placement.strategy import OF_TRANSFORMERS
from tests.trees import layers, tree

CPU, GPU0, GPU1 = Device.cpu(), Device.gpu(0), Device.gpu(1)
TREE = layers(10, 10, 10, embed=4, head=4)
TWO = from_max_memory({GPU0: 40, GPU1: 30, CPU: 100})
NOTE = "transformers 9.9 plans this otherwise than devctl's transcription: its map is used"


def here(answer):
    """A planner that answers the same to everything, or what a function makes of the question."""
    return Installed(release="9.9", ask=answer if callable(answer) else lambda *_: answer)


def same(model, *, given=True):
    """A planner that plans as devctl does, with its keys in another order."""

    def ask(memory, strategy, asked_given):
        devices = {Device.gpu(k) if isinstance(k, int) else Device.from_str(k): v for k, v in memory.items()}
        budgets = Budgets(devices=tuple(devices.items()), given=asked_given)
        found = to_hf(greedy_map(as_it_is(model), budgets, Strategy(strategy)).device_map.items())
        return dict(reversed(found.items()))

    return here(ask)


@pytest.mark.parametrize("strategy", OF_TRANSFORMERS)
def test_an_equal_map_leaves_ours_as_it_is(strategy):
    found = greedy_map(as_it_is(TREE), TWO, strategy)
    assert as_installed(TREE, found, TWO, strategy, same(TREE)) == found
    assert list(found.device_map) == list(as_installed(TREE, found, TWO, strategy, same(TREE)).device_map)


def test_another_map_is_the_answer_in_the_models_order_with_a_note():
    theirs = {"head": "cpu", "layers.2": 1, "embed": 0, "layers.0": 0, "layers.1": 0}
    found = as_installed(TREE, greedy_map(as_it_is(TREE), TWO, Strategy.AUTO), TWO, Strategy.AUTO, here(theirs))
    assert list(found.device_map.items()) == [
        ("embed", GPU0),
        ("layers.0", GPU0),
        ("layers.1", GPU0),
        ("layers.2", GPU1),
        ("head", CPU),
    ]
    assert found.notes == (NOTE,)
    assert found.trail is None


def test_the_question_is_put_as_transformers_takes_it():
    asked = []

    def ask(*question):
        asked.append(question)

    budgets = Budgets(devices=((GPU0, 5), (Device.mps(), 6), (CPU, 7), (Device.disk(), 8)), given=False)
    found = greedy_map(as_it_is(TREE), budgets, Strategy.SEQUENTIAL)
    assert as_installed(TREE, found, budgets, Strategy.SEQUENTIAL, here(ask)) is found
    assert asked == [({0: 5, "mps": 6, "cpu": 7, "disk": 8}, "sequential", False)]


def test_numbers_are_the_accelerators_that_were_given():
    xpu = Device.from_str("xpu:1")
    budgets = from_max_memory({xpu: 30, CPU: 100})
    assert to_max_memory(budgets) == {1: 30, "cpu": 100}
    found = as_installed(TREE, greedy_map(as_it_is(TREE), budgets, "auto"), budgets, Strategy.AUTO, here({"": 1}))
    assert dict(found.device_map.items()) == {"": xpu}


def test_why_nothing_was_answered_is_a_note():
    found = greedy_map(as_it_is(TREE), TWO, Strategy.AUTO)
    assert as_installed(TREE, found, TWO, Strategy.AUTO, here("it raises")).notes == ("it raises",)


def test_an_error_that_is_told_already_is_not_told_again():
    gaps = from_max_memory({GPU1: 30, Device.gpu(2): 30})
    found = greedy_map(as_it_is(TREE), gaps, Strategy.BALANCED_LOW_0)
    assert any("transformers raises KeyError" in note for note in found.notes)
    assert as_installed(TREE, found, gaps, Strategy.BALANCED_LOW_0, here("it raises")) is found


def test_an_error_that_the_installed_release_does_not_make_is_not_told():
    gaps = from_max_memory({GPU1: 30, Device.gpu(2): 30})
    found = greedy_map(as_it_is(TREE), gaps, Strategy.BALANCED_LOW_0)
    mended = as_installed(TREE, found, gaps, Strategy.BALANCED_LOW_0, here(to_hf(found.device_map.items())))
    assert mended.device_map == found.device_map
    assert mended.notes == ()


LOSING = tree({"a": {"x": {"w": 10}, "y": {"w": 10}, "_b": 2}, "c": {"w": 5}})
TIGHT = from_max_memory({GPU0: 20, CPU: 100})


def test_a_buffer_that_both_lose_is_put_beside_its_module():
    found = greedy_map(as_it_is(LOSING), TIGHT, Strategy.SEQUENTIAL)
    theirs = {key: device for key, device in to_hf(found.device_map.items()).items() if key != "a.b"}
    assert "a.b" in found.device_map
    assert as_installed(LOSING, found, TIGHT, Strategy.SEQUENTIAL, here(theirs)) is found


def test_a_buffer_that_only_the_installed_planner_loses_has_a_place():
    found = as_installed(
        LOSING,
        greedy_map(as_it_is(LOSING), TIGHT, Strategy.SEQUENTIAL),
        TIGHT,
        Strategy.SEQUENTIAL,
        here({"a.x": "cpu", "a.y": 0, "c": 0}),
    )
    assert dict(found.device_map.items()) == {"a.x": CPU, "a.y": GPU0, "a.b": CPU, "c": GPU0}
    assert found.notes[0] == NOTE
    assert "transformers loses a.b" in found.notes[1]


def test_what_is_left_out_on_purpose_stays_out():
    model = tree({"a": {"w": 10, "big": 90}}, no_split=["Part"], unplaced=["big"])
    budgets = from_max_memory({GPU0: 50, GPU1: 60, CPU: 100})
    found = as_installed(model, greedy_map(as_it_is(model), budgets, "auto"), budgets, Strategy.AUTO, here({"a.w": 1}))
    assert dict(found.device_map.items()) == {"a.w": GPU1}
    assert found.notes == (NOTE,)


def test_optimal_is_devctls_own():
    def ask(*_):
        raise AssertionError("asked")

    found = greedy_map(as_it_is(TREE), TWO, Strategy.AUTO)
    assert as_installed(TREE, found, TWO, Strategy.OPTIMAL, here(ask)) is found


def test_a_planner_that_plans_as_devctl_does_agrees():
    assert agrees(TREE, same(TREE))
    assert agrees(TREE, here(None))


def test_a_planner_that_tells_why_it_has_no_map_does_not_agree():
    """A second plan, which does not ask, would not say so."""
    assert not agrees(TREE, here("it raises"))


def test_a_planner_that_balances_otherwise_does_not_agree():
    """One that gives each GPU an even share without the buffer, as transformers' older ones nearly did."""

    def ask(memory, strategy, given):
        numbered = [device for device in memory if isinstance(device, int)]
        if strategy != "sequential" and numbered:
            memory = memory | {device: min(memory[device], 42 // len(numbered)) for device in numbered}
        return same(TREE).ask(memory, "sequential", given)

    assert not agrees(TREE, here(ask))


def test_a_placement_is_of_the_installed_planners_map():
    theirs = {"embed": 0, "layers": "cpu", "head": "cpu"}
    placed = place(TREE, TWO, Strategy.AUTO, installed=here(theirs))
    assert to_hf(placed.device_map) == theirs
    assert placed.offloaded == 34
    assert NOTE in placed.notes
    assert "34 B are offloaded that need not be: --strategy optimal keeps them" in placed.notes


def test_optimal_is_held_against_the_installed_planners_auto():
    placed = place(TREE, TWO, Strategy.OPTIMAL, installed=here({"": "cpu"}))
    assert "transformers' own plan, auto, would offload 38 B more" in placed.notes


def test_a_map_that_is_not_devctls_own_is_not_explained_as_if_it_were():
    placed = place(TREE, TWO, Strategy.AUTO, installed=here({"": "cpu"}))
    assert explain(TREE, TWO, placed).rules == (NOTE,)
    assert explain(TREE, TWO, placed).reasons == ()
    assert explain(TREE, TWO, place(TREE, TWO, Strategy.AUTO, installed=same(TREE))).reasons
