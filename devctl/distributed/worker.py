"""What each rank does, step by step: check, meet, compare, load, look, run, report."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import devctl
from devctl.as_json import to_json_values
from devctl.devices import Device
from devctl.distributed.checks import Local, RankRequest, address_towards, check_here, device_of, require_run
from devctl.distributed.deadline import supervise
from devctl.distributed.handshake import (
    describe_files,
    digest_file,
    digest_of,
    headers_of,
    require_same,
    require_same_files,
    weights_files,
)
from devctl.distributed.link import CommonLoadError, Limits, Link, SecondaryError, is_of_connection, said_of
from devctl.distributed.pipeline import Made, cut, difference, generate, held_by
from devctl.distributed.report import Compared, DistributedReport, RankRow
from devctl.distributed.seat import Seat
from devctl.errors import DevctlError, ExitCode, LoadError, RefusedError
from devctl.loading.measure import device_peaks
from devctl.loading.proofs.reference import fits_in_ram
from devctl.loading.run.out_of_memory import is_out_of_memory
from devctl.loading.weights import loader
from devctl.loading.weights.loader import LoadFormat
from devctl.loading.weights.offload import bytes_to_write, offload_folder
from devctl.models.files.headers import renamed
from devctl.placement.judge import shorten
from devctl.planning.progress import Silent, reporting
from devctl.units import format_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a run ended.

    Attributes:
        report: on rank 0; None on the others.
        refusal: why it is no pass; None where it is one.
    """

    report: dict[str, Any] | None
    refusal: DevctlError | None


def run_rank(request: RankRequest, seat: Seat, limits: Limits) -> Outcome:
    """Be a rank of the plan, from the first check to the report.

    Raises:
        RefusedError: transformers does not run this in stages, or the hosts differ.
        ModelError: the model can't be read on a host.
        LoadError: a rank died, hangs, was cut off or never came; or it does not hold or do what the plan says.
        UsageError: the plan is not of this model.
    """
    require_run(request)

    def work(link: Link) -> dict[str, Any]:
        with reporting(Silent()):  # of several processes that share a terminal, none may draw on it
            return _work(request, link)

    found = supervise(seat, limits, work)
    verdict = found["verdict"]
    kinds: dict[int, type[DevctlError]] = {ExitCode.NO: RefusedError, ExitCode.LOAD: LoadError}
    refusal = None if verdict is None else kinds[verdict["code"]](verdict["message"], hint=verdict["hint"])
    return Outcome(report=found["report"], refusal=refusal)


def _work(request: RankRequest, link: Link) -> dict[str, Any]:
    """All steps of the working process; what it gives back goes through the watching one."""
    seat = link.seat
    local = check_here(request, link)
    facts = {**_facts(request, local), "device": local.device.partition(":")[0]}
    everyone = link.gather("handshake", {"facts": facts, "address": local.address})
    require_same(seat, [each["facts"] for each in everyone])
    weights = _verified_weights(local, link) if request.verify_weights else None
    _join_group(seat, link, local, [each["address"] for each in everyone])
    with _secondary():
        row, made, notes = _loaded_and_run(request, link, local)
    rows = [RankRow.parse(each) for each in link.gather("report", to_json_values(row))]
    said: dict[str, Any] = {}
    if seat.rank == 0:
        said = _judged(request, link, local, rows, made, weights, notes)
    verdict = link.gather("verdict", said.get("verdict"))[0]
    return {"report": said.get("report"), "verdict": verdict}


def _facts(request: RankRequest, local: Local) -> dict[str, str]:
    """All that has to be alike on every rank, as text that people can compare."""
    import torch
    import transformers

    source = local.source
    ids = local.inputs.tensors["input_ids"].tolist()
    run = f"{request.batch_size} × {len(ids[0])} tokens {digest_of(ids)[:12]}, {request.max_new_tokens} new ones"
    return {
        "devctl": devctl.__version__,
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "the plan": hashlib.sha256(request.plan.encode()).hexdigest()[:12],
        "config.json": digest_of(source.config)[:12],
        "the class": local.skeleton.tree.class_name,
        "the dtype": local.skeleton.tree.dtype,
        "the run": run,
        "weights compared": str(request.verify_weights),
        **describe_files(local.folder),
    }


