"""What goes wrong in a rank: each is called in the rank's process before it begins."""

import os
import signal
import time

from devctl.distributed import pipeline, worker


def version(of, says):
    """A package says that it is of another version."""
    import importlib

    importlib.import_module(of).__version__ = says


def _raise():
    raise RuntimeError("a kernel failed")


def in_generate(do):
    """The working process ends, stops or waits as it makes its second token."""
    ways = {
        "die": lambda: os._exit(9),
        "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
        "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
        "wait": lambda: time.sleep(3600),
        "orphan": lambda: os.kill(os.getppid(), signal.SIGKILL),
        "stop the watching one": lambda: os.kill(os.getppid(), signal.SIGSTOP),
        "raise": _raise,
    }
    _in_generate(ways[do])


def _in_generate(act):
    whole = pipeline.generate

    def generate(model, given, new_tokens, tick):
        ticks = []

        def ticking():
            ticks.append(1)
            if len(ticks) == 2:
                act()
            tick()

        return whole(model, given, new_tokens, ticking)

    worker.generate = generate


def little_ram(available):
    """The system has so many bytes of RAM left for a second copy of the model."""
    worker.fits_in_ram = lambda needed, beside, _: needed + beside <= available


def never():
    """The rank does not come at all."""
    os._exit(0)


def stop_at_once():
    """The rank stops before it meets anybody."""
    worker.supervise = lambda *_: os.kill(os.getpid(), signal.SIGSTOP)


def interrupted_in_generate(pid):
    """Somebody presses Ctrl-C where the rank was started, as it makes its second token."""
    from pathlib import Path

    _in_generate(lambda: (os.kill(int(Path(pid).read_text()), signal.SIGINT), time.sleep(60)))


def cut(namespace, device):
    """The link of this host is cut as it makes its second token."""
    import subprocess

    _in_generate(lambda: subprocess.run(["ip", "-n", namespace, "link", "set", device, "down"], check=True))
