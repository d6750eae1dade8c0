"""Hardware that is not here: "4xH100,cpu=512GiB,disk" as an inventory. Pure: no probing, the same text the same value.

The machine is empty: all that a board can hold is free.
"""

import re
from collections.abc import Callable
from dataclasses import replace
from itertools import takewhile

from devctl.devices import Device, DeviceType
from devctl.inventory.catalogue import Board, index, key, like, unlisted, words
from devctl.inventory.records import HOST_POOL, Accelerator, Disk, Host, Inventory, Vendor
from devctl.units import AmbiguousSizeError, format_bytes, parse_size

MOST = 1024
"""Accelerators; a text that asks for more is taken for a mistake."""

_COUNTED = re.compile(r"([0-9]{1,6})\s*[xX×*]\s*(.+)", re.DOTALL)
_COUNTED_BEHIND = re.compile(r"(.+?)\s*[xX×*]\s*([0-9]{1,6})", re.DOTALL)
_VARIANT = re.compile(r"[0-9]+gb?|sxm[0-9]*|pcie|nvl|oam|gcd|tile|hbm[0-9]e?")
"""A word that may follow a board's name and leave it that board, in another form or with other memory."""

_MEMORY = re.compile(r"(.*[^\s-])[\s-]*\b([0-9]{1,4})\s*gi?b\s*", re.IGNORECASE | re.DOTALL)

_ALIKE = str.maketrans("oil", "011")
"""Letters that are taken for digits."""


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
                raise ValueError(f"{entry!r}: only cpu and disk take a size behind =; a GPU is written 24GiB")
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


def parse_board(text: str) -> Board | int:
    """A board of the catalogue, or the bytes of one that is only a size.

    Raises:
        ValueError: it is neither, or names several boards. One line.
    """
    if not text.strip():
        raise ValueError("an entry is empty")
    count, what = _counted(text)
    if what != text and _is_known(what):
        raise ValueError(f"{text!r} is {count} of {what}: leave out how many, which is what is looked for")
    return _read(text)


def _counted(entry: str) -> tuple[int, str]:
    count, what = 1, entry
    if (match := _COUNTED.fullmatch(entry)) is not None:
        count, what = int(match[1]), match[2]
    # "H100x2"; but in "GTX1080" the X is the board's own, and what is before it is none
    elif (match := _COUNTED_BEHIND.fullmatch(entry)) is not None and not _is_known(entry) and _is_known(match[1]):
        count, what = int(match[2]), match[1]
    if count == 0:
        raise ValueError(f"{entry!r} is none; leave it out")
    return count, what


def _is_known(what: str) -> bool:
    """Whether it is a board, or may be one of several, or a size."""
    if index().get(key(what)) or _with_memory(what):
        return True
    try:
        return parse_size(what) > 0
    except ValueError:
        return False


def _read(what: str) -> Board | int:
    """A board of the catalogue, or the bytes of one that is only a size."""
    found = index().get(key(what), ()) or _with_memory(what)
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


def _with_memory(what: str) -> tuple[Board, ...]:
    """The boards of a name that has the memory behind it, "RTX 4090 24GB", which is theirs."""
    match = _MEMORY.fullmatch(what)
    if match is None:
        return ()
    return like(index().get(key(match[1]), ()), int(match[2]) * 2**30)


def _unknown(what: str) -> str:
    """Why ``what`` is no board. What it is told to be near is a misspelling away, and never another board."""
    wanted, given = key(what), words(what)
    if wanted in unlisted():
        return f"{what!r} is a board of which nothing is known here: give its memory, like 8GiB"
    begun = dict.fromkeys(
        board.name
        for found in index().values()
        for board in found
        for name in (board.name, *board.names)
        if given and words(name)[: len(given)] == given and all(map(_VARIANT.fullmatch, words(name)[len(given) :]))
    )
    if len(begun) > 1:
        return f"{what!r} may be {_either(list(begun))}: say which"
    misspelt = (found[0].name for right, found in index().items() if _is_misspelt(wanted, right))
    near = dict.fromkeys([*begun, *misspelt])
    return f"{what!r} is no board known here, and no size" + (f"; did you mean {_either(list(near))}?" if near else "")


def _is_misspelt(wrong: str, right: str) -> bool:
    """Whether one slip of the fingers makes ``wrong`` of ``right``. No slip makes another board's letter or number.

    A slip is a letter for a digit that looks like it, a character twice that is there once or the other way round, two
    neighbours that changed places, the last digit of a number of three or more, a letter of a word of four or more,
    and the last letter forgotten.
    """
    if wrong.translate(_ALIKE) == right.translate(_ALIKE):
        return True
    start = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(wrong, right, strict=False)))
    ours, theirs = wrong[start:], right[start:]
    before = right[start - 1 : start]
    is_long = len(_run(right, start, str.isalpha)) >= 4
    ends_number = len(_run(right, start, str.isdigit)) >= 3 and not theirs[1:2].isalnum()
    replaced = ours[1:] == theirs[1:] and (is_long if ours[:1].isalpha() else ends_number)
    swapped = ours[:2] == theirs[1::-1] and ours[2:] == theirs[2:] and ours[:2].isalpha() == theirs[:2].isalpha()
    added = ours[1:] == theirs and (ours[:1] == before or (is_long and ours[:1].isalpha()))
    ends_name = len(theirs) == 1 and theirs.isalpha() and len(wrong) > 1
    forgotten = theirs[1:] == ours and (theirs[:1] == before or is_long or ends_name)
    return (len(wrong) == len(right) and (replaced or swapped)) or added or forgotten


def _run(text: str, at: int, is_one: Callable[[str], bool]) -> str:
    """The characters around ``at`` that ``is_one`` holds of."""
    before = "".join(takewhile(is_one, reversed(text[:at])))[::-1]
    return before + "".join(takewhile(is_one, text[at:]))


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
    if len(boards) > 1 and not shared.several:
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
        notes=_notes(boards),
    )


def _notes(boards: list[Board | int]) -> tuple[str, ...]:
    """What of the boards a plan can't say."""
    gaudi = next((b for b in boards if isinstance(b, Board) and (b.architecture or "").startswith("gaudi")), None)
    if gaudi is None:
        return ()
    return (f"torch calls a {gaudi.name} hpu, where the plan has xpu, and its kernels may need more than is counted",)


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
