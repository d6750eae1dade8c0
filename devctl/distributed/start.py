"""All ranks started from here: on this machine, or on their hosts by ssh; ended together, with one answer."""

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
from dataclasses import dataclass

from devctl.distributed.launch import Launcher, Run, commands
from devctl.distributed.link import Limits
from devctl.distributed.seat import name_of
from devctl.errors import ExitCode, LoadError, RefusedError, UsageError

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
