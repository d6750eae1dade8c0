import re
from itertools import groupby

import pytest

from devctl.inventory import catalogue
from devctl.inventory.catalogue import (
    Board,
    Link,
    boards,
    find,
    index,
    key,
    parse_boards,
    parse_unlisted,
    unlisted,
)
from devctl.inventory.probes.apple import parse_ioreg
from devctl.inventory.records import Vendor
from tests.test_architecture import modules_after

GIB = 2**30


def natural(name):
    """Numbers by their size, and before words."""
    return [(0, int(digits), "") if digits else (1, 0, word) for digits, word in re.findall(r"(\d+)|([^\d\s]+)", name)]


def test_every_board_once_in_order_and_with_its_sources():
    assert len({board.name for board in boards()}) == len(boards())
    assert [vendor for vendor, _ in groupby(board.vendor for board in boards())] == [
        Vendor.NVIDIA,
        Vendor.AMD,
        Vendor.APPLE,
        Vendor.INTEL,
    ]
    for vendor in {board.vendor for board in boards()}:
        names = [board.name for board in boards() if board.vendor is vendor]
        stems = [name if vendor is not Vendor.APPLE else name.rpartition(" ")[0] for name in names]
        assert stems == sorted(stems, key=natural)
    for board in boards():
        assert board.source.startswith(("NVIDIA ", "AMD ", "Apple ", "Intel ")), board
        assert board.memory_source
        assert 0.5 * board.memory_total <= board.memory_usable <= board.memory_total, board
        assert board.shares_ram or board.memory_usable > 0.9 * board.memory_total, board


@pytest.mark.parametrize(
    ("name", "bits", "gigabits"),
    [  # bus width, and what a line of it carries in a second
        ("A10", 384, 12.5),
        ("A40", 384, 14.5),
        ("A30", 3072, 2.43),
        ("A100 40GB", 5120, 2.43),
        ("A100 80GB", 5120, 3.186),
        ("A100 80GB PCIe", 5120, 3.024),
        ("B200", 7680, 7.992),
        ("B300", 8192, 7.812),
        ("A2", 128, 12.5),
        ("L20", 384, 18),
        ("P40", 384, 7.2),
        ("RTX 3080 Ti", 384, 19),
        ("RTX 4060", 128, 17),
        ("RTX 4070", 192, 21),
        ("RTX 4080 SUPER", 256, 23),
        ("RTX 5060 Ti 16GB", 128, 28),
        ("RTX 5070", 192, 28),
        ("RTX PRO 4000", 192, 28),
        ("RTX PRO 4500", 256, 28),
        ("RTX PRO 5000 48GB", 384, 28),
        ("RTX 4000 Ada", 160, 18),
        ("RTX 4500 Ada", 192, 18),
        ("RTX 5000 Ada", 256, 18),
        ("Jetson AGX Orin 64GB", 256, 6.4),
        ("Jetson AGX Thor 128GB", 256, 8.533),
        ("MI100", 4096, 2.4),
        ("RX 7900 XT", 320, 20),
        ("RX 9070 XT", 256, 20),
        ("R9700", 256, 20),
        ("Ryzen AI Max+ 395 128GB", 256, 8),
        ("M5 32GB", 128, 9.6),
        ("M5 Max 128GB", 512, 9.6),
        ("Arc A750", 256, 16),
        ("Arc B570", 160, 19),
        ("GB10", 256, 8.533),
        ("GTX 1080 Ti", 352, 11),
        ("H100 NVL", 6016, 5.2),
        ("H100 PCIe", 5120, 3.186),
        ("H100 SXM", 5120, 5.23),
        ("H200", 6144, 6.25),
        ("L4", 192, 12.5),
        ("L40S", 384, 18),
        ("P100", 4096, 1.43),
        ("RTX 2080 Ti", 352, 14),
        ("RTX 3060", 192, 15),
        ("RTX 3070", 256, 14),
        ("RTX 3080", 320, 19),
        ("RTX 3090", 384, 19.5),
        ("RTX 3090 Ti", 384, 21),
        ("RTX 4060 Ti 16GB", 128, 18),
        ("RTX 4070 Ti SUPER", 256, 21),
        ("RTX 4080", 256, 22.4),
        ("RTX 4090", 384, 21),
        ("RTX 5070 Ti", 256, 28),
        ("RTX 5080", 256, 30),
        ("RTX 5090", 512, 28),
        ("RTX 6000 Ada", 384, 20),
        ("RTX A4000", 256, 14),
        ("RTX A6000", 384, 16),
        ("RTX PRO 6000", 512, 28),
        ("RTX PRO 6000 Server", 512, 25),
        ("T4", 256, 10),
        ("V100 32GB", 4096, 1.75),
        ("MI210", 4096, 3.2),
        ("MI300X", 8192, 5.2),
        ("MI355X", 8192, 8),
        ("RX 7900 XTX", 384, 20),
        ("W7900", 384, 18),
        ("M3 Max 64GB", 512, 6.4),
        ("M4 Max 64GB", 512, 8.533),
        ("Arc A770", 256, 17.5),
        ("Arc B580", 192, 19),
        ("Max 1550 tile", 4096, 3.2),
    ],
)
def test_bandwidth_is_bus_width_times_data_rate(name, bits, gigabits):
    assert find(name).bandwidth == pytest.approx(bits * gigabits * 1e9 / 8, rel=0.025)


