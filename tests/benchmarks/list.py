"""`devctl list` beside `nvitop -1` and `gpustat`, on 8 invented boards behind the stand-in NVML.

Run it with both installed: ``python tests/benchmarks/list.py [ROUNDS]``. The commands take turns, so that what else
the machine does falls on all of them; medians and ratios of medians are printed. Nothing asserts them.
"""

import compileall
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve()
sys.path.insert(0, str(HERE.parents[2]))

from tests.inventory import boxes, stand_ins  # noqa: E402

SCRIPTS = Path(sys.executable).parent


def commands() -> dict[str, list[str]]:
    """The commands by name, those that are installed."""
    # what the console script does, for a tree that is not installed
    devctl = [sys.executable, "-c", "from devctl.__main__ import main; main()"]
    wanted = {
        "devctl list": [*devctl, "list"],
        "devctl list --json": [*devctl, "list", "--json"],
        "nvitop -1": [str(SCRIPTS / "nvitop"), "-1"],
        "gpustat": [str(SCRIPTS / "gpustat")],
    }
    return {name: command for name, command in wanted.items() if shutil.which(command[0])}


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    with tempfile.TemporaryDirectory() as folder:
        stand_ins.build(Path(folder))
        machine = Path(folder) / "machine"
        machine.write_text(boxes.eight())
        environment = {
            **os.environ,
            "LD_LIBRARY_PATH": folder,
            "FAKE_NVML": str(machine),
            "PYTHONPATH": str(HERE.parents[2]),
        }
        # as pip does when it installs: the others were installed
        compileall.compile_dir(HERE.parents[2] / "devctl", quiet=1)
        times: dict[str, list[float]] = {name: [] for name in commands()}
        for turn in range(rounds + 1):
            # in another order each time: a command pays for the caches that the one before it filled with its own
            for name, command in random.sample(list(commands().items()), len(times)):
                start = time.perf_counter()
                subprocess.run(command, env=environment, capture_output=True, check=True)
                if turn:  # the first warms the page cache
                    times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(taken) for name, taken in times.items()}
    print(f"{'command':<20} {'median':>9}  " + "  ".join(f"x {other:<9}" for other in ("nvitop -1", "gpustat")))
    for name, median in medians.items():
        ratios = (
            f"{median / medians[other]:<11.2f}" if other in medians else "–" for other in ("nvitop -1", "gpustat")
        )
        print(f"{name:<20} {median * 1000:6.0f} ms  " + "  ".join(ratios))


if __name__ == "__main__":
    main()
