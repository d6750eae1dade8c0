"""What several hosts have: each asked by ssh for its ``devctl list --json``, or read from what it wrote.

One host that can't be asked is one without an inventory, and never the end of it. A host is given a deadline, and what
was started for it is killed then, with its children.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import selectors
import subprocess
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from devctl.errors import first_line
from devctl.inventory.document import from_document, to_document
from devctl.inventory.ending import end_group
from devctl.inventory.hostfile import Address
from devctl.inventory.records import Inventory

SCHEMA = 1
KIND = "devctl.cluster"

REMOTE = "devctl list --json"
"""What a host is asked for."""

TIMEOUT = 20.0
"""Seconds that a host has to answer."""

_AT_ONCE = 8
_MOST = 16 * 2**20
"""Bytes of an answer; an inventory of eight boards has 20,000."""

_LOOK = 0.1
"""Seconds between looks at whether a process has ended. What ssh leaves in the background keeps its pipes open."""

_LEAVING = 5.0
"""Seconds that a killed process has to end."""

_OF_SSH, _NOT_FOUND = 255, 127
_MOST_TRIES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFound:
    """What is known of a host.

    Attributes:
        name: what it is called in plans.
        address: how it was asked; None where it was not.
        inventory: None where there is an ``error``.
        error: why there is no inventory; one line.
        seconds: how long it took to answer; None where it was not asked.
        slots: how many of its accelerators may be used, where a hostfile says.
    """

    name: str
    address: str | None = None
    inventory: Inventory | None = None
    error: str | None = None
    seconds: float | None = None
    slots: int | None = None

    def to_document(self) -> dict[str, Any]:
        """What documents say of it."""
        return {
            "name": self.name,
            "address": self.address,
            "inventory": None if self.inventory is None else to_document(self.inventory),
            "error": self.error,
            "seconds": self.seconds,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Several hosts, in the order in which they were named."""

    hosts: tuple[HostFound, ...]

    @property
    def silent(self) -> tuple[HostFound, ...]:
        """Those without an inventory."""
        return tuple(host for host in self.hosts if host.inventory is None)

    def to_document(self) -> dict[str, Any]:
        """The same as JSON values. See ``cluster.schema.json``."""
        return {"schema": SCHEMA, "kind": KIND, "hosts": [host.to_document() for host in self.hosts]}


def is_cluster(document: Any) -> bool:
    """Whether a document is of several hosts."""
    return isinstance(document, dict) and document.get("kind") == KIND


def from_cluster(document: Any) -> Cluster:
    """The hosts that ``to_document`` wrote.

    Raises:
        ValueError: it is no such document, or of another schema; the message says where.
    """
    if not is_cluster(document):
        raise ValueError(f'not of hosts: "kind" is not "{KIND}"')
    if document.get("schema") != SCHEMA:
        raise ValueError(f"hosts of schema {document.get('schema')!r}; this devctl reads schema {SCHEMA}")
    entries = document.get("hosts")
    if not isinstance(entries, list) or not entries:
        raise ValueError('"hosts" is no list with a host in it')
    found = []
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            raise ValueError(f'hosts[{number}] is no object with a "name"')
        inventory, error, address = entry.get("inventory"), entry.get("error"), entry.get("address")
        if inventory is None and not isinstance(error, str):
            raise ValueError(f'hosts[{number}] has neither an "inventory" nor an "error"')
        found.append(
            HostFound(
                name=entry["name"],
                address=address if isinstance(address, str) else None,
                inventory=None if inventory is None else from_document(inventory),
                error=error if inventory is None else None,
            )
        )
    return together(found)


def together(hosts: Iterable[HostFound]) -> Cluster:
    """The hosts, of which a machine that is there under two names counts once: by the ids of its boards."""
    known: dict[str, str] = {}
    found = []
    for host in hosts:
        ids = [] if host.inventory is None else [gpu.uuid for gpu in host.inventory.accelerators if gpu.uuid]
        if (twice := next((uuid for uuid in ids if uuid in known), None)) is not None:
            why = f"it is the same machine as {known[twice]}: {twice} is in both"
            found.append(replace(host, inventory=None, error=why))
            continue
        known |= dict.fromkeys(ids, host.name)
        found.append(host)
    return Cluster(hosts=tuple(found))


