"""What a rank holds beside its weights, and what a model by itself does; real ranks are in tests/placement/parallel."""

import functools
from dataclasses import replace

import pytest
import torch

from devctl.errors import UntracedError
from devctl.models.files.resolve import resolve
from devctl.models.footprint import Kernels, Workload, dump_footprint, parse_footprint, peak_bytes, state_bytes
from devctl.models.sharding import CUTS, Sharding
from devctl.models.skeleton import read_skeleton
from devctl.models.tracing.sharded import _AS_IT_IS, _FORWARDS
from devctl.models.tracing.trace import trace_footprint
from tests.marks import slow
from tests.sharded import SHARDED

ALONE = Workload(context_length=64, batch_size=2)
OF_TWO = replace(ALONE, tensor_parallel=2)


@pytest.fixture(scope="module")
def skeleton_of(tmp_path_factory):
    @functools.cache
    def read(name):
        model_class, config = SHARDED[name]()
        config.architectures, config.dtype = [model_class.__name__], "float32"
        folder = tmp_path_factory.mktemp("configs") / name
        config.save_pretrained(folder)
        return read_skeleton(resolve(str(folder)))

    return read


@pytest.mark.parametrize("generation", [(("cache_implementation", "static"),), *slow(((),))], ids=["static", "growing"])
def test_keys_and_values_are_halved_and_so_is_a_static_cache(skeleton_of, generation):
    skeleton = skeleton_of("llama")
    alone, rank = (
        trace_footprint(skeleton, replace(each, generation=generation, kernels=Kernels.CPU)) for each in (ALONE, OF_TWO)
    )
    assert state_bytes(rank) * 2 == state_bytes(alone)
    assert peak_bytes(rank) < peak_bytes(alone)


def test_a_gather_is_counted_whole_and_with_its_parts(skeleton_of):
    """Of a forward, the logits of every token: 129 columns of each, of which a rank has 65, received as 2 × 65."""
    skeleton = skeleton_of("llama")
    read = replace(OF_TWO, new_tokens=0)
    (head,) = (block for block in trace_footprint(skeleton, read).blocks if block.name == "lm_head")
    tokens, width = 64 * 2, 4
    assert head.prefill >= tokens * width * (65 + 2 * 65 + 129)


def test_a_rank_of_experts_runs_all_tokens(skeleton_of):
    skeleton = skeleton_of("mixtral")
    cut, shared_out = (
        trace_footprint(skeleton, replace(OF_TWO, context_length=24, batch_size=16, expert_parallel=each))
        for each in (1, 2)
    )
    assert peak_bytes(shared_out) > peak_bytes(cut)
    assert state_bytes(shared_out) == state_bytes(cut)


def test_every_style_is_known_to_do_something():
    known = _AS_IT_IS | set(_FORWARDS)
    assert set(CUTS) - known == {"sequence_parallel"}, "which no model's plan has"


def test_a_style_whose_forward_is_not_known_is_refused(skeleton_of):
    skeleton = skeleton_of("llama")
    odd = Sharding(tensor=(("model.norm", "sequence_parallel"),))
    for sharding, said in (
        (odd, "'sequence_parallel' is not known"),
        (Sharding(), "is not known"),
        (None, "not known"),
    ):
        changed = replace(skeleton, tree=replace(skeleton.tree, sharding=sharding))
        with pytest.raises(UntracedError, match=said):
            trace_footprint(changed, OF_TWO)


def test_a_rank_is_kept_by_itself_and_what_is_done_to_a_model_is_done_to_it_alone(skeleton_of):
    skeleton = skeleton_of("llama")
    before = trace_footprint(skeleton, ALONE)
    found = trace_footprint(skeleton, OF_TWO)
    again = parse_footprint(dump_footprint(found))
    assert again == found != before
    assert again.workload.tensor_parallel == 2
    assert "tensor_parallel" not in found.workload.to_document()
    assert trace_footprint(skeleton, ALONE) == before
    assert isinstance(skeleton.model.lm_head, torch.nn.Linear)
    assert "forward" not in vars(skeleton.model.lm_head)
