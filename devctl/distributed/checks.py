"""What a rank sees to on its own host, before it meets the others."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from devctl.devices import Device, DeviceType
from devctl.distributed.link import Link
from devctl.distributed.pipeline import tensors_of_stages
from devctl.distributed.seat import Seat
from devctl.errors import RefusedError, UsageError, first_line
from devctl.loading.run.inputs import Inputs
from devctl.loading.run.inputs import prepare as prepare_inputs
from devctl.loading.weights import loader
from devctl.models import decoding
from devctl.models.files.resolve import generation_of
from devctl.models.over_ranks import objection
from devctl.placement.document import engines_that_can
from devctl.placement.parallel.records import Rank, Stages
from devctl.planning.model import open_skeleton
from devctl.planning.request import ModelRequest
from devctl.units import format_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from devctl.models.files.resolve import ModelSource
    from devctl.models.skeleton import Skeleton

_BOARDS = (Path("/dev/nvidiactl"), Path("/dev/kfd"))
"""Where the drivers of NVIDIA and AMD are spoken to, on a machine, or in a container, that has boards of theirs."""

_ANEW = "plan it anew: `devctl plan MODEL --hosts …`"
_LOOK = "`devctl doctor` on this host says what is wrong there; or plan it anew with what `devctl list` shows"
_ELSEWHERE = (
    "`devctl export PLAN --to vllm`, or sglang, has the lines of an engine that may; or plan it for one machine"
)

_COMPUTING = (DeviceType.GPU, DeviceType.XPU)


@dataclass(frozen=True, slots=True, kw_only=True)
class RankRequest:
    """What to load in stages, or on ranks that share one, and what to run.

    Attributes:
        plan: the text of the plan document.
        planned: its "model", as far as it says anything.
        shared: its "tensor_parallel", the same.
        prompt: what to run; made up where not given.
        context_length: tokens of the text; None leaves it as it is.
        decode: how tokens are chosen; None is greedily.
        verify_weights: compare the bytes of the files that several hosts read.
    """

    model: ModelRequest
    stages: Stages
    plan: str
    planned: Mapping[str, Any]
    shared: Mapping[str, Any] = field(default_factory=dict)
    prompt: str | None = None
    batch_size: int = 1
    padding: bool = False
    context_length: int | None = None
    max_new_tokens: int = 8
    decode: str | None = None
    verify_weights: bool = False

    @property
    def is_shared(self) -> bool:
        """Whether all layers are shared by all ranks, instead of each having some of them."""
        return self.stages.tensor_parallel > 1

    def used(self, rank: Rank) -> int:
        """Bytes of weights and buffers that the plan has for a rank.

        Raises:
            UsageError: the plan says it for other ranks.
        """
        each = self.shared.get("bytes_per_rank")
        if not self.is_shared or each is None:
            return rank.stage.used
        ranks = [*self.stages.ranks()]
        good = isinstance(each, list) and len(each) == len(ranks) and all(type(nbytes) is int for nbytes in each)
        if not good or rank.stage.used not in [each[other.rank] for other in ranks if other.stage == rank.stage]:
            raise UsageError('the plan\'s "bytes_per_rank" are not those of its ranks', hint=_ANEW)
        return int(each[rank.rank])


def require_run(request: RankRequest, file: str = "FILE") -> None:
    """Refuse what needs no look at the model to be refused.

    Args:
        file: where the plan is.

    Raises:
        UsageError: nothing would be run or compared, or the plan contradicts itself.
        RefusedError: with every reason.
    """
    stages = request.stages
    if request.max_new_tokens < 1:
        raise UsageError("--max-new-tokens 0: without a token, nothing of several ranks is proven", hint="leave it out")
    if request.verify_weights and len(stages.hosts) == 1:
        raise UsageError("one host has the weights once", hint="leave out --verify-weights")
    for rank in stages.ranks():
        request.used(rank)
    reasons = []
    hint = ""
    if stages.is_for_engines:
        reasons.append(
            "transformers can't load stages whose layers are shared among accelerators (tensor and pipeline parallel)"
        )
        hint = engines_that_can(file)
    elif request.is_shared and request.shared.get("expert_parallel", 1) != 1:
        reasons.append("experts that are spread over ranks (expert parallel) are not loaded by devctl")
        hint = "plan it without --ep, and load that"
    elif not request.is_shared and len(stages.stages) == 1:
        reasons.append("the plan has one stage on one accelerator: a plain map loads that")
        hint = "`devctl plan MODEL > map.json` on that host writes one"
    for stage in stages.stages:
        for name in stage.devices:
            if device_of(name).type not in _COMPUTING:
                reasons.append(f"stage {stage.stage} is on {name} of {stage.host}: stages are loaded only on GPUs")
                hint = hint or _ANEW
    if request.batch_size > 1 and request.padding:
        reasons.append("texts that are padded get other tokens in stages, without an error: give --no-padding")
    if request.decode not in (None, decoding.GREEDY, decoding.CONFIG):
        reasons.append(f"--decode {request.decode}: each rank would choose its own tokens, so only greedy is run")
        hint = hint or "leave out --decode"
    if reasons:
        raise RefusedError("this is not run over several ranks", findings=tuple(reasons), hint=hint)


def device_of(name: str) -> Device:
    """The device that a plan calls so.

    Raises:
        UsageError: there is none.
    """
    try:
        return Device.from_str(name)
    except ValueError:
        raise UsageError(f"the plan has a stage on {name!r}, which is no device", hint=_ANEW) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Local:
    """What is known of the model on this host before the ranks meet."""

    source: ModelSource
    skeleton: Skeleton
    tensors: tuple[dict[str, int], ...]
    inputs: Inputs
    device: str
    address: str

    @property
    def folder(self) -> Path:
        return Path(self.source.location)


def check_here(request: RankRequest, link: Link) -> Local:
    """See that this host has what it needs, before any rank is met.

    Raises:
        RefusedError, ModelError, UsageError: as `run_rank`.
    """
    link.step("checking the model")
    seat, stages = link.seat, request.stages
    source, skeleton = open_skeleton(request.model, random_weights=False)
    _require_in_stages(request, source, skeleton)
    tensors = tensors_of_stages(skeleton.tree, stages)
    link.step("finding the weights", patient=True)  # they may have to be downloaded
    source = loader.local_copy(source)
    link.step("checking the model")
    _require_planned(request, skeleton)
    inputs = prepare_inputs(
        source,
        skeleton,
        prompt=request.prompt,
        new_tokens=request.max_new_tokens,
        trust_remote_code=False,
        batch_size=request.batch_size,
        context_length=request.context_length,
        padding=False,
    )
    if set(inputs.tensors) - {"input_ids", "attention_mask"}:
        raise RefusedError(
            f"only text is run over several ranks, and {skeleton.tree.class_name} takes more", hint=_ELSEWHERE
        )
    device = _usable_device(seat)
    _require_room(request, seat, device)
    return Local(
        source=source,
        skeleton=skeleton,
        tensors=tensors,
        inputs=inputs,
        device=device,
        address=address_towards(seat.address, seat.port),
    )


def _require_in_stages(request: RankRequest, source: ModelSource, skeleton: Skeleton) -> None:
    """Refuse what transformers' pipeline does not run, or runs to other tokens without an error.

    Raises:
        RefusedError: with every reason.
    """
    import transformers

    tree, config = skeleton.tree, skeleton.config
    reasons = []
    if getattr(config, "is_encoder_decoder", False):
        reasons.append(f"{tree.class_name} has an encoder and a decoder")
    if tree.quantisation is not None or getattr(config, "quantization_config", None):
        reasons.append("its checkpoint is quantised")
    if (why := objection(tree.class_name, transformers.__version__, shared=request.is_shared)) is not None:
        reasons.append(why)
    if request.is_shared and (why := _indivisible(config, request.stages.tensor_parallel)) is not None:
        reasons.append(why)
    if tree.untied:
        reasons.append("its checkpoint has weights of their own in place of tied ones")
    told = generation_of(source)
    cache = told.get("cache_implementation")
    if cache not in (None, "dynamic"):
        reasons.append(
            f"its generation config asks for a cache of kind {str(cache)[:40]!r}: other tokens, without an error"
        )
    if request.decode == decoding.CONFIG and (told.get("do_sample") or int(told.get("num_beams") or 1) > 1):
        reasons.append("its generation config samples, or has beams: each rank would choose its own tokens")
    if reasons:
        how = "on ranks that share its layers" if request.is_shared else "in stages"
        raise RefusedError(f"{tree.class_name} is not run {how}", findings=tuple(reasons), hint=_ELSEWHERE)


def _indivisible(config: PreTrainedConfig, ranks: int) -> str | None:
    """Why its heads can't be shared by so many ranks, which transformers finds out after it has loaded them."""
    text = config.get_text_config()
    for name in ("num_attention_heads", "num_key_value_heads"):
        count = getattr(text, name, None)
        if isinstance(count, int) and count % ranks:
            fitting = [str(n) for n in range(2, count + 1) if count % n == 0]
            return f"its {name} are {count}, which {ranks} ranks can't share ({', '.join(fitting) or 'none'} could)"
    return None