def _verified_weights(local: Local, link: Link) -> int:
    """Compare the bytes of weights among hosts; how many files more than one host has read.

    One rank a host reads: rank 0 all files, as it makes the reference, the others those with tensors of their stages.

    Raises:
        CommonError: they differ.
    """
    seat = link.seat
    link.step("verifying the weights")
    digests = {}
    if seat.me.local_rank == 0:
        wanted: set[str] = set()
        for rank in seat.ranks:
            if rank.host == seat.me.host:
                wanted |= set(local.tensors[rank.stage.stage])
        read = _files_with(local, wanted) if seat.rank else weights_files(local.folder)
        digests = {name: digest_file(local.folder / name, link.progress) for name in read}
    return require_same_files(seat, link.gather("digests", digests))


def _files_with(local: Local, wanted: set[str]) -> tuple[str, ...]:
    """The files that have any of the tensors ``wanted``, which are names of the model's; pickles have no header."""
    assert local.skeleton.model is not None, "it is kept where it is read to be loaded"
    headers = headers_of(local.folder)
    stored = [name for header in headers.values() for name in header.tensors]
    built = [tensor.name for tensor in local.skeleton.tree.index.tensors]
    names = renamed(local.skeleton.model, stored, built)
    return tuple(
        file
        for file in weights_files(local.folder)
        if file not in headers or any(names[stored][0] in wanted for stored in headers[file].tensors)
    )


def _join_group(seat: Seat, link: Link, local: Local, addresses: Sequence[str]) -> None:
    """Make the process group before transformers does, which would wait for a lost peer for hours."""
    import torch
    import torch.distributed as dist
    from torch._C._distributed_c10d import PrefixStore

    link.step("making the process group")
    on_cpu = local.device == "cpu"
    if (interface := _interface(seat, local, addresses)) is not None:
        for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ.setdefault(name, interface)
    index = 0 if on_cpu else device_of(local.device).id or 0
    # transformers binds a rank to the accelerator of that number, and the plan knows which it is
    os.environ["LOCAL_RANK"] = str(index)
    os.environ["RANK"], os.environ["WORLD_SIZE"] = str(seat.rank), str(len(seat.ranks))
    device = None if on_cpu else torch.device(local.device)
    if device is not None:
        torch.accelerator.set_device_index(index)
    backend = "gloo" if on_cpu else "nccl" if local.device.startswith("cuda") else "xccl"
    with _secondary():
        dist.init_process_group(
            backend,
            store=PrefixStore("group", link.store),
            rank=seat.rank,
            world_size=len(seat.ranks),
            timeout=timedelta(seconds=link.limits.talk),
            device_id=device if backend == "nccl" else None,
        )


def _interface(seat: Seat, local: Local, addresses: Sequence[str]) -> str | None:
    """The network interface towards the other ranks: of the route to where they meet, which is where one of them is.

    A host's name often leads to a loopback address on that host itself: there the way to another host tells.
    """
    import psutil

    address = local.address
    if address.startswith("127.") or address == "::1":
        others = [
            addresses[rank.rank]
            for rank in seat.others
            if rank.host != seat.me.host and not addresses[rank.rank].startswith("127.") and addresses[rank.rank]
        ]
        address = address_towards(others[0], seat.port) if others else "127.0.0.1"
    for name, bound in psutil.net_if_addrs().items():
        if any(each.address.partition("%")[0] == address for each in bound):
            return name
    return None


@contextmanager
def _secondary() -> Iterator[None]:
    """A failure that is not ours, while ranks talk to each other, may be the consequence of another's.

    Raises:
        SecondaryError: for what torch or transformers raise.
        LoadError: for memory that ran out, which is this rank's own.
    """
    try:
        yield
    except DevctlError:
        raise
    except Exception as error:
        if is_of_connection(error):
            raise SecondaryError(said_of(error)) from error
        what = "memory ran out: " if is_out_of_memory(error) else ""
        raise LoadError(f"{what}{said_of(error)}") from error


