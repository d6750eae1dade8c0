"""How long a first and a second plan take, beside a bare script that asks transformers itself.

The bare script imports transformers, builds the model on the meta device, and calls its planner. Each case runs in a
fresh process, in turn, round after round; medians, and ratios to the bare script.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROUNDS = 5
CONFIGS = Path(__file__).parents[1] / "configs"
MODELS = ["llama-3.1-8b", "llama-3.1-70b", "llama-3.1-405b", "deepseek-v3"]
MAX_MEMORY = {0: 80 * 2**30, 1: 80 * 2**30, "cpu": 2**41}
BARE = f"""
import sys, torch, transformers
from transformers.integrations.accelerate import _get_device_map
config = transformers.AutoConfig.from_pretrained(sys.argv[1])
model_class = getattr(transformers, config.architectures[0])
contexts = model_class.get_init_context(config.dtype, False, False, None)
from contextlib import ExitStack
with ExitStack() as stack:
    for context in contexts:
        stack.enter_context(context)
    model = model_class(config)
print(_get_device_map(model, "auto", {MAX_MEMORY!r}, None))
"""


def seconds(command: list[str], cache: str) -> float:
    start = time.perf_counter()
    subprocess.run(
        command,
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"DEVCTL_CACHE_DIR": cache},
    )
    return time.perf_counter() - start


def main() -> None:
    given = ",".join(f"{device}={size}" for device, size in MAX_MEMORY.items())
    print(f"{'model':16} {'bare':>8} {'first':>8} {'second':>8}   first/bare  second/bare")
    for model in MODELS:
        folder = str(CONFIGS / model)
        bare = [sys.executable, "-c", BARE, folder]
        plan = [str(Path(sys.executable).with_name("devctl")), "plan", folder, "--max-memory", given]
        taken: dict[str, list[float]] = {"bare": [], "first": [], "second": []}
        for _ in range(ROUNDS):
            with tempfile.TemporaryDirectory() as cache:
                taken["bare"].append(seconds(bare, cache))
                taken["first"].append(seconds(plan, cache))
                taken["second"].append(seconds(plan, cache))
        b, f, s = (statistics.median(taken[name]) for name in ("bare", "first", "second"))
        print(f"{model:16} {b:6.2f} s {f:6.2f} s {s:6.2f} s   {f / b:9.2f}×  {s / b:10.2f}×")


if __name__ == "__main__":
    main()
