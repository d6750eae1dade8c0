"""An inventory for people and programs."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from devctl.cli.show.streams import UNKNOWN, cells, clean, dumps, in_lines, size
from devctl.inventory.records import Accelerator, Disk, Hidden, Host, Inventory, LinkPath, label

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

_BOLD, _DIM, _PLAIN = "\033[1m", "\033[2m", "\033[0m"


def to_json(inventory: Inventory, *, one_line: bool = False) -> str:
    """The inventory as one JSON document, on one line or indented."""
    import json  # 5 ms that the tables do not need

    from devctl.inventory.document import to_document

    document = to_document(inventory)
    return json.dumps(document) + "\n" if one_line else dumps(document)


def to_text(inventory: Inventory, *, width: int | None, styled: bool) -> str:
    """The machine as tables: a row per device, then who is on the GPUs, their links, and notes.

    Args:
        width: columns to keep to; None to wrap nothing.
        styled: whether headers may be bold and lesser lines dim.
    """
    parts = [_devices(inventory, width, styled)]
    if any(accelerator.processes for accelerator in inventory.accelerators):
        parts.append(_processes(inventory, width, styled))
    known = [path for row in inventory.links.path for path in row if path not in (None, LinkPath.SELF)]
    if known:
        parts.append(_links(inventory, width, styled))
    if inventory.notes:
        parts.append("".join(_styled(f"note: {clean(note)}", _DIM, styled, width) for note in inventory.notes))
    return "\n".join(parts)


def _devices(inventory: Inventory, width: int | None, styled: bool) -> str:
    # what no device of the machine has gets no column, so that a small screen shows the rest
    measured = any(a.utilization is not None or a.temperature is not None for a in inventory.accelerators)
    extra = ("BUSY", "TEMP", "POWER") if measured else ()
    rows: list[list[str]] = []
    dim = set()
    for gpu in inventory.accelerators:
        row = [label(gpu), _name(gpu), size(gpu.memory_free), size(gpu.memory_total)]
        if extra:
            row += [_unit(gpu.utilization, "%"), _unit(gpu.temperature, "°C"), _unit(gpu.power, " W")]
        if gpu.device is None:
            dim.add(len(rows))
        rows.append(row)
    for driver in inventory.drivers:
        cuda = f", CUDA {driver.cuda}" if driver.cuda else ""
        rows.append(["driver", driver.fault or f"{driver.vendor} {driver.version or UNKNOWN}{cuda}"])
    host = inventory.host
    if host.cpu is not None or host.ram_total is not None:
        rows.append(["cpu", _host_name(host), size(host.ram_available), size(host.ram_total)])
    rows += [["disk", _disk_name(disk), size(disk.free), size(disk.total)] for disk in inventory.disks]
    if not rows:
        return "no GPU was found\n"
    return columns(
        ["DEVICE", "NAME", "FREE", "TOTAL", *extra], rows, left=2, wrap=1, width=width, styled=styled, dim=dim
    )


def _name(gpu: Accelerator) -> str:
    facts = [gpu.fault] if gpu.fault else []
    if gpu.health and gpu.health.problems:
        facts.append(f"unhealthy: {'; '.join(gpu.health.problems)}")
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


def _processes(inventory: Inventory, width: int | None, styled: bool) -> str:
    rows = [
        [label(gpu), process.name or UNKNOWN, str(process.pid), size(process.memory)]
        for gpu in inventory.accelerators
        if not gpu.mig_mode  # its instances list them
        for process in gpu.processes or ()
    ]
    return columns(["DEVICE", "PROCESS", "PID", "MEMORY"], rows, left=2, wrap=1, width=width, styled=styled)


def _links(inventory: Inventory, width: int | None, styled: bool) -> str:
    names = [label(inventory.accelerators[place]) for place in inventory.links.accelerators]
    rows = [[name, *(_link(inventory, row, column) for column in range(len(names)))] for row, name in enumerate(names)]
    text = columns(["LINKS", *names], rows, left=len(names) + 1, styled=styled)
    if any(peer for row in inventory.links.p2p for peer in row):
        text += _styled("*: they can read and write each other's memory", _DIM, styled, width)
    return text


def _link(inventory: Inventory, row: int, column: int) -> str:
    links = inventory.links
    path, peer = links.path[row][column], links.p2p[row][column]
    text = f"NV{links.nvlinks[row][column]}" if path is LinkPath.NVLINK else _PATHS[path] if path else UNKNOWN
    return text + ("*" if peer else "")


def _unit(value: float | None, unit: str) -> str:
    return UNKNOWN if value is None else f"{value:.0f}{unit}"


def columns(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    left: int,
    wrap: int | None = None,
    width: int | None = None,
    styled: bool = False,
    dim: Collection[int] = (),
) -> str:
    """A table without lines: the first ``left`` columns are flush left, the others flush right.

    Written out here, because rich, which does it better, takes as long to import and to draw eight rows as reading
    eight boards does.

    Args:
        wrap: the column that is folded where the table is wider than ``width``.
        dim: the rows to dim.
    """
    table = [list(header), *([*map(clean, row), *[""] * (len(header) - len(row))] for row in rows)]
    widths = [max(cells(row[column]) for row in table) for column in range(len(header))]
    if wrap is not None and width is not None:
        rest = sum(widths) - widths[wrap] + 2 * (len(header) - 1)
        widths[wrap] = max(min(widths[wrap], width - rest), len(header[wrap]), 16)
    text = []
    for number, row in enumerate(table):
        style = _BOLD if number == 0 else _DIM if number - 1 in dim else ""
        lines_of = [in_lines(cell, widths[wrap]) if column == wrap else [cell] for column, cell in enumerate(row)]
        for line in range(max(len(lines) for lines in lines_of)):
            parts = [
                _pad(lines[line] if line < len(lines) else "", widths[column], right=column >= left)
                for column, lines in enumerate(lines_of)
            ]
            text.append(_styled("  ".join(parts).rstrip(), style, styled))
    return "".join(text)


def _pad(text: str, width: int, *, right: bool) -> str:
    blanks = " " * (width - cells(text))
    return blanks + text if right else text + blanks


def _styled(line: str, style: str, styled: bool, width: int | None = None) -> str:
    lines = in_lines(line, width)
    return "".join(f"{style}{part}{_PLAIN}\n" if styled and style else f"{part}\n" for part in lines)
