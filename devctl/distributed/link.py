"""What ranks say to each other and to the process that watches them: limits, failures, and the way to the others."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import socket
import threading
import time
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn

from devctl.distributed.seat import Seat, name_of
from devctl.errors import DevctlError, ExitCode, LoadError, ModelError, RefusedError, UsageError, first_line

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

TICK = 0.05
"""Seconds between two looks at what another process does."""

SPREAD = 5.0
"""Seconds at most that a rank stays to let others hear of a failure, or of the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How long anything may take, in seconds.

    Attributes:
        join: until all ranks have met.
        step: without any progress of a step.
    """

    join: float = 60.0
    step: float = 120.0

    @property
    def talk(self) -> float:
        """Until what ranks say to each other arrives: less than a step, so that who hangs is found by itself first."""
        return self.step * 3 / 4

    @property
    def cause(self) -> float:
        """For the cause of a connection that broke to be told."""
        return self.step - self.talk + 3.0

    @property
    def silence(self) -> float:
        """Without a sign of life of a process."""
        return self.step / 2

    @property
    def beat(self) -> float:
        """Between two signs of life."""
        return min(1.0, self.step / 20)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a run ends.

    Attributes:
        rank: whose fault it is; None where it is that of all together, which each rank finds by itself.
        code: what every rank exits with.
        secondary: it may be the consequence of another rank's failure.
    """

    rank: int | None
    code: int
    message: str
    findings: tuple[str, ...] = ()
    hint: str = ""
    secondary: bool = False

    def to_error(self, seat: Seat) -> DevctlError:
        """What to raise."""
        where = "" if self.rank is None else f"{name_of(seat.ranks[self.rank])}: "
        message = f"{where}{self.message}"
        if self.code == ExitCode.NO:
            return RefusedError(message, findings=self.findings, hint=self.hint)
        kinds: dict[int, type[DevctlError]] = {2: UsageError, 4: ModelError, 5: LoadError}
        return kinds.get(self.code, DevctlError)("; ".join((message, *self.findings)), hint=self.hint)

    def to_text(self) -> str:
        """For the store."""
        return json.dumps(asdict(self))


def parse_failure(text: str) -> Failure:
    found = json.loads(text)
    return Failure(**{**found, "findings": tuple(found["findings"])})


class SecondaryError(LoadError):
    """A failure that another rank's may be the cause of, as a connection that is reset."""


class CommonError(RefusedError):
    """What every rank finds by itself, in the same words."""


class CommonLoadError(LoadError):
    """The same, of what was loaded."""


_OF_CONNECTIONS = re.compile("gloo|nccl|peer|connection|timed? ?out", re.IGNORECASE)


def is_of_connection(error: BaseException) -> bool:
    """Whether it may be that another rank is gone, rather than a fault of this one."""
    from torch.distributed import DistError

    if isinstance(error, DistError):
        return True
    return isinstance(error, RuntimeError | OSError) and _OF_CONNECTIONS.search(str(error)) is not None


def said_of(error: BaseException) -> str:
    """What an exception of torch's says, without its advice."""
    return f"{type(error).__name__}: {first_line(error).partition('. This is typically')[0]}"


def open_store(seat: Seat, seconds: float, *, serves: bool) -> Store:
    """A connection to the store that all ranks share.

    Raises:
        Exception: torch's, of what can't be reached or opened within ``seconds``.
    """
    from torch._C._distributed_c10d import PrefixStore, TCPStore

    socket.getaddrinfo(seat.address, seat.port)  # a name that nobody knows is told at once, instead of tried again
    store = TCPStore(seat.address, seat.port, None, serves, timeout=timedelta(seconds=seconds), wait_for_workers=False)
    return PrefixStore(f"devctl/{seat.run}", store)


class Link:
    """What the working process has of the watching one, and of the other ranks."""

    def __init__(self, seat: Seat, limits: Limits, up: int, down: int) -> None:
        self.seat = seat
        self.limits = limits
        self._up, self._down = up, down
        self._lock = threading.Lock()
        self._store: Store | None = None

    def begin(self) -> None:
        """Show signs of life from now on, and look for those of the watching process."""
        threading.Thread(target=self._live, daemon=True).start()

    def step(self, name: str, *, patient: bool = False) -> None:
        """Begin a step; ``patient`` where it waits for others, whose own steps have a deadline."""
        self.send({"step": name, "patient": patient})

    def progress(self) -> None:
        """The step goes on: its deadline begins anew."""
        self.send({"progress": True})

    def send(self, message: dict[str, Any]) -> None:
        """Tell the watching process."""
        data = json.dumps(message).encode() + b"\n"
        with self._lock:
            while data:
                data = data[os.write(self._up, data) :]

    @property
    def store(self) -> Store:
        """The store that all ranks share; connected to when it is first asked for."""
        if self._store is None:
            self.step("meeting the other ranks", patient=True)  # the watching process has the deadline of that
            while self._store is None:
                try:
                    self._store = open_store(self.seat, self.limits.join, serves=False)
                except (
                    RuntimeError,
                    OSError,
                ):  # the watching process may not have opened it yet, and tells why if it can't
                    time.sleep(TICK)
        return self._store

    def gather(self, what: str, mine: Any) -> list[Any]:
        """What every rank says of ``what``, by rank; waits for all."""
        store = self.store
        self.step(f"waiting for the other ranks: {what}", patient=True)
        store.set(f"{what}/{self.seat.rank}", json.dumps(mine))
        found = []
        for rank in self.seat.ranks:
            while not store.check([f"{what}/{rank.rank}"]):
                time.sleep(TICK)
            found.append(json.loads(store.get(f"{what}/{rank.rank}")))
        return found

    def _live(self) -> None:
        heard = time.monotonic()
        while True:
            with contextlib.suppress(OSError):  # nobody reads: the loop below finds out
                self.send({"beat": True})
            ready, _, _ = select.select([self._down], [], [], self.limits.beat)
            now = time.monotonic()
            if ready:
                if not os.read(self._down, 4096):
                    self._orphaned("its watching process died")
                heard = now
            elif now - heard > self.limits.silence:
                with contextlib.suppress(OSError):
                    os.kill(os.getppid(), signal.SIGKILL)
                self._orphaned(f"its watching process gave no sign of life for {self.limits.silence:.3g} s")

    def _orphaned(self, why: str) -> NoReturn:
        """End with the watching process, and tell the others, who would find out later."""
        threading.Timer(SPREAD, os._exit, (int(ExitCode.LOAD),)).start()
        with contextlib.suppress(Exception):  # whatever fails, the others hear no beats
            store = open_store(self.seat, SPREAD, serves=False)
            found = Failure(rank=self.seat.rank, code=ExitCode.LOAD, message=why)
            store.compare_set("failed", "", found.to_text())
        os._exit(ExitCode.LOAD)
