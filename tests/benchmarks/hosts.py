"""Stages over hosts: how long a cut takes, and how full its fullest board is beside the even cuts of engines.

    python -m tests.benchmarks.hosts [--write]

Llama 405B and DeepSeek-V3 with a workload over 2 hosts of 8 boards and ever more, up to as many boards as there are
layers; equal boards, and unequal ones. Each fullest share is told over the ideal one: all bytes of all stages by all
budgets, as if layers could be cut anywhere. Of the even cuts the order of hosts is the given one. ``--write`` writes
the table to hosts.md.
"""

import sys
import time
import tracemalloc
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

from devctl.placement.parallel.costs import Costs
from devctl.placement.parallel.stages import (
    Cut,
    Host,
    cut_by,
    even_by_transformers,
    even_by_vllm,
    find_stages,
)
from devctl.planning.hosts import HostsRequest, open_hosts
from devctl.planning.model import Model, open_model
from devctl.planning.over_hosts import question_over_hosts
from devctl.planning.request import ModelRequest, WorkloadRequest

CONFIGS = Path(__file__).parents[1] / "configs"
MODELS = {"llama-3.1-405b": 126, "deepseek-v3": 61}
WORKLOAD = WorkloadRequest(context_length=8192, batch_size=4)
EQUAL = ("8xH100",)
UNEQUAL = ("8xH100", "8xA100 40GB", "8xH200", "4xH100,4xA100 40GB")


def hosts_of(boards: Sequence[str], count: int) -> str:
    return ";".join(f"h{at}:{boards[at % len(boards)]}" for at in range(count))


def fullest(costs: Costs, cut: Cut) -> Fraction:
    return max(Fraction(costs.load(a, b, board.overhead).most, board.budget) for board, a, b in cut)


def ideal(costs: Costs, hosts: Sequence[Host]) -> Fraction:
    boards = [board for host in hosts for board in host]
    # what one board needs for everything, and of that each board again what is no weight and no state
    whole = costs.load(0, costs.count)
    work = whole.activations + whole.overhead
    needed = whole.used + whole.state + sum(board.overhead + work for board in boards)
    return Fraction(needed, sum(board.budget for board in boards))


def row(model: Model, name: str, boards: Sequence[str], count: int) -> list[str]:
    hosts = open_hosts(HostsRequest(devices=hosts_of(boards, count)))
    costs, there = question_over_hosts(model, hosts, WORKLOAD)
    start = time.perf_counter()
    found = find_stages(costs, there)
    seconds = time.perf_counter() - start
    tracemalloc.start()
    find_stages(costs, there)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    line = [board for host in there for board in host]
    best = ideal(costs, there)
    shares = [found.fullest] + [
        fullest(costs, cut_by(line, even(costs.count, len(line)))) for even in (even_by_vllm, even_by_transformers)
    ]
    kind = "equal" if boards is EQUAL else "unequal"
    return [
        name,
        f"{count} × 8, {kind}",
        f"{seconds:.2f} s",
        f"{peak / 1024:.0f} KiB",
        f"{float(found.fullest):.1%}",
        *(f"{float(share / best):.2f}" for share in shares),
    ]


def main() -> None:
    header = ["model", "hosts", "seconds", "memory", "fullest", "stages", "vLLM", "transformers"]
    rows = [header, ["---"] * len(header)]
    for name, layers in MODELS.items():
        model = open_model(ModelRequest(model=str(CONFIGS / name)))
        most = layers // 8
        counts = sorted({2, 3, 4, 6, 8, 10, most} & set(range(2, most + 1)))
        rows += [row(model, name, boards, count) for boards in (EQUAL, UNEQUAL) for count in counts]
    table = "".join(f"| {' | '.join(cells)} |\n" for cells in rows)
    print(table, end="")
    if "--write" in sys.argv[1:]:
        page = Path(__file__).with_suffix(".md")
        before = page.read_text(encoding="utf-8").partition("| model |")[0] if page.exists() else ""
        page.write_text(before + table, encoding="utf-8")


if __name__ == "__main__":
    main()
