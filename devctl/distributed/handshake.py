"""What all ranks have to agree on before any of them loads, and the table of what differs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from devctl.distributed.link import CommonError
from devctl.distributed.seat import Seat, name_of
from devctl.models.files.index import shards
from devctl.models.files.safetensors import SUFFIX, read_header
from devctl.models.files.weights import folder_index, weights_file
from devctl.reading import open_file

if TYPE_CHECKING:
    from devctl.models.files.safetensors import Header

_CHUNK = 64 * 2**20
_MOST_SHOWN = 12


def digest_of(value: Any) -> str:
    """A digest of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def weights_files(folder: Path) -> tuple[str, ...]:
    """Names of the files in ``folder`` that its weights are read from."""
    index = folder_index(folder)
    if index is not None:
        return shards(index)
    whole = weights_file(folder)
    return () if whole is None else (whole.name,)


def headers_of(folder: Path) -> dict[str, Header]:
    """The headers of the weights' files, of those that have one."""
    return {name: read_header(folder / name) for name in weights_files(folder) if name.endswith(SUFFIX)}


def describe_files(folder: Path) -> dict[str, str]:
    """Each file of weights: its bytes, and what its header says."""
    found = {}
    headers = headers_of(folder)
    for name in weights_files(folder):
        said = f"{(folder / name).stat().st_size:,} bytes"
        if name in headers:
            tensors = headers[name].tensors
            entries = {key: [each.dtype, list(each.shape), each.start, each.end] for key, each in tensors.items()}
            said += f", header {digest_of(entries)[:12]}"
        found[name] = said
    return found


def digest_file(path: Path, tick: Callable[[], None]) -> str:
    """The SHA-256 of a file's bytes; ``tick`` is called as it goes on."""
    digest = hashlib.sha256()
    with open_file(path) as file:
        while data := file.read(_CHUNK):
            digest.update(data)
            tick()
    return digest.hexdigest()


def differences(seat: Seat, facts: Sequence[Mapping[str, str]]) -> tuple[str, ...]:
    """A line for each fact that not all ranks have alike, with the hosts of every value.

    Args:
        facts: of each rank, by rank.
    """
    names = dict.fromkeys(name for each in facts for name in each)
    lines = []
    for name in names:
        holders: dict[str, list[str]] = {}
        for rank, each in zip(seat.ranks, facts, strict=True):
            holders.setdefault(each.get(name, "none"), []).append(name_of(rank))
        if len(holders) > 1:
            lines.append(f"{name}: " + "; ".join(f"{value} ({', '.join(who)})" for value, who in holders.items()))
    return tuple(lines)


def require_same(seat: Seat, facts: Sequence[Mapping[str, str]]) -> None:
    """See that all ranks are about to do the same.

    Raises:
        CommonError: with a line for each difference.
    """
    if lines := differences(seat, facts):
        raise CommonError(
            "the hosts differ",
            findings=_short(lines),
            hint="each host needs the same plan, the same whole checkpoint, and the same packages",
        )


def require_same_files(seat: Seat, digests: Sequence[Mapping[str, str]]) -> int:
    """See that files which several hosts have read are the same; how many were compared.

    Args:
        digests: of each rank, by rank: the digests of the files that it has read.

    Raises:
        CommonError: naming the files and the hosts.
    """
    compared, lines = 0, []
    for name in sorted({name for each in digests for name in each}):
        holders: dict[str, list[str]] = {}
        for rank, each in zip(seat.ranks, digests, strict=True):
            if name in each:
                holders.setdefault(each[name], []).append(rank.host)
        compared += sum(map(len, holders.values())) > 1
        if len(holders) > 1:
            lines.append(f"{name}: " + "; ".join(f"{value[:12]} ({', '.join(who)})" for value, who in holders.items()))
    if lines:
        raise CommonError(
            "the weights differ among the hosts", findings=_short(lines), hint="copy the checkpoint to each host anew"
        )
    return compared


def _short(lines: Iterable[str]) -> tuple[str, ...]:
    found = tuple(lines)
    more = len(found) - _MOST_SHOWN
    return found if more <= 0 else (*found[:_MOST_SHOWN], f"and {more} more")
