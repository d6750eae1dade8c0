"""What a load costs beyond a bare script that loads on the same map and generates: seconds, and RAM at its peak.

The model is made by ``save_pretrained`` in a temporary folder, of some hundred MB, so that reading it counts. The bare
script imports torch and transformers, calls ``from_pretrained(device_map=…)`` and makes the tokens that devctl makes.
Each runs in a fresh process, in turn, round after round; medians, and what is more in percent. The CPU's seconds are
less disturbed by other work on the machine. The second bare script
also runs what devctl runs beside: two forwards. ``python -m tests.benchmarks.load [ROUNDS]``.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROUNDS = 7
TOKENS = 32
BARE = f"""
import json, sys
import torch, transformers
transformers.utils.logging.disable_progress_bar()
device_map = json.load(open(sys.argv[2]))
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], device_map=device_map)
ids = torch.randint(0, model.config.vocab_size, (1, 16), generator=torch.Generator().manual_seed(0))
mask = torch.ones_like(ids)
with torch.inference_mode():
    for _ in range(int(sys.argv[3])):
        model(input_ids=ids, attention_mask=mask)
    model.generate(
        input_ids=ids, attention_mask=mask, do_sample=False, pad_token_id=0,
        max_new_tokens={TOKENS}, min_new_tokens={TOKENS},
    )
"""


def make_model(folder: Path) -> None:
    """A Llama of 537 MB."""
    import torch
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=32_000,
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=16,
        num_attention_heads=16,
        num_key_value_heads=8,
        dtype=torch.bfloat16,
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder)
    print(f"{sum(p.numel() * p.element_size() for p in model.parameters()) / 1e6:.0f} MB of weights, {TOKENS} tokens")


def measure(command: list[str]) -> tuple[float, float, float]:
    """Seconds that a process took and that its CPUs worked, and MiB of RAM at its peak."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, command
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        # made in a process of its own: a child's peak counts what its parent held when it was forked
        make = "from pathlib import Path; from tests.benchmarks.load import make_model; "
        subprocess.run([sys.executable, "-c", f"{make}make_model(Path({str(folder)!r}))"], check=True)
        cpu = Path(temporary) / "cpu.json"
        cpu.write_text(json.dumps({"": "cpu"}))
        split = Path(temporary) / "split.json"
        layers = {f"model.layers.{i}": "disk" if i % 4 == 3 else "cpu" for i in range(16)}
        rest = dict.fromkeys(("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"), "cpu")
        split.write_text(json.dumps({**rest, **layers}))
        print(f"{'map':22} {'':14} {'seconds':>8} {'more':>8} {'CPU':>8} {'more':>8} {'peak MiB':>9} {'more':>8}")
        for name, path in (("cpu", cpu), ("cpu, a quarter on disk", split)):
            bare = [sys.executable, "-c", BARE, str(folder), str(path)]
            devctl = [sys.executable, "-m", "devctl", "load", str(folder), "--map", str(path)]
            commands = {
                "bare script": [*bare, "0"],
                "and 2 forwards": [*bare, "2"],
                "devctl load": [*devctl, "--max-new-tokens", str(TOKENS)],
            }
            taken: dict[str, list[tuple[float, float, float]]] = {case: [] for case in commands}
            for _ in range(rounds):
                for case, command in commands.items():
                    taken[case].append(measure(command))
            first = [statistics.median(column) for column in zip(*taken["bare script"], strict=True)]
            for case, values in taken.items():
                found = [statistics.median(column) for column in zip(*values, strict=True)]
                more = [f"{(now / then - 1) * 100:+.1f} %" for now, then in zip(found, first, strict=True)]
                print(
                    f"{name:22} {case:14} {found[0]:6.2f} s {more[0]:>8} {found[1]:6.2f} s {more[1]:>8} "
                    f"{found[2]:9.0f} {more[2]:>8}"
                )


if __name__ == "__main__":
    main()