def _require_planned(request: RankRequest, skeleton: Skeleton) -> None:
    """See that the plan is of this model as it is loaded.

    Raises:
        RefusedError: it is of another class, dtype or size.
    """
    tree, planned = skeleton.tree, request.planned
    here = {"class": tree.class_name, "dtype": tree.dtype}
    findings = [
        f"the plan is of {name} {planned[name]}, and it is {value} here"
        for name, value in here.items()
        if planned.get(name, value) != value
    ]
    if findings:
        raise RefusedError(
            "the plan is not of this model as it is loaded", findings=tuple(findings), hint="plan it anew"
        )


def _usable_device(seat: Seat) -> str:
    """What this rank runs on: its accelerator of the plan, or the CPU on a machine that has no board at all.

    That proves stages, and says so; all ranks have to run on the same kind of device.

    Raises:
        RefusedError: there are accelerators, and the planned one is not usable.
    """
    import torch

    planned = device_of(seat.me.device)
    if not (findings := loader.unusable([planned])):
        return str(planned)
    if torch.accelerator.is_available():
        raise RefusedError("the plan does not hold for this installation of torch", findings=findings, hint=_LOOK)
    if any(path.exists() for path in _BOARDS):
        raise RefusedError("this machine has accelerators that torch can't use", findings=findings, hint=_LOOK)
    return "cpu"


def _require_room(request: RankRequest, seat: Seat, device: str) -> None:
    """Refuse what this rank's device can't hold now.

    Raises:
        RefusedError: it has less than the plan needs.
    """
    import psutil
    import torch

    if device == "cpu":
        here = [request.used(rank) for rank in seat.ranks if rank.host == seat.me.host]
        need, free = sum(here), int(psutil.virtual_memory().available)
    elif device.startswith("cuda"):
        try:
            need, free = seat.me.stage.total, int(torch.cuda.mem_get_info(torch.device(device))[0])
        except RuntimeError as error:  # no memory for a context, or a board that is for one process alone
            raise RefusedError(
                f"{device} can't be used now: {first_line(error)}", hint="end what else runs there, or plan anew"
            ) from error
    else:
        return
    if need > free:
        raise RefusedError(
            f"{device} would hold {format_bytes(need)}, and has {format_bytes(free)} free",
            hint="end what else runs there, or plan anew with what is free",
        )


def address_towards(address: str, port: int) -> str:
    """This host's own address on the way to another; "" where there is no way."""
    try:
        family, _, _, _, there = socket.getaddrinfo(address, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(there)
            return str(probe.getsockname()[0])
    except OSError:
        return ""
