"""CUDA's own order of unlike boards, asked of a stand-in for the CUDA driver."""

import pytest

from devctl.inventory.probes import cuda
from tests.inventory import boxes

A, B = ("GPU-" + cuda.format_uuid(bytes([byte]) * 16) for byte in (0xAA, 0xBB))


def box(first, second, **facts):
    slow = boxes.board(0, uuid=first, name="NVIDIA_T4", cc="7.5", cores=2560, clock=1590)
    return boxes.system() + slow + boxes.board(1, uuid=second, **facts)


@pytest.mark.parametrize(("first", "second", "devices"), [(A, B, ["cuda:0", "cuda:1"]), (B, A, ["cuda:1", "cuda:0"])])
def test_the_driver_knows_the_order_of_unlike_boards(probe, cuda_folder, first, second, devices):
    found = probe(box(first, second), LD_LIBRARY_PATH=str(cuda_folder))
    assert [str(a.device) for a in found.accelerators] == devices
    assert (found.order_certain, found.notes) == (True, ())


def test_the_variable_counts_in_the_drivers_order(probe, cuda_folder):
    found = probe(box(A, B), LD_LIBRARY_PATH=str(cuda_folder), CUDA_VISIBLE_DEVICES="1")
    assert [(a.cuda_index, a.device and str(a.device)) for a in found.accelerators] == [(0, None), (1, "cuda:0")]


@pytest.mark.parametrize(
    ("first", "facts", "environment"),
    [("GPU-other", {}, {}), (A, {}, {"FAKE_CUDA": "init"}), (A, {"mig": 1}, {})],
)
def test_an_order_that_does_not_cover_the_boards_is_still_a_guess(probe, cuda_folder, first, facts, environment):
    found = probe(box(first, "GPU-more", **facts), LD_LIBRARY_PATH=str(cuda_folder), **environment)
    assert not found.order_certain


def test_the_driver_is_not_asked_without_need(probe, monkeypatch):
    def asked(environment):
        raise AssertionError("asked")

    monkeypatch.setattr(cuda, "order", asked)
    assert probe(boxes.eight()).order_certain
    assert probe(boxes.mixed(), CUDA_DEVICE_ORDER="PCI_BUS_ID").order_certain
    assert not probe(boxes.mixed() + boxes.board(2, handle=15)).order_certain


def test_a_driver_that_does_not_come_back_is_given_up(monkeypatch):
    monkeypatch.setattr(cuda, "_ORDER_SECONDS", 0.0)
    assert cuda.order({}) is None


def test_without_a_driver_there_is_no_order(tmp_path):
    assert cuda.order({"LD_LIBRARY_PATH": str(tmp_path), "FAKE_CUDA": "init"}) is None