def _loaded_and_run(request: RankRequest, link: Link, local: Local) -> tuple[RankRow, Made, tuple[str, ...]]:
    """Load this rank's stage, look at what it holds, and run all stages together."""
    import torch

    seat = link.seat
    rank, stage = seat.me, seat.me.stage
    link.step("loading")
    start = time.perf_counter()
    model, notes = _load(request, link, local)
    load_seconds = time.perf_counter() - start
    expected = local.tensors[stage.stage]
    held = held_by(model)
    _require_held(held.names, held.empty, set(expected))
    wrong = [f"{name} {held.nbytes:,} B, {said}" for name, said in _unlike(request, seat, held.nbytes, expected)]
    told = link.gather("tensors", wrong)
    if any(told):
        lines = [
            f"rank {n.rank} on {n.host}: {line}" for n, lines in zip(seat.ranks, told, strict=True) for line in lines
        ]
        raise CommonLoadError(
            f"not what the plan says: {'; '.join(lines)}", hint="plan it anew from the checkpoint that the hosts have"
        )
    link.step("running the smoke inference")
    device = torch.device(local.device)
    given = {name: tensor.to(device) for name, tensor in local.inputs.tensors.items()}
    made = generate(model, given, request.max_new_tokens, link.progress)
    at = device_of(local.device)
    row = RankRow(
        rank=rank.rank,
        host=rank.host,
        stage=stage.stage,
        planned=rank.device,
        device=local.device,
        layers=stage.layers,
        used=request.used(rank),
        measured=held.nbytes,
        total=stage.total,
        # torch.accelerator counts no memory before torch 2.9
        peak=device_peaks([at]).get(at),
        tensors=len(held.names),
        load_seconds=load_seconds,
        seconds=made.seconds,
        ids=made.ids,
    )
    return row, made, notes


