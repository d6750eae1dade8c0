"""The NVIDIA probe through the real nvidia-ml-py, against invented boards."""

import os

import pytest

from devctl.devices import Device
from devctl.inventory.probes import nvidia, pci
from devctl.inventory.probes.processes import counts_as_driver, process_name
from devctl.inventory.records import Driver, Hidden, LinkPath, MigInstance, Process, Vendor
from tests.inventory import boxes
from tests.inventory.boxes import GIB


def devices(found):
    return [a.device and str(a.device) for a in found.accelerators]


def test_eight_equal_boards(probe):
    found = probe(boxes.eight())
    assert devices(found) == [f"cuda:{n}" for n in range(8)]
    third = found.accelerators[2]
    assert (third.index, third.cuda_index, third.uuid) == (2, 2, boxes.uuid(2))
    assert third.pci_bus_id == "0000:19:00.0"
    assert third.name == "NVIDIA H100 80GB HBM3"
    assert (third.utilization, third.temperature, third.power, third.power_limit) == (5, 41, 71.5, 700.0)
    assert (third.compute_capability, third.architecture) == ("9.0", "sm_90")
    assert (third.mig_mode, third.processes, third.fault, third.hidden) == (None, (), None, None)
    assert found.driver == Driver(vendor=Vendor.NVIDIA, version="550.54.15", cuda="12.4")
    assert (found.order_certain, found.notes) == (True, ())


def test_used_memory_is_without_the_drivers_own(probe):
    (board,) = probe(boxes.system() + boxes.board(used=3 * GIB, reserved=2 * GIB)).accelerators
    assert (board.memory_total, board.memory_used, board.memory_reserved) == (80 * GIB, 3 * GIB, 2 * GIB)
    assert board.memory_free == 75 * GIB


def test_a_driver_without_the_second_memory_call(probe):
    (board,) = probe(boxes.system() + boxes.board(used=3 * GIB, reserved=2 * GIB, v2=0)).accelerators
    assert (board.memory_used, board.memory_reserved, board.memory_free) == (5 * GIB, None, 75 * GIB)


def test_unequal_boards_are_counted_fastest_first_and_it_is_said(probe):
    found = probe(boxes.mixed())
    assert [(a.index, a.cuda_index, str(a.device)) for a in found.accelerators] == [(0, 1, "cuda:1"), (1, 0, "cuda:0")]
    assert not found.order_certain
    assert "CUDA_DEVICE_ORDER=PCI_BUS_ID" in found.notes[0]


def test_unequal_boards_in_pci_order_need_no_note(probe):
    found = probe(boxes.mixed(), CUDA_DEVICE_ORDER="PCI_BUS_ID")
    assert devices(found) == ["cuda:0", "cuda:1"]
    assert (found.order_certain, found.notes) == (True, ())


def test_boards_are_in_pci_order_whatever_nvml_says(probe):
    found = probe(boxes.system() + boxes.board(5) + boxes.board(1))
    assert [(a.index, a.uuid) for a in found.accelerators] == [(0, boxes.uuid(1)), (1, boxes.uuid(5))]


def test_an_invisible_board_stays_listed(probe):
    found = probe(boxes.eight(), CUDA_VISIBLE_DEVICES=f"{boxes.uuid(6)[:12]},GPU-00000003")
    assert devices(found) == [None, None, None, "cuda:1", None, None, "cuda:0", None]
    assert found.accelerators[0].hidden is Hidden.ENVIRONMENT
    assert found.accelerators[0].memory_free == 78 * GIB


def test_lost_boards_keep_their_place_and_hide_no_other(probe):
    found = probe(boxes.one_lost())
    assert devices(found) == ["cuda:0", None, None, "cuda:1"]
    assert [a.fault for a in found.accelerators] == [None, "GPU is lost", "GPU is lost", None]
    assert found.accelerators[1].memory_total is None
    assert found.accelerators[3].memory_total == 80 * GIB
    assert not found.order_certain
    assert "at fault" in found.notes[0]


def test_a_board_that_needs_a_reset_is_at_fault(probe):
    found = probe(boxes.system() + boxes.board(0, memory=16) + boxes.board(1))
    assert devices(found) == [None, "cuda:0"]
    assert found.accelerators[0].fault == "GPU requires restart"


def test_no_permission_for_one_board(probe):
    found = probe(boxes.system() + boxes.board(0, handle=4) + boxes.board(1))
    assert [a.fault for a in found.accelerators] == ["Insufficient Permissions", None]


def test_memory_that_a_board_does_not_tell_is_unknown(probe):
    (board,) = probe(boxes.system() + boxes.board(memory=3)).accelerators
    assert (board.memory_total, board.memory_free, board.memory_used) == (None, None, None)
    assert (board.fault, board.memory_pool, board.device) == (None, None, Device.gpu(0))


@pytest.mark.parametrize("name", ["NVIDIA_GB10", "Orin_(nvgpu)", "NVIDIA_Thor"])
def test_boards_without_memory_of_their_own_share_the_hosts(probe, name):
    (board,) = probe(boxes.system() + boxes.board(name=name, memory=3)).accelerators
    assert board.memory_pool == "host"


