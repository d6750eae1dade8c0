"""What a stage holds, held against what transformers' pipeline parallelism keeps of the model on its rank."""

import pytest

from devctl.models.skeleton import live_tree
from devctl.placement.parallel.costs import Costs
from devctl.placement.parallel.layers import layers_of
from devctl.placement.parallel.stages import Board, cut_by
from tests.marks import one_in
from tests.small_models import TINY

BOARDS = [Board(host="a", devices=(f"cuda:{at}",), budget=1) for at in range(3)]


class Mesh:
    """What a pipeline's stage asks of its device mesh."""

    def __init__(self, rank, size):
        self.rank, self.count = rank, size

    def get_local_rank(self):
        return self.rank

    def size(self):
        return self.count

    def get_group(self):
        return None


def on_rank(make, rank, counts, monkeypatch):
    """The model of a rank, cut as ``counts`` say."""
    import torch
    from transformers.distributed import pipeline_parallel

    class Planned(pipeline_parallel.PipelineStage):
        def layer_range_for_rank(self, at, layers):
            assert sum(counts) == layers
            return sum(counts[:at]), sum(counts[: at + 1])

    monkeypatch.setattr(pipeline_parallel, "PipelineStage", Planned)
    monkeypatch.setattr(pipeline_parallel.dist, "get_backend", lambda group: "gloo")
    model_class, config = make()
    with torch.device("meta"):
        model = model_class(config)
    model.tie_weights()
    return pipeline_parallel.apply_pipeline_parallelism(model, Mesh(rank, len(counts)))


@pytest.mark.parametrize("counts", [(1, 3), (2, 2), (1, 1, 2)])
@pytest.mark.parametrize("name", one_in(3, ["llama", "llama-tied", "mixtral", "gemma2", "qwen3", "phi3", "gpt-oss"]))
def test_a_stage_holds_what_its_rank_does(name, counts, monkeypatch):
    import torch

    model_class, config = TINY[name]()
    with torch.device("meta"):
        tree = live_tree(model_class(config))
    layers = layers_of(tree)
    assert layers.odd == ()
    costs = Costs(tree, layers)
    for rank, (_, first, end) in enumerate(cut_by(BOARDS[: len(counts)], counts)):
        model = on_rank(TINY[name], rank, counts, monkeypatch)
        there = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
        assert sum(tensor.nbytes for tensor in there.values()) == costs.load(first, end).used, (rank, first, end)
