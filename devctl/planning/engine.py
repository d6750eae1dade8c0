"""Plans for vLLM: which accelerators have which layers there, and what its cache holds.

Nothing is traced: what vLLM holds beside the weights follows from the config (`devctl.placement.engines`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

from devctl.devices import Device
from devctl.errors import RefusedError, UsageError
from devctl.export.known import unknown
from devctl.inventory.catalogue import find
from devctl.inventory.records import Vendor
from devctl.models.footprint import Workload
from devctl.models.tree import ModuleTree
from devctl.placement.budget import Budgets
from devctl.placement.device_map import FrozenMap
from devctl.placement.engines import vllm
from devctl.placement.engines.asking import BEFORE, BEHIND, HERE, TOWERS, Asked, Part, cut, rows
from devctl.placement.engines.records import EngineFit, Serving
from devctl.placement.engines.text_model import TextModel, text_model
from devctl.placement.engines.verdict import findings
from devctl.placement.engines.vllm_weights import weights_of_rank
from devctl.placement.parallel.layers import is_behind, largest_list
from devctl.placement.parallel.places import devices_of
from devctl.placement.parallel.records import Stage, Stages
from devctl.placement.parallel.stages import Board
from devctl.placement.placement import DeviceUse, Placement
from devctl.placement.plan import Plan, Refusal
from devctl.planning.hosts import NamedMachine
from devctl.planning.machine import Machine
from devctl.planning.model import Model
from devctl.planning.plan import versions
from devctl.planning.request import EngineRequest, KvDtype, WorkloadRequest
from devctl.units import format_bytes

_TRANSFORMERS_OWN = re.compile(
    r" weights need a GPU of | does not load | more once loaded than transformers | that transformers plans with"
)
"""In notes about what transformers alone does with quantised weights."""
_OF_TOWERS = re.compile(r"vision|visual|image|multi_modal|projector|connector")
"""In names of what a model sees with, and of what hands that on to its text."""
_KV_BYTES = {None: None, KvDtype.FP8: 1, KvDtype.FLOAT16: 2, KvDtype.BFLOAT16: 2}


def plan_for_vllm(model: Model, hosts: Sequence[NamedMachine], workload: WorkloadRequest, goal: EngineRequest) -> Plan:
    """What fits in vLLM: one stage on the accelerators that share layers, or a stage for each of them or their groups.

    Args:
        hosts: one is this machine or another; with several, the stages go over them, in this order.
        workload: without a context, that which the model is made for, as vLLM takes it.

    Raises:
        RefusedError: it can't be said what vLLM would do: for this model, or these accelerators.
        UsageError: numbers that vLLM does not take.
    """
    text = _text(model)
    tensor = goal.tp or 1
    _require_shared(text, tensor, goal)
    several = len(hosts) > 1
    groups, budgets, boards = _groups(hosts, tensor, several=several)
    serving = _serving(goal, groups, boards, model)
    context = workload.context_length or text.longest or model.made_for
    if context is None:
        raise UsageError("the model's config does not say how long a text it is made for", hint="give --context-length")
    if workload.kv_dtype not in _KV_BYTES:
        raise RefusedError(f"vLLM has no --kv-cache-dtype for {workload.kv_dtype}")
    container = _layer_list(model.tree, len(text.layers))
    weights = weights_of_rank(
        model.tree,
        text,
        tensor,
        lambda name: _part_of(name, f"{container}."),
        experts_whole=serving.expert_parallel,
    )
    absorbed = -(-text.absorbed // tensor)
    if serving.sequences < workload.batch_size:
        raise UsageError(
            f"--batch-size {workload.batch_size}: vLLM runs {serving.sequences} sequences at once",
            hint="give as many with --max-num-seqs",
        )
    asked = Asked(
        text=text,
        container=container,
        weights=weights,
        by_layer=tuple(accumulate((weights.get(str(at), 0) + absorbed for at in range(len(text.layers))), initial=0)),
        serving=serving,
        ranks=tensor,
        kept_in=_KV_BYTES[None if workload.kv_dtype is None else KvDtype(workload.kv_dtype)],
        context=context,
        batch=workload.batch_size,
    )
    if len(groups) > len(text.layers):
        raise RefusedError(
            f"{len(groups)} stages are more than the {len(text.layers)} layers of {model.tree.class_name}",
            hint="share layers, with --tp, or give fewer accelerators",
        )
    parts = cut(asked, groups)
    fit = asked.fit(parts)
    refusal = _refusal(asked, parts, model, budgets, is_said=workload.context_length is not None)
    told = (note for note in model.tree.notes if not _TRANSFORMERS_OWN.search(note))
    notes = (*told, *budgets.notes, *_notes(asked, parts, fit, hosts, workload, model))
    return _plan(model, asked, parts, fit, budgets, notes, refusal, workload)


def _text(model: Model) -> TextModel:
    config: dict[str, Any] = {}
    if model.source is not None:
        config = dict(model.source.config)
    elif (live := getattr(model.request.model, "config", None)) is not None:
        config = dict(live.to_dict())
    named = config.get("architectures")
    class_name = str(named[0]) if isinstance(named, list) and named else model.tree.class_name
    if why := unknown("vllm", class_name):
        raise RefusedError(why)
    found = text_model(config, model.tree)
    if isinstance(found, str):
        raise RefusedError(found)
    return found


def _require_shared(text: TextModel, tensor: int, goal: EngineRequest) -> None:
    """Refuse ranks that vLLM refuses.

    Raises:
        RefusedError: heads or channels that can't be shared out.
    """
    uneven = [("attention heads", text.heads, text.heads % tensor)]
    if not text.latent:
        both = max(text.kv_heads, tensor) % min(text.kv_heads, tensor)
        uneven.append(("key and value heads", text.kv_heads, both))
    if goal.expert_parallel and not text.experts:
        raise RefusedError("there are no experts to share out", hint="leave out --ep")
    for what, count, left in uneven:
        if left:
            work = [
                n
                for n in range(2, text.heads + 1)
                if text.heads % n == 0 and not max(text.kv_heads, n) % min(text.kv_heads, n)
            ]
            listed = ", ".join(map(str, work))
            hint = f"--tp can be {listed}" if work else "leave out --tp"
            raise RefusedError(f"vLLM can't share {count} {what} out to {tensor} ranks", hint=hint)
    within = text.intermediate
    if text.experts:
        within = tensor * text.block if goal.expert_parallel else text.expert_intermediate
    if tensor > 1 and within % (tensor * text.block):
        together = "" if text.block == 1 else f", of which {text.block} are quantised together,"
        raise RefusedError(
            f"vLLM can't share {within} channels of a layer{together} out to {tensor} ranks",
            hint="give fewer ranks" + (", or share experts out whole, with --ep" if text.experts else ""),
        )


def _groups(
    hosts: Sequence[NamedMachine], tensor: int, *, several: bool
) -> tuple[tuple[tuple[Board, tuple[int, ...]], ...], Budgets, tuple[str, ...]]:
    """The accelerators of each stage with what CUDA says they have, what each may hold, and the names of the boards."""
    found: list[tuple[Board, tuple[int, ...]]] = []
    limits: list[tuple[Device, int]] = []
    names: list[str] = []
    notes: list[str] = []
    why: list[str] = []
    for host in hosts:
        machine = host.machine
        there = [(device, size) for device, size in host.accelerators]
        why += machine.missing
        if any(str(device.type) != "cuda" for device, _ in there):
            raise RefusedError(f"vLLM's figures are known only for NVIDIA's GPUs, and there is {there[0][0]}")
        on = {device for device, _ in there}
        boards = [gpu for gpu in machine.inventory.accelerators if gpu.device in on]
        others = {gpu.vendor for gpu in boards} - {Vendor.NVIDIA, Vendor.OTHER}
        if others:
            raise RefusedError(f"vLLM's figures are known only for NVIDIA's GPUs, and there are others: {min(others)}")
        notes += [
            note if not several else f"{host.name}: {note}"
            for note in machine.budgets.notes
            if "cpu" not in note.split()
        ]
        runs = [there[at : at + tensor] for at in range(0, len(there) - tensor + 1, tensor)]
        for run in runs if several or tensor == 1 else runs[:1]:
            board = Board(
                host=host.name if several else HERE,
                devices=tuple(str(device) for device, _ in run),
                budget=min(size for _, size in run),
            )
            found.append((board, tuple(_total(machine, device, size) for device, size in run)))
            limits += [(name, size) for name, (_, size) in zip(_names_of(board, several=several), run, strict=True)]
        names += [gpu.name or "" for gpu in boards]
    if not found:
        needs = "an accelerator" if tensor == 1 else f"{tensor} accelerators on one host"
        raise RefusedError(
            f"vLLM needs {needs}, and there are none", findings=tuple(why), hint="--devices plans for others"
        )
    return tuple(found), Budgets(devices=tuple(limits), given=True, notes=tuple(notes)), tuple(names)


def _names_of(board: Board, *, several: bool) -> Sequence[Device]:
    return devices_of(board) if several else [Device.from_str(device) for device in board.devices]


def _total(machine: Machine, device: Device, budget: int) -> int:
    """What CUDA says that an accelerator has: by the catalogue where it knows the board; else less what is reserved."""
    gpu = next((gpu for gpu in machine.inventory.accelerators if gpu.device == device), None)
    if gpu is None or gpu.memory_total is None:
        return budget
    total = gpu.memory_total - (gpu.memory_reserved or 0)
    board = find(gpu.name, gpu.memory_total) if gpu.name and gpu.mig is None else None
    return total if board is None else min(total, board.memory_usable)


def _serving(
    goal: EngineRequest, groups: Sequence[tuple[Board, tuple[int, ...]]], boards: Sequence[str], model: Model
) -> Serving:
    smallest = min(total for _, totals in groups for total in totals)
    batched, sequences = vllm.batch_defaults(smallest, " ".join(boards))
    batched = goal.batched_tokens or batched
    sequences = goal.sequences or min(sequences, batched)
    if sequences > batched:
        raise UsageError(
            f"--max-num-seqs {sequences}: vLLM takes no more than --max-num-batched-tokens, {batched}",
            hint="give fewer, or more tokens",
        )
    return Serving(
        utilisation=vllm.UTILISATION if goal.utilisation is None else goal.utilisation,
        batched_tokens=batched,
        sequences=sequences,
        expert_parallel=goal.expert_parallel,
        quantised_while_loading=model.request.quantize is not None,
    )


def _part_of(name: str, inside: str) -> str:
    """The number of the layer that a tensor is in, or whether it is before, behind or beside all of them.

    Args:
        inside: how names within the layers begin.
    """
    if name.startswith(inside):
        return name.removeprefix(inside).partition(".")[0]
    if _OF_TOWERS.search(name):
        return TOWERS
    at = name
    while "." in at:
        at, _, last = at.rpartition(".")
        if is_behind(f"{at}.{last}") and (not at or inside.startswith(f"{at}.")):
            return BEHIND
    return BEHIND if is_behind(at) else BEFORE


def _layer_list(tree: ModuleTree, count: int) -> str:
    """The module whose children are the decoder's layers."""
    if (found := largest_list(tree, count)) is None:
        raise RefusedError(f"{tree.class_name} has no list of {count} layers, as its config says")
    return found.name


