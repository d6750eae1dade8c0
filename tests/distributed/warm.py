"""A process with torch and transformers imported, whose forks are ranks: a second each instead of ten.

It reads a JSON line for each run, a list of ranks, and writes one with how each ended.
"""

import ctypes
import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path

CLONE_NEWNET = 0x40000000


def be_rank(rank):
    """A forked child: the command line of one rank."""
    for number, name in ((1, "out"), (2, "err")):
        descriptor = os.open(rank[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if rank.get("netns"):
        descriptor = os.open(f"/run/netns/{rank['netns']}", os.O_RDONLY)
        if ctypes.CDLL(None, use_errno=True).setns(descriptor, CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
    os.environ.update(rank["environment"])
    from tests.distributed import faults

    for fault in rank.get("faults", ()):
        getattr(faults, fault["name"])(**fault.get("with", {}))
    from devctl.cli import main

    sys.argv = ["devctl", *rank["arguments"]]
    main()


def run(ranks, seconds):
    """Fork all ranks and wait for them; how each ended, and after how long. Those that take too long are killed."""
    start = time.monotonic()
    pids = {}
    for number, rank in enumerate(ranks):
        pid = os.fork()
        if not pid:
            code = 1
            try:
                os.setpgid(0, 0)
                be_rank(rank)
                code = 0
            except SystemExit as stop:
                code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
            except BaseException:  # noqa: BLE001 - shown, whatever it is
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        pids[pid] = number
        if rank.get("pid"):
            Path(rank["pid"]).write_text(str(pid))
    ended = [None] * len(ranks)
    while pids:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            ended[pids.pop(pid)] = {"code": os.waitstatus_to_exitcode(status), "seconds": time.monotonic() - start}
        elif time.monotonic() - start > seconds:
            for left in pids:
                os.kill(left, signal.SIGKILL)
            seconds += 10
        else:
            time.sleep(0.02)
    return ended


def main():
    import torch
    import torch.distributed
    import transformers.distributed.pipeline_parallel  # noqa: F401
    from transformers import LlamaForCausalLM  # noqa: F401 - each rank would import it

    import devctl.cli.load
    import devctl.cli.show.staged
    import devctl.distributed.worker  # noqa: F401

    answers = os.fdopen(os.dup(1), "w")
    torch.set_num_threads(1)
    for line in sys.stdin:
        asked = json.loads(line)
        answers.write(json.dumps(run(asked["ranks"], asked["seconds"])) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
