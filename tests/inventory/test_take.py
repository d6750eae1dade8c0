"""All probes together."""

import pytest

from devctl.devices import Device
from devctl.inventory import take
from devctl.inventory.probes.findings import Findings
from devctl.inventory.records import Accelerator, Hidden, Host, Links, Vendor
from devctl.inventory.take import Part, combine, guarded, parse_torch_version, take_inventory
from tests.inventory import boxes
from tests.inventory.boxes import GIB

HOST = Host(cpu="x", cores_physical=1, cores_logical=2, ram_total=100, ram_available=60)


def gpu(vendor=Vendor.NVIDIA, device=None, **facts):
    known = {"index": 0, "name": None, "uuid": None, "memory_total": None, "memory_free": None}
    return Accelerator(vendor=vendor, device=device, **{**known, **facts})


def test_the_whole_machine(machine):
    machine(boxes.eight())
    found = take_inventory(environment={})
    assert len(found.accelerators) == 8
    assert found.host.ram_total > 0
    assert [disk.use for disk in found.disks] == ["working directory", "hf cache"]
    assert found.taken_at.endswith("Z")


def test_the_environment_is_this_processs(machine, monkeypatch):
    machine(boxes.eight())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert [a.index for a in take_inventory().accelerators if a.device] == [3]


@pytest.mark.parametrize("only", Part)
def test_one_part_alone(machine, only):
    machine(boxes.eight())
    found = take_inventory(only=only, environment={})
    assert bool(found.accelerators) == (only is Part.GPU)
    assert (found.host.ram_total is not None) == (only is Part.CPU)
    assert bool(found.disks) == (only is Part.DISK)


def test_a_gpu_alone_that_shares_the_hosts_memory_still_knows_it(machine):
    machine(boxes.gb10())
    found = take_inventory(only=Part.GPU, environment={})
    assert found.accelerators[0].memory_total > 0
    assert found.host.ram_total is None


def test_named_folders(tmp_path):
    found = take_inventory(only=Part.DISK, folders=[("offload folder", tmp_path)])
    assert found.disks[-1].use == "offload folder"
    assert found.disks[-1].path == str(tmp_path)


def test_shared_memory_is_the_hosts_once_and_the_pool_says_so():
    (found,) = combine([Findings(accelerators=(gpu(memory_pool="host"),))], HOST).accelerators
    assert (found.memory_total, found.memory_free, found.memory_pool) == (100, 60, "host")


def test_shared_memory_that_its_driver_knows_is_no_more_than_the_host_has():
    (found,) = combine(
        [Findings(accelerators=(gpu(memory_pool="host", memory_total=90, memory_free=80),))], HOST
    ).accelerators
    assert (found.memory_total, found.memory_free) == (90, 60)


def test_memory_of_its_own_is_left_alone():
    (found,) = combine([Findings(accelerators=(gpu(),))], HOST).accelerators
    assert (found.memory_total, found.memory_pool) == (None, None)


TWO = [
    Findings(accelerators=(gpu(device=Device.gpu(0)), gpu(fault="lost")), links=Links(accelerators=(0, 1))),
    Findings(accelerators=(gpu(Vendor.AMD, Device.gpu(0)),)),
]


FIRST, LAST = ["cuda:0", None, None], [None, None, "cuda:0"]


@pytest.mark.parametrize(("rocm", "devices", "loser"), [(None, FIRST, 2), (False, FIRST, 2), (True, LAST, 0)])
def test_of_two_vendors_torch_drives_one(rocm, devices, loser):
    found = combine(TWO, HOST, rocm)
    assert [a.device and str(a.device) for a in found.accelerators] == devices
    assert found.accelerators[loser].hidden is Hidden.OTHER_BUILD
    assert found.accelerators[1].fault == "lost"
    assert len(found.notes) == 1


def test_an_intel_gpu_beside_an_nvidia_one_is_no_conflict():
    intel = Findings(accelerators=(gpu(Vendor.INTEL, Device.xpu()),))
    found = combine([TWO[0], intel], HOST)
    assert (found.accelerators[2].device, found.notes) == (Device.xpu(), ())


def test_links_count_positions_in_the_whole_inventory():
    amd_first = [Findings(accelerators=(gpu(Vendor.INTEL, Device.xpu()),)), TWO[0]]
    assert combine(amd_first, HOST).links.accelerators == (1, 2)


def test_a_probe_that_breaks_is_a_fault_and_hides_no_other():
    def breaks():
        raise RuntimeError("the library is of another machine")

    found = combine([guarded(Vendor.AMD, breaks), TWO[0]], HOST)
    assert found.drivers[0].fault == "could not be looked at: RuntimeError: the library is of another machine"
    assert found.accelerators[0].device == Device.gpu(0)


def test_interrupting_a_probe_is_no_fault():
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        guarded(Vendor.AMD, interrupted)


@pytest.mark.parametrize(
    ("text", "rocm"),
    [
        ("__version__ = '2.13.0+rocm6.4'\nhip: Optional[str] = '6.4.43482'\n", True),
        ("cuda: Optional[str] = '12.4'\nhip: Optional[str] = None\n", False),
        ("hip = None\n", False),
        ("", None),
        (None, None),
    ],
)
def test_what_torch_is_built_for(text, rocm):
    assert parse_torch_version(text) is rocm


def test_the_installed_torch_is_not_built_for_rocm():
    assert take.torch_is_rocm() is False


def test_times():
    assert take.utc(0.25) == "1970-01-01T00:00:00.250Z"


def test_free_memory_is_read_anew(machine):
    machine(boxes.system() + boxes.board(used=GIB))
    before = take_inventory(only=Part.GPU).accelerators[0].memory_free
    machine(boxes.system() + boxes.board(used=2 * GIB))
    assert take_inventory(only=Part.GPU).accelerators[0].memory_free == before - GIB
