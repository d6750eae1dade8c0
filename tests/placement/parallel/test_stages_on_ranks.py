"""What each stage holds while it runs, foretold and measured: ranks of transformers' pipeline on the CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ranks talk over lo")

RUNS = {
    "the prompt is most": ["llama", "1,3", "512", "2", "8"],
    "the last step is most": ["llama", "3,1", "64", "2", "40"],
    "windows": ["gemma2", "2,2", "512", "1", "8"],
    "experts": ["mixtral", "2,2", "300", "2", "20"],
    "latent attention": ["deepseek-v3", "1,3", "300", "1", "20"],
}


@pytest.mark.slow
@pytest.mark.parametrize("arguments", RUNS.values(), ids=RUNS)
def test_a_stage_holds_beside_its_weights_what_its_rank_does(arguments):
    root = Path(__file__).parents[3]
    environment = {**os.environ, "PYTHONPATH": str(root), "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.placement.parallel.on_ranks", *arguments],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env=environment,
    )
    ranks = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"rank"')]
    assert len(ranks) == 2, done.stderr[-2000:]
    for rank in ranks:
        # what is received counts on the first stage too, which matters where it has one layer
        assert 0.999 <= rank["predicted"] / rank["measured"] <= 1.1, ranks
