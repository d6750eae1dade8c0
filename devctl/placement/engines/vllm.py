"""What vLLM holds on each accelerator, and what is left for its cache.

The pool is the share of the board that vLLM may take, less the weights, less the activations of the largest step, which
it runs once to see, less what is not torch's and grows meanwhile (``gpu_worker.determine_available_memory``). The
context that the process has before, and CUDA's graphs after, are beside that share.

The rules are those of vLLM 0.19.0, and its figures those of 43 logged runs of it on H100s with 80 GB (github
llm-d-incubation/llm-d-planner, d3121e05, accuracy/results/v0.19.0/logs): 20 models, ``--tensor-parallel-size`` and
``--pipeline-parallel-size`` 1, 2 and 4. ``tests/benchmarks/engine.md`` holds them against those runs, row by row. Where
the runs leave it open, the larger figure is taken, so that the pool is rather told too small.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from devctl.placement.engines.text_model import LATENT_PAGE, TextModel

RELEASE = "0.19.0"
MEASURED_ON = "H100s with 80 GB"
GRAPHS_INSIDE = "0.21.0"
"""The release from which on an estimate of the graphs is taken from the pool, as 0.33.0 says
(``VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS``)."""

UTILISATION = 0.9
"""``gpu_memory_utilization`` of 0.19.0 where nothing is said; 0.33.0 has 0.92."""

_GIB = 2**30

_LARGE_BOARD = 70 * _GIB
_DEFAULTS = {True: (8192, 1024), False: (2048, 256)}
"""``max_num_batched_tokens`` and ``max_num_seqs`` of ``vllm serve``: of boards from 70 GiB on, but A100s; of others
(``EngineArgs.get_batch_defaults``)."""

_FIXED = 54 * 2**20
"""Of the activations: what does not depend on the model. Inputs, cuBLAS's workspace and the like; by the runs."""
_UNPACKED = 64 * 1024
"""Tokens whose latents are unpacked at once, at most."""
_CHOOSING = 512 * 2**20
"""Of the logits with which sparse attention chooses tokens (``VLLM_SPARSE_INDEXER_MAX_LOGITS_MB``)."""
_EXPERT_ROWS = 128
"""Rows of an expert's block (``get_mk_alignment_for_contiguous_layout``)."""
_PROGRAMS = 132
"""Rows of the sampler's buffer, one for each multiprocessor of an H100 (``apply_top_k_top_p_triton``)."""
_SAMPLED = 12
"""Bytes of each logit beside the model's own: in float32, its probability, and the random number that divides that."""
_ALONG = 3.5
"""Hidden states that are alive while a layer works, beside what is within it: residual, input, norm, output; by the
runs of granite-3.3-8b, whose widest layer decides."""
_FIRST = 3
"""Hidden states more on the first of several stages; by the run with ``--pipeline-parallel-size`` 2 and 4."""
_HANDED = 2
"""Hidden states that a later stage is given: those and the residual."""

