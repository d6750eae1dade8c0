"""vLLM's words for a plan. Rules as read in the source of the release below."""

from __future__ import annotations

import math
from dataclasses import replace

from devctl.export.records import Export, Exportable, Unsayable
from devctl.export.servers import Server
from devctl.placement.engines.records import Serving

RELEASE = "0.33.0"
PORT = 29501
SERVER = Server(
    name="vLLM",
    key="vllm",
    partition="VLLM_PP_LAYER_PARTITION",
    kv_dtypes={
        None: None,
        "bfloat16": "bfloat16",
        "float16": "float16",
        "float8_e4m3fn": "fp8_e4m3",
        "float8_e5m2": "fp8_e5m2",
    },
    offloading="the same bytes on every GPU (--cpu-offload-gb)",
    devices="vLLM's CUDA and ROCm builds take cuda devices only",
)
_GRAPHS = "VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS"
_PAGE = 16
"""Tokens of a page of the cache, as most of its backends have it: a sequence takes whole ones."""


def export(plan: Exportable) -> Export | Unsayable:
    """``vllm serve`` with the stages, the sharing and the cache of ``plan``."""
    if reasons := SERVER.reasons(plan):
        return Unsayable(reasons)
    stages, hosts = plan.stages, plan.stages.hosts
    words = ["vllm", "serve", plan.model, *SERVER.about_model(plan)]
    if len(stages.stages) > 1:
        words += ["--pipeline-parallel-size", str(len(stages.stages))]
    if stages.tensor_parallel > 1:
        words += ["--tensor-parallel-size", str(stages.tensor_parallel)]
    if plan.expert_parallel > 1:
        words.append("--enable-expert-parallel")
    if plan.serving is not None:
        words += _served(plan, plan.serving)
    elif plan.context_length is not None:
        words += ["--max-model-len", str(plan.context_length), "--max-num-seqs", str(plan.batch_size)]
        if plan.kept_alike:
            words += ["--kv-cache-memory-bytes", str(cache_bytes(plan))]
    words += SERVER.about_cache(plan)
    if plan.cpu_bytes:
        words += ["--cpu-offload-gb", f"{math.ceil(plan.cpu_bytes / 2**30 * 100) / 100:g}"]

    def joined(number: int) -> list[str]:
        there = ["--distributed-executor-backend", "mp", "--nnodes", str(len(hosts)), "--node-rank", str(number)]
        there += ["--master-addr", hosts[0], "--master-port", str(PORT)]
        return [*there, "--headless"] if number else there

    notes = SERVER.notes(plan)
    if plan.context_length is None and plan.serving is None:
        notes.insert(0, "the plan counts no workload: vLLM takes the model's whole context, and 0.92 of each GPU")
    elif plan.serving is None and not plan.kept_alike:
        # windows are freed only once a step is over, and a page is as large as the largest that a layer keeps
        notes.insert(
            0,
            "its layers keep windows or unlike caches, which vLLM pages by rules of its own: it takes 0.92 of each "
            "GPU; `devctl plan --engine vllm` counts what it holds",
        )
    commands = SERVER.commands(plan, words, joined)
    if plan.serving is not None:
        commands = tuple(replace(each, environment={**each.environment, _GRAPHS: "0"}) for each in commands)
        notes.insert(
            0, f"{_GRAPHS}=0: the cache is as planned, with the graphs beside it, as vLLM had it before 0.21.0"
        )
    return Export(engine=SERVER.name, release=RELEASE, commands=commands, notes=tuple(notes))


def _served(plan: Exportable, serving: Serving) -> list[str]:
    """What a plan for vLLM counts with, so that its cache is as large as planned."""
    words = [] if plan.context_length is None else ["--max-model-len", str(plan.context_length)]
    words += ["--max-num-seqs", str(serving.sequences), "--max-num-batched-tokens", str(serving.batched_tokens)]
    words += ["--gpu-memory-utilization", f"{serving.utilisation:g}"]
    if serving.expert_parallel:
        words.append("--enable-expert-parallel")
    return [*words, "--quantization", "fp8"] if serving.quantised_while_loading else words


def cache_bytes(plan: Exportable) -> int:
    """Bytes of the cache on each GPU, which is one figure for all of them: the most that any stage needs.

    vLLM gives every stage as many pages as the stage has that can hold the fewest, so that one of fewer layers takes no
    more than its own part of it. What a GPU has left beyond that is for vLLM's own graphs and buffers.
    """
    tokens, sequences = plan.context_length or 1, plan.batch_size
    # a window takes a page more where it begins within one, and of the pool a page is never given away
    pages = sequences * (math.ceil(tokens / _PAGE) + 1) + 1
    return max(-(-stage.state * pages * _PAGE // (tokens * sequences)) for stage in plan.stages.stages)