def _refusal(asked: Asked, parts: Sequence[Part], model: Model, budgets: Budgets, *, is_said: bool) -> Refusal | None:
    """Why vLLM would not start, or would not hold what is asked for; None where it does."""
    longest = asked.text.longest or model.made_for
    if longest is not None and asked.context > longest:
        return Refusal(
            f"vLLM refuses --max-model-len {asked.context}: the model is made for {longest} tokens",
            hint=f"give --context-length {longest} or less",
        )
    found = findings(asked, parts, [size for _, size in budgets.devices], is_said=is_said)
    return Refusal("it does not fit in vLLM", findings=found) if found else None


def _notes(
    asked: Asked,
    parts: Sequence[Part],
    fit: EngineFit,
    hosts: Sequence[NamedMachine],
    workload: WorkloadRequest,
    model: Model,
) -> Iterator[str]:
    """What a reader should know."""
    yield f"vLLM's figures are those of {vllm.RELEASE}, measured on {vllm.MEASURED_ON}"
    known = {gpu.compute_capability for host in hosts for gpu in host.machine.inventory.accelerators if gpu.device}
    if known != {_MEASURED}:
        yield "of other boards what vLLM's kernels and communicators take is not known, and counted as there"
    most = max(device.graphs for device in fit.devices)
    less = [
        max(0, device.pool - device.graphs) // max(1, asked.cache.block(part.layers))
        for part, device in rows(parts, fit)
    ]
    holds = asked.whole(min(less), asked.context) >= asked.batch
    yield (
        f"vLLM from {vllm.GRAPHS_INSIDE} on takes its graphs, about {format_bytes(most)}, from the cache as well"
        + ("" if holds or fit.max_sequences < asked.batch else
           ": what is asked for then fits no more, but for VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS=0")
    )  # fmt: skip
    if asked.ranks > 4 or len(parts) > 4:
        yield "what communicators take was measured of 2 and 4 ranks: of more it is estimated"
    if len(parts) > 1 and asked.ranks > 1:
        yield "stages of ranks that share layers were not measured together: both are added up"
    if workload.context_length is None:
        yield f"without --context-length vLLM takes --max-model-len {asked.context}, all that the model is made for"
    idle = sum(len(host.accelerators) for host in hosts) - sum(len(part.board.devices) for part in parts)
    if idle:
        yield f"{idle} accelerators have no part of it"
    if len(parts) > 1 and asked.ranks == 1:
        yield (
            f"{len(parts)} stages, one after another: --tp N lets accelerators share layers"
            + ("" if len(hosts) > 1 else ", --visible 0 plans with one")
        )
    if asked.text.seen is not None:
        yield "images are counted as vLLM counts them when it starts, not by how many each text has"
    if model.tree.quantisation not in (None, "compressed-tensors", "gptq", "awq", "mxfp4", "fp8"):
        packed = model.tree.quantisation
        yield f"how vLLM keeps {packed} weights was not measured: counted as they are in the checkpoint"


