"""What a model holds in memory beside its weights, block by block, as plain data.

A run has two phases, prefill and the last decode step, and a device must hold the most of either. Blocks execute one
after another: their states add up, what a block needs while it executes does not. In prefill a block finds the states
of those before it, in decode those of all. ``peak_beside_weights`` is that sum; a phase's ``sum(state) + max(need)``
is never below it.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from devctl.models import kept
from devctl.models.decoding import Settings
from devctl.models.images import Images

FORMAT = 11
"""Version of the JSON; it grows when the shape of a footprint changes, or the way it is traced."""


IMAGES_NOT_COUNTED, WITHOUT_IMAGE = "images are not counted", "counted without an image"
"""How notes begin that a model which sees is counted with a text alone: for a reason, and because that is asked for."""


class Kernels(StrEnum):
    """Whose kernels the model runs with: they differ in what they allocate for themselves, for attention above all."""

    ACCELERATOR = "accelerator"
    """CUDA's: flash or memory-efficient attention where these tensors allow it, experts' weights gathered in decode."""
    ACCELERATOR_CUDNN = "accelerator-cudnn"
    """The same, but that cuDNN's attention is tried first, as on Hopper and Blackwell."""
    ACCELERATOR_BEFORE_8 = "accelerator-before-8"
    """The same of boards of a compute capability below 8: they have no flash attention, and no other in bfloat16."""
    CPU = "cpu"

    @property
    def on_accelerator(self) -> bool:
        """Whether it is none of the CPU's."""
        return self is not Kernels.CPU


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What the model is asked to do.

    Attributes:
        context_length: tokens of a sequence at its end: the prompt and the new ones.
        batch_size: sequences at once.
        new_tokens: how many of ``context_length`` are generated; 0 for a prompt that is only read.
        kv_dtype: torch's name of the dtype that keys and values are kept in; None is the model's.
        kernels: whose kernels run.
        attention: how the model attends, in transformers' words; None is what transformers chooses.
        generation: what ``generate`` is told, by name, where that is not as in a greedy one.
        prefill_chunk: tokens of the prompt that are read at once; None for all.
        padded: of several sequences, some are shorter, and padded to this length; a mask says where.
        images: of each sequence, within its prompt; None is one of the size that the model's config has, in a model
            that sees, where the prompt is longer than that.
        tensor_parallel: ranks that share the model; what is counted is of the first one, which has most.
        expert_parallel: ranks that share its experts out.
    """

    context_length: int
    batch_size: int = 1
    new_tokens: int = 1
    kv_dtype: str | None = None
    kernels: Kernels = Kernels.ACCELERATOR
    attention: str | None = None
    padded: bool = False
    generation: Settings = ()
    prefill_chunk: int | None = None
    images: Images | None = None
    tensor_parallel: int = 1
    expert_parallel: int = 1

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.new_tokens < 0 or self.context_length <= self.new_tokens:
            raise ValueError(f"not a workload: {self}")

    def to_document(self) -> dict[str, Any]:
        """What documents say of it; how many ranks share the model is said of the plan."""
        images = None if self.images is None else self.images.to_document()
        found = asdict(self) | {"generation": dict(self.generation), "images": images}
        del found["tensor_parallel"], found["expert_parallel"]
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockFootprint:
    """What a block holds in memory beside its weights, in bytes.

    Attributes:
        name: of a module in the tree: a no-split block or a leaf; "" for what belongs to no part of the model alone.
        prompt_state: what lives on after prefill for the next steps: keys and values, recurrent states, and also what
            an encoder hands on.
        state: the same when the context is full.
        prefill: the most that is alive while this block executes in prefill, beside weights, its own state and that of
            blocks before it: hidden states, masks, position embeddings, temporaries.
        decode: the same for the last decode step, beside the states of all blocks; 0 without such a step.
        again: the same in prefill, beside the states of all blocks, where it executes once more after blocks behind it.
        apart: (block, bytes in prefill, bytes in decode) by which ``prefill`` and ``decode`` change when that block is
            on another device: states of its are copied from there, what is not handed on is there.
    """

    name: str
    prompt_state: int = 0
    state: int = 0
    prefill: int = 0
    decode: int = 0
    again: int = 0
    apart: tuple[tuple[str, int, int], ...] = ()

    @property
    def most(self) -> int:
        """What it may need while it executes, whatever else is on its device."""
        if not self.apart:
            return max(self.prefill, self.decode, self.again)
        prefill = self.prefill + sum(max(0, nbytes) for _, nbytes, _ in self.apart)
        decode = self.decode + sum(max(0, nbytes) for _, _, nbytes in self.apart)
        return max(prefill, decode, self.again)


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """What a model holds in memory beside its weights while it does a workload.

    Attributes:
        blocks: those that hold anything, in the order in which they first execute.
        output: bytes that live when a forward ends and that are no state: the logits of a step.
        square: bytes, of the most that a block needs in prefill, that grow with the square of the text: scores and
            masks, where attention is not computed in tiles.
        most: the most bytes that are alive at once where one device has all blocks, states among them; no sum of the
            blocks' figures tells it where their states and their needs have their most at different times. 0 where it
            is not known, and on the CPU.
        rounded: bytes by which the blocks of memory that torch's caching allocator of an accelerator gives out are
            larger than what was asked for, of the weights too; torch counts them as allocated. 0 on the CPU, as the
            next three. They are worked out for all of the model on one device.
        unallocated: bytes that it has to reserve at the peak beside those blocks by default: gaps.
        pages: the same where its segments grow (``expandable_segments``), whose pages are filled in part.
        given_back: bytes that it reserves beside that while memory is not short, and gives back where it is.
        exact: whether every figure follows from the shapes alone; if not, ``notes`` say what is estimated.
        notes: what a reader of the figures should know, and what beside a text they are of.
        beside_text: that last one alone; empty where there is none.
        image_tokens: tokens of each prompt that its images take, with those that say where they begin and end.
    """

    workload: Workload
    blocks: tuple[BlockFootprint, ...]
    output: int = 0
    square: int = 0
    most: int = 0
    rounded: int = 0
    pages: int = 0
    unallocated: int = 0
    given_back: int = 0
    exact: bool = True
    notes: tuple[str, ...] = ()
    beside_text: str = ""
    image_tokens: int = 0


def peak_beside_weights(blocks: Collection[BlockFootprint], brought: Mapping[str, int] | None = None) -> int:
    """What a device must hold beside weights for the blocks that are on it, given in the order of the footprint.

    Args:
        brought: bytes of weights that are brought there while a block executes, of those whose weights are elsewhere.
    """
    here = {block.name for block in blocks}
    prefill = again = decode = prompt_state = state = 0
    for block in blocks:
        in_prefill, in_decode, once_more = block.prefill, block.decode, block.again
        for other, first, last in block.apart:
            if other not in here:
                in_prefill += first
                in_decode += last
        if brought:
            weights = brought.get(block.name, 0)
            in_prefill, in_decode, once_more = in_prefill + weights, in_decode + weights, once_more + weights
        prompt_state += block.prompt_state
        state += block.state
        prefill = max(prefill, prompt_state + in_prefill)
        again = max(again, once_more)
        decode = max(decode, in_decode)
    return max(prefill, prompt_state + again, state + decode)


def peak_bytes(footprint: Footprint) -> int:
    """What one device must hold beside weights if all of the model is on it."""
    return peak_beside_weights(footprint.blocks)


def state_bytes(footprint: Footprint) -> int:
    """What all blocks keep between steps when the context is full: the KV cache, in most models."""
    return sum(block.state for block in footprint.blocks)


def state_bytes_per_token(footprint: Footprint) -> float:
    """``state_bytes`` by token of the context and sequence; constant parts, like a window's, are spread over it."""
    return state_bytes(footprint) / (footprint.workload.context_length * footprint.workload.batch_size)


