"""Hardware that is not here: "4xH100,cpu=512GiB,disk" as an inventory. Pure: no probing, the same text the same value.

The machine is empty: all that a board can hold is free.
"""

import difflib
import re
from dataclasses import replace

from devctl.devices import Device, DeviceType
from devctl.inventory.catalogue import Board, index, key
from devctl.inventory.records import HOST_POOL, Accelerator, Disk, Host, Inventory, Vendor
from devctl.units import AmbiguousSizeError, format_bytes, parse_size

MOST = 1024
"""Accelerators; a text that asks for more is taken for a mistake."""

_COUNTED = re.compile(r"([0-9]{1,6})\s*[xX×]\s*(.+)", re.DOTALL)
_NEAR = 0.5
"""How like a known name an unknown one must be to suggest it, as difflib counts it."""


def parse_devices(text: str) -> Inventory:
    """The machine that ``text`` describes: boards by name or size, in the order of their ids, then cpu=SIZE and disk.

    "4xH100,cpu=512GiB,disk", "24GiB,8GiB,cpu=64GiB". Without cpu= the RAM is unknown (None), and without disk there
    is none.

    Raises:
        ValueError: an entry is malformed, names no board or several, or boards do not go together. One line.
    """
    boards: list[Board | int] = []
    host: dict[str, int | None] = {}
    for entry in (part.strip() for part in text.split(",")):
        name, equals, value = (part.strip() for part in entry.partition("="))
        if not entry:
            raise ValueError("an entry is empty" if text.strip() else "nothing in it; write it like 4xH100,cpu=512GiB")
        if equals or name in ("cpu", "disk"):
            if name not in ("cpu", "disk"):
                raise ValueError(f"{entry!r}: only cpu and disk are given as {name or 'NAME'}=SIZE")
            if name in host:
                raise ValueError(f"{name} is given twice")
            if name == "cpu" and not equals:
                raise ValueError("cpu has no size; write it like cpu=64GiB")
            host[name] = parse_size(value) if equals else None
            continue
        count, what = _counted(entry)
        if count + len(boards) > MOST:
            raise ValueError(f"more than {MOST} accelerators")
        boards += [_read(what)] * count
    _go_together(boards, cpu="cpu" in host)
    return _inventory(boards, host)


def _counted(entry: str) -> tuple[int, str]:
    match = _COUNTED.fullmatch(entry)
    if match is None:
        return 1, entry
    if int(match[1]) == 0:
        raise ValueError(f"{entry!r} is none; leave it out")
    return int(match[1]), match[2]


def _read(what: str) -> Board | int:
    """A board of the catalogue, or the bytes of one that is only a size."""
    found = index().get(key(what), ())
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"{what!r} may be {_either([board.name for board in found])}: say which")
    try:
        return parse_size(what)
    except AmbiguousSizeError:
        if what.strip().isdigit():
            raise ValueError(f"{what!r} is neither a board nor a size; a size has a unit, like {what}GiB") from None
        raise
    except ValueError:
        raise ValueError(_unknown(what)) from None


def _unknown(what: str) -> str:
    wanted = key(what)
    by_key = {each: boards[0].name for each, boards in index().items()}
    begun = dict.fromkeys(name for each, name in by_key.items() if wanted and each.startswith(wanted))
    if begun:
        return f"{what!r} may be {_either(list(begun))}: say which"
    near = dict.fromkeys(by_key[each] for each in difflib.get_close_matches(wanted, by_key, n=3, cutoff=_NEAR))
    return f"{what!r} is no board known here, and no size" + (f"; near it are {', '.join(near)}" if near else "")


def _either(names: list[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}" if len(names) > 1 else names[0]


def _go_together(boards: list[Board | int], *, cpu: bool) -> None:
    named = [board for board in boards if isinstance(board, Board)]
    vendors = list(dict.fromkeys(board.vendor for board in named))
    if len(vendors) > 1:
        first, second = (next(b.name for b in named if b.vendor is vendor) for vendor in vendors[:2])
        raise ValueError(f"no one build of torch drives {first} and {second}: plan for one vendor's at a time")
    shared = next((board for board in named if board.shares_ram), None)
    if shared is None:
        return
    if len(boards) > 1 and shared.vendor is not Vendor.AMD:
        raise ValueError(f"{shared.name} is a machine's only accelerator: it takes no others beside it")
    if cpu:
        raise ValueError(f"{shared.name} has the host's RAM for its memory, which is counted once: leave out cpu=")


def _inventory(boards: list[Board | int], host: dict[str, int | None]) -> Inventory:
    vendor = next((board.vendor for board in boards if isinstance(board, Board)), Vendor.OTHER)
    accelerators = tuple(_accelerator(board, number, vendor) for number, board in enumerate(boards))
    shared = [board for board in boards if isinstance(board, Board) and board.shares_ram]
    ram_total = sum(board.memory_total for board in shared) if shared else host.get("cpu")
    ram_available = sum(board.memory_usable for board in shared) if shared else host.get("cpu")
    disk = Disk(use="offload folder", path="disk", total=host.get("disk"), free=host.get("disk"))
    return Inventory(
        accelerators=accelerators,
        host=Host(cpu=None, cores_physical=None, cores_logical=None, ram_total=ram_total, ram_available=ram_available),
        disks=(disk,) if "disk" in host else (),
    )


def _accelerator(board: Board | int, number: int, vendor: Vendor) -> Accelerator:
    size = board if isinstance(board, int) else board.memory_usable
    plain = Accelerator(
        device=_device(vendor, number),
        index=number,
        name=f"{format_bytes(size)} accelerator",
        uuid=None,
        vendor=Vendor.OTHER,
        cuda_index=number if vendor not in (Vendor.INTEL, Vendor.APPLE) else None,
        memory_total=size,
        memory_free=size,
        memory_used=0,
    )
    if isinstance(board, int):
        return plain
    return replace(
        plain,
        name=board.name,
        vendor=board.vendor,
        memory_total=board.memory_total,
        memory_pool=HOST_POOL if board.shares_ram else None,
        compute_capability=board.compute_capability,
        architecture=board.architecture,
    )


def _device(vendor: Vendor, number: int) -> Device:
    if vendor is Vendor.APPLE:
        return Device.mps()
    return Device(DeviceType.XPU if vendor is Vendor.INTEL else DeviceType.GPU, number)