_MEASURED = "9.0"
"""The compute capability of the boards that vLLM was measured on."""


def _plan(
    model: Model,
    asked: Asked,
    parts: Sequence[Part],
    fit: EngineFit,
    budgets: Budgets,
    notes: Sequence[str],
    refusal: Refusal | None,
    workload: WorkloadRequest,
) -> Plan:
    """The plan, whose devices hold what vLLM holds there, and of the cache what is asked for."""
    several = parts[0].board.host != HERE
    stages: list[Stage] = []
    uses: list[DeviceUse] = []
    of_rank = iter(fit.devices)
    budget_of = dict(budgets.devices)
    for number, part in enumerate(parts):
        pages = asked.cache.blocks_of(asked.context, asked.serving.batched_tokens) * asked.batch
        state = pages * asked.cache.block(part.layers)
        for device in _names_of(part.board, several=several):
            row = next(of_rank)
            uses.append(
                DeviceUse(
                    device=device,
                    used=row.weights,
                    state=state,
                    activations=row.activations,
                    overhead=row.non_torch + row.context + row.graphs,
                    loading=row.weights + row.context,
                    budget=budget_of[device],
                    modules=("",) if len(parts) == 1 else tuple(f"{asked.container}.{at}" for at in part.layers),
                )
            )
        last = uses[-1]
        stages.append(
            Stage(
                stage=number,
                host=part.board.host,
                devices=part.board.devices,
                layers=(part.layers.start, part.layers.stop),
                used=last.used,
                state=last.state,
                activations=last.activations,
                overhead=last.overhead,
                budget=part.board.budget,
            )
        )
    served = Workload(
        context_length=asked.context,
        batch_size=asked.batch,
        new_tokens=min(1, asked.context - 1),
        kv_dtype=None if workload.kv_dtype is None else str(workload.kv_dtype),
    )
    placement = Placement(
        strategy=None,
        device_map=FrozenMap.of({"": uses[0].device}),
        devices=tuple(uses),
        crossings=len(parts) - 1,
        notes=tuple(dict.fromkeys(notes)),
    )
    return Plan(
        model=model.planned,
        tree=model.tree,
        budgets=budgets,
        placement=placement,
        versions=versions(),
        refusal=refusal,
        stages=Stages(container=asked.container, stages=tuple(stages)),
        fit_in=fit,
        served=served,
    )
