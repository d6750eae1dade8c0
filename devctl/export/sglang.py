"""SGLang's words for a plan. Rules as read in the source of the release below."""

from __future__ import annotations

import math

from devctl.export.records import Export, Exportable, Unsayable
from devctl.export.servers import Server

RELEASE = "0.5.23"
PORT = 25000
SERVER = Server(
    name="SGLang",
    key="sglang",
    partition="SGLANG_PP_LAYER_PARTITION",  # without it, the layers that are over go to the last stages
    kv_dtypes={None: None, "bfloat16": "bfloat16", "float8_e4m3fn": "fp8_e4m3", "float8_e5m2": "fp8_e5m2"},
    offloading="the same bytes on every GPU",
    devices="SGLang's pipeline is of cuda devices only",
)


def export(plan: Exportable) -> Export | Unsayable:
    """``sglang.launch_server`` with the stages, the sharing and the tokens of ``plan``."""
    if reasons := SERVER.reasons(plan):
        return Unsayable(reasons)
    stages, hosts = plan.stages, plan.stages.hosts
    words = ["python", "-m", "sglang.launch_server", "--model-path", plan.model, *SERVER.about_model(plan)]
    if len(stages.stages) > 1:
        words += ["--pp-size", str(len(stages.stages))]
    if stages.tensor_parallel > 1:
        words += ["--tp-size", str(stages.tensor_parallel)]
    if plan.expert_parallel > 1:
        words += ["--ep-size", str(plan.expert_parallel)]
    if plan.context_length is not None:
        tokens = plan.context_length * plan.batch_size
        words += ["--context-length", str(plan.context_length), "--max-running-requests", str(plan.batch_size)]
        words += ["--max-total-tokens", str(tokens)]
    words += SERVER.about_cache(plan)
    if plan.cpu_bytes:
        words += ["--cpu-offload-gb", str(math.ceil(plan.cpu_bytes / 2**30))]

    def joined(number: int) -> list[str]:
        return ["--nnodes", str(len(hosts)), "--node-rank", str(number), "--dist-init-addr", f"{hosts[0]}:{PORT}"]

    first = (
        "the plan counts no workload: SGLang takes the model's whole context, and what memory it likes"
        if plan.context_length is None
        else "--mem-fraction-static is SGLang's own guess; --max-total-tokens only makes its pool smaller"
    )
    commands = SERVER.commands(plan, words, joined)
    return Export(engine=SERVER.name, release=RELEASE, commands=commands, notes=(first, *SERVER.notes(plan)))
