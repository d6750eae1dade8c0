"""An inventory for people and programs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from devctl.cli.render import UNKNOWN, size
from devctl.inventory.document import to_document
from devctl.inventory.records import Accelerator, Disk, Hidden, Host, Inventory, LinkPath
from devctl.inventory.requirements import label

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

_HIDDEN = {
    Hidden.ENVIRONMENT: "hidden by the environment",
    Hidden.MIG_PARENT: "split by MIG",
    Hidden.MIG_LIMIT: "shown only when named",
    Hidden.OTHER_BUILD: "not what torch is built for",
    Hidden.UNSUPPORTED: "no framework's device",
}

# as `nvidia-smi topo -m` writes them
_PATHS = {
    LinkPath.SELF: "X",
    LinkPath.BOARD: "PSB",
    LinkPath.SWITCH: "PIX",
    LinkPath.SWITCHES: "PXB",
    LinkPath.HOST_BRIDGE: "PHB",
    LinkPath.NODE: "NODE",
    LinkPath.SYSTEM: "SYS",
}


def to_json(inventory: Inventory, *, one_line: bool = False) -> str:
    """The inventory as one JSON document, on one line or indented."""
    return json.dumps(to_document(inventory), indent=None if one_line else 2) + "\n"


def tables(inventory: Inventory) -> RenderableType:
    """The machine as tables: a row per device, then who is on the GPUs, their links, and notes."""
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = [_devices(inventory)]
    if any(accelerator.processes for accelerator in inventory.accelerators):
        parts += [Text(), _processes(inventory)]
    known = [path for row in inventory.links.path for path in row if path not in (None, LinkPath.SELF)]
    if known:
        parts += [Text(), _links(inventory)]
    if any(peer for row in inventory.links.p2p for peer in row):
        parts.append(Text("*: they can read and write each other's memory", style="dim"))
    if inventory.notes:
        parts.append(Text())
    parts += [Text(f"note: {note}", style="dim") for note in inventory.notes]
    return Group(*parts)


def _table(*columns: str, right: str = "") -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(
            column,
            justify="right" if column in right.split() else "left",
            no_wrap=column != "NAME",
            overflow="fold",
        )
    return table


def _devices(inventory: Inventory) -> Table:
    # what no device of the machine has gets no column, so that a small screen shows the rest
    measured = [a for a in inventory.accelerators if a.utilization is not None or a.temperature is not None]
    extra = ("BUSY", "TEMP", "POWER") if measured else ()
    table = _table("DEVICE", "NAME", "FREE", "TOTAL", *extra, right="FREE TOTAL BUSY TEMP POWER")
    for gpu in inventory.accelerators:
        row = [label(gpu), _name(gpu), size(gpu.memory_free), size(gpu.memory_total)]
        if extra:
            row += [_unit(gpu.utilization, "%"), _unit(gpu.temperature, "°C"), _unit(gpu.power, " W")]
        table.add_row(*row, style=None if gpu.device else "dim")
    for driver in inventory.drivers:
        cuda = f", CUDA {driver.cuda}" if driver.cuda else ""
        table.add_row("driver", driver.fault or f"{driver.vendor} {driver.version or UNKNOWN}{cuda}")
    host = inventory.host
    if host.cpu is not None or host.ram_total is not None:
        table.add_row("cpu", _host_name(host), size(host.ram_available), size(host.ram_total))
    for disk in inventory.disks:
        table.add_row("disk", _disk_name(disk), size(disk.free), size(disk.total))
    return table


def _name(gpu: Accelerator) -> str:
    facts = [gpu.fault] if gpu.fault else []
    if gpu.hidden:
        facts.append(_HIDDEN[gpu.hidden])
    if gpu.memory_pool:
        facts.append(f"shares the {gpu.memory_pool}'s memory")
    if gpu.host_to_device:
        facts.append(f"takes {size(gpu.host_to_device)}/s")
    return _with(gpu.name, facts)


def _host_name(host: Host) -> str:
    facts = []
    if host.cores_logical is not None:
        of = f" of {host.cores_logical}" if host.cores_usable not in (None, host.cores_logical) else ""
        facts.append(f"{host.cores_usable or host.cores_logical}{of} cores")
    if host.cpu_quota is not None:
        facts.append(f"time of {host.cpu_quota:g}")
    if host.ram_limit is not None and host.ram_limit == host.ram_total:
        facts.append("RAM limited by cgroup")
    if host.fault:
        facts.append(host.fault)
    return _with(host.cpu, facts)


def _disk_name(disk: Disk) -> str:
    facts = [disk.use, *(str(fact) for fact in (disk.filesystem, disk.kind) if fact)]
    if disk.read_speed is not None:
        facts.append(f"reads {size(disk.read_speed)}/s")
    if disk.fault:
        facts.append(disk.fault)
    return _with(disk.path, facts)


def _with(name: str | None, facts: list[str]) -> str:
    return f"{name or UNKNOWN} ({', '.join(facts)})" if facts else name or UNKNOWN


def _processes(inventory: Inventory) -> Table:
    table = _table("DEVICE", "PID", "PROCESS", "MEMORY", right="PID MEMORY")
    for gpu in inventory.accelerators:
        if gpu.mig_mode:
            continue  # its instances list them
        for process in gpu.processes or ():
            table.add_row(label(gpu), str(process.pid), process.name or UNKNOWN, size(process.memory))
    return table


def _links(inventory: Inventory) -> Table:
    links = inventory.links
    names = [label(inventory.accelerators[place]) for place in links.accelerators]
    table = _table("LINKS", *names)
    for row, name in enumerate(names):
        table.add_row(name, *(_link(inventory, row, column) for column in range(len(names))))
    return table


def _link(inventory: Inventory, row: int, column: int) -> str:
    links = inventory.links
    path, peer = links.path[row][column], links.p2p[row][column]
    text = f"NV{links.nvlinks[row][column]}" if path is LinkPath.NVLINK else _PATHS[path] if path else UNKNOWN
    return text + ("*" if peer else "")


def _unit(value: float | None, unit: str) -> str:
    return UNKNOWN if value is None else f"{value:.0f}{unit}"
