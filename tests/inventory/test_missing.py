import pytest

from devctl.devices import Device
from devctl.inventory.missing import missing
from devctl.inventory.records import Accelerator, Driver, Hidden, Host, Inventory, Vendor

HOST = Host(cpu=None, cores_physical=None, cores_logical=None, ram_total=None, ram_available=None)
MISMATCH = "the kernel module and library are of different versions"


def gpu(index, **facts):
    known = {"device": None, "name": None, "uuid": None, "memory_total": None, "memory_free": None}
    return Accelerator(index=index, **known | facts)


def told(*accelerators, **rest):
    return missing(Inventory(accelerators=accelerators, host=HOST, disks=(), **rest))


def test_what_is_all_there_needs_no_words():
    assert told() == ()
    assert told(gpu(0, device=Device.gpu(0)), gpu(1, mig_mode=True, hidden=Hidden.MIG_PARENT)) == ()


def test_a_driver_at_fault_is_told_once_and_not_for_each_board():
    driver = Driver(vendor=Vendor.NVIDIA, version=None, cuda=None, fault=MISMATCH)
    assert told(drivers=(driver,)) == (f"no NVIDIA GPU is counted: {MISMATCH}",)
    assert told(gpu(0, fault=MISMATCH), gpu(1, fault=MISMATCH), drivers=(driver,)) == told(drivers=(driver,))
    npu = Driver(vendor=Vendor.OTHER, version=None, cuda=None, fault="could not be looked at")
    assert told(drivers=(npu,)) == ()


def test_boards_at_fault_are_told_by_their_fault():
    lost, hot = {"fault": "GPU is lost"}, {"fault": "it fell off the bus"}
    found = told(gpu(0, **lost), gpu(1, device=Device.gpu(0)), gpu(2, **hot), gpu(3, **lost))
    assert found == ("nvidia 0 and nvidia 3 are left out: GPU is lost", "nvidia 2 is left out: it fell off the bus")


def test_many_boards_are_counted():
    found = told(*(gpu(n, fault="GPU is lost") for n in range(8)))
    assert found == ("nvidia 0, nvidia 1, nvidia 2 and 5 more are left out: GPU is lost",)


@pytest.mark.parametrize(
    ("vendor", "words"),
    [
        (Vendor.NVIDIA, "nvidia 0 is hidden by CUDA_VISIBLE_DEVICES"),
        (Vendor.AMD, "amd 0 is hidden by ROCR_VISIBLE_DEVICES, HIP_VISIBLE_DEVICES or CUDA_VISIBLE_DEVICES"),
        (Vendor.INTEL, "intel 0 is hidden by ZE_AFFINITY_MASK"),
    ],
)
def test_the_variable_that_hides_is_told(vendor, words):
    assert told(gpu(0, vendor=vendor, hidden=Hidden.ENVIRONMENT), gpu(1, device=Device.gpu(0))) == (words,)


def test_a_processors_own_graphics_are_told_where_there_is_nothing_else():
    own = gpu(0, vendor=Vendor.INTEL, hidden=Hidden.UNSUPPORTED)
    assert told(own) == ("intel 0 is left out: torch has no device for it",)
    assert told(own, gpu(0, device=Device.gpu(0))) == ()


def test_what_the_inventory_notes_comes_last():
    assert told(gpu(0, fault="GPU is lost"), notes=("a note",)) == ("nvidia 0 is left out: GPU is lost", "a note")
