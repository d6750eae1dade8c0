"""Which rank of a staged plan this process is, by what its launcher says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from devctl.errors import UsageError
from devctl.placement.parallel.records import Rank, Stages

_HOST_RANKS = ("GROUP_RANK", "CROSS_RANK")
"""Where launchers tell the number of the host: torchrun, DeepSpeed."""

_HINT = "torchrun starts it: `devctl load MODEL --map FILE --launch print` writes the line of each host"


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """A rank, among all of them.

    Attributes:
        me: this process.
        ranks: every process, by number.
        address, port: where the ranks meet.
        serves: whether this process has to open that port itself, as no launcher did.
        run: what tells runs apart that meet at the same port.
    """

    me: Rank
    ranks: tuple[Rank, ...]
    address: str
    port: int
    serves: bool
    run: str = ""

    @property
    def rank(self) -> int:
        """Its number."""
        return self.me.rank

    @property
    def others(self) -> tuple[Rank, ...]:
        """All but this one."""
        return tuple(rank for rank in self.ranks if rank.rank != self.me.rank)


def name_of(rank: Rank) -> str:
    """What messages call a rank."""
    return f"rank {rank.rank} on {rank.host}"


def find_seat(stages: Stages, environment: Mapping[str, str], hostname: str = "") -> Seat:
    """This process's seat: by the number of its host and its number there, never by arithmetic on ``RANK``.

    Args:
        environment: what the launcher has set.
        hostname: of this machine, where that is known.

    Raises:
        UsageError: something is not set, the plan has no such rank, or this machine is another of its hosts.
    """
    host_rank = next((_number(environment, name) for name in _HOST_RANKS if name in environment), None)
    if host_rank is None:
        raise UsageError(f"--distributed needs a launcher: {_HOST_RANKS[0]} is not set", hint=_HINT)
    local_rank, port = _number(environment, "LOCAL_RANK"), _number(environment, "MASTER_PORT")
    address = environment.get("MASTER_ADDR", "")
    if not address:
        raise UsageError("--distributed needs a launcher: MASTER_ADDR is not set", hint=_HINT)
    if not 0 < port < 2**16:
        raise UsageError(f"MASTER_PORT is {port}, and no port", hint=_HINT)
    ranks = tuple(stages.ranks())
    me = next((each for each in ranks if (each.host_rank, each.local_rank) == (host_rank, local_rank)), None)
    if me is None:
        raise UsageError(
            f"the plan has no rank {local_rank} on host {host_rank}: it has {_counts(stages, ranks)}",
            hint="start as many processes on each host as it has accelerators in the plan",
        )
    named = [host for host in stages.hosts if _is_called(host, hostname)]
    if named and me.host not in named and not _is_loopback(address):  # where all are started on one machine
        raise UsageError(
            f"this machine is {hostname}, and the launcher says that it is host {host_rank}: {me.host} in the plan",
            hint="give each host its own line, or number them as the plan does; torchrun does so with --node-rank",
        )
    here = sum(each.host_rank == host_rank for each in ranks)
    for name, expected in (("WORLD_SIZE", len(ranks)), ("LOCAL_WORLD_SIZE", here)):
        if name in environment and (said := _number(environment, name)) != expected:
            raise UsageError(
                f"the launcher starts {said} processes ({name}), and the plan has {expected}: {_counts(stages, ranks)}",
                hint=_HINT,
            )
    return Seat(
        me=me,
        ranks=ranks,
        address=address,
        port=port,
        serves=me.rank == 0 and environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True",
        run=f"{environment.get('TORCHELASTIC_RUN_ID', '')}/{environment.get('TORCHELASTIC_RESTART_COUNT', '0')}",
    )


def _is_called(host: str, hostname: str) -> bool:
    """Whether a host of the plan is this machine, with its domain or without, and whoever logs in there."""
    name = host.rpartition("@")[2]
    return bool(hostname) and (hostname in (name, name.partition(".")[0]) or hostname.partition(".")[0] == name)


def _is_loopback(address: str) -> bool:
    return address.startswith("127.") or address in ("localhost", "::1")


def _number(environment: Mapping[str, str], name: str) -> int:
    text = environment.get(name, "")
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        said = f"is {text!r}, and no number" if text else "is not set"
        raise UsageError(f"--distributed needs a launcher: {name} {said}", hint=_HINT)
    return int(text)


def _counts(stages: Stages, ranks: tuple[Rank, ...]) -> str:
    return ", ".join(f"{sum(rank.host == host for rank in ranks)} on {host}" for host in stages.hosts)
