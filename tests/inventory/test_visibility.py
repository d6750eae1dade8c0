"""CUDA's own numbering, as pure data."""

import os
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devctl.inventory.records import Hidden
from devctl.inventory.visibility import CudaBoard, Seat, cuda_order, seats, unnamed, view

A, B, C = (
    CudaBoard(uuid="GPU-aa11", model="x"),
    CudaBoard(uuid="GPU-aa22", model="x"),
    CudaBoard(uuid="GPU-bb33", model="x"),
)
THREE = [A, B, C]
SPLIT = CudaBoard(
    uuid="GPU-cc44", model="x", mig=True, instances=(("MIG-d1", "MIG-GPU-cc44/7/0"), ("MIG-d2", "MIG-GPU-cc44/7/1"))
)


def places(boards, variable, order=None):
    return [(seat.board, seat.instance) for seat in seats(boards, order or range(len(boards)), variable)]


@pytest.mark.parametrize(
    ("variable", "expected"),
    [
        (None, [0, 1, 2]),
        ("", []),
        ("0,1,2", [0, 1, 2]),
        ("2,0", [2, 0]),
        (" 1 , 2 ", [1, 2]),
        ("-1", []),
        ("1,-1,0", [1]),
        ("0,3,1", [0]),
        ("0,x,1", [0]),
        ("1,,2", [1]),
        ("1,1", []),
        ("1st,2nd", [1, 2]),
        ("GPU-bb33,GPU-aa11", [2, 0]),
        ("GPU-b", [2]),
        ("GPU-aa", []),
        ("GPU-bb,GPU-aa,GPU-aa22", [2]),
        ("GPU-bb,GPU-bb33", []),
        ("GPU-", []),
        ("GPU-zz,GPU-bb33", []),
        ("99999999999999999999", []),
        ("01", [1]),
    ],
)
def test_visible_boards(variable, expected):
    assert places(THREE, variable) == [(place, None) for place in expected]


@pytest.mark.parametrize(
    ("variable", "words"),
    [
        (None, None),
        ("0,1,2", None),
        ("2,0,", None),
        ("GPU-bb33,GPU-aa11", None),
        ("", "it is empty, which hides every GPU"),
        (" ", "it is empty, which hides every GPU"),
        ("7", "its entry '7' names no GPU: there are 3, from 0 on; it hides all behind it"),
        ("0,x,1", "its entry 'x' names no GPU: there are 3, from 0 on; it hides all behind it"),
        ("1,,2", "its entry '' names no GPU: there are 3, from 0 on; it hides all behind it"),
        ("-1", "its entry '-1' names no GPU: there are 3, from 0 on; it hides all behind it"),
        ("GPU-bb,GPU-zz", "its entry 'GPU-zz' fits no GPU here, or several; it hides all behind it"),
        ("GPU-aa", "its entry 'GPU-aa' fits no GPU here, or several; it hides all behind it"),
        ("1,0,1", "its entry '1' names a GPU for the second time, which hides every GPU"),
    ],
)
def test_an_entry_that_names_nothing_is_told(variable, words):
    assert unnamed(THREE, range(3), variable) == words


def test_an_entry_that_is_told_has_an_end():
    assert len(unnamed(THREE, range(3), "9" * 5000)) < 150
    assert unnamed([], (), "0") == "its entry '0' names no GPU: none here works; it hides all behind it"


def test_indices_count_in_cudas_order_and_uuids_do_not():
    assert places(THREE, "0", order=(2, 0, 1)) == [(2, None)]
    assert places(THREE, "GPU-aa11", order=(2, 0, 1)) == [(0, None)]


@pytest.mark.parametrize(
    ("variable", "expected"),
    [("MIG-d2", [(1, 1)]), ("MIG-GPU-cc44/7/1", [(1, 1)]), ("GPU-cc44", [(1, 0)]), ("1", [(1, 0)]), ("MIG-d", [])],
)
def test_names_of_mig_instances(variable, expected):
    assert places([A, SPLIT], variable) == expected


def test_a_board_in_mig_mode_without_instances_is_not_a_device():
    empty = CudaBoard(uuid="GPU-cc44", model="x", mig=True)
    assert places([empty, A], None) == [(1, None)]
    assert places([empty, A], "0,1") == []


def test_one_mig_instance_and_nothing_beside_it():
    seen = view([A, SPLIT], {})
    assert seen.ordinals == {Seat(1, 0): 0}
    assert seen.hidden == {Seat(0): Hidden.MIG_LIMIT, Seat(1): Hidden.MIG_PARENT, Seat(1, 1): Hidden.MIG_LIMIT}


def test_a_named_whole_board_is_visible_beside_a_split_one():
    seen = view([A, SPLIT], {"CUDA_VISIBLE_DEVICES": "GPU-aa11"})
    assert seen.ordinals == {Seat(0): 0}
    assert seen.hidden[Seat(1, 0)] is Hidden.ENVIRONMENT


def test_invisible_boards_say_why():
    seen = view(THREE, {"CUDA_VISIBLE_DEVICES": "2"})
    assert seen.ordinals == {Seat(2): 0}
    assert seen.hidden == {Seat(0): Hidden.ENVIRONMENT, Seat(1): Hidden.ENVIRONMENT}


SLOW, FAST = CudaBoard(uuid="GPU-1", model="slow", speed=1.0), CudaBoard(uuid="GPU-2", model="fast", speed=9.0)


def test_the_fastest_board_comes_first_by_default_and_that_is_a_guess():
    assert cuda_order([SLOW, FAST], None) == ((1, 0), False)
    assert cuda_order([SLOW, FAST], "FASTEST_FIRST") == ((1, 0), False)


def test_the_pci_order_is_certain_when_asked_for_or_when_boards_are_alike():
    assert cuda_order([SLOW, FAST], "PCI_BUS_ID") == ((0, 1), True)
    assert cuda_order(THREE, None) == ((0, 1, 2), True)
    assert cuda_order([SLOW], None) == ((0,), True)


def test_boards_without_a_model_may_be_unlike():
    assert cuda_order([CudaBoard(uuid="GPU-1"), CudaBoard(uuid="GPU-2")], None) == ((0, 1), False)


ENTRIES = ["0", "1", "2", "11", "007", "-1", "-0", "+1", " 3 ", "1gpu", "2,", "", " ", "x", "G0"]


@settings(deadline=None)  # the first imports torch
@given(st.lists(st.sampled_from(ENTRIES), min_size=1, max_size=5).map(",".join))
def test_integers_are_read_as_torch_reads_them(variable):
    from torch.cuda import _parse_visible_devices

    with mock.patch.dict(os.environ, {"CUDA_VISIBLE_DEVICES": variable}):
        theirs = _parse_visible_devices()
    boards = [CudaBoard(uuid=f"GPU-{n}", model="x") for n in range(12)]
    assert [place for place, _ in places(boards, variable)] == theirs


@given(st.lists(st.sampled_from(THREE), max_size=3, unique=True), st.text(max_size=20))
def test_any_text_gives_distinct_boards_that_are_there(boards, variable):
    found = places(boards, variable)
    assert len(set(found)) == len(found)
    assert all(0 <= place < len(boards) for place, _ in found)
