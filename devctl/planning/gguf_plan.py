"""Plans of GGUF files, for llama.cpp: whole layers, by the bytes and keys of their headers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from devctl import __version__
from devctl.devices import Device
from devctl.errors import UsageError
from devctl.export.llama_cpp import RELEASE
from devctl.models.footprint import BlockFootprint, Footprint, Kernels, Workload
from devctl.models.gguf.state import CACHE_TYPES
from devctl.models.gguf.types import BlockType
from devctl.placement.budget import Budgets, accelerators_of, is_accelerator
from devctl.placement.placement import DeviceUse, Placement, over_budget
from devctl.placement.plan import MostTokens, Plan, Refusal, Room
from devctl.placement.runtime import Runtime
from devctl.placement.whole_layers import Cut, Part, WholeLayers, cut_layers, place_layers
from devctl.planning.capacity import largest, margin
from devctl.planning.gguf import OpenedGguf
from devctl.planning.machine import Machine
from devctl.planning.question import libraries
from devctl.planning.request import MOST_TOKENS, Limits, WorkloadRequest
from devctl.units import format_bytes

COMPUTE = 2**30
"""Bytes of each GPU that are kept for llama.cpp's compute buffers, with a workload, where ``--overhead`` says nothing.

They are not known before it builds its graphs. It is what llama.cpp's own fitting keeps free of each device
(``--fit-target``), and more than a batch of 512 tokens takes with flash attention in most models: the logits over a
vocabulary of 262,144 are 512 MiB.
"""


def plan_gguf(
    opened: OpenedGguf, machine: Machine, workload: WorkloadRequest, limits: Limits, *, max_context: bool = False
) -> Plan:
    """Where llama.cpp should have each layer. A plan that does not fit has a refusal.

    Args:
        workload: without a context, the weights alone are counted.
        max_context: find how long a context may be in this cut of the layers, and in the best one.

    Raises:
        UntracedError: what the model keeps between steps is not known, and a workload is asked for.
        UsageError: llama.cpp keeps no keys and values in that dtype.
    """
    asked = _Asked(opened=opened, machine=machine, workload=workload, limits=limits)
    tokens = workload.context_length
    if tokens is not None or max_context:
        asked.require_kept()
    # the shortest text is what a cut has to hold in which the longest is looked for
    cut = asked.cut(1 if max_context else tokens)
    placement = asked.place(cut, tokens)
    refusal = asked.refusal(cut, placement)
    most = asked.most_tokens(cut) if max_context and refusal is None else None
    notes = tuple(asked.notes(cut, placement, most))
    return Plan(
        model=opened.planned,
        tree=opened.layout.tree,
        budgets=machine.budgets,
        placement=replace(placement, notes=notes),
        versions=_versions(),
        runtime=None if tokens is None else asked.runtime(tokens),
        room=_room(placement, opened.made_for) if tokens is None and refusal is None else None,
        max_context=most,
        refusal=refusal,
        other_engine=f"llama.cpp's weights{' and KV cache' if tokens else ''}; its compute buffers are not known",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """A question about a GGUF model, put together."""

    opened: OpenedGguf
    machine: Machine
    workload: WorkloadRequest
    limits: Limits

    @property
    def budgets(self) -> Budgets:
        """What each device may hold; a GPU that shares the host's RAM holds what is on the CPU, too."""
        shared = self.machine.of_host
        if not shared or self._cpu_is_named:
            return self.machine.budgets
        size = self.opened.layout.tree.index.held
        there = sum(size[name] for name in self.opened.layout.first)
        devices = ((d, max(0, s - there) if d in shared else s) for d, s in self.machine.budgets.devices)
        return replace(self.machine.budgets, devices=tuple(devices))

    @property
    def _cpu_is_named(self) -> bool:
        return Device.cpu() in dict(self.machine.budgets.devices)

    @property
    def _kept_in(self) -> BlockType:
        return CACHE_TYPES[self.workload.kv_dtype]

    def require_kept(self) -> None:
        """Refuse a dtype that keys and values can't be kept in.

        Raises:
            UntracedError: what is kept is not known at all.
            UsageError: naming the dtype.
        """
        name = self.workload.kv_dtype
        if name not in CACHE_TYPES:
            known = ", ".join(str(each) for each in CACHE_TYPES if each is not None)
            raise UsageError(f"--kv-dtype {name}: llama.cpp has no such cache type", hint=f"it has {known}")
        why = self.opened.states.refusal(self._kept_in)
        if why is not None:
            raise UsageError(f"--kv-dtype {name}: llama.cpp can't keep this model's cache in it: {why}")

    def parts(self, tokens: int | None, kept_in: BlockType | None = None) -> WholeLayers:
        """What is placed, with the state of so many tokens; None for the weights alone."""
        layout = self.opened.layout
        size = layout.tree.index.held
        batch = self.workload.batch_size
        states = [0] * len(layout.layers)
        if tokens is not None:
            kept_in = kept_in or self._kept_in
            states = [layer.nbytes(tokens, batch, kept_in) for layer in self.opened.states.layers]
        return WholeLayers(
            first=tuple(Part(name=name, nbytes=size[name]) for name in layout.first),
            layers=tuple(
                Part(name=name, nbytes=size[name], state=state)
                for name, state in zip(layout.layers, states, strict=True)
            ),
            last=tuple(Part(name=name, nbytes=size[name]) for name in layout.last),
            everywhere=tuple(Part(name=name, nbytes=size[name]) for name in layout.everywhere),
            tied=layout.tied,
            overhead={} if tokens is None else self._overhead,
        )

    @property
    def _overhead(self) -> dict[Device, int]:
        """What is kept of each accelerator for libraries and compute buffers."""
        buffers = COMPUTE if self.workload.overhead is None else 0
        return {device: size + buffers for device, size in libraries(self.workload.overhead, self.machine).items()}

    def cut(self, tokens: int | None, kept_in: BlockType | None = None) -> Cut:
        """The best cut for so many tokens."""
        return cut_layers(self.parts(tokens, kept_in), self.budgets)

    def place(self, cut: Cut, tokens: int | None, kept_in: BlockType | None = None) -> Placement:
        """What ``cut`` puts on each device, for so many tokens."""
        return place_layers(self.parts(tokens, kept_in), self.budgets, cut)

    def runtime(self, tokens: int) -> Runtime:
        """What so many tokens add to the weights."""
        parts = self.parts(tokens)
        workload = Workload(
            context_length=tokens,
            batch_size=self.workload.batch_size,
            new_tokens=min(1, tokens - 1),
            kv_dtype=None if self.workload.kv_dtype is None else str(self.workload.kv_dtype),
            kernels=Kernels.ACCELERATOR if accelerators_of(self.budgets) else Kernels.CPU,
        )
        blocks = (
            BlockFootprint(name=part.name, prompt_state=part.state, state=part.state)
            for part in parts.layers
            if part.state
        )
        footprint = Footprint(workload=workload, blocks=tuple(blocks), exact=False)
        return Runtime(footprint=footprint, overhead=parts.overhead)

    def refusal(self, cut: Cut, placement: Placement) -> Refusal | None:
        """Why the placement is not what is asked for, and what would make it so; None where it is."""
        over = over_budget(placement.devices)
        left = cut.on_cpu if accelerators_of(self.budgets) and not self.limits.offload else 0
        if not over and not left:
            return None
        ways = tuple(self._ways_out())
        if over:
            return Refusal("it does not fit", findings=(*over, *ways))
        count = len(self.opened.layout.layers)
        return Refusal(f"it does not fit: {left} of {count} layers would be left on the CPU", findings=ways)

    def _ways_out(self) -> Iterator[str]:
        """What would make it fit."""
        tokens, eight_bits = self.workload.context_length, CACHE_TYPES["int8"]
        found = False
        if tokens is not None:
            is_smaller = self._kept_in not in (eight_bits,) and self.opened.states.refusal(eight_bits) is None
            if is_smaller and self._fits(tokens, eight_bits):
                found = True
                yield "--kv-dtype int8 fits (llama.cpp's q8_0)"
            if most := largest(lambda context: 0 if self._fits(context) else -1, tokens):
                found = True
                yield f"--context-length {most} fits"
        if (
            self.limits.offload
            and accelerators_of(self.budgets)
            and not self._cpu_is_named
            and not self.machine.of_host
        ):
            found = True
            yield "with cpu=SIZE in --devices or --max-memory, the first layers may stay on the CPU"
        if not found:
            yield f"a smaller quantisation of the model than {self.opened.files.file_type}, or more memory, may fit"

    def _fits(self, tokens: int, kept_in: BlockType | None = None) -> bool:
        cut = self.cut(tokens, kept_in)
        return self.place(cut, tokens, kept_in).fits and (self.limits.offload or not cut.on_cpu)

    def most_tokens(self, cut: Cut) -> MostTokens:
        """The most tokens of each sequence, in this cut and in the best one with as few layers on the CPU."""
        most = self.opened.made_for or MOST_TOKENS

        def best(tokens: int) -> int:
            other = self.cut(tokens)
            left = margin(self.place(other, tokens))
            return left if other.on_cpu <= cut.on_cpu else min(left, -1)

        here = largest(lambda tokens: margin(self.place(cut, tokens)), most)
        return MostTokens(this_map=here, optimal=max(here, largest(best, most)))

    def notes(self, cut: Cut, placement: Placement, most: MostTokens | None) -> Iterator[str]:
        """Decisions and doubts that a reader should know of."""
        yield from self.machine.budgets.notes
        yield from self._told_parts(cut)
        tokens, made_for = self.workload.context_length, self.opened.made_for
        if tokens is not None or most is not None:
            yield from self.opened.states.notes
        if tokens is not None and made_for is not None and tokens > made_for:
            yield f"the model is made for {made_for} tokens, and not {tokens}"
        if most is not None:
            batch = self.workload.batch_size
            each = "" if batch == 1 else f" for each of {batch} sequences"
            here, best = most.this_map or "none", most.optimal or "none"
            yield f"the most tokens{each}: {here} in this cut, {best} in the best one"
        yield self._told_buffers(placement)

    def _told_parts(self, cut: Cut) -> Iterator[str]:
        layout, files = self.opened.layout, self.opened.files
        size = layout.tree.index.held
        first = sum(size[name] for name in layout.first)
        if first and accelerators_of(self.budgets) and not self._cpu_is_named:
            where = "the RAM that the GPU shares" if self.machine.of_host else "the host's RAM, whose size is not given"
            yield f"{' and '.join(layout.first)}, {format_bytes(first)}, are in {where}: llama.cpp keeps them there"
        if layout.tied and cut.runs:
            last = cut.runs[-1][0]
            yield f"the embedding is the output, too: its {format_bytes(layout.tied)} are in RAM and on {last} again"
        if layout.unplaced:
            told = sum(size[name] for name in layout.unplaced)
            names = ", ".join(layout.unplaced[:3]) + (", …" if len(layout.unplaced) > 3 else "")
            yield (
                f"{names}: where llama.cpp puts this is not known, and its {format_bytes(told)} are counted wherever "
                "there are layers"
            )
        if files.projector is not None:
            name, nbytes = files.projector
            size_of = "" if nbytes is None else f", {format_bytes(nbytes)},"
            beside = f"{name}{size_of} is not counted"
            yield f"{beside}: llama-server takes it with --mmproj, on the first GPU"

    def _told_buffers(self, placement: Placement) -> str:
        """That compute buffers are not known, what is kept or left for them, and what knows them."""
        gpus = [use for use in placement.devices if is_accelerator(use.device) and use.used and use.budget is not None]
        line = self.opened.fitting(self._all_tokens, self.workload.kv_dtype)
        least = min(gpus, key=_left, default=None)
        kept = ""
        if least is not None and placement.fits:
            left = f"{format_bytes(_left(least))} are left on {least.device}"
            if self.workload.context_length is None:
                kept = f": {left}"
            elif self.workload.overhead is None:
                kept = f": {format_bytes(COMPUTE)} of each GPU is kept for them, or as much as --overhead says; {left}"
            else:
                kept = f": what --overhead says is for them and for libraries; {left}"
        return f"llama.cpp's compute buffers are not known{kept}; its own fitting knows them better: {line}"

    @property
    def _all_tokens(self) -> int | None:
        tokens = self.workload.context_length
        return None if tokens is None else tokens * self.workload.batch_size


def _left(use: DeviceUse) -> int:
    return (use.budget or 0) - use.total


def _room(placement: Placement, made_for: int | None) -> Room:
    """What is left on the devices that compute."""
    gpus = [use for use in placement.devices if is_accelerator(use.device) and use.budget]
    here = gpus or [use for use in placement.devices if use.budget is not None]
    return Room(free=sum(map(_left, here)), made_for=made_for)


def _versions() -> dict[str, str]:
    return {"devctl": __version__, "llama.cpp": RELEASE}
