"""The engines, by name."""

from __future__ import annotations

from collections.abc import Callable

from devctl.errors import RefusedError, UsageError, did_you_mean
from devctl.export import llama_cpp, sglang, vllm
from devctl.export.records import Export, Exportable, Unsayable

ENGINES: dict[str, Callable[[Exportable], Export | Unsayable]] = {
    "vllm": vllm.export,
    "sglang": sglang.export,
    "llama.cpp": llama_cpp.export,
}


def export(plan: Exportable | Unsayable, engine: str, host: str | None = None) -> Export:
    """``plan`` in the words of ``engine``.

    Args:
        host: the line of one host alone.

    Raises:
        UsageError: there is no such engine, or no such host.
        RefusedError: the engine can't run it so, with every reason; or it is a plan for another.
    """
    if engine not in ENGINES:
        raise UsageError(f"--to {engine}: not one of {', '.join(ENGINES)}{did_you_mean(engine, ENGINES)}")
    if isinstance(plan, Exportable) and plan.dtype == llama_cpp.GGUF and engine != "llama.cpp":
        raise RefusedError(f"{engine} is not what a GGUF file is planned for", hint="give --to llama.cpp")
    if isinstance(plan, Exportable) and plan.serving is not None and engine != "vllm":
        raise RefusedError(
            f"the plan is for vLLM, and what fits there does not in {engine}", hint="plan it anew, without --engine"
        )
    found = plan if isinstance(plan, Unsayable) else ENGINES[engine](plan)
    if isinstance(found, Unsayable):
        raise RefusedError(f"{engine} can't run this plan as it is", findings=found.reasons)
    if host is None:
        return found
    commands = tuple(command for command in found.commands if command.host == host)
    if not commands:
        known = ", ".join(command.host for command in found.commands if command.host)
        raise UsageError(f"--host {host}: the plan's hosts are {known or 'none: it is for one machine'}")
    return Export(engine=found.engine, release=found.release, commands=commands, notes=found.notes)