def dump_footprint(footprint: Footprint) -> str:
    """A footprint as JSON; a block is a list, in the order of its fields."""
    return json.dumps(
        {
            "format": FORMAT,
            "workload": asdict(footprint.workload),
            "blocks": [
                [b.name, b.prompt_state, b.state, b.prefill, b.decode, b.again, b.apart] for b in footprint.blocks
            ],
            "output": footprint.output,
            "square": footprint.square,
            "most": footprint.most,
            "rounded": footprint.rounded,
            "pages": footprint.pages,
            "unallocated": footprint.unallocated,
            "given_back": footprint.given_back,
            "exact": footprint.exact,
            "notes": footprint.notes,
            "beside_text": footprint.beside_text,
            "image_tokens": footprint.image_tokens,
        },
        separators=(",", ":"),
    )


def _images(data: Mapping[str, Any]) -> Images:
    processor = data["processor"]
    settings = None if processor is None else tuple((kept.text(name), kept.size(value)) for name, value in processor)
    return Images(**{**data, "processor": settings})


def parse_footprint(text: str) -> Footprint:
    """What ``dump_footprint`` wrote.

    Raises:
        ValueError: it is not that.
    """
    try:
        data = json.loads(text)
        if data["format"] != FORMAT:
            raise ValueError(f"format {data['format']} is not {FORMAT}")
        workload = data["workload"]
        return Footprint(
            workload=Workload(
                **{
                    **workload,
                    "kernels": Kernels(workload["kernels"]),
                    "generation": tuple((str(name), value) for name, value in workload["generation"]),
                    "images": None if workload["images"] is None else _images(workload["images"]),
                }
            ),
            blocks=tuple(
                BlockFootprint(
                    name=kept.text(name),
                    prompt_state=kept.size(prompt_state),
                    state=kept.size(state),
                    prefill=kept.size(prefill),
                    decode=kept.size(decode),
                    again=kept.size(again),
                    apart=tuple(
                        (kept.text(other), kept.whole(first), kept.whole(last)) for other, first, last in apart
                    ),
                )
                for name, prompt_state, state, prefill, decode, again, apart in data["blocks"]
            ),
            output=kept.size(data["output"]),
            square=kept.size(data["square"]),
            most=kept.size(data["most"]),
            rounded=kept.size(data["rounded"]),
            pages=kept.size(data["pages"]),
            unallocated=kept.size(data["unallocated"]),
            given_back=kept.size(data["given_back"]),
            exact=kept.flag(data["exact"]),
            notes=tuple(map(kept.text, data["notes"])),
            beside_text=kept.text(data["beside_text"]),
            image_tokens=kept.size(data["image_tokens"]),
        )
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"not a footprint: {error!r}") from None