@pytest.mark.parametrize("name", ["NVIDIA_GB200", "NVIDIA_H100", "NVIDIA_RTX_6000_Ada", "NVIDIA_GH200_480GB"])
def test_other_boards_have_memory_of_their_own(probe, name):
    (board,) = probe(boxes.system() + boxes.board(name=name)).accelerators
    assert board.memory_pool is None


def test_a_name_that_is_no_text(probe):
    first, second = probe(boxes.system() + boxes.board(0, badname=1) + boxes.board(1)).accelerators
    assert (first.name, first.uuid, first.memory_total) == (None, boxes.uuid(0), 80 * GIB)
    assert second.name == "NVIDIA H100 80GB HBM3"


def test_processes(probe):
    ours = os.getpid()
    text = boxes.system() + boxes.board()
    text += boxes.process(board=0, pid=ours, bytes=2 * GIB) + boxes.process(board=0, pid=ours, bytes=2 * GIB, kind="g")
    text += boxes.process(board=0, pid=4_000_000, bytes=-1)
    (board,) = probe(text).accelerators
    first, second = board.processes
    assert (first.pid, first.memory) == (ours, 2 * GIB)
    assert second == Process(pid=4_000_000, name=None, memory=None)


def test_processes_that_may_not_be_seen_are_unknown(probe):
    (board,) = probe(boxes.system() + boxes.board(processes=4)).accelerators
    assert board.processes is None


def test_a_pid_of_the_host_names_no_process_of_a_container(tmp_path):
    (tmp_path / "first").symlink_to("pid:[4026531836]")
    (tmp_path / "other").symlink_to("pid:[4026532199]")
    assert counts_as_driver(tmp_path / "first")
    assert not counts_as_driver(tmp_path / "other")


def test_process_names(monkeypatch):
    from devctl.inventory.probes import processes

    monkeypatch.setattr(processes, "counts_as_driver", lambda: True)
    assert "python" in process_name(os.getpid()) or "pytest" in process_name(os.getpid())
    assert process_name(4_000_000) is None
    monkeypatch.setattr(processes, "counts_as_driver", lambda: False)
    assert process_name(os.getpid()) is None


def test_mig(probe):
    found = probe(boxes.mig_box())
    whole, parent, first, second, _ = found.accelerators
    assert devices(found) == [None, None, "cuda:0", None, None]
    assert (whole.hidden, whole.mig_mode, whole.mig) == (Hidden.MIG_LIMIT, False, None)
    assert (parent.hidden, parent.mig_mode, parent.cuda_index) == (Hidden.MIG_PARENT, True, 1)
    assert first.mig == MigInstance(parent=boxes.uuid(1), gpu_instance=7, compute_instance=0)
    assert (first.uuid, first.memory_free, first.index, first.cuda_index) == (boxes.mig_uuid(1, 0), 6 * GIB, 1, None)
    assert (first.compute_capability, first.utilization, first.pci_bus_id) == ("8.0", None, "0000:18:00.0")
    assert [p.pid for p in first.processes] == [4242]
    assert (second.hidden, second.processes) == (Hidden.MIG_LIMIT, ())
    assert any("one MIG instance" in note for note in found.notes)


def test_a_named_mig_instance_is_the_one(probe):
    found = probe(boxes.mig_box(), CUDA_VISIBLE_DEVICES=boxes.mig_uuid(1, 2))
    assert devices(found) == [None, None, None, None, "cuda:0"]
    found = probe(boxes.mig_box(), CUDA_VISIBLE_DEVICES=f"MIG-{boxes.uuid(1)}/8/0")
    assert devices(found) == [None, None, None, "cuda:0", None]


def test_a_lost_board_in_mig_mode_has_no_instances_to_ask(probe):
    found = probe(boxes.system() + boxes.board(0, mig=1, memory=15) + boxes.mig(0, 0) + boxes.board(1))
    assert devices(found) == [None, "cuda:0"]
    assert found.accelerators[0].fault == "GPU is lost"


def test_a_lost_instance_hides_no_other(probe):
    found = probe(boxes.system() + boxes.board(0, mig=1) + boxes.mig(0, 0, lost=1) + boxes.mig(0, 1))
    assert devices(found) == [None, None, "cuda:0"]
    assert found.accelerators[1].fault == "GPU is lost"


def test_zero_boards(probe):
    found = probe(boxes.system())
    assert found.accelerators == ()
    assert found.driver.version == "550.54.15"


def test_a_driver_that_does_not_count_its_boards_is_a_fault(probe, tmp_path):
    on_bus(tmp_path / "sys", "0000:17:00.0", H100)
    found = probe(boxes.system(count=999) + boxes.board())
    assert found.driver.fault == "the NVIDIA driver does not answer: Unknown Error"
    assert (found.driver.version, found.accelerators[0].fault) == ("550.54.15", found.driver.fault)


