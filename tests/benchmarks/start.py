"""How long commands take to start, beside what they can't do without: run it with the interpreter of the venv.

Each case runs in turn, round after round, so that all see the same load of the machine. The median of each is printed,
and its ratio to the first two added up: Python with the libraries of the inventory, and the barest Typer app.
"""

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROUNDS = 21
BARE_TYPER = """
import typer
app = typer.Typer()
@app.command()
def one(x: int = 1): pass
@app.command()
def two(x: int = 1): pass
app(["one"], standalone_mode=False)
"""
DEVCTL = str(Path(sys.executable).with_name("devctl"))
CASES = {
    "python -c 'import psutil, pynvml'": [sys.executable, "-c", "import psutil, pynvml"],
    "a bare Typer app": [sys.executable, "-c", BARE_TYPER],
    "devctl --version": [DEVCTL, "--version"],
    "devctl --help": [DEVCTL, "--help"],
    "devctl list --json": [DEVCTL, "list", "--json"],
    "devctl list": [DEVCTL, "list"],
}


def seconds(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ)
    return time.perf_counter() - start


def main() -> None:
    taken: dict[str, list[float]] = {name: [] for name in CASES}
    for _ in range(ROUNDS):
        for name, command in CASES.items():
            taken[name].append(seconds(command))
    medians = {name: statistics.median(values) for name, values in taken.items()}
    floor = sum(list(medians.values())[:2])
    for name, median in medians.items():
        print(f"{name:36} {median * 1000:6.0f} ms {median / floor:6.2f}×")


if __name__ == "__main__":
    main()
