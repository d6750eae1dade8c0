"""SGLang's words for a plan. Rules as read in the source of the release below."""

from __future__ import annotations

import math

from devctl.export.records import Command, Export, Exportable, Unsayable, visible_devices

RELEASE = "0.5.23"
PORT = 25000
_DTYPES = frozenset({"float16", "bfloat16", "float32"})
_KV_DTYPES = {None: None, "bfloat16": "bfloat16", "float8_e4m3fn": "fp8_e4m3", "float8_e5m2": "fp8_e5m2"}


def export(plan: Exportable) -> Export | Unsayable:
    """``sglang.launch_server`` with the stages, the sharing and the tokens of ``plan``."""
    if reasons := _reasons(plan):
        return Unsayable(reasons)
    stages, hosts = plan.stages, plan.stages.hosts
    words = ["python", "-m", "sglang.launch_server", "--model-path", plan.model]
    if plan.revision is not None:
        words += ["--revision", plan.revision]
    if plan.quantisation is None and plan.dtype is not None:
        words += ["--dtype", plan.dtype]
    if len(stages.stages) > 1:
        words += ["--pp-size", str(len(stages.stages))]
    if stages.tensor_parallel > 1:
        words += ["--tp-size", str(stages.tensor_parallel)]
    if plan.context_length is not None:
        tokens = plan.context_length * plan.batch_size
        words += ["--context-length", str(plan.context_length), "--max-running-requests", str(plan.batch_size)]
        words += ["--max-total-tokens", str(tokens)]
    if (kept_in := _KV_DTYPES[plan.kv_dtype]) is not None:
        words += ["--kv-cache-dtype", kept_in]
    if plan.cpu_bytes:
        words += ["--cpu-offload-gb", str(math.ceil(plan.cpu_bytes / 2**30))]
    commands = []
    for rank, host in enumerate(hosts):
        here = tuple(each.device for each in stages.ranks() if each.host == host)
        environment = {}
        if (order := visible_devices(here)) is not None:
            environment["CUDA_VISIBLE_DEVICES"] = order
        if len(stages.stages) > 1:  # without it, the layers that are over go to the last stages
            environment["SGLANG_PP_LAYER_PARTITION"] = ",".join(map(str, plan.counts))
        own = list(words)
        if len(hosts) > 1:
            own += ["--nnodes", str(len(hosts)), "--node-rank", str(rank), "--dist-init-addr", f"{hosts[0]}:{PORT}"]
        commands.append(Command(host=host if len(hosts) > 1 else "", environment=environment, words=tuple(own)))
    return Export(engine="SGLang", release=RELEASE, commands=tuple(commands), notes=_notes(plan))


def _reasons(plan: Exportable) -> tuple[str, ...]:
    stages = plan.stages
    found = []
    if plan.on_cpu is not None and len(stages.stages) > 1:
        found.append("SGLang offloads the same bytes on every GPU: a plan of several GPUs can't say it")
    elif plan.on_cpu is not None and not plan.cpu_bytes:
        found.append("SGLang is told how many bytes stay on the CPU, which a map does not say: give the plan document")
    if plan.quantisation is None and plan.dtype not in (None, *_DTYPES):
        found.append(f"SGLang has no --dtype {plan.dtype}")
    if plan.kv_dtype not in _KV_DTYPES:
        found.append(f"SGLang has no --kv-cache-dtype for {plan.kv_dtype}")
    if any(not device.startswith("cuda:") for stage in stages.stages for device in stage.devices):
        found.append("SGLang's pipeline is of cuda devices only")
    ranks = {host: sum(each.host == host for each in stages.ranks()) for host in stages.hosts}
    if len(set(ranks.values())) > 1:
        told = ", ".join(f"{host} {count}" for host, count in ranks.items())
        found.append(f"SGLang starts as many workers on every host, and the plan has unequal ones: {told}")
    return tuple(found)


def _notes(plan: Exportable) -> tuple[str, ...]:
    notes = []
    if plan.context_length is None:
        notes.append("the plan counts no workload: SGLang takes the model's whole context, and what memory it likes")
    else:
        notes.append("--mem-fraction-static is SGLang's own guess; --max-total-tokens only makes its pool smaller")
    if plan.cpu_bytes:
        notes.append(
            "SGLang chooses which weights it leaves in the CPU's memory: as many bytes, not the plan's modules"
        )
    if len(plan.stages.hosts) > 1:
        notes.append(f"the name {plan.stages.hosts[0]} has to lead there from every host; start the lines together")
    return tuple(notes)
