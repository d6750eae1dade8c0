import contextlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devctl.devices import Device, DeviceType
from devctl.inventory.records import HOST_POOL, Accelerator, Host, Inventory
from devctl.placement.budget import from_inventory, from_max_memory, override, parse_max_memory
from devctl.units import format_bytes, format_rate, parse_size

GIB = 2**30


def gpu(index, free, device="same"):
    return Accelerator(
        device=Device.gpu(index) if device == "same" else device,
        index=index,
        name="X",
        uuid=None,
        memory_total=100 * GIB,
        memory_free=free,
    )


def machine(*gpus, ram=10 * GIB):
    host = Host(cpu="X", cores_physical=1, cores_logical=1, ram_total=ram, ram_available=ram)
    return Inventory(accelerators=gpus, host=host, disks=())


def test_max_memory_in_one_or_several_options():
    expected = {Device.gpu(0): 10 * GIB, Device.gpu(1): 5 * 10**9, Device.cpu(): 30 * GIB}
    assert parse_max_memory(["0=10GiB,1=5GB,cpu=30GiB"]) == expected
    assert parse_max_memory(["0=10GiB", "1=5GB, cpu = 30GiB"]) == expected
    assert parse_max_memory(["cuda:0=10GiB,1=5000000000B", "cpu=30GiB"]) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no DEVICE=SIZE"),
        (",", "no DEVICE=SIZE"),
        ("10GiB", "not DEVICE=SIZE"),
        ("0=", "not a size"),
        ("0=10Gi", "not a size"),
        ("0=-1GiB", "not a size"),
        ("0=nanGiB", "not a size"),
        ("0=infGiB", "not a size"),
        ("0=1e999GiB", "too large"),
        ("0=1e300GiB", "too large"),
        ("gpu=1GiB", "not a device"),
        ("cuda=1GiB", "not a device"),
        ("cpu:0=1GiB", "not a device"),
        ("-1=1GiB", "not a device"),
        ("=1GiB", "not a device"),
        ("0=1GiB,0=2GiB", "given twice"),
        ("0=1GiB,cuda:0=2GiB", "given twice"),
    ],
)
def test_max_memory_rejects(text, said):
    with pytest.raises(ValueError, match=said):
        parse_max_memory([text])


@given(st.lists(st.text("0123456789=,.GiMKBbcpuda: -e", max_size=12), max_size=3))
def test_max_memory_reads_or_raises_value_error(texts):
    try:
        found = parse_max_memory(texts)
    except ValueError:
        return
    assert found
    assert all(size >= 0 for size in found.values())


@given(st.text(max_size=12))
def test_sizes_read_or_raise_value_error(text):
    with contextlib.suppress(ValueError):
        assert parse_size(text) >= 0


@given(st.integers(0, 2**60))
def test_sizes_survive_being_shown(size):
    assert abs(parse_size(format_bytes(size)) - size) <= 0.0052 * size


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "0.98 KiB"),
        (1024, "1.00 KiB"),
        (10 * 2**30, "10.0 GiB"),
        (141 * 2**30, "141 GiB"),
        (2**50, "1024 TiB"),
        (16060522496, "15.0 GiB"),
    ],
)
def test_format_bytes(size, text):
    assert format_bytes(size) == text


def test_devices_are_ordered_as_they_are_filled():
    given = {Device.disk(): 1, Device.cpu(): 2, Device.gpu(10): 3, Device.gpu(2): 4, Device.mps(): 5}
    assert [str(device) for device, _ in from_max_memory(given).devices] == ["cuda:2", "cuda:10", "mps", "cpu", "disk"]


def test_absent_gpus_are_planned_for_and_noted():
    budgets = from_max_memory({Device.gpu(0): 1, Device.gpu(3): 1, Device.cpu(): 1}, machine(gpu(0, 1)))
    assert budgets.given
    assert [str(device) for device, _ in budgets.devices] == ["cuda:0", "cuda:3", "cpu"]
    assert budgets.notes == ("the machine has no cuda:3: the map is for another one",)


def test_the_machine_gives_its_free_memory():
    budgets = from_inventory(machine(gpu(0, 7 * GIB), gpu(1, 8 * GIB), ram=10 * GIB))
    assert not budgets.given
    assert budgets.devices == ((Device.gpu(0), 7 * GIB), (Device.gpu(1), 8 * GIB), (Device.cpu(), 9 * GIB))


def test_a_gpu_that_no_framework_can_use_is_left_out():
    assert from_inventory(machine(gpu(0, GIB, device=None), gpu(1, GIB))).devices[0][0] == Device.gpu(1)


def test_a_gpu_that_does_not_tell_its_memory_is_left_out_with_a_note():
    budgets = from_inventory(machine(gpu(0, None), ram=None))
    assert budgets.devices == ()
    assert len(budgets.notes) == 2


@pytest.mark.parametrize("device", [Device.mps(), Device.gpu(0)])
def test_unified_memory_is_counted_once(device):
    shared = Accelerator(
        device=device,
        index=0,
        name="X",
        uuid=None,
        memory_total=GIB,
        memory_free=GIB,
        memory_pool=HOST_POOL,
    )
    budgets = from_inventory(machine(shared, gpu(1, GIB)))
    assert [each for each, _ in budgets.devices if each.type is not DeviceType.GPU or each.id != 1] == [device]
    assert "shares its memory" in budgets.notes[0]
    # one that no framework can use shares nothing
    assert Device.cpu() in dict(from_inventory(machine(replace(shared, device=None))).devices)


def test_a_containers_limit_is_what_counts():
    host = Host(
        cpu="X",
        cores_physical=1,
        cores_logical=1,
        ram_total=2 * GIB,
        ram_available=GIB,
        ram_available_system=10 * GIB,
    )
    budgets = from_inventory(Inventory(accelerators=(), host=host, disks=()))
    assert budgets.devices == ((Device.cpu(), int(0.9 * GIB)),)
    assert (
        "1.00 GiB of RAM that the cgroup leaves, where transformers would count the machine's 10.0 GiB"
        in budgets.notes[0]
    )


def test_a_machine_that_the_user_wrote_is_meant_as_it_is():
    budgets = from_inventory(machine(gpu(0, 7 * GIB), ram=10 * GIB), given=True)
    assert budgets.given
    assert budgets.devices == ((Device.gpu(0), 7 * GIB), (Device.cpu(), 10 * GIB))
    without = from_inventory(machine(gpu(0, 7 * GIB), ram=None), given=True)
    assert without.devices == ((Device.gpu(0), 7 * GIB),)
    assert without.notes == ()


def test_some_devices_can_be_given_less():
    here = machine(gpu(0, 7 * GIB), gpu(1, 7 * GIB), ram=None)
    budgets = override(from_inventory(here, given=True), {Device.gpu(1): GIB, Device.cpu(): 2 * GIB}, here)
    assert budgets.given
    assert budgets.devices == ((Device.gpu(0), 7 * GIB), (Device.gpu(1), GIB), (Device.cpu(), 2 * GIB))
    with pytest.raises(ValueError, match="cuda:2 is not among the devices given, which are cuda:0, cuda:1"):
        override(from_inventory(here, given=True), {Device.gpu(2): GIB}, here)


@pytest.mark.parametrize(
    ("rate", "text"),
    [
        (3350 * 10**9, "3.35 TB/s"),
        (960 * 10**9, "960 GB/s"),
        (999_600_000_000, "1.00 TB/s"),
        (31_507_692_307, "31.5 GB/s"),
    ],
)
def test_format_rate(rate, text):
    assert format_rate(rate) == text
