"""The hosts that a request means: a name and a machine each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from devctl.devices import Device, DeviceType
from devctl.errors import RefusedError, UsageError
from devctl.inventory.hosts import TIMEOUT, HostFound
from devctl.inventory.named_hosts import checked_name, cluster_of, name_of_file
from devctl.inventory.records import Vendor
from devctl.placement.budget import is_accelerator
from devctl.planning.machine import Machine, open_machine
from devctl.planning.progress import reporter
from devctl.planning.request import MachineRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class HostsRequest:
    """Which hosts.

    Attributes:
        devices: hosts that are not here, like "a:4xH100;b:2xA100".
        files: what ``devctl list --json`` wrote on each; a host is named after its file.
        machines: hosts by name.
        hosts: hosts that are asked now, or a document of what they said, as `cluster_of` takes them.
        timeout, remote_command: how they are asked.
        reserve: entries like "1GiB" or "0=2GiB", kept free on every host, or "a:1GiB" and "a:0=2GiB", on that one.
        max_memory: entries like "a:0=60GiB": what an accelerator of that host may hold, instead of what it has free.
    """

    devices: str | None = None
    files: tuple[str, ...] = ()
    machines: tuple[tuple[str, MachineRequest], ...] = ()
    hosts: str | None = None
    timeout: str | None = None
    remote_command: str | None = None
    reserve: tuple[str, ...] | None = None
    max_memory: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedMachine:
    """A host: its name, and what is there."""

    name: str
    machine: Machine

    @property
    def accelerators(self) -> tuple[tuple[Device, int], ...]:
        """Those that may hold something, and how many bytes."""
        return tuple((d, size) for d, size in self.machine.budgets.devices if is_accelerator(d) and size > 0)


def open_hosts(request: HostsRequest) -> tuple[NamedMachine, ...]:
    """The hosts of ``request``, in its order.

    Raises:
        UsageError: one can't be read, has no name, or is there twice.
        RefusedError: one that was asked gave no inventory.
    """
    asked = [*_requests(request)]
    twice = [name for name, count in Counter(name for name, _ in asked).items() if count > 1]
    if twice:
        hint = "a host is named after its file: give each a name of its own" if request.files else "leave out one"
        raise UsageError(f"two hosts are called {twice[0]}", hint=hint)
    names = [name for name, _ in asked]
    most = _by_host(request.max_memory, names, "--max-memory", on_all=False)
    kept = _by_host(request.reserve, names, "--reserve", on_all=True)
    hosts = tuple(
        _open(name, replace(each, reserve=kept[name], max_memory=most[name], keeps_others=True)) for name, each in asked
    )
    _require_different(hosts)
    return hosts


def _by_host(
    texts: tuple[str, ...] | None, hosts: Sequence[str], option: str, *, on_all: bool
) -> dict[str, tuple[str, ...] | None]:
    """The entries of an option for each host; those of the host that they name, like "a:0=60GiB".

    Args:
        on_all: whether one that names no host is for all of them.

    Raises:
        UsageError: it names no host of these, or what holds no part of any stage.
    """
    found: dict[str, list[str]] = {host: [] for host in hosts}
    for entry in (part.strip() for text in texts or () for part in text.split(",") if part.strip()):
        host = max((name for name in hosts if entry.startswith(f"{name}:")), key=len, default=None)
        rest = entry if host is None else entry[len(host) + 1 :].strip()
        device = rest.rpartition("=")[0].strip()
        if device in ("cpu", "disk"):
            raise UsageError(f"{option} {entry}: over hosts nothing is on the CPU or a disk", hint="leave it out")
        if host is None and (not on_all or (":" in rest and not device.startswith(("cuda:", "xpu:")))):
            shown = ", ".join(hosts[:4]) + (", …" if len(hosts) > 4 else "")
            raise UsageError(
                f"{option}: {entry!r} names none of the hosts, which are {shown}",
                hint=f"write it like {hosts[0]}:0=60GiB",
            )
        for name in hosts if host is None else (host,):
            found[name].append(rest)
    return {host: tuple(entries) or None for host, entries in found.items()}


def _open(name: str, request: MachineRequest) -> NamedMachine:
    try:
        return NamedMachine(name=name, machine=open_machine(request))
    except UsageError as error:
        of_text = error.message.removeprefix("--devices: ")
        said = f"{name}: {error.message}" if of_text == error.message else f"--devices: of host {name}: {of_text}"
        raise UsageError(said, hint=error.hint) from None


def _requests(request: HostsRequest) -> Iterator[tuple[str, MachineRequest]]:
    if request.devices is not None:
        for entry in request.devices.split(";"):
            name, colon, rest = (part.strip() for part in entry.partition(":"))
            if not colon or not rest:
                raise UsageError(
                    f"--devices: {entry.strip()!r} is not HOST:DEVICES", hint="write it like 'a:4xH100;b:2xA100'"
                )
            if rest.isdecimal() and name in (DeviceType.GPU, DeviceType.XPU, DeviceType.MPS):
                raise UsageError(
                    f"--devices: {entry.strip()!r} is a device of this machine, and --devices says what is not here",
                    hint=f"leave it out for all of this machine, or choose of it with --visible {rest}",
                )
            yield checked_name(name, f"--devices: {entry.strip()!r}"), MachineRequest(devices=rest)
    for path in request.files:
        yield name_of_file(path), MachineRequest(file=path)
    if request.hosts is not None:
        yield from _asked(request)
    for name, machine in request.machines:
        yield checked_name(name, "machine"), machine


def _asked(request: HostsRequest) -> Iterator[tuple[str, MachineRequest]]:
    """The hosts that are asked, each with as many accelerators as its hostfile lets it have."""
    assert request.hosts is not None, "asked where it is given"
    with reporter().status(f"asking {request.hosts} by ssh, each for at most {request.timeout or f'{TIMEOUT:g}s'}"):
        found = cluster_of(request.hosts, remote=request.remote_command, timeout=request.timeout)
    if found.silent:
        raise RefusedError(
            f"{len(found.silent)} of {len(found.hosts)} hosts gave no inventory",
            findings=tuple(f"{host.name}: {host.error}" for host in found.silent),
            hint="plan without them, or with what `devctl list --json` writes there, by --machine NAME.json",
        )
    for host in found.hosts:
        yield checked_name(host.name, "--hosts"), _with_slots(host)


def _with_slots(host: HostFound) -> MachineRequest:
    assert host.inventory is not None, "those without one were refused"
    there = [gpu.device.id or 0 for gpu in host.inventory.accelerators if gpu.device is not None]
    if host.slots is None or host.slots == len(there):
        return MachineRequest(inventory=host.inventory)
    if host.slots > len(there):
        few = f"{host.name} has {len(there)} accelerators, and the list of hosts says {host.slots} slots"
        raise RefusedError(few, hint="correct the list")
    return MachineRequest(inventory=host.inventory, visible=",".join(map(str, sorted(there)[: host.slots])))


def _require_different(hosts: Sequence[NamedMachine]) -> None:
    """Refuse a machine that is there twice, by the ids of its boards.

    Raises:
        UsageError: naming both.
    """
    known: dict[str, str] = {}
    for host in hosts:
        for gpu in host.machine.inventory.accelerators:
            if gpu.uuid is not None and (other := known.setdefault(gpu.uuid, host.name)) != host.name:
                raise UsageError(
                    f"{other} and {host.name} are one machine: {gpu.uuid} is in both", hint="leave out one"
                )


def require_one_kind(hosts: Sequence[NamedMachine]) -> None:
    """Refuse accelerators that no process group is of together: of two makers, or two types of device.

    Raises:
        RefusedError: naming two hosts.
    """
    kinds: dict[str, str] = {}
    for host in hosts:
        there = {device for device, _ in host.accelerators}
        kinds |= {str(device.type): kinds.get(str(device.type), host.name) for device in there}
    makers: dict[str, str] = {}
    for host in hosts:
        there = {device for device, _ in host.accelerators}
        for gpu in host.machine.inventory.accelerators:
            if gpu.device in there and gpu.vendor is not Vendor.OTHER:
                makers.setdefault(str(gpu.vendor), host.name)
    for found in (makers, kinds):
        if len(found) > 1:
            one, other = list(found)[:2]
            raise RefusedError(
                f"{found[one]} has accelerators of {one} and {found[other]} of {other}: no process group is of both",
                hint="plan for one kind at a time",
            )
