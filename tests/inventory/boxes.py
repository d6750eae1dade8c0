"""Invented machines for the stand-in NVML: each is the text that ``fake_nvml.c`` reads."""

GIB = 1 << 30


def system(**keys: object) -> str:
    return _line("system", keys)


def board(n: int = 0, **keys: object) -> str:
    """Board ``n``: an H100 with 80 GiB of which 1 GiB is used and 1 GiB the driver's."""
    facts: dict[str, object] = {
        "uuid": uuid(n),
        "name": "NVIDIA_H100_80GB_HBM3",
        "bus": bus(n),
        "total": 80 * GIB,
        "used": GIB,
        "reserved": GIB,
        "util": 5,
        "temp": 41,
        "power": 71_500,
        "limit": 700_000,
        "cc": "9.0",
        "cores": 16896,
        "clock": 1980,
    }
    return _line("board", {**facts, **keys})


def mig(parent: int = 0, n: int = 0, **keys: object) -> str:
    """Instance ``n`` of board ``parent``: 10 GiB, GPU instance 7 + n."""
    facts: dict[str, object] = {
        "board": parent,
        "uuid": mig_uuid(parent, n),
        "gi": 7 + n,
        "ci": 0,
        "name": "NVIDIA_A100-SXM4-80GB_MIG_1g.10gb",
        "total": 10 * GIB,
        "used": 0,
    }
    return _line("mig", {**facts, **keys})


def process(**keys: object) -> str:
    return _line("proc", keys)


def pair(a: int, b: int, **keys: object) -> str:
    return _line("pair", {"a": a, "b": b, **keys})


def uuid(n: int) -> str:
    return f"GPU-{n:08x}-1111-2222-3333-444444444444"


def mig_uuid(parent: int, n: int) -> str:
    return f"MIG-{parent:04x}{n:04x}-5555-6666-7777-888888888888"


def bus(n: int) -> str:
    return f"00000000:{0x17 + n:02X}:00.0"


def eight() -> str:
    """Eight equal boards in two NUMA halves, linked through switches."""
    pairs = [pair(a, b, level=40 if a // 4 == b // 4 else 50) for a in range(8) for b in range(a + 1, 8)]
    return "".join([system(), *(board(n, links=18, used=(n + 1) * GIB) for n in range(8)), *pairs])


def mixed() -> str:
    """A slow board on an early bus, the fast one behind it."""
    return (
        system()
        + board(0, name="NVIDIA_T4", total=16 * GIB, cc="7.5", cores=2560, clock=1590)
        + board(1)
        + pair(0, 1, level=50, p2p=1)
    )


def one_lost() -> str:
    """Four boards; the second can't be had, the third is lost while it is asked."""
    return system() + board(0) + board(1, handle=15) + board(2, lost=1) + board(3)


def mig_box() -> str:
    """A whole A100, and one split into three instances."""
    return (
        system()
        + board(0, name="NVIDIA_A100-SXM4-80GB", cc="8.0", mig=0)
        + board(1, name="NVIDIA_A100-SXM4-80GB", cc="8.0", mig=1)
        + mig(1, 0, used=4 * GIB)
        + mig(1, 1)
        + mig(1, 2)
        + process(board=1, gi=7, pid=4242, bytes=4 * GIB)
    )


def gb10() -> str:
    """A board without memory of its own, which NVML will not talk about."""
    return system() + board(0, name="NVIDIA_GB10", cc="12.1", memory=3)


def _line(kind: str, keys: dict[str, object]) -> str:
    return " ".join([kind, *(f"{key}={value}" for key, value in keys.items())]) + "\n"
