"""How long TAB takes, beside a Python that does nothing: run it with the interpreter of the venv.

Each case runs in turn, round after round, so that all see the same load of the machine. Of each the median is printed,
the least seconds of the processor, and the ratio of the medians to that of ``python -c pass``.
"""

import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROUNDS = 21
DEVCTL = str(Path(sys.executable).with_name("devctl"))
TABS = {
    "devctl <TAB>": [""],
    "devctl plan --max<TAB>": ["plan", "--max"],
    "devctl plan --strategy=<TAB>": ["plan", "--strategy="],
    "devctl plan --devices 2xH<TAB>": ["plan", "--devices", "2xH"],
    "devctl load m --map <TAB>": ["load", "m", "--map", ""],
    "devctl plan <TAB>": ["plan", ""],
}


def taken(command: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """Seconds by the clock, and of the processor."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - start, used


def main() -> None:
    asked = os.environ | {"_DEVCTL_COMPLETE": "complete_zsh"}
    cases = {"python -c pass": ([sys.executable, "-c", "pass"], dict(os.environ))}
    cases |= {name: ([DEVCTL, *words], asked) for name, words in TABS.items()}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
    for _ in range(ROUNDS):
        for name, (command, environment) in cases.items():
            found[name].append(taken(command, environment))
    medians = {name: statistics.median(clock for clock, _ in times) for name, times in found.items()}
    floor = medians["python -c pass"]
    for name, times in found.items():
        least = min(used for _, used in times)
        print(f"{name:32} {medians[name] * 1000:6.0f} ms {least * 1000:6.0f} ms CPU {medians[name] / floor:6.2f}×")


if __name__ == "__main__":
    main()
