"""NVIDIA's driver, asked by a process of its own: a call into a sick driver may never return, nor hear a signal.

That process tells each answer as it comes. Where the next one does not come in time, or the process dies, the board
that was being asked has that as its fault, and a fresh process goes on behind it. A process that is stuck in the
kernel can't be ended: it is killed, not waited for, and holds nothing of ours.
"""

from __future__ import annotations

import contextlib
import math
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from devctl.errors import UsageError, first_line
from devctl.inventory.probes import nvidia, pci
from devctl.inventory.probes.findings import Findings
from devctl.inventory.probes.nvml import LIBRARY_NOT_FOUND, NO_ANSWER
from devctl.inventory.records import Driver, Vendor
from devctl.units import parse_seconds

VARIABLE = "DEVCTL_DRIVER_TIMEOUT"
_TO_START, _A_BOARD = 60.0, 20.0
"""Seconds that a driver may take to start, and for each board; eight boards that nobody keeps awake take a few."""

_PATIENCE = 2.0
"""Seconds after which the boards behind one are asked by another process, so that silences do not add up."""

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
        UsageError: ``DEVCTL_DRIVER_TIMEOUT`` is no time.
    """

    def __init__(self, environment: Mapping[str, str], there: Path = pci.SYS) -> None:
        self._environment, self._there = environment, there
        self._to_start, self._a_board = deadlines(environment)
        self._asking: list[_Process] = []
        self._newest: _Process | None = None
        if _can_be_asked_apart() and _has_library():
            self._ask({})

    def findings(self) -> Findings:
        """The boards that the driver knows, each with what it said, or why it said nothing."""
        if self._newest is None:
            if _can_be_asked_apart():
                return nvidia.without_driver(LIBRARY_NOT_FOUND, "", pci.scan(self._there))
            return nvidia.probe(self._environment, self._there)
        heard = nvidia.Heard()
        broken = self._hear(heard)
        if broken is not None:
            return Findings(driver=Driver(vendor=Vendor.NVIDIA, version=None, cuda=None, fault=broken))
        return nvidia.findings(heard, self._environment, self._there)

    def close(self) -> None:
        """End what still asks."""
        for process in tuple(self._asking):
            self._end(process)

    def _ask(self, known: Mapping[int, nvidia.Reading]) -> None:
        self._newest = _Process(self._environment, self._there, known, self._to_start)
        self._asking.append(self._newest)

    def _end(self, process: _Process) -> None:
        process.end()
        self._asking.remove(process)
        if process is self._newest:
            self._newest = None

    def _hear(self, heard: nvidia.Heard) -> str | None:
        """Fill ``heard`` with all that can be had; why nothing can, if so."""
        answered_late = False
        while self._asking:
            process, answer, fault = self._next()
            if process is None:
                self._go_on(heard)
            elif fault is not None or answer is None:
                broken = self._give_up(heard, process, fault or _DIED)
                if broken is not None:
                    return broken
            elif answer[0] == "refusal" and heard.driver is not None:
                self._give_up(heard, process, f"said {answer[2]}")
            else:
                heard.take(answer)
                process.heard(answer, self._a_board)
                if answer[0] == "board" and process is not self._newest:  # the newest asks the boards behind it
                    self._end(process)
                    answered_late = True
                elif answer[0] in ("together", "refusal"):
                    self._end(process)
                    heard.notes = ()
            if not self._asking and answered_late:
                answered_late = False
                self._ask(heard.readings)  # for how they are linked with the others
        return None

    def _next(self) -> tuple[_Process | None, tuple[Any, ...] | None, str | None]:
        """A process with what it told, or why it tells nothing; none where it is time to go on behind the newest."""
        while True:
            due = min(process.due for process in self._asking)
            newest = self._newest
            if newest is not None and newest.at is not None:
                due = min(due, newest.since + min(_PATIENCE, self._a_board / 2))
            process = _first_that_told(self._asking, due)
            if process is None:
                late = next((each for each in self._asking if each.due <= time.monotonic()), None)
                return late, None, None if late is None else f"did not answer in {late.allowed:g} s"
            try:
                answer = process.answer()
            except _DiedError:
                return process, None, _DIED
            if answer is not None:
                return process, answer, f"{_BROKEN}{answer[1]}" if answer[0] == "broken" else None

    def _go_on(self, heard: nvidia.Heard) -> None:
        """Ask the boards behind the one that lets the newest process wait, which still may answer."""
        waiting = {each.at: self._silent(heard, each.at, "asked") for each in self._asking if each.at is not None}
        self._ask({**waiting, **heard.readings})

    def _give_up(self, heard: nvidia.Heard, process: _Process, fault: str) -> str | None:
        """Note what ``process`` fails to tell, and go on without it; why nothing can be told, if so."""
        was_newest = process is self._newest
        self._end(process)
        if heard.driver is None:
            if fault.startswith(_BROKEN):
                return fault
            heard.refusal = (NO_ANSWER, fault, pci.read(self._there / "module/nvidia/version"))
        elif process.at is not None:
            said = f"the driver {fault}" if fault == _DIED else fault
            heard.readings[process.at] = self._silent(heard, process.at, said)
            if was_newest:
                self._go_on(heard)
        elif was_newest:  # it does not start again, or does not tell what is asked of all boards
            waiting = {each.at for each in self._asking}
            for index in set(range(heard.count)) - set(heard.readings) - waiting:
                heard.readings[index] = self._silent(heard, index, fault)
            heard.notes = (f"the NVIDIA driver could not be asked how its boards are linked: it {fault}",)
        return None

    def _silent(self, heard: nvidia.Heard, index: int, fault: str) -> nvidia.Reading:
        return nvidia.silent(index, fault, heard.bus_ids.get(index), self._there)


def deadlines(environment: Mapping[str, str]) -> tuple[float, float]:
    """Seconds for the driver to start, and for each board.

    Raises:
        UsageError: ``DEVCTL_DRIVER_TIMEOUT`` is no time.
    """
    said = environment.get(VARIABLE)
    if not said:
        return _TO_START, _A_BOARD
    try:
        seconds = parse_seconds(said)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= _LONGEST:
        raise UsageError(
            f"{VARIABLE}={said}: no time like 60s above 0, up to {_LONGEST:g}s",
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

    def __init__(
        self, environment: Mapping[str, str], there: Path, known: Mapping[int, nvidia.Reading], allowed: float
    ) -> None:
        self.at: int | None = None
        self.since, self.allowed = time.monotonic(), allowed
        self._known = frozenset(known)
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

    @property
    def due(self) -> float:
        """When its next answer has to be there."""
        return self.since + self.allowed

    @property
    def descriptor(self) -> int:
        """Where its answers come."""
        return self._read

    @property
    def has_answer(self) -> bool:
        """Whether one was read and not yet taken."""
        return len(self._bytes) >= _HEADER + max(self._size, 1)

    def heard(self, answer: tuple[Any, ...], a_board: float) -> None:
        """Its time begins anew, and is that of a board once it has started."""
        self.since = time.monotonic()
        if answer[0] in ("driver", "at"):
            self.allowed = a_board
        if answer[0] == "at":
            self.at = None if answer[1] in self._known else answer[1]
        elif answer[0] == "board":
            self.at = None

    def answer(self) -> tuple[Any, ...] | None:
        """The next answer; None where it is not whole yet.

        Raises:
            _DiedError: the process has ended, by itself or in the driver's code.
        """
        if not self.has_answer:
            came = os.read(self._read, 1 << 16)
            if not came:
                raise _DiedError
            self._bytes += came
        return self._whole()

    @property
    def _size(self) -> int:
        return int.from_bytes(self._bytes[:_HEADER], "little")

    def _whole(self) -> tuple[Any, ...] | None:
        if not self.has_answer:
            return None
        size = self._size
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


def _first_that_told(processes: Sequence[_Process], until: float) -> _Process | None:
    """One of ``processes`` that has told something, or ended; None where none has until then."""
    import select

    told = next((process for process in processes if process.has_answer), None)
    if told is not None:
        return told
    waiting = select.poll()
    for process in processes:
        waiting.register(process.descriptor, select.POLLIN)
    ready = waiting.poll(max(0, math.ceil((until - time.monotonic()) * 1000)))
    return next((process for process in processes if ready and process.descriptor == ready[0][0]), None)


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
