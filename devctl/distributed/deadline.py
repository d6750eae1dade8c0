"""A rank that can't outlive the others: it works in a process of its own, watched by one that hears of all ranks.

The watching process imports no model. It is alive while the working one is stopped, hangs in a driver, or is gone; it
beats on a store that all ranks share, and looks for the beats of the others. Whoever is found dead, silent or too slow
is told to all, and each ends its own working process. The working process looks for the watching one in turn.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, NoReturn

from devctl.distributed.link import (
    SPREAD,
    TICK,
    CommonError,
    CommonLoadError,
    Failure,
    Limits,
    Link,
    SecondaryError,
    is_of_connection,
    open_store,
    parse_failure,
    said_of,
)
from devctl.distributed.seat import Seat, name_of
from devctl.errors import DevctlError, ExitCode, RefusedError, first_line
from devctl.placement.parallel.records import Rank

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

_LEAVING = 1.0
"""Seconds at most for the last call on the store to come back."""

IN_STORE = "devctl-in-store"
"""Name of the thread that may be in a call which never comes back: whoever finds it at the end leaves without it."""

_TELLING = 10.0
"""Seconds at most that a rank which fails before it has met all others waits for them, to tell them."""


Work = Callable[[Link], Any]
"""What a rank does; what it gives back is JSON."""


def supervise(seat: Seat, limits: Limits, work: Work) -> Any:
    """What ``work`` gives back, once every rank has come to its end; watched until then.

    Raises:
        DevctlError: of this rank, or of the one that failed first; with the same exit code on every rank.
    """
    if not hasattr(os, "fork"):
        raise RefusedError("ranks need os.fork, which this system lacks", hint="run them on Linux or macOS")
    # before torch is imported: what is wrong with a connection is told by us, without its stack of addresses
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
    import torch.distributed  # noqa: F401 - once, for both processes

    up, up_end = os.pipe()
    down_end, down = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if not child:
        os.close(up)
        os.close(down)
        _run(Link(seat, limits, up_end, down_end), work)
    os.close(up_end)
    os.close(down_end)
    os.set_blocking(down, False)
    watch = _Watch(seat, limits, child, up, down)
    try:
        return watch.run()
    finally:
        watch.end()


def _run(link: Link, work: Work) -> NoReturn:
    """The working process."""
    try:
        with contextlib.suppress(OSError):
            os.dup2(2, 1)  # the answer is the watching process's: what a library prints is none
        os.setsid()  # the terminal's Ctrl-C is the watching process's to hear
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        link.begin()
        link.send({"done": work(link)})
    except BaseException as error:  # noqa: BLE001 - told, whatever it is
        if os.environ.get("DEVCTL_DEBUG"):
            traceback.print_exc()
        with contextlib.suppress(OSError):
            link.send({"failed": asdict(_failure_of(error, link.seat))})
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                stream.flush()
        # until it is ended: as long as the watching process is there, somebody has to look whether it is alive
        threading.Event().wait()
        os._exit(ExitCode.BUG)


def _failure_of(error: BaseException, seat: Seat) -> Failure:
    if is_of_connection(error):
        return Failure(rank=seat.rank, code=ExitCode.LOAD, message=said_of(error), secondary=True)
    if not isinstance(error, DevctlError):
        message = f"unexpected failure: {type(error).__name__}: {first_line(error)}"
        return Failure(rank=seat.rank, code=ExitCode.BUG, message=message)
    return Failure(
        rank=None if isinstance(error, CommonError | CommonLoadError) else seat.rank,
        code=error.exit_code,
        message=error.message,
        findings=error.findings if isinstance(error, RefusedError) else (),
        hint=error.hint,
        secondary=isinstance(error, SecondaryError),
    )


_KILLED = "did the memory of its host run out? the log of its kernel says so (dmesg)"
_BUSY = "was it stopped? a machine that is so busy needs a longer --step-timeout"
_GONE = "is that host on, and reachable from here? if it is only busy, give a longer --step-timeout"


class _Beats(threading.Thread):
    """Beats on the store, and hears the others. Its calls may block for ever: the main thread goes by what it wrote."""

    def __init__(self, seat: Seat, limits: Limits) -> None:
        super().__init__(name=IN_STORE, daemon=True)
        self.seat, self.limits = seat, limits
        self.joined = False
        self.broken: str | None = None
        self.last = time.monotonic()
        self.heard: dict[int, float] = {}
        self.failure: Failure | None = None
        self.mine: Failure | None = None
        self.done: set[int] = set()
        self.told: set[int] = set()
        self.finished = self.leaving = self.stopping = False
        self.wake = threading.Event()
        self._values: dict[int, bytes] = {}

    def run(self) -> None:
        try:
            store = open_store(self.seat, self.limits.join, serves=self.seat.serves)
            seats = store.add(f"seat/{self.seat.rank}", 1)
            self.last = time.monotonic()
            self.joined = True
            if seats > 1:
                self.failure = Failure(
                    rank=self.seat.rank,
                    code=ExitCode.LOAD,
                    message=f"it is there twice: another run meets at {self.seat.address}:{self.seat.port}",
                    hint="give another --master-port",
                )
                return
            beat = 0
            while not self.stopping:
                beat += 1
                self._cycle(store, beat)
                self.wake.wait(self.limits.beat)
                if self.wake.is_set():
                    time.sleep(TICK)
        except Exception as error:  # noqa: BLE001 - of torch's store, which knows no class for them
            self.broken = first_line(error)

    def _cycle(self, store: Store, beat: int) -> None:
        me = self.seat.rank
        store.set(f"beat/{me}", str(beat))
        if self.finished:
            store.set(f"done/{me}", "1")
        if self.mine is not None:
            store.compare_set("failed", "", self.mine.to_text())
        now = time.monotonic()
        for other in self.seat.others:
            rank = other.rank
            if store.check([f"beat/{rank}"]):
                value = store.get(f"beat/{rank}")
                if self._values.get(rank) != value:
                    self._values[rank] = value
                    self.heard[rank] = now
            if rank not in self.done and store.check([f"done/{rank}"]):
                self.done.add(rank)
            if rank not in self.told and store.check([f"told/{rank}"]):
                self.told.add(rank)
        if self.failure is None and store.check(["failed"]):
            self.failure = parse_failure(store.get("failed").decode())
        if self.failure is not None or self.leaving:
            store.set(f"told/{me}", "1")
        self.last = time.monotonic()


class _Watch:
    """The watching process's view of its working one and of all ranks."""

    def __init__(self, seat: Seat, limits: Limits, child: int, up: int, down: int) -> None:
        self.seat, self.limits = seat, limits
        self.child, self.up, self.down = child, up, down
        self.began = self.alive = self.advanced = time.monotonic()
        self.step, self.patient = "starting", False
        self.result: Any = None
        self.done = self.gone = self.killed = False
        self.status = 0
        self.own: Failure | None = None
        self.rest = b""
        self.beats = _Beats(seat, limits)

    def run(self) -> Any:
        self.beats.start()
        while True:
            self._look()
            if self.own is not None:
                raise self._end_with(self.own).to_error(self.seat)
            if self.beats.failure is not None:
                self._kill()
                self._stay(self._all_told)
                raise self.beats.failure.to_error(self.seat)
            if (failure := self._lost() or self._late()) is not None:
                raise self._end_with(failure).to_error(self.seat)
            if self.done:
                self.beats.finished = True
                self.beats.wake.set()
                if len(self.beats.done) == len(self.seat.others):
                    self.beats.leaving = True
                    self._stay(self._all_told)
                    return self.result

    def end(self) -> None:
        """Leave nothing behind. Whoever is still there hears that this rank was ended, if nothing was told before."""
        self._kill()
        told = self.beats.failure or self.beats.mine or self.beats.leaving
        error = sys.exc_info()[1]
        if not told and self.beats.joined and not isinstance(error, DevctlError):
            how = "interrupted" if isinstance(error, KeyboardInterrupt) else "ended by its launcher or system"
            self.beats.mine = Failure(rank=self.seat.rank, code=ExitCode.LOAD, message=f"it was {how}")
            self.beats.wake.set()
            self._stay(lambda: self.beats.failure is not None)
        self.beats.stopping = True
        self.beats.wake.set()
        if self.beats.is_alive():
            self.beats.join(_LEAVING)  # a thread within torch's calls would abort the interpreter as it ends
        for descriptor in (self.up, self.down):
            os.close(descriptor)

    def _look(self) -> None:
        """Hear the working process, and show it a sign of life."""
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            os.write(self.down, b".")
        if self.gone:
            time.sleep(TICK)
            return
        ready, _, _ = select.select([self.up], [], [], TICK)
        if ready:
            data = os.read(self.up, 65536)
            *lines, self.rest = (self.rest + data).split(b"\n")
            for line in lines:
                self._hear(json.loads(line))
            if not data:
                _, self.status = os.waitpid(self.child, 0)
                self.gone = True
                self._gone()
        now = time.monotonic()
        if not self.gone and not self.done and now - self.alive > self.limits.silence:
            silent = f"it gave no sign of life for {self.limits.silence:.3g} s: {self.step}"
            self.own = self.own or self._mine(silent, _BUSY)

    def _hear(self, message: dict[str, Any]) -> None:
        self.alive = time.monotonic()
        if "step" in message:
            self.step, self.patient, self.advanced = message["step"], message["patient"], self.alive
        elif "progress" in message:
            self.advanced = self.alive
        elif "failed" in message:
            self.own = Failure(**{**message["failed"], "findings": tuple(message["failed"]["findings"])})
        elif "done" in message:
            self.result, self.done = message["done"], True

    def _gone(self) -> None:
        if self.own is None and not self.done:
            code = os.waitstatus_to_exitcode(self.status)
            how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"
            # NCCL aborts a process that waits for another for too long
            hint = _KILLED if code == -signal.SIGKILL else ""
            self.own = replace(self._mine(f"it died ({how}): {self.step}", hint), secondary=code == -signal.SIGABRT)

    def _mine(self, message: str, hint: str = "") -> Failure:
        return Failure(rank=self.seat.rank, code=ExitCode.LOAD, message=message, hint=hint)

    def _theirs(self, rank: Rank, message: str, hint: str = "") -> Failure:
        return Failure(rank=rank.rank, code=ExitCode.LOAD, message=message, hint=hint)

    def _late(self) -> Failure | None:
        """Whether the step of this rank takes too long."""
        if self.done or self.gone or self.patient or time.monotonic() - self.advanced <= self.limits.step:
            return None
        message = f"no progress for {self.limits.step:.3g} s: {self.step}"
        return self._mine(message, "give a longer --step-timeout, if it needs one")

    def _lost(self) -> Failure | None:
        """Whether another rank is out of reach."""
        if not self.beats.joined:
            return self._not_met()
        return self._never_came() or self._cut_off() or self._silent()

    @property
    def _meeting(self) -> str:
        return f"{self.seat.address}:{self.seat.port}"

    def _not_met(self) -> Failure | None:
        broken, waited = self.beats.broken, time.monotonic() - self.began
        if broken is None and waited <= self.limits.join:
            return None
        if self.seat.serves and broken is not None:
            taken = "EADDRINUSE" in broken or "in use" in broken
            what = "is taken" if taken else f"can't be opened: {broken}"
            return self._mine(f"the port {self._meeting} {what}", "give another --master-port")
        return self._theirs(
            self.seat.ranks[0],
            f"no answer at {self._meeting} for {waited:.3g} s" + (f": {broken}" if broken else ""),
            f"is it started, and can {self.seat.me.host} reach it? else give a longer --join-timeout",
        )

    def _never_came(self) -> Failure | None:
        absent = [other for other in self.seat.others if other.rank not in self.beats.heard]
        if not absent or time.monotonic() - self.began <= self.limits.join:
            return None
        more = f", nor did {', '.join(map(name_of, absent[1:]))}" if len(absent) > 1 else ""
        return self._theirs(
            absent[0],
            f"it never came, for {self.limits.join:.3g} s{more}",
            f"is it started, and can it reach {self._meeting}? else give a longer --join-timeout",
        )

    def _cut_off(self) -> Failure | None:
        broken = self.beats.broken is not None
        if not broken and time.monotonic() - self.beats.last <= self.limits.silence:
            return None
        how = "the connection is lost" if broken else f"no answer for {self.limits.silence:.3g} s"
        return self._theirs(self.seat.ranks[0], f"{how}, at {self._meeting}, where all ranks meet", _GONE)

    def _silent(self) -> Failure | None:
        last = self.beats.last  # since when nobody is heard, where the store can't be reached
        left = self.beats.done | self.beats.told
        for other in self.seat.others:
            if other.rank not in left and last - self.beats.heard.get(other.rank, last) > self.limits.silence:
                return self._theirs(other, f"no sign of life for {self.limits.silence:.3g} s", _GONE)
        return None

    def _end_with(self, failure: Failure) -> Failure:
        """Tell all of it, unless one that may be its cause was told before; the one to raise."""
        if failure.secondary:
            self._stay(lambda: (self.beats.failure or self._lost()) is not None, most=self.limits.cause)
            failure = self.beats.failure or self._lost() or failure
        self._kill()
        self.beats.mine = failure
        self.beats.wake.set()
        if not self.beats.joined and failure.rank == self.seat.rank:  # the others would wait for it
            self._stay(lambda: self.beats.joined or self.beats.broken is not None, most=_TELLING)
        late = failure.rank == self.seat.rank and len(self.beats.heard) < len(self.seat.others)
        self._stay(self._all_told, most=_TELLING if late else SPREAD)
        return failure

    def _all_told(self) -> bool:
        dead = self.beats.failure.rank if self.beats.failure is not None else None
        waiting = {other.rank for other in self.seat.others} - self.beats.told - {dead}
        if self.beats.broken is not None or not self.beats.joined:
            return True
        # others leave once they have heard; only who serves the store has to stay for all of them
        heard = self.beats.failure is not None or self.beats.leaving
        return heard and not waiting

    def _stay(self, until: Callable[[], bool], most: float = SPREAD) -> None:
        end = time.monotonic() + most
        while not until() and time.monotonic() < end:
            self._look()

    def _kill(self) -> None:
        if self.killed or self.gone:
            return
        self.killed = True
        for kill in (os.killpg, os.kill):  # its tree; itself, should it have no group of its own yet
            with contextlib.suppress(OSError):
                kill(self.child, signal.SIGKILL)
        with contextlib.suppress(OSError):
            os.waitpid(self.child, 0)
        self.gone = True
