"""Lines that start every host's ranks, and two ways to start them from here: on this machine, and by ssh."""

from __future__ import annotations

import contextlib
import os
import queue
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from devctl.devices import Device
from devctl.distributed.link import Limits
from devctl.distributed.seat import name_of
from devctl.errors import ExitCode, LoadError, RefusedError, UsageError
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
_MOST_RANKS = 256
_GRACE = 10.0
"""Seconds that ranks have to end by themselves, as they hear of a failure."""
_CODE = re.compile(r"exitcode\s*:\s*(-?\d+)")
"""How torchrun tells what a worker exited with; it exits with 1 itself."""

_UNTIL_LEFT = (
    "exec 3<&0; {} & line=$!; {{ cat <&3 >/dev/null 2>&1; kill $line 2>/dev/null; }} & left=$!; "
    "wait $line; code=$?; kill $left 2>/dev/null; exit $code"
)
"""A line that is ended, on its host, when whoever has started it by ssh is gone: then its input comes to an end."""

Say = Callable[[str], None]
"""Shows a line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What to start.

    Attributes:
        arguments: of devctl, with ``--distributed``.
        address: where the ranks meet; None is the first host.
    """

    stages: Stages
    arguments: tuple[str, ...]
    address: str | None = None
    port: int = DEFAULT_PORT

    @property
    def counts(self) -> dict[str, int]:
        """Ranks of each host."""
        ranks = tuple(self.stages.ranks())
        return {host: sum(rank.host == host for rank in ranks) for host in self.stages.hosts}

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
            raise UsageError(f"{name!r} is no host's name that a command can have")
    for argument in run.arguments:
        if not argument.isprintable():
            raise UsageError(f"{argument!r} does not go into one line", hint="--launch local takes it")
    if run.address is not None and not (_NAME.fullmatch(run.address) or re.fullmatch(r"[0-9A-Fa-f:]+", run.address)):
        raise UsageError(f"--master-addr {run.address!r} is no host's name or address")


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
        "what a host says last is its own: torchrun itself exits with 1 for whatever its ranks exit with",
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
        "-m",
        "devctl",
        *run.arguments,
    )


def _srun(host: str, run: Run) -> tuple[str, ...]:
    devices = {rank.device for rank in run.stages.ranks() if rank.host == host}
    # a step sees the first of them, and the plan may have others
    gpus = max(Device.from_str(device).id or 0 for device in devices) + 1
    return ("srun", "--nodes=1", "--ntasks=1", f"--nodelist={host}", f"--gpus-per-node={gpus}", "--kill-on-bad-exit=1")


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


# from here


@dataclass(frozen=True, slots=True, kw_only=True)
class _Started:
    name: str
    process: subprocess.Popen[bytes]


def run_local(run: Run, limits: Limits, say: Say, *, port: int | None = None) -> bytes:
    """Start all ranks on this machine; what rank 0 answered.

    Args:
        port: where they meet; None is any free one.

    Raises:
        RefusedError: there are more ranks than any machine has accelerators.
        LoadError: a rank ended badly by a signal.
        EndedError: it ended badly, and said why.
    """
    meeting = _free_port() if port is None else port
    ranks = tuple(run.stages.ranks())
    if len(ranks) > _MOST_RANKS:
        raise RefusedError(f"the plan has {len(ranks)} ranks, and no machine has so many accelerators")
    counts = run.counts
    started = []
    for rank in ranks:
        environment = {
            "OMP_NUM_THREADS": "1",  # as torchrun has it, unless somebody says otherwise
            **os.environ,
            "RANK": str(rank.rank),
            "WORLD_SIZE": str(len(ranks)),
            "LOCAL_RANK": str(rank.local_rank),
            "LOCAL_WORLD_SIZE": str(counts[rank.host]),
            "GROUP_RANK": str(rank.host_rank),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(meeting),
        }
        environment.pop("TORCHELASTIC_USE_AGENT_STORE", None)
        command = (sys.executable, "-m", "devctl", *run.arguments)
        started.append((name_of(rank), command, environment))
    return _run_all(started, say, limits)


def run_ssh(run: Run, limits: Limits, say: Say) -> bytes:
    """Start each host's line by ssh, which may ask for nothing; what the first answered.

    Raises:
        UsageError: a name or an argument can't stand in a line.
        LoadError, EndedError: as `run_local`.
    """
    started = []
    for host, command in zip(run.stages.hosts, commands(run, Launcher.TORCHRUN).values(), strict=True):
        timeout = max(1, round(limits.join))
        options = ("-o", "BatchMode=yes", "-o", f"ConnectTimeout={timeout}", "-o", "ServerAliveInterval=10")
        watched = shlex.join(("sh", "-c", _UNTIL_LEFT.format(shlex.join(command))))
        started.append((host, ("ssh", *options, host, watched), dict(os.environ)))
    return _run_all(started, say, limits)


