"""The command and the line that start the ranks of each host."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, replace
from enum import StrEnum
from math import ceil

from devctl.devices import Device, DeviceType
from devctl.distributed.link import Limits
from devctl.errors import RefusedError, UsageError
from devctl.placement.parallel.records import Stages


class Launch(StrEnum):
    """Who starts the ranks."""

    PRINT = "print"
    """Whoever pastes the lines."""
    LOCAL = "local"
    """This process, all of them on this machine."""
    SSH = "ssh"
    """This process, on each host by ssh."""


class Launcher(StrEnum):
    """What the lines start ranks with."""

    TORCHRUN = "torchrun"
    SLURM = "slurm"
    DEEPSPEED = "deepspeed"
    KUBERNETES = "kubernetes"


DEFAULT_PORT = 29500
_FROM_ONE_SHELL = (Launcher.SLURM, Launcher.KUBERNETES)
_NAME = re.compile(r"[A-Za-z0-9._][A-Za-z0-9._-]*")
"""What may be a host's name: nothing that a shell or ssh reads as something else."""
_NAME_WITH_USER = re.compile(r"([A-Za-z0-9._][A-Za-z0-9._-]*@)?[A-Za-z0-9._][A-Za-z0-9._-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What to start.

    Attributes:
        arguments: of devctl, with ``--distributed``.
        address: where the ranks meet; None is the first host.
        join: seconds that the launchers of hosts wait for each other.
    """

    stages: Stages
    arguments: tuple[str, ...]
    address: str | None = None
    port: int = DEFAULT_PORT
    join: float = Limits().join

    @property
    def counts(self) -> dict[str, int]:
        """Ranks of each host."""
        return {host: len(self.stages.devices_on(host)) for host in self.stages.hosts}

    @property
    def meeting(self) -> str:
        """The host where the ranks meet."""
        return self.address or self.stages.hosts[0]


def require_line(run: Run) -> None:
    """See that the hosts' names, ``user@`` before them or not, and the arguments can stand in a line.

    Raises:
        UsageError: naming what can't.
    """
    for name in run.stages.hosts:
        if not _NAME_WITH_USER.fullmatch(name):
            raise UsageError(
                f"{name!r} is no host's name that a command can have", hint="plan with its name on the network"
            )
    for argument in run.arguments:
        if not argument.isprintable():
            raise UsageError(f"{argument!r} does not go into one line", hint="--launch local takes it")
    if run.address is not None and not (_NAME.fullmatch(run.address) or re.fullmatch(r"[0-9A-Fa-f:]+", run.address)):
        raise UsageError(
            f"--master-addr {run.address!r} is no host's name or address", hint="write it like node-1 or 10.0.0.1"
        )


def commands(run: Run, launcher: Launcher) -> dict[str, tuple[str, ...]]:
    """The command of each host, in the order of their stages.

    The number of ranks may differ by host: torchrun counts them where all have told theirs (static rendezvous), and a
    rank finds its stage by its host's number and its own number there.

    Raises:
        UsageError: a name or an argument can't stand in a line.
        RefusedError: the launcher can't start these numbers of ranks.
    """
    require_line(run)
    run = _without_users(run)
    if launcher in (Launcher.TORCHRUN, Launcher.SLURM):
        found = {host: _torchrun(run, number) for number, host in enumerate(run.stages.hosts)}
        if launcher is Launcher.TORCHRUN:
            return found
        return {host: (*_srun(host, run), *command) for host, command in found.items()}
    if launcher is Launcher.DEEPSPEED:
        return {host: _deepspeed(run, number) for number, host in enumerate(run.stages.hosts)}
    return {host: ("kubectl", "exec", host, "--", *_torchrun(run, n)) for n, host in enumerate(run.stages.hosts)}


def lines(run: Run, launcher: Launcher) -> tuple[str, ...]:
    """The same as lines for a shell; those of one shell for all hosts, but the last, run beside the next.

    Raises:
        UsageError, RefusedError: as `commands`.
    """
    quoted = [shlex.join(command) for command in commands(run, launcher).values()]
    if launcher in _FROM_ONE_SHELL:
        quoted = [*(f"{line} &" for line in quoted[:-1]), quoted[-1]]
    return tuple(quoted)


def notes(run: Run, launcher: Launcher) -> tuple[str, ...]:
    """What whoever pastes them has to know."""
    shown = {
        Launcher.SLURM: "paste them into one shell within an allocation that has these nodes",
        Launcher.KUBERNETES: "paste them into one shell: the hosts are pods, and --master-addr is what the others call "
        "the first by, as its name in a headless service",
    }.get(launcher, f"one line a host, in this order: {', '.join(run.stages.hosts)}")
    return (
        shown,
        "each host needs the whole checkpoint and the plan at these paths, and the same devctl, transformers and torch",
        f"all of them have to reach {run.meeting}:{run.port}",
        f"start them within {ceil(run.join)} s of each other, or give a longer --join-timeout",
        "what a host says last is its own: torchrun itself exits with 1 for whatever its ranks exit with",
        *((_WAITS.format(2 * ceil(run.join)),) if launcher is not Launcher.DEEPSPEED and len(run.counts) > 1 else ()),
    )


_WAITS = (
    "a line whose others are not run ends with torchrun's own words, after up to {} s; it hears no Ctrl-C until then, "
    "but Ctrl-\\"
)


def _torchrun(run: Run, number: int) -> tuple[str, ...]:
    host = run.stages.hosts[number]
    return (
        "torchrun",
        "--nnodes",
        str(len(run.stages.hosts)),
        "--node-rank",
        str(number),
        "--nproc-per-node",
        str(run.counts[host]),
        "--master-addr",
        run.meeting,
        "--master-port",
        str(run.port),
        "--rdzv-conf",  # else it waits ten minutes for a host that never comes, and no rank is there to say so
        f"timeout={ceil(run.join)}",
        "-m",
        "devctl",
        *run.arguments,
    )


def _srun(host: str, run: Run) -> tuple[str, ...]:
    # a step sees the first of them, and the plan may have others
    devices = [Device.from_str(device) for device in run.stages.devices_on(host)]
    gpus = max((device.id or 0) + 1 if device.type is not DeviceType.CPU else 0 for device in devices)
    taken = (f"--gpus-per-node={gpus}",) if gpus else ()
    return ("srun", "--nodes=1", "--ntasks=1", f"--nodelist={host}", *taken, "--kill-on-bad-exit=1")


def _deepspeed(run: Run, number: int) -> tuple[str, ...]:
    if len(set(run.counts.values())) > 1:
        raise RefusedError(
            f"without a hostfile, DeepSpeed starts as many ranks on every host, and the plan has {run.counts}",
            hint="--launcher torchrun starts any number on each",
        )
    host = run.stages.hosts[number]
    return (
        "deepspeed",
        "--no_ssh",
        "--num_nodes",
        str(len(run.stages.hosts)),
        "--num_gpus",
        str(run.counts[host]),
        "--node_rank",
        str(number),
        "--master_addr",
        run.meeting,
        "--master_port",
        str(run.port),
        "--module",
        "devctl",
        *run.arguments,
    )


def _without_users(run: Run) -> Run:
    """The same where a host is called ``user@host`` for ssh alone."""
    first = run.stages.hosts[0].rpartition("@")[2]
    stages = tuple(replace(stage, host=stage.host.rpartition("@")[2]) for stage in run.stages.stages)
    return replace(run, stages=replace(run.stages, stages=stages), address=run.address or first)
