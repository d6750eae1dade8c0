"""What is mounted, as Linux' /proc/self/mountinfo tells it (proc_pid_mountinfo(5))."""

from pathlib import Path
from typing import NamedTuple

from devctl.inventory.probes.pci import read


class Mount(NamedTuple):
    """A mounted file system.

    Attributes:
        point: where it is mounted.
        root: which folder of the file system is mounted there.
        source: a device node or a server's name.
        number: the device's, "259:1".
        options: the file system's own, such as a control group's controllers.
    """

    point: str
    filesystem: str
    source: str
    root: str = "/"
    number: str = ""
    options: tuple[str, ...] = ()


def probe(proc: Path = Path("/proc/self")) -> tuple[Mount, ...]:
    """Everything that this process sees mounted; nothing where there is no such file."""
    return parse_mounts(read(proc / "mountinfo") or "")


def parse_mounts(text: str) -> tuple[Mount, ...]:
    """The lines of mountinfo, in order: a later one covers an earlier one at its point. Malformed lines are skipped."""
    mounts = []
    for line in text.splitlines():
        before, dash, after = line.partition(" - ")
        fields, kind = before.split(" "), after.split(" ")
        if dash and len(fields) >= 5 and len(kind) >= 2:
            mounts.append(
                Mount(
                    point=unescape(fields[4]),
                    filesystem=kind[0],
                    source=unescape(kind[1]),
                    root=unescape(fields[3]),
                    number=fields[2],
                    options=tuple(kind[2].split(",")) if len(kind) > 2 else (),
                )
            )
    return tuple(mounts)


def unescape(path: str) -> str:
    r"""A path of mountinfo, where blanks are written as \040."""
    if "\\" not in path:
        return path
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        path = path.replace(code, character)
    return path
