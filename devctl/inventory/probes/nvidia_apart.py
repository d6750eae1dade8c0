"""NVIDIA's driver, asked by a process of its own: a call into a sick driver may never return, nor hear a signal.

That process tells each answer as it comes. Where the next one does not come in time, or the process dies, the board
that was being asked has that as its fault, and a fresh process goes on behind it. A process that is stuck in the
kernel can't be ended: it is killed, not waited for, and holds nothing of ours.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from devctl.errors import UsageError, first_line
from devctl.inventory.probes import nvidia, pci
from devctl.inventory.probes.findings import Findings
from devctl.inventory.probes.nvml import LIBRARY_NOT_FOUND, NO_ANSWER
from devctl.inventory.records import Driver, Vendor

VARIABLE = "DEVCTL_DRIVER_TIMEOUT"
_TO_START, _A_BOARD = 60.0, 20.0
"""Seconds that a driver may take to start, and for each board; eight boards that nobody keeps awake take a few."""

_LONGEST = 86_400.0
_DIED = "ended the process that asked it"
_BROKEN = "could not be looked at: "
_HEADER = 8
_OURS = 3
"""The descriptor that the process writes its answers to."""

_SPAWNED = (
    "import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer); "
    "from devctl.inventory.probes import nvidia_apart; nvidia_apart.tell_what_is_asked(sys.stdin.buffer)"
)

_left: list[int] = []
"""Processes that were killed and had not ended yet."""


class _DiedError(Exception):
    """The process ended before it had told all."""


class Question:
    """What the driver is asked, begun when it is made, and answered by ``findings``; ``close`` it in any case.

    Args:
        environment: the variables that choose devices, and ``DEVCTL_DRIVER_TIMEOUT``, in seconds.
        there: where the kernel tells of itself.

    Raises:
        UsageError: ``DEVCTL_DRIVER_TIMEOUT`` is no number of seconds.
    """

    def __init__(self, environment: Mapping[str, str], there: Path = pci.SYS) -> None:
        self._environment, self._there = environment, there
        self._to_start, self._a_board = deadlines(environment)
        self._process = _Process(environment, there, {}) if _can_be_asked_apart() and _has_library() else None

    def findings(self) -> Findings:
        """The boards that the driver knows, each with what it said, or why it said nothing."""
        if self._process is None:
            if _can_be_asked_apart():
                return nvidia.without_driver(LIBRARY_NOT_FOUND, "", pci.scan(self._there))
            return nvidia.probe(self._environment, self._there)
        heard = nvidia.Heard()
        broken = self._hear(heard)
        if broken is not None:
            return Findings(driver=Driver(vendor=Vendor.NVIDIA, version=None, cuda=None, fault=broken))
        return nvidia.findings(heard, self._environment, self._there)

    def close(self) -> None:
        """End the process that asks, if there is one."""
        if self._process is not None:
            self._process.end()

    def _hear(self, heard: nvidia.Heard) -> str | None:
        """Fill ``heard`` with all that can be had; why nothing can, if so."""
        while True:
            fault = self._hear_one_process(heard)
            if fault is None:
                return None
            if heard.driver is None:
                if fault.startswith(_BROKEN):
                    return fault
                heard.refusal = (NO_ANSWER, fault, pci.read(self._there / "module/nvidia/version"))
                return None
            if heard.at is None or heard.at in heard.readings:  # all have been asked, each for itself
                for index in set(range(heard.count)) - set(heard.readings):
                    heard.readings[index] = self._silent(heard, index, fault)
                heard.notes = (f"the NVIDIA driver could not be asked how its boards are linked: it {fault}",)
                return None
            said = f"the driver {fault}" if fault == _DIED else fault
            heard.readings[heard.at] = self._silent(heard, heard.at, said)
            heard.at = None
            if self._process is not None:
                self._process.end()
            self._process = _Process(self._environment, self._there, heard.readings)

    def _silent(self, heard: nvidia.Heard, index: int, fault: str) -> nvidia.Reading:
        return nvidia.silent(index, fault, heard.bus_ids.get(index), self._there)

    def _hear_one_process(self, heard: nvidia.Heard) -> str | None:
        """What one process tells, until it has told all; why it did not, if so."""
        assert self._process is not None
        allowed = self._to_start
        while heard.together is None and heard.refusal is None:
            try:
                answer = self._process.answer(allowed)
            except TimeoutError:
                return f"did not answer in {allowed:g} s"
            except _DiedError as error:
                return str(error)
            if answer[0] == "broken":
                return f"{_BROKEN}{answer[1]}"
            heard.take(answer)
            if answer[0] in ("driver", "at"):
                allowed = self._a_board
        return None


def deadlines(environment: Mapping[str, str]) -> tuple[float, float]:
    """Seconds for the driver to start, and for each board.

    Raises:
        UsageError: ``DEVCTL_DRIVER_TIMEOUT`` is no number of seconds.
    """
    said = environment.get(VARIABLE)
    if not said:
        return _TO_START, _A_BOARD
    try:
        seconds = float(said)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds <= _LONGEST:
        raise UsageError(
            f"{VARIABLE}={said}: not a number of seconds above 0, up to {_LONGEST:g}",
            hint="leave it out for 60 s to start and 20 s a board",
        )
    return seconds, seconds


def _can_be_asked_apart() -> bool:
    """Whether there can be a process of its own: NVML is on Linux, and on Windows, which has no such pipes."""
    return os.name == "posix" and bool(sys.executable)


def _has_library() -> bool:
    """Whether there is NVML at all; loading it asks the driver nothing. No process is made where there is none."""
    import ctypes

    try:
        ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return False
    return True


def _pipe() -> tuple[int, int]:
    """The two ends of a pipe, away from the descriptors that a new process is given."""
    import fcntl  # which is not everywhere

    ends = os.pipe()
    try:
        read, write = (fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, _OURS + 1) for end in ends)
    finally:
        for end in ends:
            os.close(end)
    return read, write


class _Process:
    """A process that tells ``nvidia.answers``.

    It is forked, which takes a millisecond, where this process has one thread; else it is a new Python, as another
    thread may hold a lock that a forked process would wait for.
    """

    def __init__(self, environment: Mapping[str, str], there: Path, known: Mapping[int, nvidia.Reading]) -> None:
        for pid in tuple(_left):
            if _has_ended(pid):
                _left.remove(pid)
        self._read, write = _pipe()
        self._bytes = bytearray()
        try:
            self._pid = _start(write, (dict(environment), there, dict(known), os.getpid()))
        except BaseException:
            os.close(self._read)
            raise
        finally:
            os.close(write)
        import select

        self._ready = select.poll()
        self._ready.register(self._read, select.POLLIN)

    def answer(self, seconds: float) -> tuple[Any, ...]:
        """The next answer.

        Raises:
            TimeoutError: none came in ``seconds``.
            _DiedError: the process has ended, by itself or in the driver's code.
        """
        until = time.monotonic() + seconds
        while (answer := self._whole()) is None:
            left = until - time.monotonic()
            if left <= 0 or not self._ready.poll(max(1, int(left * 1000))):
                raise TimeoutError
            came = os.read(self._read, 1 << 16)
            if not came:
                raise _DiedError(_DIED)
            self._bytes += came
        return answer

    def _whole(self) -> tuple[Any, ...] | None:
        size = int.from_bytes(self._bytes[:_HEADER], "little")
        if len(self._bytes) < _HEADER + max(size, 1):
            return None
        # written by our own code in a process of our own
        answer: tuple[Any, ...] = pickle.loads(self._bytes[_HEADER : _HEADER + size])  # noqa: S301
        del self._bytes[: _HEADER + size]
        return answer

    def end(self) -> None:
        """Kill it, without waiting: one that is stuck in the kernel goes when the kernel lets it."""
        if self._read >= 0:
            os.close(self._read)
            self._read = -1
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
            if not _has_ended(self._pid):
                _left.append(self._pid)


def _has_ended(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:  # somebody else waits for all children
        return True


def _start(write: int, task: tuple[Any, ...]) -> int:
    if _is_alone():
        pid = os.fork()
        if pid:
            return pid
        _be_forked(write, task)
    return _spawn(write, task)


def _is_alone() -> bool:
    """Whether this process has one thread, Python's or not."""
    if sys.platform != "linux" or threading.active_count() > 1:
        return False
    try:
        return len(os.listdir("/proc/self/task")) == 1  # noqa: PTH208 - a path's own way takes its time
    except OSError:
        return False


