"""Ending a process that was started for an answer, with what it started itself."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess


def end_group(process: subprocess.Popen[bytes], seconds: float) -> None:
    """Kill a process that leads a group of its own (``start_new_session``), and those of it, which may outlive it.

    Args:
        seconds: to wait for it, at most: one that is stuck in the kernel goes when the kernel lets it.
    """
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