def ask(addresses: Sequence[Address], *, remote: str = REMOTE, timeout: float = TIMEOUT) -> Cluster:
    """What each host answers to ``remote``, asked by ssh, several at once.

    Args:
        timeout: seconds that each has, from when it is asked.
    """
    stop = threading.Event()
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        asked = [pool.submit(_ask, address, remote, timeout, stop) for address in addresses]
        try:
            return together([each.result() for each in asked])
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _ask(address: Address, remote: str, timeout: float, stop: threading.Event) -> HostFound:
    begun = time.monotonic()
    command = ["ssh", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={max(1, math.ceil(timeout))}", address.address]
    host = HostFound(name=address.name, address=address.address, slots=address.slots)
    try:
        process = subprocess.Popen(
            [*command, remote],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        return replace(host, error=f"ssh can't be started: {error.strerror or error}")
    try:
        answered = _read(process, begun + timeout, stop)
    finally:
        if process.poll() is None:
            end_group(process, _LEAVING)
    seconds = round(time.monotonic() - begun, 3)
    if answered is None:
        return replace(host, error=f"no answer within {timeout:g} s", seconds=seconds)
    out, said = answered
    if len(out) > _MOST:
        return replace(host, error=f"answered with more than {_MOST // 2**20} MiB", seconds=seconds)
    assert process.returncode is not None, "it has ended, or was killed"
    try:
        return replace(host, inventory=_inventory(out, said, process.returncode, remote), seconds=seconds)
    except ValueError as error:
        return replace(host, error=str(error), seconds=seconds)


def _read(process: subprocess.Popen[bytes], deadline: float, stop: threading.Event) -> tuple[bytes, bytes] | None:
    """What a process writes until it ends, or more than is read of it; None where it does not end in time."""
    assert process.stdout is not None and process.stderr is not None, "both are pipes"
    pipes = {process.stdout.fileno(): bytearray(), process.stderr.fileno(): bytearray()}
    out, said = pipes.values()
    with selectors.DefaultSelector() as waiting, process.stdout, process.stderr:
        for pipe in pipes:
            waiting.register(pipe, selectors.EVENT_READ)
        while not stop.is_set():
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            has_ended = process.poll() is not None
            ready = waiting.select(min(left, _LOOK)) if waiting.get_map() else []
            for key, _ in ready:
                pipe = key.fd
                piece = os.read(pipe, 65536)
                if not piece:
                    waiting.unregister(pipe)
                elif pipe == process.stdout.fileno() or len(said) < 65536:
                    pipes[pipe] += piece
            if len(out) > _MOST:
                return bytes(out), bytes(said)
            if has_ended and not ready:
                return bytes(out), bytes(said)
            if not waiting.get_map() and not has_ended:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(min(left, _LOOK))
    return None


def _inventory(out: bytes, said: bytes, code: int, remote: str) -> Inventory:
    """The inventory in an answer.

    Raises:
        ValueError: there is none; one line says why.
    """
    if code:
        lines = [line.strip() for line in said.decode(errors="replace").splitlines() if line.strip()]
        why = lines[-1][:200] if lines else "without a word"
        if code == _OF_SSH:
            raise ValueError(f"ssh: {why.removeprefix('ssh: ')}")
        if code == _NOT_FOUND:
            raise ValueError(f"there is no devctl in its PATH ({why}): say where with --remote-command")
        raise ValueError(f"{remote!r} ended with {code}: {why}")
    return parse_answer(out.decode(errors="replace"))


def parse_answer(text: str) -> Inventory:
    """The inventory in what a host wrote, which a login's banners may be around; a note tells of those.

    Raises:
        ValueError: there is none, or one of another schema; one line.
    """
    decoder, at = json.JSONDecoder(), 0
    refused: ValueError | None = None
    starts = []
    for line in text.splitlines(keepends=True):
        if line.lstrip().startswith("{"):
            starts.append(at + len(line) - len(line.lstrip()))
        at += len(line)
    for start in starts[:_MOST_TRIES]:
        try:
            document, end = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            continue
        try:
            inventory = from_document(document)
        except ValueError as error:
            refused = refused or error
            continue
        other = [line.strip() for line in (text[:start] + text[end:]).splitlines() if line.strip()]
        if not other:
            return inventory
        said = f"beside its inventory it wrote {len(other)} line{'s' * (len(other) > 1)}, {other[0][:60]!r} first"
        return replace(inventory, notes=(*inventory.notes, said))
    if refused is not None:
        raise ValueError(f"its inventory can't be read: {first_line(refused)}")
    first = next((line.strip() for line in text.splitlines() if line.strip()), None)
    raise ValueError("it answered nothing" if first is None else f"it answered without an inventory: {first[:60]!r}")