def _be_forked(write: int, task: tuple[Any, ...]) -> None:
    """What the forked process does; it never returns."""
    import fcntl

    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        nothing = fcntl.fcntl(os.open(os.devnull, os.O_RDWR), fcntl.F_DUPFD, _OURS + 1)
        os.dup2(write, _OURS)
        for descriptor in range(_OURS):
            os.dup2(nothing, descriptor)
        _tell(task)
    finally:
        os._exit(0)


def _spawn(write: int, task: tuple[Any, ...]) -> int:
    asked, ask = _pipe()
    try:
        pid = os.posix_spawn(
            sys.executable,
            [sys.executable, "-I", "-c", _SPAWNED],
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_DUP2, asked, 0),
                (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
                (os.POSIX_SPAWN_DUP2, write, _OURS),
            ],
            setsigdef=[signal.SIGINT, signal.SIGTERM, signal.SIGHUP],
        )
        with contextlib.suppress(BrokenPipeError), os.fdopen(os.dup(ask), "wb") as file:
            pickle.dump(sys.path, file)
            pickle.dump(task, file)
    finally:
        os.close(asked)
        os.close(ask)
    return pid


def tell_what_is_asked(stream: BinaryIO) -> None:
    """Answer the task that our own parent wrote to ``stream``; what a spawned process does."""
    _tell(pickle.load(stream))  # noqa: S301 - from our own parent


def _tell(task: tuple[Any, ...]) -> None:
    """Write ``nvidia.answers`` to the descriptor that is ours, and nothing that could outlive or disturb the parent."""
    environment, there, known, parent = task
    os.closerange(_OURS + 1, os.sysconf("SC_OPEN_MAX"))
    # away from the terminal, whose Ctrl-C is for the parent, and which a process stuck in the kernel would keep
    with contextlib.suppress(OSError):
        os.setsid()
    _die_with(parent)
    try:
        for answer in nvidia.answers(environment, there, known):
            _write(answer)
            if answer[0] in ("together", "refusal"):
                break
    except Exception as error:  # noqa: BLE001 - the parent tells of it, as of any fault of a driver
        _write(("broken", f"{type(error).__name__}: {first_line(error)}"))
    os._exit(0)  # closing the library may wait, too, and ending does that as well


def _write(answer: tuple[Any, ...]) -> None:
    text = pickle.dumps(answer)
    left = memoryview(len(text).to_bytes(_HEADER, "little") + text)
    while left:
        left = left[os.write(_OURS, left) :]


def _die_with(parent: int) -> None:
    """End when the process ``parent`` does, however it does: PR_SET_PDEATHSIG of Linux' prctl.h."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != parent:
            os._exit(0)
