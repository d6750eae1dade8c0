"""How NVIDIA boards reach each other: NVLink, the PCIe tree, and whether one may read another's memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from devctl.inventory.records import LinkPath, Links

if TYPE_CHECKING:
    from devctl.inventory.probes.nvml import Nvml

# nvmlGpuTopologyLevel_t
_LEVELS = {
    0: LinkPath.BOARD,
    10: LinkPath.SWITCH,
    20: LinkPath.SWITCHES,
    30: LinkPath.HOST_BRIDGE,
    40: LinkPath.NODE,
    50: LinkPath.SYSTEM,
}
_MAX_LINKS = 36
_TO_GPU, _TO_SWITCH = 0, 2


class NvLinks(NamedTuple):
    """The active NVLinks of one board: how many end in a switch, and the boards that the others end at, by bus id."""

    to_switch: int = 0
    to_boards: tuple[str, ...] = ()


def read_links(gates: Sequence[Nvml], bus_ids: Sequence[str | None], positions: Sequence[int]) -> Links:
    """The matrices for boards at ``positions``; empty for fewer than two."""
    if len(gates) < 2:
        return Links()
    nvlinks = [_read_nvlinks(gate) for gate in gates]
    count = range(len(gates))
    levels = {(i, j): _read_level(gates[i], gates[j]) for i in count for j in count if i < j}
    peers = {(i, j): _read_p2p(gates[i], gates[j]) for i in count for j in count if i < j}
    return matrices(positions, bus_ids, nvlinks, levels, peers)


def matrices(
    positions: Sequence[int],
    bus_ids: Sequence[str | None],
    nvlinks: Sequence[NvLinks | None],
    levels: dict[tuple[int, int], int | None],
    peers: dict[tuple[int, int], bool | None],
) -> Links:
    """NVML's answers, by pairs ``(i, j)`` with i < j, as square matrices."""
    count = range(len(positions))

    def links(i: int, j: int) -> int | None:
        return None if i == j else nvlinks_between(nvlinks[i], nvlinks[j], bus_ids[i], bus_ids[j])

    def path(i: int, j: int) -> LinkPath | None:
        if i == j:
            return LinkPath.SELF
        level = levels.get((min(i, j), max(i, j)))
        return LinkPath.NVLINK if links(i, j) else _LEVELS.get(level) if level is not None else None

    return Links(
        accelerators=tuple(positions),
        path=tuple(tuple(path(i, j) for j in count) for i in count),
        nvlinks=tuple(tuple(links(i, j) for j in count) for i in count),
        p2p=tuple(tuple(peers.get((min(i, j), max(i, j))) for j in count) for i in count),
    )


def nvlinks_between(a: NvLinks | None, b: NvLinks | None, a_bus: str | None, b_bus: str | None) -> int | None:
    """Active links between two boards: those that end at the other, or as many as both have into the switches."""
    if a is None or b is None:
        return None
    direct = max(a.to_boards.count(b_bus or "?"), b.to_boards.count(a_bus or "?"))
    return direct or min(a.to_switch, b.to_switch)


def _read_nvlinks(gate: Nvml) -> NvLinks | None:
    if gate.fault:
        return None
    to_switch, to_boards = 0, []
    for link in range(_MAX_LINKS):
        active = gate.ask("nvmlDeviceGetNvLinkState", link)
        if active is None:
            break  # the board has no such link, and none after it
        if not active:
            continue
        end = gate.ask("nvmlDeviceGetNvLinkRemoteDeviceType", link)
        if end == _TO_SWITCH:
            to_switch += 1
        elif end in (_TO_GPU, None):
            bus_id = gate.bus_id("nvmlDeviceGetNvLinkRemotePciInfo", link)
            if bus_id:
                to_boards.append(bus_id)
    return NvLinks(to_switch=to_switch, to_boards=tuple(to_boards))


def _read_level(a: Nvml, b: Nvml) -> int | None:
    if a.fault or b.fault:
        return None
    level: int | None = a.ask("nvmlDeviceGetTopologyCommonAncestor", b.handle)
    return level


def _read_p2p(a: Nvml, b: Nvml) -> bool | None:
    if a.fault or b.fault:
        return None
    answers = [
        one.ask("nvmlDeviceGetP2PStatus", other.handle, capability)
        for one, other in ((a, b), (b, a))
        for capability in (0, 1)  # read, write
    ]
    if any(answer not in (0, None) for answer in answers):
        return False
    return None if None in answers else True
