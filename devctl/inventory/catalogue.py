"""Boards by name: what they hold, how fast they read it, and how they hang on the host. Data, no probing.

The boards are in ``catalogue.toml``, which says what its figures mean and rest on. It is read when a board is first
asked for. It has MiB and 10**9 bytes a second, as logs and datasheets do; a `Board` has bytes and bytes a second.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from devctl.inventory.records import Vendor

_FILE = Path(__file__).with_name("catalogue.toml")

_MIB = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """How a board reaches the host; ``bandwidth`` is bytes a second, in theory, in each direction."""

    name: str
    bandwidth: int


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
        several: of a chip that shares the host's RAM: whether a machine may have more than one, each with its own.
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
    several: bool = False

    @property
    def shares_ram(self) -> bool:
        """Whether its memory is the host's RAM."""
        return self.link is None

    @property
    def estimated(self) -> bool:
        """Whether ``memory_usable`` was not read on a board."""
        return self.memory_source.endswith("estimated")


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _is_whole(value: Any) -> bool:
    return type(value) is int and value > 0


def _is_number(value: Any) -> bool:
    return type(value) in {int, float} and 0 < value < float("inf")


def _is_list_of(is_one: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and bool(value) and all(is_one(each) for each in value)


_OF_APPLE = {"name": _is_text, "ram": _is_list_of(_is_whole), "bandwidth": _is_number}
_OF_OTHERS = {
    "name": _is_text,
    "memory": _is_whole,
    "usable": _is_whole,
    "usable_from": _is_text,
    "bandwidth": _is_number,
    "link": _is_text,
    "architecture": _is_text,
    "source": _is_text,
}
_OF_NVIDIA = {key: check for key, check in _OF_OTHERS.items() if key != "architecture"} | {
    "compute_capability": lambda value: _is_text(value) and re.fullmatch(r"\d+\.\d", value) is not None
}
"""What a board's table has to have, and how it is checked."""

_OPTIONAL = {"names": _is_list_of(_is_text), "several": lambda value: type(value) is bool}

_SHARED = "RAM"
"""The link of a board that shares the host's."""


@cache
def boards() -> tuple[Board, ...]:
    """Every board of the catalogue: a vendor's together, in the order of their names."""
    return parse_boards(_FILE.read_text(encoding="utf-8"))


@cache
def unlisted() -> frozenset[str]:
    """The `key` of each name of a board that can be bought, and of which the catalogue has no figures."""
    return parse_unlisted(_FILE.read_text(encoding="utf-8"))


def parse_unlisted(text: str) -> frozenset[str]:
    """The names in a catalogue's ``[unlisted]``, each as its `key`.

    Raises:
        ValueError: it is no TOML, or has something else there than names.
    """
    import tomllib

    names = tomllib.loads(text).get("unlisted", {}).get("names", [])
    if not isinstance(names, list) or not all(_is_text(name) for name in names):
        raise ValueError("[unlisted] has to have a list of names")
    return frozenset(key(name) for name in names)


def parse_boards(text: str) -> tuple[Board, ...]:
    """The boards of a catalogue in TOML.

    Raises:
        ValueError: it is no TOML, or a board lacks a figure, has one that can't be, or another's name.
    """
    import tomllib

    tables = tomllib.loads(text)
    tables.pop("unlisted", None)
    links = tables.pop("links", {})
    if not isinstance(links, dict) or not all(_is_number(rate) for rate in links.values()):
        raise ValueError("[links] has to have a number of GB/s for each name")
    found: dict[str, Board] = {}
    for vendor, rows in tables.items():
        if vendor not in list(Vendor) or not isinstance(rows, list):
            raise ValueError(f"[[{vendor}]] is of no vendor that is known")
        for row in rows:
            for board in _boards(Vendor(vendor), row, links):
                if board.name in found:
                    raise ValueError(f"{board.name} is there twice")
                found[board.name] = board
    return tuple(found.values())


def _boards(vendor: Vendor, row: Any, links: Mapping[str, float]) -> Iterator[Board]:
    if not isinstance(row, dict):
        raise ValueError(f"[[{vendor.value}]] is no table")
    try:
        if vendor is Vendor.APPLE:
            _require(row, _OF_APPLE)
            yield from _apple(row)
        else:
            _require(row, _OF_NVIDIA if vendor is Vendor.NVIDIA else _OF_OTHERS)
            yield _board(vendor, row, links)
    except ValueError as error:
        raise ValueError(f"[[{vendor.value}]] {row.get('name')}: {error}") from None


def _require(row: Mapping[str, Any], checks: Mapping[str, Callable[[Any], bool]]) -> None:
    if missing := checks.keys() - row.keys():
        raise ValueError(f"{min(missing)} is missing")
    for key, value in row.items():
        check = checks.get(key) or _OPTIONAL.get(key)
        if check is None:
            raise ValueError(f"{key} is not known")
        if not check(value):
            raise ValueError(f"{key} can't be {value!r}")


def _board(vendor: Vendor, row: Mapping[str, Any], links: Mapping[str, float]) -> Board:
    if row["usable"] > row["memory"]:
        raise ValueError(f"of {row['memory']} MiB no {row['usable']} are usable")
    capability = row.get("compute_capability")
    return Board(
        name=row["name"],
        vendor=vendor,
        memory_total=row["memory"] * _MIB,
        memory_usable=row["usable"] * _MIB,
        memory_source=row["usable_from"],
        bandwidth=round(row["bandwidth"] * 10**9),
        link=_link(row["link"], links),
        compute_capability=capability,
        architecture=row["architecture"] if capability is None else "sm_" + capability.replace(".", ""),
        source=row["source"],
        names=tuple(row.get("names", ())),
        several=row.get("several", False),
    )


def _link(name: str, links: Mapping[str, float]) -> Link | None:
    if name == _SHARED:
        return None
    if name in links:
        return Link(name=name, bandwidth=round(links[name] * 10**9))
    pcie = re.fullmatch(r"PCIe ([3-7]) x(1|2|4|8|16)", name)
    if pcie is None:
        raise ValueError(f"link {name!r} is neither PCIe, nor {_SHARED}, nor in [links]")
    # 8 GT/s a lane in generation 3, doubled by each, of which 128 bits in 130 are data
    rate = 8 * 10**9 * 2 ** (int(pcie[1]) - 3)
    return Link(name=name, bandwidth=rate * int(pcie[2]) * 128 // 130 // 8)


def _apple(row: Mapping[str, Any]) -> Iterator[Board]:
    """One board for each size of RAM in which a Mac has the chip at that bandwidth.

    Metal's recommendedMaxWorkingSetSize is two thirds of the RAM up to 36 GB and three quarters above, on macOS 13 and
    14; later ones give a little more, and sysctl iogpu.wired_limit_mb can.
    """
    chip = row["name"]
    for size in row["ram"]:
        total = size * 1024
        yield Board(
            name=f"{chip} {size}GB",
            vendor=Vendor.APPLE,
            memory_total=total * _MIB,
            memory_usable=(total * 2 // 3 if size <= 36 else total * 3 // 4) * _MIB,
            memory_source="Metal's limit, estimated",
            bandwidth=round(row["bandwidth"] * 10**9),
            link=None,
            compute_capability=None,
            architecture=None,
            source=f"Apple {chip} announcement",
            names=(chip,),
        )


_LIKENESS = 0.10
"""How much the memory of a real board may differ from the row's (ECC takes up to 1/16) and still be that board."""

_WORDS = re.compile(
    r"\b(?:nvidia|geforce|tesla|quadro|amd|radeon|instinct|apple|intel|arc|r|tm|corporation|data center gpu|gpu|"
    r"graphics|generation|blackwell|\d+ gpu cores)\b|\b(?:rtx|gtx|rx)(?=\b|a?\d)"
)


def key(name: str) -> str:
    """What is left of a name when case, spaces, dashes, makers and brands are not looked at: "h10080gbhbm3"."""
    return "".join(words(name))


def words(name: str) -> tuple[str, ...]:
    """The words of the `key`: "h100", "80gb", "hbm3"."""
    spaced = re.sub(r"[^a-z0-9]+", " ", name.casefold())
    return tuple(re.sub(r"[^a-z0-9 ]", "", _WORDS.sub(" ", spaced)).replace("gib", "gb").split())


@cache
def index() -> dict[str, tuple[Board, ...]]:
    """Boards by the `key` of each of their names; several, smallest first, where a name leaves their memory open."""
    found: dict[str, tuple[Board, ...]] = {}
    for board in sorted(boards(), key=lambda board: board.memory_total):
        for each in dict.fromkeys(key(name) for name in (board.name, *board.names)):
            found[each] = (*found.get(each, ()), board)
    return found


def find(name: str, memory: int | None = None) -> Board | None:
    """The board that a driver or a person calls ``name``; None where none is known by it, or several are.

    Args:
        memory: bytes that the driver counts in all, which tells boards of one name apart. A board that has another
            size than those known by its name may have another memory too, and is none of them.
    """
    known = index().get(key(name), ())
    if memory is not None:
        known = like(known, memory)
    return known[0] if len(known) == 1 else None


def like(known: Iterable[Board], memory: int) -> tuple[Board, ...]:
    """Those of ``known`` that may be the board that has ``memory`` bytes in all."""
    return tuple(board for board in known if abs(board.memory_total - memory) <= _LIKENESS * board.memory_total)
