"""Names of processes, where a number that the driver gave means the same process here."""

import functools
from pathlib import Path

_FIRST_NAMESPACE = "pid:[4026531836]"
"""PROC_PID_INIT_INO in Linux' include/linux/proc_ns.h: the namespace that drivers count processes in."""


@functools.cache
def counts_as_driver(namespace: Path = Path("/proc/self/ns/pid")) -> bool:
    """Whether this process counts pids as the driver does; not in a container, where a pid is another process's."""
    try:
        return str(namespace.readlink()) == _FIRST_NAMESPACE
    except OSError:
        return not namespace.parent.exists()


def process_name(pid: int) -> str | None:
    """The name of process ``pid``; None where it is gone, not ours to see, or counted elsewhere."""
    if not counts_as_driver():
        return None
    import psutil

    try:
        return psutil.Process(pid).name()
    except (psutil.Error, ValueError, OverflowError):
        return None
