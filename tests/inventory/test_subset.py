from dataclasses import replace

import pytest

from devctl.devices import Device
from devctl.inventory.hypothetical import parse_devices
from devctl.inventory.records import Hidden, MigInstance, Vendor
from devctl.inventory.subset import parse_ids, show_only, variable

MACHINE = parse_devices("H100,T4,L4,A10")


def test_ids():
    assert parse_ids("2, 0") == (2, 0)


@pytest.mark.parametrize("text", ["", ",", "0,", "a", "-1", "0 1", "1.0", "²", "9" * 9, "GPU-1"])
def test_what_is_no_id(text):
    with pytest.raises(ValueError, match="is no accelerator's id; write ids like 0,2"):
        parse_ids(text)


def test_ids_twice():
    with pytest.raises(ValueError, match="0 is given twice"):
        parse_ids("0,1,00")


def test_the_chosen_are_counted_in_the_order_given():
    seen = show_only(MACHINE, (2, 0))
    assert [(a.name, a.device and str(a.device)) for a in seen.accelerators] == [
        ("H100 SXM", "cuda:1"),
        ("T4", None),
        ("L4", "cuda:0"),
        ("A10", None),
    ]
    assert seen.accelerators[1].hidden is Hidden.ENVIRONMENT
    assert variable(MACHINE, (2, 0)) == "CUDA_VISIBLE_DEVICES=2,0"


def test_the_variable_counts_as_cuda_does_without_one():
    # what a machine says where CUDA_VISIBLE_DEVICES=3,1 is set already
    devices = {3: Device.gpu(0), 1: Device.gpu(1)}
    machine = replace(
        MACHINE, accelerators=tuple(replace(a, device=devices.get(a.index)) for a in MACHINE.accelerators)
    )
    assert variable(machine, (0, 1)) == "CUDA_VISIBLE_DEVICES=3,1"
    assert variable(machine, (1,)) == "CUDA_VISIBLE_DEVICES=1"


def test_the_variable_names_uuids_where_an_index_could_mean_another_board():
    boards = tuple(replace(a, uuid=f"GPU-{a.index}") for a in MACHINE.accelerators)
    assert variable(replace(MACHINE, accelerators=boards), (2, 0)) == "CUDA_VISIBLE_DEVICES=2,0"
    unsure = replace(MACHINE, accelerators=boards, cuda_order_certain=False)
    assert variable(unsure, (2, 0)) == "CUDA_VISIBLE_DEVICES=GPU-2,GPU-0"
    instance = MigInstance(parent="GPU-0", gpu_instance=1, compute_instance=0)
    sliced = replace(boards[0], uuid="MIG-1", mig=instance, cuda_index=None)
    assert variable(replace(MACHINE, accelerators=(sliced,)), (0,)) == "CUDA_VISIBLE_DEVICES=MIG-1"


def test_other_makers_variables():
    assert variable(parse_devices("3xMI300X"), (2, 1)) == "HIP_VISIBLE_DEVICES=2,1"
    arcs = parse_devices("3xA770")
    assert variable(arcs, (0, 2)) == "ZE_AFFINITY_MASK=0,2"
    assert [a.device and str(a.device) for a in show_only(arcs, (0, 2)).accelerators] == ["xpu:0", None, "xpu:1"]
    with pytest.raises(ValueError, match="ZE_AFFINITY_MASK keeps the order"):
        show_only(arcs, (2, 0))
    assert arcs.accelerators[0].vendor is Vendor.INTEL


@pytest.mark.parametrize(
    ("text", "said"),
    [("2xT4", "5 is not there; the machine has cuda:0, cuda:1"), ("M4 32GB", "has mps"), ("disk", "no accelerator")],
)
def test_ids_that_are_not_there(text, said):
    with pytest.raises(ValueError, match=said):
        show_only(parse_devices(text), (5,))
