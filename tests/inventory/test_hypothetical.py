import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devctl.devices import Device, DeviceType
from devctl.inventory.catalogue import boards, find
from devctl.inventory.document import from_document, to_document
from devctl.inventory.hypothetical import MOST, parse_devices
from devctl.inventory.records import HOST_POOL

GIB = 2**30


def accelerators(text):
    return [(str(a.device), a.name, a.memory_free) for a in parse_devices(text).accelerators]


def test_boards_by_name_in_the_order_written():
    h100, t4 = find("H100").memory_usable, find("T4").memory_usable
    assert accelerators("2xH100, 1xT4") == [
        ("cuda:0", "H100 SXM", h100),
        ("cuda:1", "H100 SXM", h100),
        ("cuda:2", "T4", t4),
    ]


@pytest.mark.parametrize("text", ["4x24GiB", "4 x 24GiB", "4X24 gib", "4×24GiB", "24GiB,3x24GiB"])
def test_boards_by_size(text):
    assert [(device, free) for device, _, free in accelerators(text)] == [(f"cuda:{i}", 24 * GIB) for i in range(4)]


def test_ram_and_disk_are_what_is_said():
    machine = parse_devices("24GiB,cpu=64GiB,disk=1TB")
    assert (machine.host.ram_total, machine.host.ram_available) == (64 * GIB, 64 * GIB)
    assert [disk.free for disk in machine.disks] == [10**12]
    assert [disk.free for disk in parse_devices("disk,24GiB").disks] == [None]
    without = parse_devices("24GiB")
    assert without.host.ram_available is None
    assert without.disks == ()


@pytest.mark.parametrize("text", ["H30", "L5", "A30X", "RTX 40", "B2", "RTX 1090", "H", "RTX", "MI900X", "W6000"])
def test_another_board_is_no_suggestion(text):
    with pytest.raises(ValueError) as raised:
        parse_devices(text)
    assert str(raised.value) == f"{text!r} is no board known here, and no size"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("H20", "H20"),
        ("NVIDIA H20-3e", "H20-3e"),
        ("RTX 4090 24GB", "RTX 4090"),
        ("L40S-48GB", "L40S"),
        ("rtx 5060ti 16 gib", "RTX 5060 Ti 16GB"),
        ("B200 192GB", "B200"),
    ],
)
def test_a_name_may_have_the_memory_behind_it(text, name):
    assert [name for _, name, _ in accelerators(text)] == [name]


def test_several_chips_that_share_ram_are_several_machines_but_of_one_kind():
    assert [a.memory_pool for a in parse_devices("4xMI300A").accelerators] == [HOST_POOL] * 4


def test_of_a_board_that_torch_calls_otherwise_it_is_said():
    (note,) = parse_devices("2xGaudi 3").notes
    assert note.startswith("torch calls a Gaudi 3 hpu")
    assert parse_devices("2xH100").notes == parse_devices("24GiB").notes == ()