_FREE = _GIB // 2
"""What has to be left of the board: of the logged runs, one with 0.58 GiB more ran, and one with 0.40 did not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """How ranks share a model.

    Attributes:
        tensor: ranks that share every layer.
        stages: stages that follow one another.
        stage: which of them this is.
        experts_whole: whether experts are shared out whole.
    """

    tensor: int = 1
    stages: int = 1
    stage: int = 0
    experts_whole: bool = False

    @property
    def is_last(self) -> bool:
        """Whether it chooses tokens."""
        return self.stage == self.stages - 1


def batch_defaults(total: int, board: str) -> tuple[int, int]:
    """``max_num_batched_tokens`` and ``max_num_seqs`` where nothing is said, of a board of that memory and name."""
    return _DEFAULTS[total >= _LARGE_BOARD and "a100" not in board.lower()]


def activations(model: TextModel, ranks: Ranks, batched: int, sequences: int, context: int) -> int:
    """Bytes of the largest step: ``batched`` tokens are read, or as many sequences as there can be choose a token.

    Args:
        context: tokens of the longest sequence. Of models that keep neither latents nor images it decides nothing.
    """
    row = batched * model.item
    state = row * model.hidden
    received = _HANDED * state if ranks.stage else 0
    seen = 0 if model.seen is None else model.seen.most(batched, context)
    held = _FIXED + received + _experts(model, ranks, batched) + _images(model, seen) + _indexed(model, context)
    first = _FIRST * state if ranks.stages > 1 and not ranks.stage else 0
    layer = max(row * _within(model, ranks), _restored(model, ranks, batched, sequences, context))
    layer += math.ceil(_ALONG * state) + first
    sampler = 0
    if ranks.is_last:
        rows, vocabulary = min(sequences, batched), -(-model.vocabulary // 64) * 64
        sampler = rows * vocabulary * (model.item + _SAMPLED) + _PROGRAMS * vocabulary * 4 + state
    return held + max(layer, sampler, _tower(model, seen))


def buffers(model: TextModel, batched: int) -> int:
    """Bytes that are there with the weights: what the text is given of images beside the first hidden states."""
    if model.seen is None:
        return 0
    return model.seen.levels * batched * model.hidden * model.item


def _within(model: TextModel, ranks: Ranks) -> int:
    """Channels alive within the widest layer of a rank, for a token: gate, up and their product; or of attention."""
    if model.latent:
        attention = model.heads * model.unpacked
    else:
        attention = (2 * model.heads + 2 * model.kv_heads) * model.head_dim
    return math.ceil(max(3 * model.intermediate, attention) / ranks.tensor)


def _experts(model: TextModel, ranks: Ranks, batched: int) -> int:
    """The two workspaces that experts share, which stay (``TritonExperts.workspace_shapes``); MXFP4's have none.

    Where channels are quantised together, each expert's tokens are filled up to whole blocks
    (``DeepGemmExperts.workspace_shapes``).
    """
    if not model.experts or model.packed_experts:
        return 0
    within = math.ceil(model.expert_intermediate / (1 if ranks.experts_whole else ranks.tensor))
    widest = max(within, model.hidden) + max(2 * within, model.hidden)
    rows = batched * model.experts_per_token
    if model.block > 1:
        here = math.ceil(model.experts / (ranks.tensor if ranks.experts_whole else 1))
        rows += here * (_EXPERT_ROWS - 1)
    return rows * widest * model.item


def _restored(model: TextModel, ranks: Ranks, batched: int, sequences: int, context: int) -> int:
    """What is alive while the latents of earlier tokens are unpacked, of which vLLM makes room for as many as it ever
    unpacks at once (``MLAAttention.forward``, ``determine_chunked_prefill_workspace_size``), and what chooses tokens.
    """
    if not model.latent:
        return 0
    earlier = min(max(8 * context, 4 * sequences * LATENT_PAGE), _UNPACKED)
    asking = batched * (model.unpacked // 2)
    chosen = _CHOOSING if model.beside_latent else 0
    return math.ceil(model.heads * (earlier * model.restored + asking) * model.item / ranks.tensor) + chosen


def _indexed(model: TextModel, context: int) -> int:
    """The workspace of sparse attention, which stays: latents of five of the longest sequences, in 16 bits
    (``sparse_mla_prefill_workspace_factor``).
    """
    return 5 * context * model.latent * 2 if model.beside_latent else 0


def _images(model: TextModel, tokens: int) -> int:
    """Images of so many tokens: their pixels, and what the text gets of them, which both stay."""
    if model.seen is None:
        return 0
    return tokens * (model.seen.pixels * 3 + model.hidden * (1 + model.seen.levels)) * model.item


def _tower(model: TextModel, tokens: int) -> int:
    """What is alive within the tower while it sees those images."""
    if model.seen is None:
        return 0
    return tokens * model.seen.patches * model.seen.within * model.item


def non_torch(model: TextModel, ranks: Ranks) -> int:
    """Bytes that are not torch's, and come after the start: kernels', and communicators' where ranks share layers.

    By the runs 0.24 to 0.27 GiB of one rank (0.46 of one model), 0.07 of stages alone, and of 2 and 4 ranks that share
    layers 2.06 to 2.11 and 2.13 to 2.21, the more the wider the model is. Of more ranks it is not known: it goes on so.
    """
    if ranks.tensor > 1:
        wide = model.hidden / 4096
        return int((2.0 + 0.03 * math.log2(ranks.tensor) + 0.02 * ranks.tensor * wide) * _GIB)
    return int((0.08 if ranks.stages > 1 else 0.27) * _GIB)


def context(model: TextModel, ranks: Ranks) -> int:
    """Bytes that a process takes before it has a model.

    By the runs 0.51 GiB of one rank; 1.53 and 1.55 of 2 and 4 that share layers, 2.01 and 2.07 of models with experts;
    1.43 and 1.48 of 2 and 4 stages.
    """
    found = 0.51
    if ranks.tensor > 1:
        found += 1.0 + 0.02 * math.log2(ranks.tensor) + (0.52 if model.experts else 0)
    if ranks.stages > 1:
        found += 0.87 + 0.05 * math.log2(ranks.stages)
    return int(found * _GIB)


def graphs(model: TextModel, layers: int, ranks: Ranks) -> int:
    """Bytes of CUDA's graphs of so many layers.

    By the runs they are, of one rank, 0.51 to 0.98 GiB of 8 to 40 dense layers, and up to 0.3 more with experts; of
    ranks that share layers 0.64 to 0.80 GiB of 28 and 32 layers, up to 1.85 of 80, and with experts of MXFP4 0.95 more.
    """
    if ranks.tensor > 1:
        more = 0.95 if model.packed_experts else 0.1 if model.experts else 0
        return int((0.08 + 0.0225 * layers + more) * _GIB)
    more = 0.75 if model.packed_experts else 0.3 if model.experts else 0
    return int((0.42 + 0.018 * layers + more) * _GIB)


def least_free() -> int:
    """Bytes that have to be left of a board when all is in place."""
    return _FREE