def test_the_numa_node_is_the_kernels(probe, tmp_path):
    folder = tmp_path / "sys/bus/pci/devices/0000:17:00.0"
    folder.mkdir(parents=True)
    (folder / "numa_node").write_text("1\n")
    near, other = probe(boxes.system() + boxes.board(0) + boxes.board(1)).accelerators
    assert (near.numa_node, other.numa_node) == (1, None)


def on_bus(folder, bus_id, uevent):
    (folder / "bus/pci/devices" / bus_id).mkdir(parents=True)
    (folder / "bus/pci/devices" / bus_id / "uevent").write_text(uevent)


H100 = "PCI_CLASS=30200\nPCI_ID=10DE:2330\nPCI_SLOT_NAME=0000:17:00.0\n"


@pytest.mark.parametrize(
    ("error", "words"),
    [(9, "not loaded"), (18, "different versions"), (4, "no permission"), (999, "Unknown Error"), (12, "not found")],
)
def test_a_driver_that_does_not_start_leaves_the_boards_with_the_fault(probe, tmp_path, error, words):
    on_bus(tmp_path / "sys", "0000:17:00.0", H100)
    found = probe(boxes.system(init=error))
    assert words in found.driver.fault
    (board,) = found.accelerators
    assert (board.pci_bus_id, board.device, board.memory_free) == ("0000:17:00.0", None, None)
    assert board.fault == found.driver.fault


def test_a_driver_that_does_not_start_is_a_fault_where_the_bus_is_out_of_sight(probe):
    found = probe(boxes.system(init=18))
    assert found.accelerators == ()
    assert "different versions" in found.driver.fault


def test_a_machine_without_library_and_boards_has_no_nvidia_part(probe):
    found = probe(boxes.system(init=12))
    assert (found.accelerators, found.driver) == ((), None)


def test_the_modules_version_is_told_when_the_library_does_not_fit(probe, tmp_path):
    (tmp_path / "sys/module/nvidia").mkdir(parents=True)
    (tmp_path / "sys/module/nvidia/version").write_text("535.183.01\n")
    assert probe(boxes.system(init=18)).driver.version == "535.183.01"


def test_nvlinks_through_switches(probe):
    links = probe(boxes.eight()).links
    assert links.accelerators == tuple(range(8))
    assert links.path[0][:2] == (LinkPath.SELF, LinkPath.NVLINK)
    assert (links.nvlinks[0][0], links.nvlinks[0][7], links.nvlinks[7][0]) == (None, 18, 18)
    assert (links.p2p[0][0], links.p2p[3][5]) == (None, True)


def test_boards_with_unequal_nvlinks_have_as_many_as_the_lesser(probe):
    text = boxes.system() + boxes.board(0, links=18) + boxes.board(1, links=12) + boxes.board(2, links=0)
    text += "".join(boxes.pair(a, b, level=40) for a, b in ((0, 1), (0, 2), (1, 2)))
    links = probe(text).links
    assert links.nvlinks == ((None, 12, 0), (12, None, 0), (0, 0, None))
    assert links.path[0] == (LinkPath.SELF, LinkPath.NVLINK, LinkPath.NODE)


def test_direct_nvlinks_and_the_pcie_tree(probe):
    text = boxes.system() + boxes.board(0) + boxes.board(1) + boxes.board(2)
    text += (
        boxes.pair(0, 1, level=20, nvlinks=4) + boxes.pair(0, 2, level=30, p2p=1) + boxes.pair(1, 2, level=50, p2p=5)
    )
    links = probe(text).links
    assert [[path.value for path in row] for row in links.path] == [
        ["self", "nvlink", "host-bridge"],
        ["nvlink", "self", "system"],
        ["host-bridge", "system", "self"],
    ]
    assert links.nvlinks[0] == (None, 4, 0)
    assert links.p2p == ((None, True, False), (True, None, False), (False, False, None))


def test_links_of_a_lost_board_are_unknown(probe):
    text = boxes.one_lost() + boxes.pair(0, 3, level=10) + boxes.pair(0, 1, level=10)
    links = probe(text).links
    assert links.path[0] == (LinkPath.SELF, None, None, LinkPath.SWITCH)
    assert links.p2p[0] == (None, None, None, True)


def test_one_board_has_no_links(probe):
    assert probe(boxes.system() + boxes.board()).links.accelerators == ()


def test_processes_with_unknown_bytes_keep_the_known_ones():
    merged = nvidia.merge_processes([(7, None), (7, 5), (7, 3), (1, None)], name=lambda pid: f"p{pid}")
    assert merged == (Process(pid=1, name="p1", memory=None), Process(pid=7, name="p7", memory=5))


def test_boards_given_to_virtual_machines_are_not_the_drivers_fault():
    board = pci.PciDevice(
        bus_id="0000:17:00.0", vendor="10de", device="2330", driver="vfio-pci", numa_node=None, folder=pci.SYS
    )
    assert nvidia.without_driver(nvidia.LIBRARY_NOT_FOUND, "", [board]).driver is None