def test_other_makers_devices():
    assert [device for device, _, _ in accelerators("2xMI300X,8GiB")] == ["cuda:0", "cuda:1", "cuda:2"]
    assert [device for device, _, _ in accelerators("2xB60,8GiB")] == ["xpu:0", "xpu:1", "xpu:2"]
    mac = parse_devices("M3 Max 64GB,disk")
    assert [(a.device, a.memory_pool) for a in mac.accelerators] == [(Device.mps(), HOST_POOL)]
    assert mac.host.ram_total == 64 * GIB
    assert mac.accelerators[0].memory_free == mac.host.ram_available == 48 * GIB
    assert [a.memory_pool for a in parse_devices("GB10").accelerators] == [HOST_POOL]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "nothing in it; write it like 4xH100,cpu=512GiB"),
        ("H100,", "an entry is empty"),
        ("cpu", "cpu has no size; write it like cpu=64GiB"),
        ("cpu=", "'' is not a size"),
        ("cpu=much", "'much' is not a size"),
        ("cpu=1GiB,cpu=1GiB", "cpu is given twice"),
        ("disk,disk=1GiB", "disk is given twice"),
        ("0=24GiB", "'0=24GiB': only cpu and disk take a size behind =; a GPU is written 24GiB"),
        ("=24GiB", "'=24GiB': only cpu and disk take a size behind ="),
        ("0xT4", "'0xT4' is none; leave it out"),
        ("4x", "'4x' is no board known here, and no size"),
        ("2x2xT4", "'2xT4' is no board known here, and no size"),
        ("0,2", "'0' is neither a board nor a size; a size has a unit, like 0GiB"),
        ("-1GiB", "is no board known here, and no size"),
        ("1e999GiB", "is no board known here, and no size"),
        ("RTX 4091", "'RTX 4091' is no board known here, and no size; did you mean RTX 4090?"),
        ("H1000", "did you mean H100 SXM?"),
        ("A100", "'A100' may be A100 40GB, A100 80GB or A100 80GB PCIe: say which"),
        ("RTX 5060 Ti", "'RTX 5060 Ti' may be RTX 5060 Ti 8GB or RTX 5060 Ti 16GB: say which"),
        ("RTX 3090 48GB", "'RTX 3090 48GB' is no board known here, and no size"),
        ("H2O", "'H2O' is no board known here, and no size; did you mean H20?"),
        ("rtx4900", "did you mean RTX 4090?"),
        ("MI300", "did you mean MI300A or MI300X?"),
        ("RTX 4070 Ti SUPR", "did you mean RTX 4070 Ti SUPER?"),
        ("L2", "'L2' is a board of which nothing is known here: give its memory, like 8GiB"),
        ("RTX 2080", "'RTX 2080' is a board of which nothing is known here"),
        ("2xJetson AGX Orin 64GB", "Jetson AGX Orin 64GB is a machine's only accelerator"),
        ("2xRyzen AI Max+ 395 128GB", "Ryzen AI Max+ 395 128GB is a machine's only accelerator"),
        ("M3 Max", "'M3 Max' may be M3 Max 36GB, M3 Max 48GB, M3 Max 64GB, M3 Max 96GB or M3 Max 128GB: say which"),
        ("2xH100,MI300X", "no one build of torch drives H100 SXM and MI300X"),
        ("B60,T4", "no one build of torch drives Arc Pro B60 and T4"),
        ("2xM4 32GB", "M4 32GB is a machine's only accelerator"),
        ("M4 32GB,24GiB", "M4 32GB is a machine's only accelerator"),
        ("M4 32GB,cpu=32GiB", "M4 32GB has the host's RAM for its memory"),
        ("2000xT4", "more than 1024 accelerators"),
        ("999999xT4", "more than 1024 accelerators"),
    ],
)
def test_what_can_not_be_read(text, said):
    with pytest.raises(ValueError) as raised:
        parse_devices(text)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


@given(st.text(max_size=20) | st.text("0123456789xX=,.GiMB cpudskRTHL-", max_size=20))
def test_any_text_is_read_or_raises_value_error(text):
    with contextlib.suppress(ValueError):
        assert len(parse_devices(text).accelerators) <= MOST


@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 2**45)), min_size=1, max_size=5),
    st.none() | st.integers(0, 2**45),
)
def test_counts_and_sizes_survive(groups, ram):
    text = ",".join(f"{count}x{size}B" for count, size in groups) + ("" if ram is None else f",cpu={ram}B")
    machine = parse_devices(text)
    assert [a.memory_free for a in machine.accelerators] == [size for count, size in groups for _ in range(count)]
    assert [a.device.id for a in machine.accelerators] == list(range(len(machine.accelerators)))
    assert machine.host.ram_available == ram


@pytest.mark.parametrize("board", boards(), ids=lambda board: board.name)
def test_every_board_can_be_planned_for(board):
    machine = parse_devices(board.name)
    assert machine.accelerators[0].memory_free == board.memory_usable
    assert machine.accelerators[0].device.type in (DeviceType.GPU, DeviceType.XPU, DeviceType.MPS)
    assert from_document(to_document(machine)) == machine