def test_links():
    assert find("RTX 4090").link.bandwidth == pytest.approx(31.5e9, rel=0.001)
    assert find("H100").link.bandwidth == pytest.approx(63e9, rel=0.001)
    assert find("RTX 4060 Ti 16GB").link.bandwidth * 2 == pytest.approx(find("RTX 4090").link.bandwidth)
    assert find("GH200").link.bandwidth == 450e9
    assert {board.vendor for board in boards() if board.shares_ram} == {Vendor.NVIDIA, Vendor.AMD, Vendor.APPLE}


@pytest.mark.parametrize(
    ("name", "board"),
    [  # as nvmlDeviceGetName has them, of drivers old and new
        ("NVIDIA H100 80GB HBM3", "H100 SXM"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA H100 NVL", "H100 NVL"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA H200 NVL", "H200"),
        ("NVIDIA GH200 480GB", "GH200"),
        ("NVIDIA GH200 120GB", "GH200"),
        ("NVIDIA B200", "B200"),
        ("NVIDIA GB200", "GB200"),
        ("NVIDIA GB10", "GB10"),
        ("NVIDIA A100-SXM4-40GB", "A100 40GB"),
        ("A100-SXM4-40GB", "A100 40GB"),
        ("NVIDIA A100-PCIE-40GB", "A100 40GB"),
        ("NVIDIA A100-SXM4-80GB", "A100 80GB"),
        ("NVIDIA A100 80GB PCIe", "A100 80GB PCIe"),
        ("NVIDIA A10", "A10"),
        ("NVIDIA A10G", "A10G"),
        ("NVIDIA A30", "A30"),
        ("NVIDIA A40", "A40"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA L40", "L40"),
        ("NVIDIA L40S", "L40S"),
        ("Tesla T4", "T4"),
        ("NVIDIA T4", "T4"),
        ("Tesla P100-PCIE-16GB", "P100"),
        ("Tesla V100-SXM2-16GB", "V100 16GB"),
        ("Tesla V100-SXM2-32GB", "V100 32GB"),
        ("Tesla V100-PCIE-32GB", "V100 32GB"),
        ("NVIDIA GeForce GTX 1080 Ti", "GTX 1080 Ti"),
        ("GeForce RTX 2080 Ti", "RTX 2080 Ti"),
        ("NVIDIA GeForce RTX 3060", "RTX 3060"),
        ("NVIDIA GeForce RTX 3090", "RTX 3090"),
        ("NVIDIA GeForce RTX 3090 Ti", "RTX 3090 Ti"),
        ("NVIDIA GeForce RTX 4070 Ti SUPER", "RTX 4070 Ti SUPER"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("NVIDIA GeForce RTX 5090", "RTX 5090"),
        ("NVIDIA RTX A6000", "RTX A6000"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada"),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "RTX PRO 6000"),
        ("NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition", "RTX PRO 6000"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "RTX PRO 6000 Server"),
        ("NVIDIA B300 SXM6 AC", "B300"),
        ("NVIDIA GB300", "GB300"),
        ("NVIDIA GH200 144G HBM3e", "GH200 144GB"),
        ("NVIDIA H20", "H20"),
        ("NVIDIA H20-3e", "H20-3e"),
        ("NVIDIA H800", "H800 SXM"),
        ("NVIDIA A800-SXM4-80GB", "A800 80GB"),
        ("NVIDIA A800 80GB PCIe", "A800 80GB PCIe"),
        ("NVIDIA L20", "L20"),
        ("NVIDIA A2", "A2"),
        ("NVIDIA A16", "A16"),
        ("Tesla P40", "P40"),
        ("NVIDIA GeForce RTX 5070", "RTX 5070"),
        ("NVIDIA GeForce RTX 4070 Ti", "RTX 4070 Ti"),
        ("NVIDIA GeForce RTX 4070 SUPER", "RTX 4070 SUPER"),
        ("NVIDIA GeForce RTX 4080 SUPER", "RTX 4080 SUPER"),
        ("NVIDIA GeForce RTX 3080 Ti", "RTX 3080 Ti"),
        ("NVIDIA RTX PRO 4500 Blackwell", "RTX PRO 4500"),
        ("NVIDIA RTX 4000 Ada Generation", "RTX 4000 Ada"),
        ("NVIDIA RTX 5000 Ada Generation", "RTX 5000 Ada"),
        ("AMD Radeon AI PRO R9700", "R9700"),
        ("AMD Radeon RX 9070 XT", "RX 9070 XT"),
        ("AMD Instinct MI308X", "MI308X"),
        ("AMD Instinct MI100", "MI100"),
        ("mi250", "MI250 GCD"),
        ("Apple M5 Max (40 GPU cores)", None),
        ("gaudi3", "Gaudi 3"),
        ("Intel(R) Arc(TM) B570 Graphics", "Arc B570"),
        ("Intel GPU 8086:56a1", "Arc A750"),
        # as the label of a Kubernetes node, and as other vendors' drivers have them
        ("NVIDIA-H100-80GB-HBM3", "H100 SXM"),
        ("AMD Instinct MI300X", "MI300X"),
        ("AMD Instinct MI300X OAM", "MI300X"),
        ("AMD GPU 1002:74a1", "MI300X"),
        ("AMD Radeon RX 7900 XTX", "RX 7900 XTX"),
        ("AMD Radeon PRO W7900", "W7900"),
        ("Intel(R) Arc(TM) A770 Graphics", "Arc A770"),
        ("Intel(R) Data Center GPU Max 1550", "Max 1550 tile"),
        ("Intel GPU 8086:e20b", "Arc B580"),
        # as people write them
        ("h100", "H100 SXM"),
        ("h100-sxm", "H100 SXM"),
        ("rtx 4090", "RTX 4090"),
        ("RTX4090", "RTX 4090"),
        ("4090", "RTX 4090"),
        ("1080ti", "GTX 1080 Ti"),
        ("a6000", "RTX A6000"),
        ("mi250x", "MI250X GCD"),
        ("M3 Max 64GB", "M3 Max 64GB"),
        ("apple m3max-64gib", "M3 Max 64GB"),
        ("b60", "Arc Pro B60"),
        # others, of which nothing is known, or too much
        ("NVIDIA GeForce RTX 5090 Laptop GPU", None),
        ("NVIDIA GeForce RTX 4070 Laptop GPU", None),
        ("NVIDIA GeForce RTX 5060 Ti", None),
        ("NVIDIA RTX PRO 5000 Blackwell", None),
        ("Ryzen AI Max+ 395", None),
        ("NVIDIA GeForce RTX 5090 D", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("NVIDIA GeForce RTX 4060 Ti", None),
        ("A100", None),
        ("M3 Max", None),
        ("NVIDIA", None),
        ("", None),
    ],
)
def test_names(name, board):
    found = find(name)
    assert (found and found.name) == board


@pytest.mark.parametrize(
    ("name", "memory", "board"),
    [
        ("NVIDIA GeForce RTX 4060 Ti", 16380 * 2**20, "RTX 4060 Ti 16GB"),
        ("NVIDIA GeForce RTX 4060 Ti", 8188 * 2**20, "RTX 4060 Ti 8GB"),
        ("NVIDIA RTX A6000", 46068 * 2**20, "RTX A6000"),  # with ECC
        ("NVIDIA GeForce RTX 5060 Ti", 16311 * 2**20, "RTX 5060 Ti 16GB"),
        ("NVIDIA GeForce RTX 5060 Ti", 8151 * 2**20, "RTX 5060 Ti 8GB"),
        ("NVIDIA RTX PRO 5000 Blackwell", 73415 * 2**20, "RTX PRO 5000 72GB"),
        ("Orin (nvgpu)", 62841 * 2**20, "Jetson AGX Orin 64GB"),
        ("NVIDIA Thor", 125787 * 2**20, "Jetson AGX Thor 128GB"),
        ("Tesla P40", 24576 * 2**20, "P40"),  # without ECC
        ("NVIDIA GeForce RTX 3080", 12288 * 2**20, None),  # a wider bus than that of 10 GB
        ("NVIDIA GeForce RTX 3060", 8192 * 2**20, None),
    ],
)
def test_memory_tells_boards_of_one_name_apart(name, memory, board):
    found = find(name, memory)
    assert (found and found.name) == board


@pytest.mark.parametrize(
    ("name", "gib"),
    [  # "GPU 0 has a total capacity of 79.10 GiB", the least that public logs have of the board
        ("A10", 21.99),
        ("A10G", 21.95),
        ("A30", 23.53),
        ("A100 40GB", 39.38),
        ("A100 80GB", 79.14),
        ("A100 80GB PCIe", 79.14),
        ("B200", 178.35),
        ("B300", 267.69),
        ("GB200", 184.31),
        ("GB300", 276.50),
        ("GH200", 94.50),
        ("H20", 95.1),
        ("H100 SXM", 79.10),
        ("H200", 139.72),
        ("L40", 44.32),
        ("L40S", 44.39),
        ("P40", 22.38),
        ("RTX 4060 Ti 8GB", 7.63),
        ("RTX 4080 SUPER", 15.60),
        ("RTX 4090", 23.52),
        ("RTX 5060 Ti 16GB", 15.47),
        ("RTX 5090", 31.37),
        ("RTX A4000", 15.61),
        ("RTX A5000", 23.68),
        ("RTX PRO 6000", 94.96),
        ("T4", 14.56),
        ("RX 7900 XT", 19.98),
        ("RX 9070 XT", 15.92),
    ],
)
def test_no_more_is_usable_than_a_public_log_has_of_the_board(name, gib):
    usable = find(name).memory_usable / GIB
    assert gib - 0.3 < usable < gib + 0.005


def test_a_figure_that_a_log_has_is_told_with_it():
    told = [board for board in boards() if " GiB" in board.memory_source]
    assert len(told) > 15
    for board in told:
        figure = re.search(r"([0-9]+\.[0-9]+) GiB", board.memory_source)[1]
        places = len(figure.partition(".")[2])
        assert f"{board.memory_usable / GIB:.{places}f}" == figure, board
        assert not board.estimated


def test_boards_that_share_the_ram_say_so():
    shared = {board.name for board in boards() if board.shares_ram and board.vendor is not Vendor.APPLE}
    assert {"GB10", "Jetson AGX Orin 64GB", "Jetson AGX Thor 128GB", "Ryzen AI Max+ 395 128GB", "MI300A"} <= shared
    assert [board.name for board in boards() if board.several] == ["MI300A"]


def test_no_board_is_listed_and_unlisted():
    assert unlisted()
    assert not unlisted() & set(index())
    with pytest.raises(ValueError, match=r"^\[unlisted\] has to have a list of names$"):
        parse_unlisted("[unlisted]\nnames = [3]")


def test_an_apple_chip_is_found_by_its_name_and_ram():
    plist = '<plist version="1.0"><array><dict><key>gpu-core-count</key><integer>40</integer></dict></array></plist>'
    gpu = parse_ioreg(plist, "Apple M3 Max").accelerators[0]
    assert gpu.name == "Apple M3 Max (40 GPU cores)"
    assert find(gpu.name, 64 * GIB).bandwidth == 400e9


def test_keys_are_of_letters_and_digits():
    assert key("NVIDIA H100 80GB HBM3") == "h10080gbhbm3"
    assert all(re.fullmatch(r"[a-z0-9]+", each) for each in index())


# the file


A_BOARD = """
[links]
"NVLink-C2C" = 450

[[nvidia]]
name = "H1"
names = ["H1 SXM"]
memory = 1000
usable = 900
usable_from = "CUDA"
bandwidth = 1.5
link = "PCIe 4 x16"
compute_capability = "9.0"
source = "NVIDIA H1 datasheet"
"""
A_CHIP = """
[[apple]]
name = "M9"
ram = [36, 48]
bandwidth = 100
"""


def test_a_board_is_read():
    (board,) = parse_boards(A_BOARD)
    assert board == Board(
        name="H1",
        vendor=Vendor.NVIDIA,
        memory_total=1000 * 2**20,
        memory_usable=900 * 2**20,
        memory_source="CUDA",
        bandwidth=1_500_000_000,
        link=Link(name="PCIe 4 x16", bandwidth=16 * 10**9 * 16 * 128 // 130 // 8),
        compute_capability="9.0",
        architecture="sm_90",
        source="NVIDIA H1 datasheet",
        names=("H1 SXM",),
    )


def test_a_chip_is_a_board_for_each_size():
    boards = parse_boards(A_CHIP)
    assert [board.name for board in boards] == ["M9 36GB", "M9 48GB"]
    assert [board.memory_usable for board in boards] == [24 * GIB, 36 * GIB]
    assert all(board.shares_ram and board.estimated and board.names == ("M9",) for board in boards)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("memory = 1000", "", "[[nvidia]] H1: memory is missing"),
        ("memory = 1000", "memory = 800", "[[nvidia]] H1: of 800 MiB no 900 are usable"),
        ("memory = 1000", 'memory = "1000"', "[[nvidia]] H1: memory can't be '1000'"),
        ("memory = 1000", "memory = 1000.5", "[[nvidia]] H1: memory can't be 1000.5"),
        ("memory = 1000", "memory = true", "[[nvidia]] H1: memory can't be True"),
        ("bandwidth = 1.5", "bandwidth = 0", "[[nvidia]] H1: bandwidth can't be 0"),
        ("bandwidth = 1.5", "bandwidth = inf", "[[nvidia]] H1: bandwidth can't be inf"),
        ("bandwidth = 1.5", "bandwidth = 1.5\ncolour = 3", "[[nvidia]] H1: colour is not known"),
        ('"PCIe 4 x16"', '"PCIe 4 x3"', "[[nvidia]] H1: link 'PCIe 4 x3' is neither PCIe, nor RAM, nor in [links]"),
        ('"PCIe 4 x16"', '"NVLink"', "[[nvidia]] H1: link 'NVLink' is neither PCIe, nor RAM, nor in [links]"),
        ('"9.0"', '"nine"', "[[nvidia]] H1: compute_capability can't be 'nine'"),
        ("compute_capability", "architecture", "[[nvidia]] H1: compute_capability is missing"),
        ('names = ["H1 SXM"]', 'names = "H1 SXM"', "[[nvidia]] H1: names can't be 'H1 SXM'"),
        ('name = "H1"\n', "", "[[nvidia]] None: name is missing"),
        ("[[nvidia]]", "[[nvidea]]", "[[nvidea]] is of no vendor that is known"),
        ("[[nvidia]]", "[nvidia]", "[[nvidia]] is of no vendor that is known"),
        ("= 450", '= "450"', "[links] has to have a number of GB/s for each name"),
        ("[36, 48]", "[36, 36]", "M9 36GB is there twice"),
        ("[36, 48]", "[]", "[[apple]] M9: ram can't be []"),
        ("[36, 48]", "[-36]", "[[apple]] M9: ram can't be [-36]"),
    ],
)
def test_a_mistake_is_told_with_the_board_and_the_key(old, new, says):
    text = A_BOARD + A_CHIP
    assert old in text
    with pytest.raises(ValueError, match=f"^{re.escape(says)}$"):
        parse_boards(text.replace(old, new, 1))


def test_a_file_that_is_no_toml():
    with pytest.raises(ValueError, match="line 1"):
        parse_boards("[[nvidia]")


def test_the_file_is_read_when_a_board_is_asked_for_and_once(monkeypatch):
    read = []
    real = catalogue.parse_boards
    monkeypatch.setattr(catalogue, "parse_boards", lambda text: read.append(text) or real(text))
    boards.cache_clear()
    assert read == []
    assert boards() is boards()
    assert len(read) == 1


def test_listing_reads_no_catalogue():
    assert "tomllib" not in modules_after("list")[0]
