"""vLLM's words for a plan. Rules as read in the source of the release below."""

from __future__ import annotations

import math

from devctl.export.records import Command, Export, Exportable, Unsayable, visible_devices

RELEASE = "0.33.0"
PORT = 29501
_DTYPES = frozenset({"float16", "bfloat16", "float32"})
_KV_DTYPES = {
    None: None,
    "bfloat16": "bfloat16",
    "float16": "float16",
    "float8_e4m3fn": "fp8_e4m3",
    "float8_e5m2": "fp8_e5m2",
}
_PAGE = 16
"""Tokens of a page of the cache, as most of its backends have it: a sequence takes whole ones."""


def export(plan: Exportable) -> Export | Unsayable:
    """``vllm serve`` with the stages, the sharing and the cache of ``plan``."""
    if reasons := _reasons(plan):
        return Unsayable(reasons)
    stages, hosts = plan.stages, plan.stages.hosts
    words = ["vllm", "serve", plan.model]
    if plan.revision is not None:
        words += ["--revision", plan.revision]
    if plan.quantisation is None and plan.dtype is not None:
        words += ["--dtype", plan.dtype]
    if len(stages.stages) > 1:
        words += ["--pipeline-parallel-size", str(len(stages.stages))]
    if stages.tensor_parallel > 1:
        words += ["--tensor-parallel-size", str(stages.tensor_parallel)]
    if plan.context_length is not None:
        words += ["--max-model-len", str(plan.context_length), "--max-num-seqs", str(plan.batch_size)]
        words += ["--kv-cache-memory-bytes", str(cache_bytes(plan))]
    if (kept_in := _KV_DTYPES[plan.kv_dtype]) is not None:
        words += ["--kv-cache-dtype", kept_in]
    if plan.cpu_bytes:
        words += ["--cpu-offload-gb", f"{math.ceil(plan.cpu_bytes / 2**30 * 100) / 100:g}"]
    commands = []
    for rank, host in enumerate(hosts):
        here = tuple(each.device for each in stages.ranks() if each.host == host)
        environment = {}
        if (order := visible_devices(here)) is not None:
            environment["CUDA_VISIBLE_DEVICES"] = order
        if len(stages.stages) > 1:
            environment["VLLM_PP_LAYER_PARTITION"] = ",".join(map(str, plan.counts))
        own = list(words)
        if len(hosts) > 1:
            own += ["--distributed-executor-backend", "mp", "--nnodes", str(len(hosts)), "--node-rank", str(rank)]
            own += ["--master-addr", hosts[0], "--master-port", str(PORT)] + (["--headless"] if rank else [])
        commands.append(Command(host=host if len(hosts) > 1 else "", environment=environment, words=tuple(own)))
    return Export(engine="vLLM", release=RELEASE, commands=tuple(commands), notes=_notes(plan))


def cache_bytes(plan: Exportable) -> int:
    """Bytes of the cache on each GPU, which is one figure for all of them: the most that any stage needs.

    vLLM gives every stage as many pages as the stage has that can hold the fewest, so that one of fewer layers takes no
    more than its own part of it. What a GPU has left beyond that is for vLLM's own graphs and buffers.
    """
    tokens = plan.context_length or 1
    paged = math.ceil(tokens / _PAGE) * _PAGE
    return max(-(-stage.state * paged // tokens) for stage in plan.stages.stages)


def _reasons(plan: Exportable) -> tuple[str, ...]:
    stages = plan.stages
    found = []
    if plan.on_cpu is not None and len(stages.stages) > 1:
        found.append(
            "vLLM offloads the same bytes on every GPU (--cpu-offload-gb): a plan of several GPUs can't say it"
        )
    elif plan.on_cpu is not None and not plan.cpu_bytes:
        found.append("vLLM is told how many bytes stay on the CPU, which a map does not say: give the plan document")
    if plan.quantisation is None and plan.dtype not in (None, *_DTYPES):
        found.append(f"vLLM has no --dtype {plan.dtype}")
    if plan.kv_dtype not in _KV_DTYPES:
        found.append(f"vLLM has no --kv-cache-dtype for {plan.kv_dtype}")
    if any(not device.startswith("cuda:") for stage in stages.stages for device in stage.devices):
        found.append("vLLM's CUDA and ROCm builds take cuda devices only")
    ranks = {host: sum(each.host == host for each in stages.ranks()) for host in stages.hosts}
    if len(set(ranks.values())) > 1:
        told = ", ".join(f"{host} {count}" for host, count in ranks.items())
        found.append(f"vLLM starts as many workers on every host, and the plan has unequal ones: {told}")
    return tuple(found)


def _notes(plan: Exportable) -> tuple[str, ...]:
    notes = []
    if plan.context_length is None:
        notes.append("the plan counts no workload: vLLM takes the model's whole context, and 0.92 of each GPU")
    if plan.cpu_bytes:
        notes.append("vLLM chooses which weights it leaves in the CPU's memory: as many bytes, not the plan's modules")
    if len(plan.stages.hosts) > 1:
        notes.append(f"the name {plan.stages.hosts[0]} has to lead there from every host; start the lines together")
    return tuple(notes)
