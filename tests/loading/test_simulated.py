"""Several accelerators in one map, on simulated devices: copies, hooks, offload, ties, and what a plan says of them.

No claim here rests on a real accelerator.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from devctl.placement import Strategy
from tests.loading.conftest import told_by

OUT_OF_ORDER = {
    "bart": "its encoder and decoder define their norm of the embeddings after the layers, and run it before",
    "bert": "its head defines its bias, and the tied decoder, in another order than it runs them",
}
"""Models that do not run in the order of definition, which a plan's crossings are counted in."""


def judge(cases):
    """Every map ran as on one device, each tensor in its place, each byte where it was predicted."""
    for case in cases:
        name = f"{case['model']}, {case['map']}"
        assert case["failed"] is None, f"{name}: {case['failed']}"
        assert case["refused"] == [], name
        assert case["misplaced"] == [], name
        assert case["nonfinite"] == [], name
        assert case["apart"] <= 1e-5, name
        assert case["same_tokens"], name
        assert all(predicted == measured for predicted, measured in case["bytes"].values()), name
        assert case["copies"] > 0, name
        if case["predicted"].keys() <= {"cuda:0", "cuda:1", "cuda:2"} and case["model"] not in OUT_OF_ORDER:
            assert case["crossings"] == case["planned"], name


@pytest.fixture(scope="module")
def llama():
    return told_by("on_simulated", "llama-tied")


def test_strategies_over_accelerators_cpu_and_disk(llama):
    whole = [case for case in llama if not case["map"].startswith("tie on")]
    judge(whole)
    assert len(whole) == 7
    assert sum(case["map"].endswith("on 2, cpu, disk") for case in whole) == 2
    assert max(len(case["predicted"]) for case in whole) == 4
    assert {case["crossings"] for case in whole} >= {2, 3}


def test_a_weight_that_a_map_ties_over_the_cpu_is_on_the_accelerator(llama):
    cases = [case for case in llama if case["map"] in ("tie on cuda:0 and cpu", "tie on cpu and cuda:1")]
    assert len(cases) == 2
    judge(cases)


def test_a_weight_that_a_map_ties_over_two_accelerators_can_not_run_and_is_refused(llama):
    (case,) = [case for case in llama if case["map"] == "tie on cuda:0 and cuda:1"]
    assert "Expected all tensors to be on the same device" in case["failed"]
    assert case["refused"] == [
        "lm_head.weight and model.embed_tokens.weight are one tensor, but on cuda:1 and cuda:0: "
        "transformers can't run it so"
    ]


@pytest.mark.slow
def test_models_of_other_kinds():
    cases = told_by("on_simulated", "llama", "mixtral", "gemma2", "phi3", "t5", "bart", "bert")
    judge(cases)
    assert len(cases) == 7 * 6 + 5, "bart's and bert's maps name tensors, which dispatch_model does not move"
    placed = {case["map"] for case in cases}
    assert placed >= {f"{strategy} on {box}" for strategy in Strategy for box in ("3", "2, cpu, disk")}


ACCOUNT = """
account = simulated.memory
with torch.no_grad(), simulated.running(limit=2**20):
    kept = torch.ones(1000).to("sim:1")
    view, twice = kept[10:], kept * 2
    print(account.live[1], account.peak[1])
    del kept, twice
    print(account.live[1], account.peak[1])
    del view
    account.begin()
    print(account.live[1], account.peak[1], account.live[0])
    full = torch.ones(2**18, device="sim:1")
    try:
        full + 1
    except torch.OutOfMemoryError as error:
        print(error)
        print(*out_of_memory.parse(str(error)))
    query = torch.ones(1, 1, 64, 8).to("sim:0")
    account.begin()
    torch.nn.functional.scaled_dot_product_attention(query, query, query)
    print(account.peak[0] - account.live[0])
"""

OPERANDS = """
with simulated.running() as record:
    here, there = torch.ones(2, 3).to("sim:0"), torch.ones(2, 3, device="sim:1")
    try:
        here + there
    except RuntimeError as error:
        print(error)
    print((here + there.to("sim:0")).cpu().sum().item(), record.copies)
"""

SCRIPT = f"""
import torch
from devctl.loading.run import out_of_memory
from tests import simulated
simulated.register()
{ACCOUNT}
print("operands")
{OPERANDS}
"""


@pytest.fixture(scope="module")
def told():
    """Lines of `ACCOUNT`, and those of `OPERANDS`: one process imports torch for both."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    at = lines.index("operands")
    return lines[:at], lines[at + 1 :]


@pytest.mark.slow
def test_the_simulation_refuses_operands_on_two_devices_and_counts_copies(told):
    refused, ran = told[1]
    assert refused == "Expected all tensors to be on the same device, found {0, 1} in aten.add.Tensor"
    assert ran == "12.0 [('cpu', 0, 24), (1, 0, 24), (0, 'cpu', 24)]"


@pytest.mark.slow
def test_a_device_holds_storages_until_their_last_tensor_ends_and_no_more_than_its_limit(told):
    shared, viewed, ended, *ran_out, attention = told[0]
    assert shared == "8000 8000"
    assert viewed == "4000 8000", "all of a storage lives with a view of it"
    assert ended == "0 0 0"
    assert ran_out == [
        "CUDA out of memory. Tried to allocate 1.00 MiB. GPU 1 has a total capacity of 1.00 MiB of which 0.00 MiB is "
        "free.",
        f"cuda:1 {2**20}",
    ]
    assert 64 * 8 * 4 <= int(attention) < 64 * 64 * 4, "no scores are written out"
