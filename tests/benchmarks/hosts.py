"""Stages over hosts: how long a cut takes, and how full its fullest board is beside the even cuts of engines.

    python -m tests.benchmarks.hosts [--write] [MODEL …]

Llama 405B, DeepSeek-V3 and Kimi-K2 over 2 hosts of 8 boards and ever more, up to as many stages as there are layers;
equal boards, and unequal ones; a stage on each board, and on groups of 8 that share it. Each fullest share is told over
the ideal one: all bytes of all stages by all budgets, as if layers could be cut anywhere. Of the even cuts the order of
hosts is the given one. What fits is the longest power of two of tokens, of as many sequences. ``--write`` writes the
table to hosts.md.
"""

import sys
import time
import tracemalloc
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import cache
from itertools import chain
from pathlib import Path

from devctl.placement.parallel.costs import Costs
from devctl.placement.parallel.stages import (
    Cut,
    Host,
    cut_by,
    even_by_transformers,
    even_by_vllm,
    find_stages,
    fits_within,
)
from devctl.placement.parallel.tensor import Ranks
from devctl.planning.hosts import HostsRequest, open_hosts
from devctl.planning.hosts_question import HostsQuestion, hosts_question
from devctl.planning.model import Model, open_model
from devctl.planning.request import ModelRequest, WorkloadRequest

CONFIGS = Path(__file__).parents[1] / "configs"
MODELS = {"llama-3.1-405b": 126, "deepseek-v3": 61, "kimi-k2": 61}
CONTEXTS = tuple(2**n for n in range(10, 18))
WORKLOAD = WorkloadRequest(context_length=8192, batch_size=4)
EQUAL = ("8xH100",)
UNEQUAL = ("8xH100", "8xA100 40GB", "8xH200", "4xH100,4xA100 40GB")
HEADER = ["model", "hosts", "tp", "seconds", "memory", "fullest", "stages", "vLLM", "transformers", "tokens"]


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


class Asked:
    """A model that so many ranks share, over any hosts."""

    def __init__(self, model: Model, size: int) -> None:
        self.model, self.ranks = model, Ranks(size=size)
        self.costs = cache(self._costs)

    def over(self, boards: Sequence[str], count: int) -> HostsQuestion:
        hosts = open_hosts(HostsRequest(devices=hosts_of(boards, count)))
        return hosts_question(self.model, hosts, WORKLOAD, counts=True, ranks=self.ranks)

    def _costs(self, tokens: int) -> Costs:
        """Of so many tokens; what boards there are changes nothing of it."""
        asked = self.over(EQUAL, 2)
        return asked.costs(asked.question.footprints.of(replace(asked.question.workload, context_length=tokens)))

    def longest(self, hosts: Sequence[Host], cut: Cut | None) -> str:
        """Tokens that fit in ``cut``, or in the best one for them."""

        def fits(tokens: int) -> bool:
            costs = self.costs(tokens)
            return fits_within(costs, hosts) if cut is None else fullest(costs, cut) <= 1

        most = max((tokens for tokens in CONTEXTS if fits(tokens)), default=0)
        return f"{most // 1024}k" if most else "–"


def row(model: Asked, name: str, boards: Sequence[str], count: int) -> list[str]:
    there = model.over(boards, count).hosts
    costs = model.costs(WORKLOAD.context_length or 0)
    start = time.perf_counter()
    found = find_stages(costs, there)
    seconds = time.perf_counter() - start
    tracemalloc.start()
    find_stages(costs, there)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    line = [board for host in there for board in host]
    best = ideal(costs, there)
    even = [cut_by(line, by(costs.count, len(line))) for by in (even_by_vllm, even_by_transformers)]
    shares = [found.fullest, *(fullest(costs, cut) for cut in even)]
    return [
        name,
        f"{count} × 8, {'equal' if boards is EQUAL else 'unequal'}",
        str(model.ranks.size),
        f"{seconds:.2f} s",
        f"{peak / 1024:.0f} KiB",
        f"{float(found.fullest):.1%}",
        *(f"{float(share / best):.2f}" for share in shares),
        ", ".join(model.longest(there, cut) for cut in (None, *even)),
    ]


def rows(name: str, layers: int) -> Iterator[list[str]]:
    model = open_model(ModelRequest(model=str(CONFIGS / name)))
    for size in (1, 8):
        most = layers // 8 if size == 1 else layers
        counts = sorted({count for count in (2, 4, 8, 15, 32, most) if count <= most})
        asked = Asked(model, size)
        for boards in (EQUAL, UNEQUAL):
            # a half of two kinds makes no group of 8 that is equal: the smaller half decides
            yield from (row(asked, name, boards, count) for count in counts)


def main() -> None:
    wanted = [each for each in sys.argv[1:] if not each.startswith("--")] or list(MODELS)
    text = ""
    for cells in chain([HEADER, ["---"] * len(HEADER)], *(rows(name, MODELS[name]) for name in wanted)):
        line = f"| {' | '.join(cells)} |\n"
        print(line, end="", flush=True)
        text += line
    if "--write" in sys.argv[1:]:
        page = Path(__file__).with_suffix(".md")
        before = page.read_text(encoding="utf-8").partition("| model |")[0] if page.exists() else ""
        page.write_text(before + text, encoding="utf-8")


if __name__ == "__main__":
    main()
