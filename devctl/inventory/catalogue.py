"""Boards by name: what they hold, how fast they read it, and how they hang on the host. Data, no probing.

Units: rows have memory in MiB and bandwidth in 10**9 bytes a second, as logs and datasheets do; a `Board` has bytes and
bytes a second.

Memory is what a process can have on an empty board. "CUDA", "HIP" and "XPU" mean what torch says of it on Linux
(``get_device_properties().total_memory``), as public logs have it, the least where drivers differ. "estimated" means
that no such reading was found: nvidia-smi's total less 512 MiB, from 40 GB on 640 or more (on boards that were read the
driver keeps 115 to 882), or the nominal size less a share. Boards that can switch ECC off are taken as they ship.
"""

import re
from dataclasses import dataclass
from functools import cache

from devctl.inventory.records import Vendor

MIB = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """How a board reaches the host; ``bandwidth`` is bytes a second, in theory, in each direction."""

    name: str
    bandwidth: int


def _pcie(generation: int, lanes: int) -> Link:
    # 8 GT/s a lane in generation 3, doubled by each, of which 128 bits in 130 are data
    rate = 8 * 10**9 * 2 ** (generation - 3)
    return Link(name=f"PCIe {generation} x{lanes}", bandwidth=rate * lanes * 128 // 130 // 8)


_GEN3, _GEN4, _GEN5 = _pcie(3, 16), _pcie(4, 16), _pcie(5, 16)
_GEN4_X8, _GEN5_X8 = _pcie(4, 8), _pcie(5, 8)
_C2C = Link(name="NVLink-C2C", bandwidth=450 * 10**9)
_HALF_C2C = Link(name="NVLink-C2C / 2", bandwidth=225 * 10**9)
"""GB200: two GPUs share the 900 GB/s, both directions together, of one Grace processor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """An accelerator that can be bought.

    Attributes:
        memory_total: bytes, as the driver counts them; of a chip that shares the host's RAM, that RAM.
        memory_usable: bytes that a process can have of it when nobody else has any.
        memory_source: what ``memory_usable`` rests on.
        bandwidth: of its memory, bytes a second: bus width × data rate.
        link: None for a chip that shares the host's RAM, so that nothing is copied.
        compute_capability, architecture: as in `Accelerator`.
        source: the vendor's document that has bandwidth and link.
        names: what else it is called: by drivers, and by people.
    """

    name: str
    vendor: Vendor
    memory_total: int
    memory_usable: int
    memory_source: str
    bandwidth: int
    link: Link | None
    compute_capability: str | None
    architecture: str | None
    source: str
    names: tuple[str, ...] = ()

    @property
    def shares_ram(self) -> bool:
        """Whether its memory is the host's RAM."""
        return self.link is None

    @property
    def estimated(self) -> bool:
        """Whether ``memory_usable`` was not read on a board."""
        return self.memory_source.endswith(_ESTIMATED)


_ESTIMATED = "estimated"
_SMI = f"nvidia-smi, {_ESTIMATED}"
_SHARE = f"nominal less 5 %, {_ESTIMATED}"
_NOMINAL = f"nominal, {_ESTIMATED}"
_METAL = f"Metal's limit, {_ESTIMATED}"


def _nvidia(
    name: str, total: int, usable: int, read: str, gb_s: float, link: Link | None, cc: str, source: str, *names: str
) -> Board:
    architecture = "sm_" + cc.replace(".", "")
    return _board(Vendor.NVIDIA, name, total, usable, read, gb_s, link, cc, architecture, f"NVIDIA {source}", names)


def _amd(
    name: str, total: int, usable: int, read: str, gb_s: float, link: Link | None, gfx: str, source: str, *names: str
) -> Board:
    return _board(Vendor.AMD, name, total, usable, read, gb_s, link, None, gfx, f"AMD {source}", names)


def _intel(
    name: str, total: int, usable: int, read: str, gb_s: float, link: Link, chip: str, source: str, *names: str
) -> Board:
    return _board(Vendor.INTEL, name, total, usable, read, gb_s, link, None, chip, f"Intel {source}", names)


def _apple(chip: str, gb_s: float, *sizes: int) -> tuple[Board, ...]:
    """One board for each size (GiB of RAM) in which a Mac has the chip at that bandwidth.

    Metal's recommendedMaxWorkingSetSize is two thirds of the RAM up to 36 GB and three quarters above, on macOS 13 and
    14; later ones give a little more, and sysctl iogpu.wired_limit_mb can.
    """
    return tuple(
        _board(
            Vendor.APPLE,
            f"{chip} {size}GB",
            size * 1024,
            size * 1024 * 2 // 3 if size <= 36 else size * 1024 * 3 // 4,
            _METAL,
            gb_s,
            None,
            None,
            None,
            f"Apple {chip} announcement",
            (chip,),
        )
        for size in sizes
    )


def _board(
    vendor: Vendor,
    name: str,
    total: int,
    usable: int,
    read: str,
    gb_s: float,
    link: Link | None,
    compute_capability: str | None,
    architecture: str | None,
    source: str,
    names: tuple[str, ...],
) -> Board:
    return Board(
        name=name,
        vendor=vendor,
        memory_total=total * MIB,
        memory_usable=usable * MIB,
        memory_source=read,
        bandwidth=round(gb_s * 10**9),
        link=link,
        compute_capability=compute_capability,
        architecture=architecture,
        source=source,
        names=names,
    )


# one row a board, a vendor's in the order of their names:
# name, MiB in all, MiB usable, what that rests on, GB/s, link, capability or architecture, source, other names
# fmt: off
BOARDS: tuple[Board, ...] = (
    _nvidia("A10", 23028, 22516, _SMI, 600, _GEN4, "8.6", "A10 datasheet"),
    _nvidia("A10G", 23028, 22516, _SMI, 600, _GEN4, "8.6", "A10 datasheet, same memory"),
    _nvidia("A30", 24576, 24164, "CUDA", 933, _GEN4, "8.0", "A30 datasheet"),
    _nvidia("A40", 46068, 45428, _SMI, 696, _GEN4, "8.6", "A40 datasheet"),
    _nvidia("A100 40GB", 40960, 40377, "CUDA", 1555, _GEN4, "8.0", "A100 datasheet",
            "A100-SXM4-40GB", "A100-PCIE-40GB", "A100 SXM 40GB", "A100 PCIe 40GB"),
    _nvidia("A100 80GB", 81920, 81038, "CUDA", 2039, _GEN4, "8.0", "A100 datasheet",
            "A100-SXM4-80GB", "A100 SXM 80GB", "A100 SXM4", "A100 SXM"),
    _nvidia("A100 80GB PCIe", 81920, 81038, _SMI, 1935, _GEN4, "8.0", "A100 datasheet", "A100-PCIE-80GB"),
    _nvidia("B200", 183359, 182630, "CUDA", 7672, _GEN5, "10.0", "driver: 7680 bit × 3996 MHz × 2",
            "B200 180GB", "B200 SXM"),
    _nvidia("GB10", 131072, 122502, "CUDA", 273, None, "12.1", "DGX Spark datasheet", "DGX Spark"),
    _nvidia("GB200", 189471, 188733, "CUDA", 8000, _HALF_C2C, "10.0", "GB200 NVL72 datasheet"),
    _nvidia("GH200", 97871, 96768, _SMI, 4000, _C2C, "9.0", "GH200 Grace Hopper datasheet",
            "GH200 480GB", "GH200 120GB", "GH200 96GB"),
    _nvidia("GTX 1080 Ti", 11264, 11172, "CUDA", 484, _GEN3, "6.1", "GeForce GTX 1080 Ti specifications"),
    _nvidia("H100 NVL", 95830, 95320, "CUDA", 3900, _GEN5, "9.0", "H100 datasheet", "H100 NVL 94GB"),
    _nvidia("H100 PCIe", 81559, 80919, _SMI, 2039, _GEN5, "9.0", "H100 PCIe product brief", "H100 PCIe 80GB"),
    _nvidia("H100 SXM", 81559, 81079, "CUDA", 3350, _GEN5, "9.0", "H100 datasheet",
            "H100", "H100 80GB", "H100 80GB HBM3", "H100 SXM5", "H100 SXM 80GB", "H100 SXM5 80GB"),
    _nvidia("H200", 143771, 143156, "CUDA", 4800, _GEN5, "9.0", "H200 datasheet", "H200 NVL", "H200 141GB", "H200 SXM"),
    _nvidia("L4", 23034, 22563, "CUDA", 300, _GEN4, "8.9", "L4 datasheet"),
    _nvidia("L40", 46068, 45428, _SMI, 864, _GEN4, "8.9", "L40 datasheet"),
    _nvidia("L40S", 46068, 45495, "CUDA", 864, _GEN4, "8.9", "L40S datasheet"),
    _nvidia("P100", 16384, 16269, "CUDA", 732, _GEN3, "6.0", "Tesla P100 datasheet",
            "P100-PCIE-16GB", "P100-SXM2-16GB", "P100 16GB"),
    _nvidia("RTX 2080 Ti", 11264, 10825, "CUDA", 616, _GEN3, "7.5", "GeForce RTX 2080 Ti specifications"),
    _nvidia("RTX 3060", 12288, 11906, "CUDA", 360, _GEN4, "8.6", "GeForce RTX 3060 specifications", "RTX 3060 12GB"),
    _nvidia("RTX 3070", 8192, 7753, "CUDA", 448, _GEN4, "8.6", "GeForce RTX 3070 specifications"),
    _nvidia("RTX 3080", 10240, 10002, "CUDA", 760, _GEN4, "8.6", "GeForce RTX 3080 specifications", "RTX 3080 10GB"),
    _nvidia("RTX 3090", 24576, 24123, "CUDA", 936, _GEN4, "8.6", "GeForce RTX 3090 specifications"),
    _nvidia("RTX 3090 Ti", 24564, 24110, "CUDA", 1008, _GEN4, "8.6", "GeForce RTX 3090 Ti specifications"),
    _nvidia("RTX 4060 Ti 8GB", 8188, 7806, "CUDA", 288, _GEN4_X8, "8.9", "GeForce RTX 4060 Ti specifications",
            "RTX 4060 Ti"),
    _nvidia("RTX 4060 Ti 16GB", 16380, 15868, _SMI, 288, _GEN4_X8, "8.9", "GeForce RTX 4060 Ti specifications",
            "RTX 4060 Ti"),
    _nvidia("RTX 4070 Ti SUPER", 16376, 15864, _SMI, 672, _GEN4, "8.9", "GeForce RTX 4070 Ti SUPER specifications"),
    _nvidia("RTX 4080", 16376, 15864, _SMI, 717, _GEN4, "8.9", "GeForce RTX 4080 specifications"),
    _nvidia("RTX 4090", 24564, 24080, "CUDA", 1008, _GEN4, "8.9", "GeForce RTX 4090 specifications"),
    _nvidia("RTX 5070 Ti", 16303, 15842, "CUDA", 896, _GEN5, "12.0", "GeForce RTX 5070 Ti specifications"),
    _nvidia("RTX 5080", 16303, 15840, "CUDA", 960, _GEN5, "12.0", "GeForce RTX 5080 specifications"),
    _nvidia("RTX 5090", 32607, 32102, "CUDA", 1792, _GEN5, "12.0", "GeForce RTX 5090 specifications"),
    _nvidia("RTX 6000 Ada", 49140, 48520, "CUDA", 960, _GEN4, "8.9", "RTX 6000 Ada datasheet"),
    _nvidia("RTX A4000", 16376, 15864, _SMI, 448, _GEN4, "8.6", "RTX A4000 datasheet"),
    _nvidia("RTX A5000", 24564, 24052, _SMI, 768, _GEN4, "8.6", "RTX A5000 datasheet"),
    _nvidia("RTX A6000", 49140, 48537, "CUDA", 768, _GEN4, "8.6", "RTX A6000 datasheet"),
    _nvidia("RTX PRO 6000", 97887, 97249, "CUDA", 1792, _GEN5, "12.0", "RTX PRO 6000 Blackwell datasheet",
            "RTX PRO 6000 Workstation", "RTX PRO 6000 Blackwell Workstation Edition",
            "RTX PRO 6000 Blackwell Max-Q Workstation Edition", "RTX PRO 6000 Max-Q"),
    _nvidia("RTX PRO 6000 Server", 97887, 97249, "CUDA", 1597, _GEN5, "12.0", "RTX PRO 6000 Server Edition datasheet",
            "RTX PRO 6000 Blackwell Server Edition"),
    _nvidia("T4", 15360, 14913, "CUDA", 320, _GEN3, "7.5", "T4 datasheet"),
    _nvidia("V100 16GB", 16384, 16130, "CUDA", 900, _GEN3, "7.0", "V100 datasheet",
            "V100-SXM2-16GB", "V100-PCIE-16GB"),
    _nvidia("V100 32GB", 32768, 32494, "CUDA", 900, _GEN3, "7.0", "V100 datasheet",
            "V100-SXM2-32GB", "V100-PCIE-32GB"),
    _amd("MI210", 65520, 65515, "HIP", 1638, _GEN4, "gfx90a", "Instinct MI210 data sheet"),
    _amd("MI250X GCD", 65520, 65515, "HIP", 1638, _GEN4, "gfx90a", "Instinct MI250X data sheet, one of its two GPUs",
         "MI250X"),
    _amd("MI300A", 131072, 124518, _SHARE, 5300, None, "gfx942", "Instinct MI300A data sheet"),
    _amd("MI300X", 196592, 196290, "HIP", 5300, _GEN5, "gfx942", "Instinct MI300X data sheet",
         "MI300X OAM", "AMD GPU 1002:74a1"),
    _amd("MI325X", 262128, 261826, "HIP", 6000, _GEN5, "gfx942", "Instinct MI325X data sheet", "MI325X OAM"),
    _amd("MI350X", 294896, 294891, "HIP", 8000, _GEN5, "gfx950", "Instinct MI350X data sheet", "MI350X OAM"),
    _amd("MI355X", 294896, 294891, "HIP", 8000, _GEN5, "gfx950", "Instinct MI355X data sheet", "MI355X OAM"),
    _amd("RX 7900 XTX", 24560, 24560, "HIP", 960, _GEN4, "gfx1100", "Radeon RX 7900 XTX specifications"),
    _amd("W7900", 46064, 46059, "HIP", 864, _GEN4, "gfx1100", "Radeon PRO W7900 data sheet",
         "Radeon PRO W7900", "Radeon PRO W7900 Dual Slot"),
    *_apple("M1", 68, 8, 16),
    *_apple("M1 Max", 400, 32, 64),
    *_apple("M1 Pro", 200, 16, 32),
    *_apple("M1 Ultra", 800, 64, 128),
    *_apple("M2", 100, 8, 16, 24),
    *_apple("M2 Max", 400, 32, 64, 96),
    *_apple("M2 Pro", 200, 16, 32),
    *_apple("M2 Ultra", 800, 64, 128, 192),
    *_apple("M3", 100, 8, 16, 24),
    *_apple("M3 Max", 300, 36, 96),
    *_apple("M3 Max", 400, 48, 64, 128),
    *_apple("M3 Pro", 150, 18, 36),
    *_apple("M3 Ultra", 819, 96, 256, 512),
    *_apple("M4", 120, 16, 24, 32),
    *_apple("M4 Max", 410, 36),
    *_apple("M4 Max", 546, 48, 64, 128),
    *_apple("M4 Pro", 273, 24, 48, 64),
    _intel("Arc A770", 16384, 15473, "XPU", 560, _GEN4, "acm-g10", "Arc A770 specifications",
           "Arc A770 16GB", "Intel GPU 8086:56a0"),
    _intel("Arc B580", 12288, 11605, "XPU", 456, _GEN4_X8, "bmg-g21", "Arc B580 specifications",
           "Arc B580 12GB", "Intel GPU 8086:e20b"),
    _intel("Arc Pro B60", 24576, 23256, "XPU", 456, _GEN5_X8, "bmg-g21", "Arc Pro B60 specifications",
           "B60", "Arc Pro B60 24GB", "Intel GPU 8086:e211"),
    _intel("Max 1100", 49152, 49152, _NOMINAL, 1229, _GEN5, "pvc", "Data Center GPU Max 1100 specifications"),
    _intel("Max 1550 tile", 65536, 65536, "XPU", 1638, _GEN5, "pvc",
           "Data Center GPU Max 1550 specifications, one of its two tiles", "Max 1550"),
)
# fmt: on


_LIKENESS = 0.10
"""How much the memory of a real board may differ from the row's (ECC takes up to 1/16) and still be that board."""

_WORDS = re.compile(
    r"\b(?:nvidia|geforce|tesla|quadro|amd|radeon|instinct|apple|intel|arc|r|tm|corporation|data center gpu|gpu|"
    r"graphics|generation|blackwell|\d+ gpu cores)\b|\b(?:rtx|gtx|rx)(?=\b|a?\d)"
)


def key(name: str) -> str:
    """What is left of a name when case, spaces, dashes, makers and brands are not looked at: "h10080gbhbm3"."""
    words = re.sub(r"[^a-z0-9]+", " ", name.casefold())
    return re.sub(r"[^a-z0-9]", "", _WORDS.sub(" ", words)).replace("gib", "gb")


@cache
def index() -> dict[str, tuple[Board, ...]]:
    """Boards by the `key` of each of their names; several, smallest first, where a name leaves their memory open."""
    found: dict[str, tuple[Board, ...]] = {}
    for board in sorted(BOARDS, key=lambda board: board.memory_total):
        for each in dict.fromkeys(key(name) for name in (board.name, *board.names)):
            found[each] = (*found.get(each, ()), board)
    return found


def find(name: str, memory: int | None = None) -> Board | None:
    """The board that a driver or a person calls ``name``; None where none is known by it, or several are.

    Args:
        memory: bytes that the driver counts in all, which tells boards of one name apart. A board that has another
            size than those known by its name may have another memory too, and is none of them.
    """
    boards = index().get(key(name), ())
    if memory is not None:
        boards = tuple(b for b in boards if abs(b.memory_total - memory) <= _LIKENESS * b.memory_total)
    return boards[0] if len(boards) == 1 else None