def _without_users(run: Run) -> Run:
    """The same where a host is called ``user@host`` for ssh alone."""
    first = run.stages.hosts[0].rpartition("@")[2]
    stages = tuple(replace(stage, host=stage.host.rpartition("@")[2]) for stage in run.stages.stages)
    return replace(run, stages=replace(run.stages, stages=stages), address=run.address or first)


class EndedError(LoadError):
    """A rank ended badly, and has said why.

    Args:
        message: which, and how.
        code: what it exited with.
    """

    def __init__(self, message: str, *, code: int) -> None:
        super().__init__(message)
        self.exit_code = ExitCode(code)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _run_all(started: Sequence[tuple[str, Sequence[str], Mapping[str, str]]], say: Say, limits: Limits) -> bytes:
    """Run all to their end, and end all when one ends badly; the first one's answer.

    Raises:
        EndedError, LoadError: one ended badly.
        UsageError: a program is not there.
    """
    running: list[_Started] = []
    answers: dict[str, list[bytes]] = {}
    codes: dict[str, int] = {}
    ended: queue.SimpleQueue[str] = queue.SimpleQueue()
    told: dict[str, int] = {}

    def read(one: _Started) -> None:
        assert one.process.stderr is not None, "it is piped"
        for line in one.process.stderr:
            text = line.decode(errors="replace").rstrip()
            if (found := _CODE.search(text)) is not None:
                told.setdefault(one.name, int(found[1]))
            if text:
                say(f"{one.name}: {text}")

    def gather(one: _Started) -> None:
        assert one.process.stdout is not None, "it is piped"
        answers[one.name] = one.process.stdout.readlines()

    def wait(one: _Started) -> None:
        readers = [threading.Thread(target=each, args=(one,), daemon=True) for each in (read, gather)]
        for reader in readers:
            reader.start()
        codes[one.name] = one.process.wait()
        for reader in readers:
            reader.join(_GRACE)
        ended.put(one.name)

    try:
        for name, command, environment in started:
            try:
                process = subprocess.Popen(
                    command,
                    env=dict(environment),
                    stdin=subprocess.PIPE,  # open as long as we are here
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    start_new_session=True,
                )
            except OSError as error:
                raise UsageError(f"cannot start {command[0]}: {error.strerror}") from None
            running.append(_Started(name=name, process=process))
            threading.Thread(target=wait, args=(running[-1],), daemon=True).start()
        first_bad: str | None = None
        until: float | None = None
        for _ in running:
            this = _next(ended, until)
            if this is None:
                break
            if codes[this] and first_bad is None:
                # those that have heard of it are about to end; of one that was killed they find out by its silence
                heard = codes[this] > 0
                first_bad, until = this, time.monotonic() + _GRACE + (0 if heard else limits.silence)
    finally:
        _end(running)
    if first_bad is None:
        return b"".join(answers[started[0][0]])
    raise _bad(first_bad, codes[first_bad], told.get(first_bad))


def _next(ended: queue.SimpleQueue[str], until: float | None) -> str | None:
    """The next that ends; None where none does in time."""
    while True:
        try:
            # by the second, so that Ctrl-C is heard
            return ended.get(timeout=1.0 if until is None else max(0.0, min(1.0, until - time.monotonic())))
        except queue.Empty:
            if until is not None and time.monotonic() >= until:
                return None


def _end(running: Sequence[_Started]) -> None:
    """End all that still run, first kindly."""
    import psutil

    for one in running:
        if one.process.stdin is not None:
            one.process.stdin.close()
    for number, seconds in ((signal.SIGTERM, _GRACE), (signal.SIGKILL, 1.0)):
        left = [one.process for one in running if one.process.poll() is None]
        for process in left:
            below = []
            if number == signal.SIGKILL:  # what is stopped does not see that its watching process is gone
                with contextlib.suppress(psutil.Error):
                    below = psutil.Process(process.pid).children(recursive=True)
            process.send_signal(number)
            for child in below:
                with contextlib.suppress(psutil.Error):
                    child.kill()
        end = time.monotonic() + seconds
        for process in left:
            try:
                process.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                continue


def _bad(name: str, code: int, told: int | None) -> LoadError:
    """How a rank, or the ranks of a host, ended."""
    known = {int(each) for each in ExitCode} - {int(ExitCode.DONE)}
    if code < 0:
        return LoadError(f"{name} died: killed by {signal.Signals(-code).name}")
    if told is not None:  # torchrun's own is 1
        code = told if told in known else int(ExitCode.LOAD)
    if code not in known:
        return LoadError(f"{name} ended with exit code {code}")
    return EndedError(f"{name} ended with exit code {code}, as it says above", code=code)
