"""How long it takes to plan again: questions that place many times, beside one plan; and inputs that are large.

The first table asks one question a process, in turn, round after round, of models that are kept: seconds (medians), and
ratios to a plan with a workload. The second gives seconds of the CPU for what each large input goes through.

    python -m tests.benchmarks.again [--large]
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from devctl.devices import Device
from devctl.models.tree import Module, ModuleTree, Tensor, TensorKind
from devctl.placement import Strategy, place
from devctl.placement.budget import from_max_memory, parse_max_memory
from devctl.placement.document import parse_map
from devctl.placement.judge import disjoint, find_faults, validate
from devctl.placement.placement import bytes_per_device, make_placement, over_budget

ROUNDS = int(os.environ.get("ROUNDS", "3"))
CONFIGS = Path(__file__).parents[1] / "configs"
MODELS = {"llama-3.1-8b": "8xH100", "llama-3.1-70b": "8xH100", "llama-3.1-405b": "16xH100", "deepseek-v3": "16xH100"}
PLAN = "--context-length 8192"
AGAIN = ["--what-if", "--max-context", "--compare", "--explain"]
LAYERS, KEYS, GPUS = 30_000, 34, 10_000


def seconds(model: str, devices: str, question: str, cache: str) -> float:
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "devctl", "plan", str(CONFIGS / model), "--devices", devices, *question.split()],
        check=False,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"DEVCTL_CACHE_DIR": cache},
    )
    if done.returncode not in (0, 3):
        raise SystemExit(f"devctl plan {model} {question} exits with {done.returncode}")
    return time.perf_counter() - start


def again() -> None:
    print(f"{'model':16} {'cold':>8} {'workload':>9} " + " ".join(f"{question:>16}" for question in AGAIN))
    for model, devices in MODELS.items():
        with tempfile.TemporaryDirectory() as cache:
            cold = seconds(model, devices, PLAN, cache)
            for question in AGAIN:
                seconds(model, devices, question, cache)  # traces what it asks for, which is kept
            taken: dict[str, list[float]] = {question: [] for question in (PLAN, *AGAIN)}
            for _ in range(ROUNDS):
                for question, found in taken.items():
                    found.append(seconds(model, devices, question, cache))
        median = {question: statistics.median(found) for question, found in taken.items()}
        told = " ".join(f"{median[q]:6.2f} s {median[q] / median[PLAN]:6.2f}×" for q in AGAIN)
        print(f"{model:16} {cold:6.2f} s {median[PLAN]:7.2f} s {told}", flush=True)


def large_tree() -> ModuleTree:
    """A model with 300,002 tensors: no-split layers, each of two modules of five."""

    def module(name: str, class_name: str, tensors: int, children: tuple[Module, ...] = ()) -> Module:
        parameters = tuple(
            Tensor(name=f"{name}.p{i}", kind=TensorKind.PARAMETER, nbytes=1000 + i, shape=(500 + i,), dtype="int8")
            for i in range(tensors)
        )
        return Module(name=name, class_name=class_name, parameters=parameters, children=children)

    layers = tuple(
        module(f"layers.{i}", "Layer", 0, tuple(module(f"layers.{i}.{part}", "Part", 5) for part in "ab"))
        for i in range(LAYERS)
    )
    children = (module("embed", "Part", 1), module("layers", "List", 0, layers), module("head", "Part", 1))
    return ModuleTree(
        root=Module(name="", class_name="Model", children=children),
        class_name="Model",
        dtype="int8",
        no_split=frozenset(["Layer"]),
    )


def large() -> None:
    def timed(what: str, run: Callable[[], object]) -> None:
        start = time.process_time()
        run()
        print(f"{what:52} {time.process_time() - start:6.2f} s", flush=True)

    tree = large_tree()
    text = json.dumps({f"layers.{i}.x{key}": i % 8 for i in range(LAYERS) for key in range(KEYS)})
    unknown = parse_map(text, "a map")
    many = from_max_memory({Device.gpu(i): 60_000 for i in range(GPUS)})
    few = from_max_memory({Device.gpu(i): 60 * 2**20 for i in range(8)} | {Device.cpu(): 2**40})
    ends = {"embed": Device.gpu(0), "head": Device.gpu(0)}
    spread = {f"layers.{i}": Device.gpu(i % GPUS) for i in range(LAYERS)} | ends
    placement = make_placement(tree, spread, many, strategy=None)
    here = [device for device, _ in many.devices]
    fresh = large_tree()
    timed("index of 300,002 tensors", lambda: fresh.index)
    timed(f"parse_map, {len(unknown)} keys", lambda: parse_map(text, "a map"))
    timed(f"validate, {len(unknown)} keys that are none", lambda: validate(tree, unknown, here))
    timed(f"parse_max_memory, {GPUS}", lambda: parse_max_memory([",".join(f"{i}=60000B" for i in range(GPUS))]))
    for what, run in (
        ("validate", lambda: validate(tree, spread, here)),
        ("over_budget", lambda: over_budget(placement.devices)),
    ):
        timed(f"{what}, {GPUS} accelerators", run)
    for function in (find_faults, bytes_per_device, disjoint):
        timed(f"{function.__name__}, {len(spread)} keys", partial(function, tree, spread))
    timed(f"make_placement, {GPUS} accelerators", lambda: make_placement(tree, spread, many, strategy=None))
    for strategy in Strategy:
        for budgets, accelerators in ((few, 8), (many, GPUS)):
            timed(
                f"place, {strategy}, {accelerators} accelerators",
                partial(place, tree, budgets, strategy),
            )


if __name__ == "__main__":
    large() if "--large" in sys.argv else again()