def _unlike(request: RankRequest, seat: Seat, measured: int, expected: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    # of what ranks share, each holds a part of the tensors that the model has
    if not request.is_shared and measured != sum(expected.values()):
        yield "it holds", f"and its tensors have {sum(expected.values()):,} B"
    if measured != (used := request.used(seat.me)):
        yield "it holds", f"the plan says {used:,} B"


def _require_held(names: frozenset[str], empty: Sequence[str], expected: set[str]) -> None:
    """See that a rank holds its stage's tensors, no other, and all with data.

    Raises:
        LoadError: naming those that are missing, too much, or empty.
    """
    wrong = [
        f"{len(found)} tensors {what} ({shorten(sorted(found))})"
        for found, what in (
            (expected - names, "are missing"),
            (names - expected, "are of other stages"),
            (empty, "have no data"),
        )
        if found
    ]
    if wrong:
        raise LoadError(
            f"it does not hold the tensors of its stage: {'; '.join(wrong)}",
            hint="is the checkpoint whole on that host, and the plan of this model?",
        )


def _load(request: RankRequest, link: Link, local: Local) -> tuple[PreTrainedModel, tuple[str, ...]]:
    """Load this rank's stage through ``from_pretrained``."""
    from transformers.distributed.configuration_utils import DistributedConfig

    try:
        ranks = request.stages.tensor_parallel
        with nullcontext() if request.is_shared else cut(request.stages):
            return loader.load_stage(
                local.source,
                local.skeleton,
                DistributedConfig(tp_size=ranks)
                if request.is_shared
                else DistributedConfig(pp_size=len(request.stages.stages)),
                frozenset(local.tensors[link.seat.me.stage.stage]),
                on_progress=lambda _: link.progress(),
            )
    except LoadError as error:
        if error.__cause__ is None or not is_of_connection(error.__cause__):
            raise
        raise SecondaryError(error.message, hint=error.hint) from error


# at the end, on rank 0


def _judged(
    request: RankRequest,
    link: Link,
    local: Local,
    rows: Sequence[RankRow],
    made: Made,
    weights: int | None,
    notes: tuple[str, ...],
) -> dict[str, Any]:
    """The report, and why it is no pass, if it is none."""
    import torch.distributed as dist

    tree = local.skeleton.tree
    agree = len({row.ids for row in rows}) == 1
    outcome, said = _compared(request, link, local, made)
    verdict = None
    if not agree:
        verdict = {"code": int(ExitCode.LOAD), "message": "the ranks made different tokens", "hint": ""}
    elif outcome is Compared.DIFFERENT:
        hint = "" if request.verify_weights else "do all hosts have the same weights? --verify-weights compares them"
        verdict = {
            "code": int(ExitCode.LOAD),
            "message": f"the ranks do not do what one process does: {said}",
            "hint": hint,
        }
    elif outcome is Compared.NOT_RUN:
        verdict = {
            "code": int(ExitCode.NO),
            "message": f"it ran, and nothing proves that it ran right: {said}",
            "hint": "that all ranks agree says nothing, as the last one sends its logits to all",
        }
    report = DistributedReport(
        model=str(request.model.model),
        model_class=tree.class_name,
        dtype=tree.dtype,
        backend=str(dist.get_backend()),
        tensor_parallel=request.stages.tensor_parallel,
        batch_size=request.batch_size,
        inputs=local.inputs.source,
        prompt=local.inputs.tensors["input_ids"].shape[1],
        ranks=tuple(rows),
        reference=outcome,
        reference_said=said,
        weights=weights,
        text=_text(local, made),
        ok=verdict is None,
        notes=(*_notes(rows, weights), *notes, *local.inputs.notes),
    )
    return {"report": report.to_document(), "verdict": verdict}


def _text(local: Local, made: Made) -> str | None:
    if local.inputs.tokenizer is None:
        return None
    return str(local.inputs.tokenizer.decode(list(made.ids[0]), skip_special_tokens=True))


def _notes(rows: Sequence[RankRow], weights: int | None) -> Iterator[str]:
    if any(row.device == "cpu" for row in rows):
        yield "without accelerators here, the ranks ran on the CPU: the stages are proven, the accelerators are not"
    if weights == 0:
        yield "no file of weights was read by more than one host, so none was compared"


def _compared(request: RankRequest, link: Link, local: Local, made: Made) -> tuple[Compared, str]:
    """The same run in one process, on the CPU; with its layers read from the checkpoint, one after another, where the
    RAM has no room for the whole model."""
    import psutil

    tree, container = local.skeleton.tree, request.stages.container
    whole, available = tree.index.held[""], int(psutil.virtual_memory().available)
    device_map, where = {"": Device.cpu()}, "on the CPU"
    if not fits_in_ram(whole, 0, available):
        layers = (f"{container}.{number}" for number in range(request.stages.stages[-1].layers[1]))
        device_map |= dict.fromkeys(layers, Device.disk())
        where = "on the CPU, layer by layer"
        if written := bytes_to_write(local.source, local.skeleton, device_map, random_weights=False):
            return (
                Compared.NOT_RUN,
                f"rank 0's host has {format_bytes(available)} of RAM for {format_bytes(whole)} of weights, and "
                f"{format_bytes(written)} of them can't be read from the checkpoint as they are used",
            )
    link.step("loading the reference")
    with ExitStack() as stack:
        folder = stack.enter_context(offload_folder(0, None)) if len(device_map) > 1 else None
        reference, _ = loader.load(
            local.source,
            local.skeleton,
            device_map,
            load_format=LoadFormat.AUTO,
            folder=folder,
            on_progress=lambda _: link.progress(),
        )
        for layer in reference.get_submodule(container).children():
            layer.register_forward_hook(lambda *_: link.progress())
        link.step("running the reference")
        expected = generate(reference, dict(local.inputs.tensors), request.max_new_tokens, link.progress)
    apart = difference(made, expected, tree.dtype, exact=local.device == "cpu" and not request.is_shared)
    if apart is not None:
        return Compared.DIFFERENT, apart
    return Compared.EQUAL, f"tokens and logits are those of one process, of {tree.class_name} {where}"
