"""What is said of ranks, beside what ranks really hold: two processes on this machine, with gloo between them."""

from dataclasses import replace

import pytest
import torch

from devctl.models.files.resolve import resolve
from devctl.models.footprint import Kernels, Workload, peak_bytes
from devctl.models.skeleton import read_skeleton
from devctl.models.tracing.trace import trace_footprint
from devctl.placement.parallel.tensor import Ranks, rank_tree
from tests import sharded_run
from tests.sharded import EXPERTS, SHARDED

PROMPT = 17
RUN = Workload(context_length=400, batch_size=2, new_tokens=3, kernels=Kernels.CPU)

# a grouped product takes whole blocks of 16 bytes alone; what is small has a peak of its own
_WIDTHS = {"vocab_size": 2049, "hidden_size": 256, "intermediate_size": 768, "max_position_embeddings": 1024}


def saved(name, folder):
    """A small model of random weights, wide enough for its peak to be looked at."""
    model_class, config = SHARDED[name]()
    told = config.to_dict() | _WIDTHS
    if "moe_intermediate_size" in told:
        told["moe_intermediate_size"] = 128
    config = type(config)(**told)
    config.architectures = [model_class.__name__]
    torch.manual_seed(0)
    model_class(config).save_pretrained(folder)
    return read_skeleton(resolve(str(folder)))


def holds(name, folder, *, experts=False):
    skeleton = saved(name, folder)
    found = sharded_run.shared(folder, PROMPT, experts=experts, workload=RUN)
    whole = sharded_run.alone(folder, PROMPT)
    ranks = Ranks(size=2, experts=2 if experts else 1)
    on_rank = {"tensor_parallel": ranks.size, "expert_parallel": ranks.experts}

    read = replace(RUN, context_length=PROMPT + 1, new_tokens=1, **on_rank)
    cache = sum(block.prompt_state for block in trace_footprint(skeleton, read).blocks)
    peak = peak_bytes(trace_footprint(skeleton, replace(RUN, **on_rank)))
    for rank, real in enumerate(found):
        assert torch.allclose(torch.tensor(real["logits"]), torch.tensor(whole["logits"]), atol=5e-6)
        assert real["ids"] == whole["ids"]
        held = rank_tree(skeleton.tree, ranks, rank).index.held
        assert {each: held[each] for each in real["bytes"]} == real["bytes"]
        assert held[""] == sum(real["bytes"].values())
        assert real["cache"] == cache
    least = min(real["peak"] for real in found)
    assert 0.999 * least <= peak <= 1.4 * least
    return found, whole


@pytest.mark.slow
def test_two_ranks_hold_what_is_said(tmp_path):
    found, whole = holds("llama", tmp_path)
    assert found[0]["cache"] == whole["cache"] // 2


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in SHARDED if name != "llama"])
def test_so_they_do_of_other_architectures(name, tmp_path):
    found, whole = holds(name, tmp_path)
    if name in ("gpt-oss", "deepseek-v3", "deepseek-v2", "phi3", "olmo2"):
        assert found[0]["cache"] == whole["cache"], "its plan does not cut it"
    elif name == "qwen3-next":
        assert whole["cache"] // 2 < found[0]["cache"] < whole["cache"], "states of linear attention are whole"
    else:
        assert found[0]["cache"] == whole["cache"] // 2


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERTS)
def test_so_they_do_where_they_share_experts_out(name, tmp_path):
    holds(name, tmp_path, experts=True)
