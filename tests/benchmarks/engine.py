"""What vLLM is predicted to hold beside what it logged: ``python -m tests.benchmarks.engine``.

The runs are in ``engine_runs.py``. A row misses where its weights are off by more than 0.8 %, its pool is off by more
than 3 %, or too large by more than 2 %, or a token is given other bytes. Exits with 1 where one misses, or the means
are above those. ``engine.md`` is what it printed last.
"""

import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from devctl.planning.engine import plan_for_vllm
from devctl.planning.hosts import NamedMachine
from devctl.planning.machine import open_machine
from devctl.planning.model import open_model
from devctl.planning.request import EngineRequest, MachineRequest, ModelRequest, WorkloadRequest
from tests.benchmarks.engine_runs import RUNS, TOTAL, Run

GIB = 2**30
WEIGHTS, POOL, TOO_LARGE = 0.008, 0.03, 0.02
"""By how much weights and pool may be off on the mean, and a pool too large."""

_LOGGED = 0.006
"""GiB that a figure of two decimals, and the share that is requested, may be off by."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A run, and what is predicted of it, in the same units."""

    run: Run
    weights: float
    activations: float
    non_torch: float
    context: float
    graphs: float
    pool: float
    tokens: int
    concurrency: float
    per_token: int
    fits: bool

    @property
    def weights_off(self):
        return self.weights / self.run.weights - 1

    @property
    def pool_off(self):
        return self.pool / self.run.pool - 1

    @property
    def concurrency_off(self):
        return self.concurrency / self.run.concurrency - 1

    @property
    def gives_a_token_its_bytes(self):
        """Whether a pool as logged, by the bytes that are predicted, is as many tokens as logged, but for a page."""
        page = 16 * 8 * self.per_token
        return abs(self.per_token * self.run.tokens - self.run.pool * GIB) <= page + _LOGGED * GIB

    @property
    def misses(self):
        """What of it is beyond the bounds, in words."""
        found = []
        if abs(self.weights_off) > WEIGHTS:
            found.append("weights")
        if abs(self.pool_off) > POOL or self.pool_off > TOO_LARGE:
            found.append("pool")
        if not self.gives_a_token_its_bytes:
            found.append("bytes a token")
        if not self.fits:
            found.append("ran, and is refused")
        return ", ".join(found)


def predict(run):
    """The run as devctl plans it."""
    devices = max(run.tp, run.pp)
    machine = open_machine(MachineRequest(devices=",".join([f"{TOTAL}GiB"] * devices)))
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(run.config), encoding="utf-8")
        plan = plan_for_vllm(
            open_model(ModelRequest(model=folder, dtype=run.dtype, quantize=run.quantize, cache=False)),
            (NamedMachine(name="here", machine=machine),),
            WorkloadRequest(context_length=run.length, kv_dtype=run.kv_dtype),
            EngineRequest(utilisation=run.utilisation, tp=run.tp if run.tp > 1 else None),
        )
    first, fit = plan.fit_in.devices[0], plan.fit_in
    return Row(
        run=run,
        weights=first.weights / GIB,
        activations=first.activations / GIB,
        non_torch=first.non_torch / GIB,
        context=first.context / GIB,
        graphs=first.graphs / GIB,
        pool=min(device.pool for device in fit.devices) / GIB,
        tokens=fit.kv_tokens,
        concurrency=fit.concurrency,
        per_token=fit.kv_bytes_per_token,
        fits=plan.fits,
    )


def means(rows):
    """Of how far off weights, pools and sequences are, without their sign, and the pool that is most too large."""
    count = len(rows)
    return (
        sum(abs(row.weights_off) for row in rows) / count,
        sum(abs(row.pool_off) for row in rows) / count,
        sum(abs(row.concurrency_off) for row in rows) / count,
        max(row.pool_off for row in rows),
    )


_HEAD = ("model", "run", "weights", "", "", "activations", "", "not torch", "", "context", "", "graphs", "", "pool", "",
         "", "tokens", "", "sequences", "", "misses")  # fmt: skip


def table(rows):
    """A row a run, each figure as predicted and as logged."""
    lines = [f"| {' | '.join(_HEAD)} |", f"|---|---|{'---:|' * (len(_HEAD) - 3)}---|"]
    for row in rows:
        run = row.run
        how = f"tp {run.tp}, pp {run.pp}, {run.length} tokens, {run.utilisation:g}"
        how += f", {run.dtype}" * (run.dtype != "auto") + f", KV {run.kv_dtype}" * bool(run.kv_dtype)
        how += f", --quantize {run.quantize}" if run.quantize else ""
        cells = [run.model, how, f"{row.weights:.2f}", f"{run.weights:.2f}", f"{row.weights_off:+.2%}"]
        for name in ("activations", "non_torch", "context", "graphs", "pool"):
            cells += [f"{getattr(row, name):.2f}", f"{getattr(run, name):.2f}"]
        cells += [f"{row.pool_off:+.2%}", f"{row.tokens}", f"{run.tokens}", f"{row.concurrency:.2f}"]
        lines.append(f"| {' | '.join([*cells, f'{run.concurrency:.2f}', row.misses])} |")
    return "\n".join(lines)


def main():
    rows = [predict(run) for run in RUNS]
    weights, pool, sequences, largest = means(rows)
    missed = [row for row in rows if row.misses]
    refused = sum(not row.fits for row in rows)
    wrong = sum(not row.gives_a_token_its_bytes for row in rows)
    print("What vLLM 0.19.0 holds on H100s with 80 GB, in GiB as predicted and as logged, by")
    print("`python -m tests.benchmarks.engine`: the first rank, and the smallest pool.")
    print(f"{len(rows)} runs; off on the mean: weights {weights:.2%}, pool {pool:.2%}, sequences {sequences:.2%}.")
    print(f"A pool is at most {largest:.2%} too large. A token is given other bytes in {wrong} runs.")
    print(f"Refused, though they ran: {refused}.")
    print(f"Beyond a bound: {len(missed)}, named in the last column.\n")
    print(table(rows))
    return int(weights > WEIGHTS or pool > POOL or largest > TOO_LARGE or wrong or refused)


if __name__ == "__main__":
    sys.exit(main())
