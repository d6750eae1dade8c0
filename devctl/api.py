"""devctl as a library: keyword arguments in, a frozen answer out. The command line is a skin over the same floor.

Sizes are bytes, as integers or as text with a unit ("10GiB"). An argument that can't be meant raises a `UsageError`
that names the keyword. Nothing is printed; `devctl.planning.progress.reporting` lets a program show what is going on.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any

from devctl.devices import Device, DeviceMap
from devctl.errors import UsageError
from devctl.inventory import Inventory
from devctl.inventory.requirements import Requirements, Verdict
from devctl.models.gguf.files import gguf_at
from devctl.placement.document import map_of
from devctl.placement.engines.asking import HERE
from devctl.placement.engines.records import Engine
from devctl.placement.plan import Comparison, Plan
from devctl.placement.strategy import Strategy
from devctl.planning import clashes
from devctl.planning import plan as answers
from devctl.planning.capacity import Capacity
from devctl.planning.checking import check_machine
from devctl.planning.engine import plan_for_vllm
from devctl.planning.fits_on import FitsOn, find_boards
from devctl.planning.fits_on import fits_on as answer_fits_on
from devctl.planning.hosts import HostsRequest, NamedMachine, open_hosts
from devctl.planning.hosts_question import ALONE
from devctl.planning.machine import open_machine
from devctl.planning.map_file import MapFile, read_map_file, require_loadable
from devctl.planning.model import Model
from devctl.planning.model import open_model as _open_model
from devctl.planning.over_hosts import capacity_over_hosts, compare_over_hosts, plan_over_hosts
from devctl.planning.parallel import plan_of_ranks
from devctl.planning.plan_facts import parse_facts
from devctl.planning.planned_run import parse_run
from devctl.planning.request import (
    ByRanks,
    EngineRequest,
    FillContext,
    Limits,
    MachineRequest,
    ModelRequest,
    WorkloadRequest,
    names_hosts,
    one_of,
)

if TYPE_CHECKING:
    import torch

    from devctl.loading.measure import LoadReport

MachineLike = None | str | PathLike[str] | Inventory
HostsLike = Mapping[str, str | PathLike[str] | Inventory]
MapLike = Plan | DeviceMap | Mapping[str, Device | int | str]


def open_model(
    model: str | PathLike[str] | torch.nn.Module | Model,
    *,
    dtype: str = "auto",
    model_class: str | None = None,
    trust_remote_code: bool = False,
    revision: str | None = None,
    quantize: str | None = None,
    adapters: Sequence[str | PathLike[str]] = (),
    cache: bool = True,
) -> Model:
    """The model without its weights, to be planned with again and again.

    Args:
        model: a folder, a config.json, a model id on the hub, a GGUF file or a folder of one, or a live module, on the
            meta device or with weights.
        dtype: "auto" is the checkpoint's own; else float32, float16, bfloat16 or float64.
        model_class: a class of transformers; None is the config's first architecture.
        trust_remote_code: run Python code that the model brings.
        revision: branch, tag or commit of a model on the hub.
        quantize: as ``from_pretrained`` would quantise the weights while loading: "int8", "nf4", …
        adapters: LoRAs that PEFT loads beside it, folders or ids on the hub: their bytes count, too.
        cache: keep what is found for the next time, and use what was kept.

    Raises:
        ModelError: the model can't be read.
        UsageError: an argument can't be meant.
    """
    if isinstance(model, Model):
        return model
    with _naming_keywords():
        return _open_model(
            ModelRequest(
                model=fspath(model) if isinstance(model, PathLike) else model,
                dtype=dtype,
                model_class=model_class,
                trust_remote_code=trust_remote_code,
                revision=revision,
                quantize=quantize,
                adapters=tuple(fspath(each) for each in ([adapters] if isinstance(adapters, str) else adapters)),
                cache=cache,
            )
        )


def plan(
    model: str | PathLike[str] | torch.nn.Module | Model,
    machine: MachineLike | HostsLike = None,
    *,
    strategy: str | None = None,
    objective: str | None = None,
    device_map: MapLike | None = None,
    target_context: int | None = None,
    max_memory: Mapping[Device | int | str, int | str] | None = None,
    visible: Sequence[int] | None = None,
    reserve: int | str | Mapping[Device | int | str, int | str] | None = None,
    speed: Mapping[Device | int | str, int | str] | None = None,
    offload: bool = True,
    disk: bool = True,
    context_length: int | None = None,
    batch_size: int | None = None,
    new_tokens: int | None = None,
    kv_dtype: str | None = None,
    overhead: int | str | None = None,
    attn_implementation: str | None = None,
    padding: bool = True,
    decode: str | None = None,
    prefill_chunk_size: int | None = None,
    images: str | None = None,
    max_context: bool = False,
    tp: int | None = None,
    ep: int | None = None,
    engine: str | None = None,
    gpu_memory_utilization: float | None = None,
    max_num_batched_tokens: int | None = None,
    max_num_seqs: int | None = None,
    **of_model: Any,
) -> Plan:
    """Where each layer should go. A plan that is not what was asked for does not fit, and says why in its ``refusal``.

    Args:
        model: as `open_model` takes it, or what that gave.
        machine: None is this machine, now; text is hardware, like "2xH100,cpu=512GiB"; else an `Inventory`, or the path
            of a file that ``devctl list --json`` wrote. Such machines by name, or text like "a:4xH100;b:2xA100", are
            hosts: the plan is then of ``stages`` over them, and nothing is off their accelerators.
        strategy: "auto" (the default), "balanced", "balanced_low_0", "sequential" or "optimal".
        objective: what optimal is best in: "headroom", or "latency", predicted seconds a token.
        device_map: judge this map instead of finding one.
        target_context: place for as many sequences of so many tokens as fit.
        max_memory: bytes that each device may hold, by GPU id, "mps", "cpu" or "disk"; over hosts by names like "a:0".
        visible: ids of the accelerators to plan with.
        reserve: bytes, or a share like "10%", to keep free on every GPU, or by device.
        speed: bytes a second of a GPU's memory, of "link" and of "disk", for the objective latency.
        offload: whether bytes may be left off the GPUs.
        disk: whether bytes may be left on disk.
        context_length: tokens of a sequence; None counts the weights alone.
        batch_size: sequences at once; 1 unless given.
        new_tokens: how many of the tokens are generated; 1 unless given.
        kv_dtype: what keys and values are kept in; None is the model's.
        overhead: bytes that the libraries of each GPU take; None is what is usual for the board.
        attn_implementation: how the model attends: "sdpa", "eager", "flash_attention_2", …; None is what transformers
            chooses.
        padding: whether several sequences are of mixed lengths, and padded to the longest.
        decode: how tokens are chosen: "config" (the default: what the model's files say), "greedy", "sample", "beam:4".
        prefill_chunk_size: tokens of the prompt that are read at once.
        images: how many images of what size each sequence carries, like "2x448x640", height before width, or "0"; None
            is one of the size that the model's config has, in a model that sees.
        max_context: also find the most tokens that fit on this map, and on the best one.
        tp: let so many ranks share every layer, each a process with an accelerator of its own; such a plan has no map.
            Over hosts so many accelerators of a host share each stage.
        ep: let them share the experts out, too: as many.
        engine: whose memory is counted: "transformers" (the default), or "vllm", whose plan has no map; what its cache
            holds is in ``fit_in``.
        gpu_memory_utilization, max_num_batched_tokens, max_num_seqs: what vLLM is started with.
        **of_model: the keywords of `open_model`.

    Raises:
        ModelError: the model can't be read.
        RefusedError: the model can't be shared by so many ranks; over hosts, it has no stages, or the accelerators are
            too many or do not work together.
        UsageError: an argument can't be meant, or changes nothing beside the others.
    """
    asked = {
        "context_length": context_length,
        "batch_size": batch_size,
        "new_tokens": new_tokens,
        "kv_dtype": kv_dtype,
        "overhead": overhead,
        "attn_implementation": attn_implementation,
        "padding": padding,
        "decode": decode,
        "prefill_chunk_size": prefill_chunk_size,
        "images": images,
    }
    latency = objective == "latency"
    hosts = _hosts_request(machine, _entries(reserve), _entries(max_memory))
    given = {
        "strategy": strategy is not None,
        "objective": objective is not None,
        clashes.LATENCY: latency,
        "map": device_map is not None,
        "target-context": target_context is not None,
        **_options(asked),
        "batch-size 1": batch_size == 1,
        "speed": speed is not None,
        "max-context": max_context,
        "tp": tp is not None,
        "ep": ep is not None,
        "quantize": of_model.get("quantize") is not None,
        "adapter": _has_adapters(model, of_model),
        "max-memory": max_memory is not None,
        "visible": visible is not None,
        "no-offload": not offload,
        "no-disk": not disk,
        clashes.OVER_HOSTS: hosts is not None,
        clashes.GGUF: _is_gguf(model),
        clashes.VLLM: engine == Engine.VLLM,
        f"quantize {of_model.get('quantize')}": of_model.get("quantize") is not None,
        "gpu-memory-utilization": gpu_memory_utilization is not None,
        "max-num-batched-tokens": max_num_batched_tokens is not None,
        "max-num-seqs": max_num_seqs is not None,
    }
    with _naming_keywords():
        told = {name for name, is_given in given.items() if is_given}
        clashes.refuse(clashes.OF_PLAN, told)
        if engine is not None and one_of(Engine, engine, "--engine") is Engine.VLLM:
            serving = EngineRequest(
                utilisation=gpu_memory_utilization,
                batched_tokens=max_num_batched_tokens,
                sequences=max_num_seqs,
                tp=tp,
                ep=ep,
            )
            if hosts is not None:
                machines = open_hosts(hosts)
            else:
                assert not isinstance(machine, Mapping), "these are hosts"
                only = _machine_request(
                    machine,
                    max_memory=_entries(max_memory),
                    visible=None if visible is None else ",".join(map(str, visible)),
                    reserve=_entries(reserve),
                )
                machines = (NamedMachine(name=HERE, machine=open_machine(only)),)
            return plan_for_vllm(open_model(model, **of_model), machines, _workload(**asked), serving)
        if hosts is not None:
            fill = None if target_context is None else FillContext(tokens=target_context)
            ranks = ALONE if tp is None else ByRanks(size=tp, experts=ep).ranks
            there, wanted = open_hosts(hosts), _workload(**asked)
            opened = open_model(model, **of_model)
            return plan_over_hosts(opened, there, wanted, ranks=ranks, fill=fill, max_context=max_context)
        assert not isinstance(machine, Mapping), "these are hosts"
        here = open_machine(
            _machine_request(
                machine,
                max_memory=_entries(max_memory),
                visible=None if visible is None else ",".join(map(str, visible)),
                reserve=_entries(reserve),
                speed=(_entries(speed) or ()) if latency else None,
            )
        )
        workload = _workload(**asked)
        if tp is not None:
            shared = ByRanks(size=tp, experts=ep)
            return plan_of_ranks(open_model(model, **of_model), here, workload, shared, max_context=max_context)
        goal = answers.goal_of(
            strategy=strategy,
            objective=objective,
            target_context=target_context,
            device_map=None if device_map is None else devices_by_name(device_map),
        )
        opened = open_model(model, **of_model)
        if opened.gguf is not None:  # of one on the hub that is known only now
            clashes.refuse(clashes.OF_PLAN, {*told, clashes.GGUF})
        limits = Limits(offload=offload, disk=disk)
        return answers.make_plan(opened, here, workload, goal, limits, max_context=max_context)


def compare(
    model: str | PathLike[str] | torch.nn.Module | Model,
    machine: MachineLike | HostsLike = None,
    *,
    max_memory: Mapping[Device | int | str, int | str] | None = None,
    context_length: int | None = None,
    batch_size: int = 1,
    new_tokens: int | None = None,
    kv_dtype: str | None = None,
    overhead: int | str | None = None,
    attn_implementation: str | None = None,
    padding: bool = True,
    decode: str | None = None,
    prefill_chunk_size: int | None = None,
    images: str | None = None,
    **of_model: Any,
) -> Comparison:
    """The plans of all strategies side by side, and which one to take. The arguments are those of `plan`.

    Over hosts it is the best cut into stages beside the even ones of transformers and vLLM.

    Raises:
        ModelError, UsageError, RefusedError: as `plan`.
    """
    hosts = _hosts_request(machine, None, _entries(max_memory))
    with _naming_keywords():
        if hosts is not None:
            _refuse_over_hosts(model, of_model, padding=padding)
        workload = _workload(
            context_length=context_length,
            batch_size=batch_size,
            new_tokens=new_tokens,
            kv_dtype=kv_dtype,
            overhead=overhead,
            attn_implementation=attn_implementation,
            padding=padding,
            decode=decode,
            prefill_chunk_size=prefill_chunk_size,
            images=images,
        )
        if hosts is not None:
            return compare_over_hosts(open_model(model, **of_model), open_hosts(hosts), workload)
        assert not isinstance(machine, Mapping), "these are hosts"
        here = open_machine(_machine_request(machine, max_memory=_entries(max_memory)))
        return answers.compare_strategies(open_model(model, **of_model), here, workload)


def capacity(
    model: str | PathLike[str] | torch.nn.Module | Model,
    machine: MachineLike | HostsLike = None,
    *,
    max_memory: Mapping[Device | int | str, int | str] | None = None,
    context_length: int | None = None,
    batch_size: int = 1,
    new_tokens: int | None = None,
    kv_dtype: str | None = None,
    overhead: int | str | None = None,
    attn_implementation: str | None = None,
    padding: bool = True,
    decode: str | None = None,
    prefill_chunk_size: int | None = None,
    images: str | None = None,
    **of_model: Any,
) -> Capacity:
    """How much fits: the longest context of ``batch_size`` sequences, and the most sequences of ``context_length``.

    The other arguments are those of `plan`. Everything is placed by optimal; over hosts, in the best stages.

    Raises:
        ModelError, UsageError, RefusedError: as `plan`.
        UntracedError: what the model holds beside its weights is not known.
    """
    hosts = _hosts_request(machine, None, _entries(max_memory))
    with _naming_keywords():
        if hosts is not None:
            _refuse_over_hosts(model, of_model, padding=padding)
        workload = _workload(
            context_length=context_length,
            batch_size=batch_size,
            new_tokens=new_tokens,
            kv_dtype=kv_dtype,
            overhead=overhead,
            attn_implementation=attn_implementation,
            padding=padding,
            decode=decode,
            prefill_chunk_size=prefill_chunk_size,
            images=images,
        )
        if hosts is not None:
            return capacity_over_hosts(open_model(model, **of_model), open_hosts(hosts), workload)
        assert not isinstance(machine, Mapping), "these are hosts"
        here = open_machine(_machine_request(machine, max_memory=_entries(max_memory)))
        return answers.capacity_of(open_model(model, **of_model), here, workload)


def fits_on(
    model: str | PathLike[str] | torch.nn.Module | Model,
    boards: str | Sequence[str] = "all",
    *,
    strategy: str | None = None,
    max_memory: Mapping[Device | int | str, int | str] | None = None,
    reserve: int | str | Mapping[Device | int | str, int | str] | None = None,
    context_length: int | None = None,
    batch_size: int | None = None,
    new_tokens: int | None = None,
    kv_dtype: str | None = None,
    overhead: int | str | None = None,
    attn_implementation: str | None = None,
    padding: bool = True,
    decode: str | None = None,
    prefill_chunk_size: int | None = None,
    images: str | None = None,
    **of_model: Any,
) -> FitsOn:
    """On how many of each board the model runs, 1 to 8, with nothing on CPU or disk.

    Args:
        boards: names or sizes, as text with commas or one by one, like "H100,24GiB"; "all" is the whole catalogue.

    The other arguments are those of `plan`.

    Raises:
        ModelError, UsageError: as `plan`.
    """
    asked = {
        "context_length": context_length,
        "batch_size": batch_size,
        "new_tokens": new_tokens,
        "kv_dtype": kv_dtype,
        "overhead": overhead,
        "attn_implementation": attn_implementation,
        "padding": padding,
        "decode": decode,
        "prefill_chunk_size": prefill_chunk_size,
        "images": images,
    }
    given = {**_options(asked), "fits-on": True}
    with _naming_keywords():
        clashes.refuse(clashes.OF_PLAN, {name for name, is_given in given.items() if is_given})
        return answer_fits_on(
            open_model(model, **of_model),
            find_boards(boards if isinstance(boards, str) else ",".join(boards)),
            _workload(**asked),
            strategy=Strategy.AUTO if strategy is None else one_of(Strategy, strategy, "--strategy"),
            max_memory=_entries(max_memory),
            reserve=_entries(reserve),
        )


def check(
    requirements: Requirements | None = None,
    *,
    device_map: MapLike | PathLike[str] | None = None,
    model: str | PathLike[str] | None = None,
    adapters: Sequence[str | PathLike[str]] = (),
    inventory: Inventory | None = None,
) -> Verdict:
    """Whether this machine meets what a job asks for; every reason is in the verdict.

    Args:
        requirements: what it asks for; None for nothing but the map.
        device_map: a map or plan, or the path of one: does it fit here as the machine is now?
        model: with a map: the model, to know the bytes of its layers.
        adapters: with a model: the LoRAs that PEFT loads beside it.
        inventory: another machine than this one, now.

    Raises:
        UsageError: nothing is asked for, or the map can't be read.
        ModelError: the model can't be read.
    """
    with _naming_keywords():
        if adapters and model is None:
            raise UsageError("--adapter is beside a model", hint="give the model, too")
        beside = tuple(fspath(each) for each in ([adapters] if isinstance(adapters, str) else adapters))
        request = None if model is None else ModelRequest(model=fspath(model), adapters=beside)
        return check_machine(requirements or Requirements(), map_file(device_map), request, inventory)[0]


def load(
    model: str | PathLike[str],
    device_map: MapLike | None = None,
    *,
    strategy: str | None = None,
    max_memory: Mapping[Device | int | str, int | str] | None = None,
    dtype: str = "auto",
    model_class: str | None = None,
    trust_remote_code: bool = False,
    revision: str | None = None,
    load_format: str = "auto",
    offload_folder: PathLike[str] | None = None,
    prompt: str | None = None,
    image: PathLike[str] | None = None,
    audio: PathLike[str] | None = None,
    batch_size: int = 1,
    context_length: int | None = None,
    max_new_tokens: int = 8,
    repeat: int = 1,
    warmup: int | None = None,
    verify: bool = False,
    allow_missing: bool = False,
    attn_implementation: str | None = None,
    padding: bool = True,
    decode: str | None = None,
    prefill_chunk_size: int | None = None,
    images: str | None = None,
) -> LoadReport:
    """Load on a map, run, and prove that every tensor is where the map says; the model is dropped afterwards.

    Args:
        model: a folder, or a model id on the hub.
        device_map: a plan, or a map like {"": "cpu"}; None places it by ``strategy``, "auto" unless given.
        max_memory: bytes that each device may hold, where no map is given.
        load_format: "dummy" makes random weights and reads none.
        offload_folder: for weights on disk; None is a temporary folder, removed afterwards.
        prompt, image, audio: what to run; made up where not given.
        batch_size: inputs at a time.
        context_length: tokens of the text; as they come unless given.
        max_new_tokens: tokens to generate; 0 for none.
        repeat: how often the forward and the generate are timed.
        warmup: how often each runs before; None is one forward.
        verify: compare every block, and the outputs, with the same model on the CPU.
        allow_missing: leave weights random that the checkpoint lacks, as for a head that is trained later.
        attn_implementation: how the model attends; None is as the plan says, else what transformers chooses.
        padding: whether several texts are of mixed lengths, and padded to the longest.
        decode: how tokens are chosen: "config" (the default: what the model's files say), "greedy", "sample", "beam:4".
        prefill_chunk_size: tokens of the prompt that are read at once.
        images: how many images of what size to make up for each sequence, like "2x448x640", or "0".
        dtype, model_class, trust_remote_code, revision: as `open_model`.

    Raises:
        LoadError: it can't run. That a proof fails is in the report: ``ok`` is False then.
        RefusedError: the map does not hold, or fit, on this machine; or it is a plan with adapters.
        ModelError, UsageError: as `plan`.
    """
    from devctl.trying import LoadRequest, prepare

    document = device_map.to_document() if isinstance(device_map, Plan) else None
    if document is not None:
        require_loadable(document["model"], "the plan")
    with _naming_keywords():
        request = LoadRequest(
            model=ModelRequest(
                model=fspath(model),
                dtype=dtype,
                model_class=model_class,
                trust_remote_code=trust_remote_code,
                revision=revision,
            ),
            device_map=None if device_map is None else devices_by_name(device_map),
            strategy=None if strategy is None else one_of(Strategy, strategy, "--strategy"),
            max_memory=_entries(max_memory),
            load_format=load_format,
            offload_folder=None if offload_folder is None else Path(offload_folder),
            prompt=prompt,
            image=None if image is None else Path(image),
            audio=None if audio is None else Path(audio),
            batch_size=batch_size,
            context_length=context_length,
            max_new_tokens=max_new_tokens,
            repeat=repeat,
            warmup=warmup,
            verify=verify,
            allow_missing=allow_missing,
            padding=padding,
            decode=decode,
            prefill_chunk_size=prefill_chunk_size,
            images=images,
            attn_implementation=attn_implementation,
            planned=parse_run(None if document is None else document["workload"], "the plan"),
            facts=None if document is None else parse_facts(document, "the plan"),
        )
        return prepare(request).run()


def _has_adapters(model: str | PathLike[str] | torch.nn.Module | Model, of_model: Mapping[str, Any]) -> bool:
    """Whether adapters are asked for, or were when the model was opened."""
    return bool(of_model.get("adapters") or (isinstance(model, Model) and model.adapters))


def _is_gguf(model: str | PathLike[str] | torch.nn.Module | Model) -> bool:
    """Whether the model is in a GGUF file, or in a folder of such."""
    if isinstance(model, Model):
        return model.gguf is not None
    return isinstance(model, str | PathLike) and gguf_at(fspath(model)) is not None


def devices_by_name(device_map: MapLike) -> dict[str, Device]:
    """A map in any of its forms as the device of each name.

    Raises:
        UsageError: it is no map, or a value is no device.
        RefusedError: it is a plan of several processes, or of a GGUF file.
    """
    if isinstance(device_map, Plan):
        device_map.require_loadable()
        return dict(device_map.placement.device_map)
    plain = {name: str(d) if isinstance(d, Device) else d for name, d in dict(device_map).items()}
    return map_of(plain, "the map")


def map_file(device_map: MapLike | PathLike[str] | None) -> MapFile | None:
    """A map in any of its forms, or the path of one, as what a file of it says."""
    if device_map is None:
        return None
    if isinstance(device_map, PathLike):
        return read_map_file(Path(device_map))
    if not isinstance(device_map, Plan):
        return MapFile(device_map=devices_by_name(device_map))
    device_map.require_one_process()
    facts = parse_facts(device_map.to_document(), "the plan")
    return MapFile(device_map=dict(device_map.placement.device_map), facts=facts)


def _machine_request(machine: MachineLike, **rest: Any) -> MachineRequest:
    if isinstance(machine, Inventory):
        return MachineRequest(inventory=machine, **rest)
    if isinstance(machine, str):
        return MachineRequest(devices=machine, **rest)
    return MachineRequest(file=machine, **rest)


def _hosts_request(
    machine: MachineLike | HostsLike, reserve: tuple[str, ...] | None, max_memory: tuple[str, ...] | None
) -> HostsRequest | None:
    """The hosts that are meant; None for one machine."""
    if isinstance(machine, Mapping):
        machines = tuple((name, _machine_request(each)) for name, each in machine.items())
        return HostsRequest(machines=machines, reserve=reserve, max_memory=max_memory)
    if isinstance(machine, str) and names_hosts(machine):
        return HostsRequest(devices=machine, reserve=reserve, max_memory=max_memory)
    return None


def _refuse_over_hosts(
    model: str | PathLike[str] | torch.nn.Module | Model, of_model: Mapping[str, Any], *, padding: bool
) -> None:
    """Refuse what there is not over hosts.

    Raises:
        UsageError: it is asked for.
    """
    about = {clashes.OVER_HOSTS, *([] if padding else ["no-padding"])}
    about |= {"adapter"} if _has_adapters(model, of_model) else set()
    clashes.refuse(clashes.OF_PLAN, about)


def _options(asked: Mapping[str, Any]) -> dict[str, bool]:
    """Whether each option of a workload is given, by its name, of keywords that are."""
    given = {name.replace("_", "-"): value is not None for name, value in asked.items() if name != "padding"}
    return {**given, "no-padding": not asked["padding"]}


def _workload(**asked: Any) -> WorkloadRequest:
    batch_size, overhead = asked["batch_size"], asked["overhead"]
    asked["batch_size"] = 1 if batch_size is None else batch_size
    asked["overhead"] = None if overhead is None else _size(overhead)
    return WorkloadRequest(**asked)


def _entries(values: Mapping[Device | int | str, int | str] | int | str | None) -> tuple[str, ...] | None:
    """Sizes by device, or one size, as the entries of an option."""
    if values is None:
        return None
    if isinstance(values, Mapping):
        return tuple(f"{device}={_size(size)}" for device, size in values.items())
    return (_size(values),)


def _size(value: int | str) -> str:
    """A size as an option takes it: an integer is bytes."""
    return f"{value}B" if isinstance(value, int) and not isinstance(value, bool) else str(value)


_KEYWORDS = {
    "--no-offload": "offload=False",
    "--no-disk": "disk=False",
    "--no-padding": "padding=False",
    "--devices": "machine",
    "--machine": "machine",
    "--map": "device_map",
    "--fits-on": "boards",
    "--adapter": "adapters",
}


@contextmanager
def _naming_keywords() -> Iterator[None]:
    """Let errors name keywords where the command line has options."""
    try:
        yield
    except UsageError as error:
        raise UsageError(_in_keywords(error.message), hint=_in_keywords(error.hint)) from None


def _in_keywords(text: str) -> str:
    return re.sub(
        r"(?<![\w-])--[a-z][a-z0-9-]*",
        lambda found: _KEYWORDS.get(found[0], found[0].removeprefix("--").replace("-", "_")),
        text,
    )
