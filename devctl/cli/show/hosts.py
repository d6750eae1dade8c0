"""Several hosts for people: a row a host."""

from __future__ import annotations

from collections.abc import Iterable

from devctl.cli.show.inventory import columns
from devctl.cli.show.streams import UNKNOWN, clean, size
from devctl.inventory.hosts import Cluster, HostFound
from devctl.inventory.records import Accelerator, Inventory


def cluster_text(cluster: Cluster, *, width: int | None, styled: bool) -> str:
    """A row a host: its accelerators, what is free on them, its RAM, and how long it took; or why nothing is known.

    Args:
        width: columns to keep to; None to wrap nothing.
        styled: whether headers may be bold.
    """
    timed = any(host.seconds is not None for host in cluster.hosts)
    rows = [_row(host, timed=timed) for host in cluster.hosts]
    header = ["HOST", "ACCELERATORS", "FREE", "TOTAL", "RAM", *(["TOOK"] if timed else [])]
    table = columns(header, rows, left=2, wrap=1, width=width, styled=styled)
    notes = [(host.name, note) for host in cluster.hosts if host.inventory for note in host.inventory.notes]
    lines = [f"note: {clean(name)}: {clean(note)}" for name, note in notes]
    return table + "".join(f"{part}\n" for line in lines for part in _folded(line, width))


def _folded(line: str, width: int | None) -> list[str]:
    if width is None or len(line) <= width:
        return [line]
    import textwrap

    return textwrap.wrap(line, width)


def _row(host: HostFound, *, timed: bool) -> list[str]:
    took = [] if not timed else [UNKNOWN if host.seconds is None else f"{host.seconds:.1f} s"]
    if host.inventory is None:
        return [host.name, f"unknown: {host.error}", UNKNOWN, UNKNOWN, UNKNOWN, *took]
    usable = [gpu for gpu in host.inventory.accelerators if gpu.device is not None]
    return [
        host.name,
        _accelerators(host.inventory, usable),
        size(_sum(gpu.memory_free for gpu in usable)) if usable else UNKNOWN,
        size(_sum(gpu.memory_total for gpu in usable)) if usable else UNKNOWN,
        size(host.inventory.host.ram_available),
        *took,
    ]


def _accelerators(inventory: Inventory, usable: list[Accelerator]) -> str:
    names = [gpu.name or UNKNOWN for gpu in usable]
    parts = [f"{names.count(name)}× {name}" for name in dict.fromkeys(names)]
    if (rest := len(inventory.accelerators) - len(usable)) > 0:
        parts.append(f"{rest} that can't be used")
    return ", ".join(parts) or "none"


def _sum(sizes: Iterable[int | None]) -> int | None:
    """The sum, if all of them are known."""
    found = list(sizes)
    return None if None in found else sum(each for each in found if each is not None)
