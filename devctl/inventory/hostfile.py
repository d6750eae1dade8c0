"""Which hosts a list or a hostfile names. Pure: text in, names out."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass

MOST = 1024
"""Hosts; a list of more is taken for a mistake."""

_ADDRESS = re.compile(r"([A-Za-z0-9_][A-Za-z0-9._-]*@)?[A-Za-z0-9:][A-Za-z0-9._:-]*")
"""What is handed to ssh as a host: nothing that it could take for an option, or a shell for a command."""

_SLOTS = re.compile(r"(?P<host>\S+)\s+slots\s*=\s*(?P<slots>\S+)(\s+max[_-]slots\s*=\s*[0-9]+)?")
_COUNTED = re.compile(r"(?P<host>[^:\s]+):(?P<slots>[0-9]+)")
_RANGE = re.compile(r"([0-9]+)(?:-([0-9]+))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """A host that can be asked.

    Attributes:
        address: as ssh takes it, "user@host".
        slots: how many accelerators of it may be used, where the list says.
    """

    address: str
    slots: int | None = None

    @property
    def name(self) -> str:
        """The host without the user."""
        return self.address.rpartition("@")[2]


def parse_list(text: str) -> tuple[Address, ...]:
    """The hosts of "a,b", with Slurm's brackets: "node[01-04,07],gpu-a".

    Raises:
        ValueError: one is no name of a host, or there twice, or there are none or too many. One line.
    """
    return _different([Address(address=_address(name)) for name in expand(text)])


def parse_hostfile(text: str) -> tuple[Address, ...]:
    """The hosts of a file: DeepSpeed's and Open MPI's "host slots=N", MPICH's "host:N", "host", or Slurm's lists.

    ``#`` begins a comment. Which form it is, the lines themselves tell, and all have the same. A bare host may be there
    several times, for as many slots.

    Raises:
        ValueError: a line is of none, or of another than those before it; else as `parse_list`. One line.
    """
    forms: dict[str, int] = {}
    found: list[Address] = []
    for number, whole in enumerate(text.splitlines(), 1):
        line = whole.partition("#")[0].strip()
        if not line:
            continue
        try:
            form, hosts = _line(line)
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from None
        forms.setdefault(form, number)
        if len(forms) > 1:
            (one, first), (other, second) = forms.items()
            raise ValueError(f"line {first} is {one}, and line {second} {other}: a hostfile is of one form")
        found += hosts
        if len(found) > MOST:
            raise ValueError(f"more than {MOST} hosts")
    if "a host" in forms:
        times = dict.fromkeys(each.address for each in found)
        counts = {address: sum(each.address == address for each in found) for address in times}
        found = [Address(address=a, slots=n if n > 1 else None) for a, n in counts.items()]
    return _different(found)


def _line(line: str) -> tuple[str, list[Address]]:
    if "slots" in line and (match := _SLOTS.fullmatch(line)) is not None:
        return "host slots=N", [Address(address=_address(match["host"]), slots=_slots(match["slots"], line))]
    if (match := _COUNTED.fullmatch(line)) is not None:
        return "host:N", [Address(address=_address(match["host"]), slots=_slots(match["slots"], line))]
    if len(line.split()) > 1:
        raise ValueError(f"{line!r} is neither a host, host:N, host slots=N nor a list like node[01-04],b")
    return "a host", [Address(address=_address(name)) for name in expand(line)]


def _slots(text: str, line: str) -> int:
    if not (text.isascii() and text.isdigit()) or len(text) > 6 or not int(text):
        raise ValueError(f"{line!r} says {text!r} slots, and it is a number, 1 or more")
    return int(text)


def _address(text: str) -> str:
    if not _ADDRESS.fullmatch(text) or len(text) > 255:
        raise ValueError(f"{text!r} is no name of a host")
    return text


def _different(found: list[Address]) -> tuple[Address, ...]:
    if not found:
        raise ValueError("no host in it")
    names: set[str] = set()
    for each in found:
        if each.name in names:
            raise ValueError(f"{each.name} is there twice")
        names.add(each.name)
    return tuple(found)


def expand(text: str) -> tuple[str, ...]:
    """The names of a list with Slurm's brackets, as ``scontrol show hostnames`` has them.

    Raises:
        ValueError: a bracket is not closed, or has no numbers in it, or there are too many names. One line.
    """
    found: list[str] = []
    for entry in _entries(text):
        found += itertools.islice(_expanded(entry), MOST + 1)
        if len(found) > MOST:
            raise ValueError(f"more than {MOST} hosts")
    return tuple(found)


def _entries(text: str) -> Iterator[str]:
    """What is between the commas that are in no bracket."""
    depth, start = 0, 0
    for at, character in enumerate(text):
        depth += (character == "[") - (character == "]")
        if depth not in (0, 1):
            break
        if character == "," and not depth:
            yield text[start:at].strip()
            start = at + 1
    if depth:
        raise ValueError(f"{text!r} has a bracket that is alone")
    yield text[start:].strip()


def _expanded(entry: str) -> Iterator[str]:
    if not entry:
        raise ValueError("an entry is empty")
    before, bracket, rest = entry.partition("[")
    if not bracket:
        yield entry
        return
    inside, _, after = rest.partition("]")
    for part in inside.split(","):
        match = _RANGE.fullmatch(part.strip())
        if match is None:
            raise ValueError(f"{entry!r}: {part!r} is no number and no range")
        first, last = match[1], match[2] or match[1]
        if len(last) > 18 or int(last) < int(first):
            raise ValueError(f"{entry!r}: {part!r} is no range")
        for number in range(int(first), int(last) + 1):
            for tail in _expanded(after) if after else ("",):
                yield f"{before}{number:0{len(first)}}{tail}"
