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

_FAILED = re.compile(r"failed \(exitcode: -?\d+\) local_rank:")
_RULES = 2
"""Where torchrun begins to say that a rank failed, and the double lines after which it has: all that the rank itself
has said better, and a traceback of torchrun's own."""

_UNTIL_LEFT = (
    "exec 3<&0; {} & line=$!; {{ cat <&3 >/dev/null 2>&1; kill $line 2>/dev/null; }} & left=$!; "
    "wait $line; code=$?; kill $left 2>/dev/null; exit $code"
)
"""A line that is ended, on its host, when whoever has started it by ssh is gone: then its input comes to an end."""

Say = Callable[[str], None]
"""Shows a line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a run ended.

    Attributes:
        answer: what rank 0 wrote to its standard output; a report, if it came so far.
        error: why it is none that went well; None where all ranks ended well.
    """

    answer: str
    error: LoadError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Started:
    name: str
    process: subprocess.Popen[bytes]


def run_local(run: Run, limits: Limits, say: Say, *, port: int | None = None) -> Ended:
    """Start all ranks on this machine, and wait until they have ended.

    Args:
        port: where they meet; None is any free one.

    Raises:
        RefusedError: there are more ranks than any machine has accelerators.
    """
    meeting = _free_port() if port is None else port
    ranks = tuple(run.stages.ranks())
    if len(ranks) > _MOST_RANKS:
        raise RefusedError(
            f"the plan has {len(ranks)} ranks, and no machine has so many accelerators",
            hint="--launch print, or ssh, is for its hosts",
        )
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


def run_ssh(run: Run, limits: Limits, say: Say) -> Ended:
    """Start each host's line by ssh, which may ask for nothing, and wait until they have ended.

    Raises:
        UsageError: a name or an argument can't stand in a line, or there is no ssh.
    """
    started = []
    for host, command in zip(run.stages.hosts, commands(run, Launcher.TORCHRUN).values(), strict=True):
        timeout = max(1, round(limits.join))
        options = ("-o", "BatchMode=yes", "-o", f"ConnectTimeout={timeout}", "-o", "ServerAliveInterval=10")
        watched = shlex.join(("sh", "-c", _UNTIL_LEFT.format(shlex.join(command))))
        started.append((host, ("ssh", *options, host, watched), dict(os.environ)))
    return _run_all(started, say, limits, by_ssh=True)


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


def _run_all(
    started: Sequence[tuple[str, Sequence[str], Mapping[str, str]]], say: Say, limits: Limits, *, by_ssh: bool = False
) -> Ended:
    """Run all to their end, and end all when one ends badly.

    Args:
        by_ssh: whether each is the line of a host of that name.

    Raises:
        UsageError: a program is not there.
    """
    running: list[_Started] = []
    answers: dict[str, list[bytes]] = {}
    codes: dict[str, int] = {}
    ended: queue.SimpleQueue[str] = queue.SimpleQueue()
    told: dict[str, int] = {}

    def read(one: _Started) -> None:
        assert one.process.stderr is not None, "it is piped"
        rules = 0
        with one.process.stderr as stream:
            for line in stream:
                text = line.decode(errors="replace").rstrip()
                if (found := _CODE.search(text)) is not None:
                    told.setdefault(one.name, int(found[1]))
                if _FAILED.search(text) is not None:
                    rules = _RULES
                elif rules and text.startswith("=" * 20):
                    rules -= 1
                elif text and (not rules or text.startswith("devctl: ")):
                    say(f"{one.name}: {text}")

    def gather(one: _Started) -> None:
        assert one.process.stdout is not None, "it is piped"
        with one.process.stdout as stream:
            answers[one.name] = stream.readlines()

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
                hint = f"install it, or {_BY_HAND}" if by_ssh else ""
                raise UsageError(f"cannot start {command[0]}: {error.strerror}", hint=hint) from None
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
    bad = None if first_bad is None else _bad(first_bad, codes[first_bad], told.get(first_bad), by_ssh=by_ssh)
    return Ended(answer=b"".join(answers.get(started[0][0], [])).decode(errors="replace"), error=bad)


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


_BY_HAND = "run each host's own line: --launch print writes them"

_OF_SSH: Mapping[int, str] = {
    255: f"`ssh -o BatchMode=yes {{}} true` has to work without a question; else {_BY_HAND}",
    **dict.fromkeys(
        (126, 127), f"`ssh {{}} torchrun --version` has to work: what its shell has in PATH counts; else {_BY_HAND}"
    ),
}
"""What to do where a host's line ends with a code of ssh itself, or of the shell there."""


def _bad(name: str, code: int, told: int | None, *, by_ssh: bool) -> LoadError:
    """How a rank, or the ranks of a host, ended."""
    known = {int(each) for each in ExitCode} - {int(ExitCode.DONE)}
    if code < 0:
        return LoadError(f"{name} died: killed by {signal.Signals(-code).name}")
    if by_ssh and told is None:  # the code of what starts ranks, and none of theirs
        return LoadError(
            f"{name} ended with exit code {code}, as it says above", hint=_OF_SSH.get(code, "").format(name)
        )
    if told is not None:  # torchrun's own is 1
        code = told if told in known else int(ExitCode.LOAD)
    if code not in known:
        return LoadError(f"{name} ended with exit code {code}")
    return EndedError(f"{name} ended with exit code {code}, as it says above", code=code)
