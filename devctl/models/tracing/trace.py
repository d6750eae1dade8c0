"""Finds what a model holds in memory beside its weights, by running the model's own code on fake tensors.

The model is built without weights. It does what it would do for a user: one that generates runs ``generate``, any other
runs one forward. Each storage is followed from its birth to its death, and counts for the block that was executing when
it was born. A storage that lives on from one step to the next is state. torch and transformers are imported inside
functions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from devctl.errors import TooFewTokensError, UntracedError, UsageError, first_line
from devctl.models.footprint import IMAGES_NOT_COUNTED, WITHOUT_IMAGE, BlockFootprint, Footprint, Workload, state_bytes
from devctl.models.plain import in_plain_words
from devctl.units import format_bytes

if TYPE_CHECKING:
    import torch

    from devctl.models.skeleton import Skeleton
    from devctl.models.tracing.fake_run import FakeModel, TracedStep

_OPERATIONS = 30_000
"""The most operations of one run; they take some three seconds. Code that needs more loops over the sequence."""
_OPERATIONS_OF_PREFILL = 3_000
"""The same for a prefill that is traced although nobody asked for it."""
_OPERATIONS_OF_ALL = 150_000
"""The same for a run of all blocks, where usually only two of each kind run."""


_CHUNK = 256
"""Tokens of the largest chunk that code goes over a text by, as far as is known: the others are parts of it."""

_ROUND, _SMALL = 0.01, 1 << 16
"""Parts by which figures may differ, and bytes below which a difference is told by these."""

_WORTH_A_NOTE = 0.05
"""Of the most that is alive: a bound of a kernel's own memory that is less is not told."""

_LOOPS = "its code loops over the text, as transformers does without a kernel for it"


def trace_footprint(
    skeleton: Skeleton,
    workload: Workload,
    *,
    alike: bool = True,
    given: Mapping[str, torch.Tensor] | None = None,
) -> Footprint:
    """What the model of ``skeleton`` holds beside its weights while it does ``workload``.

    Args:
        alike: whether to run only two blocks of each kind, and to take the others to be like them. Where that fails,
            all blocks are run.
        given: the inputs of a run, on the CPU. ``workload`` has to have their sizes: its prompt is as long as their
            text, or one token where they have no text. With None, inputs are made up.

    Raises:
        UntracedError: its code can't be run on fake tensors.
        TooFewTokensError: the images that are asked for are longer than the prompt.
        UsageError: it takes no such images.
    """
    failed: Exception | None = None
    for way in (True, False) if alike else (False,):
        try:
            return _trace(skeleton, workload, given, alike=way)
        except UsageError:
            raise
        except Exception as error:  # noqa: BLE001 - a model's own code may raise anything, on fake tensors above all
            failed = error
    assert failed is not None
    raise UntracedError(f"{skeleton.model_class.__name__} can't be traced: {in_plain_words(failed)}") from failed


def trace_prefill(skeleton: Skeleton, workload: Workload) -> Footprint:
    """What the model holds while it reads the prompt of ``workload``, and afterwards; nothing is said of decoding.

    Only a model whose prefill is traced in a fraction of a second is traced.

    Raises:
        UntracedError: the model's code can't be run on fake tensors or takes longer, or the model does not continue a
            text.
    """
    import torch

    from devctl.models.tracing.fake_run import FakeModel

    prompt = workload.context_length - workload.new_tokens
    ids = torch.ones((workload.batch_size, prompt), dtype=torch.long)
    try:
        model = FakeModel(
            skeleton, workload, alike=True, most=_OPERATIONS_OF_PREFILL, given={"input_ids": ids, "attention_mask": ids}
        )
        step = _prefill(model, prompt)
    except Exception as error:
        raise UntracedError(f"{skeleton.model_class.__name__} can't be traced soon: {in_plain_words(error)}") from error
    found = Footprint(
        workload=workload,
        blocks=_blocks(step, None),
        output=step.output,
        square=step.peaks.square,
        exact=False,
        notes=("of the prefill alone",),
    )
    return replace(found, **_held(step))


def _trace(
    skeleton: Skeleton, workload: Workload, given: Mapping[str, torch.Tensor] | None, *, alike: bool
) -> Footprint:
    from devctl.models.tracing.caches import with_cache
    from devctl.models.tracing.fake_run import FakeModel

    most = _OPERATIONS if alike else _OPERATIONS_OF_ALL
    model = FakeModel(skeleton, workload, alike=alike, most=most, given=given)
    notes: list[str] = []
    _require_images(model, workload)
    prefill, last = _first_that_works(model, workload, notes)
    if model.world.guesses.shaped:
        notes.append("the weights decide on some shapes, where the largest possible are taken")
    found = [*prefill.peaks.beside.values(), *(last.peaks.beside.values() if last else ())]
    if model.world.guesses.bounded > _WORTH_A_NOTE * max(found, default=0):
        notes.append("what oneDNN holds for a product in half precision is a bound: it follows from the processor")
    if model.prompts.deaf:
        notes.append(f"sounds are not counted: none are known for {skeleton.model_class.__name__}")
    if model.strides and (kernels := _with_kernels(skeleton.config, workload)):
        notes.append(kernels)
    beside_text = _told(model, workload)
    footprint = Footprint(
        workload=_as_run(model, workload),
        blocks=_blocks(prefill, last),
        output=max(prefill.output, last.output if last else 0),
        square=prefill.peaks.square,
        **_held(prefill, last),
        exact=not notes,
        notes=(*notes, *([beside_text] if beside_text else [])),
        beside_text=beside_text,
        image_tokens=model.image_tokens,
    )
    import torch

    return with_cache(
        _with_kv_dtype(footprint, skeleton.tree.dtype),
        getattr(torch, workload.kv_dtype or skeleton.tree.dtype).itemsize,
    )


def _require_images(model: FakeModel, workload: Workload) -> None:
    """Refuse images that are asked for, and of which the model sees none, or not all.

    Raises:
        UsageError: naming the option.
    """
    asked = workload.images
    if asked is None or not asked.count:
        return
    if model.no_images is not None:
        raise UsageError(f"--images {asked}: {model.no_images}", hint="leave it out")
    new = workload.new_tokens if model.generates else 0
    if model.image_tokens >= workload.context_length - new:
        raise TooFewTokensError(
            f"--images {asked} takes {model.image_tokens} tokens of each sequence: a context of "
            f"{workload.context_length} is too short, and has to be at least {model.image_tokens + 1 + new}",
            hint="give a longer --context-length, or fewer or smaller images",
            needed=model.image_tokens + 1 + new,
        )


def _told(model: FakeModel, workload: Workload) -> str:
    """What is counted beside a text; empty where that is nothing, and nothing else is to be expected."""
    if workload.images is not None and not workload.images.count:
        return WITHOUT_IMAGE
    beside_text = model.prompts.told(images=model.images)
    return f"counted with {beside_text}" if beside_text else ""


def _as_run(model: FakeModel, workload: Workload) -> Workload:
    """``workload`` without what changes nothing for this model."""
    return replace(
        workload,
        padded=model.prompts.padded,
        generation=workload.generation if model.generates else (),
        prefill_chunk=None if not model.generates or model.prompts.reads_whole else workload.prefill_chunk,
    )


def _first_that_works(model: FakeModel, workload: Workload, notes: list[str]) -> tuple[TracedStep, TracedStep | None]:
    """The prefill and the last step of the first way to run the model that works; what to know of it goes to ``notes``.

    A prompt with an image is tried before one without. For each, the model's own ``generate``, if it has one, is tried
    before the one that all models share.
    """
    failed: Exception | None = None
    had_images, asked = model.images, workload.images is not None
    for images in ((True,) if asked else (True, False)) if had_images else (False,):
        for plain in (False, True) if model.has_own_generate else (False,):
            model.images, model.plain_generate = images, plain
            try:
                prefill, last, told = _steps(model, workload)
            except Exception as error:  # noqa: BLE001 - as above
                failed = failed or error
                continue
            notes += told
            why = first_line(failed) if failed and had_images and not images else model.no_images
            if why:
                notes.append(f"{IMAGES_NOT_COUNTED}: {why}")
            return prefill, last
    assert failed is not None
    raise failed


def _steps(model: FakeModel, workload: Workload) -> tuple[TracedStep, TracedStep | None, list[str]]:
    """The prefill, the step that fills the context (None if the model does not generate), and notes about them."""
    from devctl.models.tracing.loops import MANY
    from devctl.models.tracing.recorder import TooManyOperationsError

    failed: Exception | None = None
    for fewest in (MANY, None):
        model.fewest_rounds, model.strides = fewest, set()
        try:
            prefill, last = _whole(model, workload)
            if not model.strides:
                return prefill, last, []
            if _is_cut_alike(model, workload):
                return prefill, last, [_LOOPS + "; of its equal rounds the first and the last were followed"]
        except TooManyOperationsError as error:
            failed = error
            if model.strides:  # all the more with whole loops
                break
        except Exception as error:
            if not model.strides:  # it fails with whole loops too
                raise
            failed = error
    model.fewest_rounds = None
    if isinstance(failed, TooManyOperationsError) and model.generates:
        return _grown(model, workload, failed)
    assert failed is not None
    raise failed


def _whole(model: FakeModel, workload: Workload) -> tuple[TracedStep, TracedStep | None]:
    """The two steps at their own lengths."""
    if not model.generates:
        return model.forward(workload.context_length), None
    prompt = workload.context_length - workload.new_tokens
    return _prefill(model, prompt, workload.prefill_chunk), _last(model, workload, workload.context_length)


def _is_cut_alike(model: FakeModel, workload: Workload) -> bool:
    """Whether a text so short that all rounds of its loops can run takes the same with loops cut short."""
    from devctl.models.tracing.loops import FEWEST

    stride = max(model.strides)
    tokens = workload.context_length - workload.new_tokens if model.generates else workload.context_length
    # the last round is as full as that of the whole text; an image has to fit, as it does there
    short = (2 * FEWEST + -(-model.image_tokens // stride)) * stride + tokens % stride
    if short >= tokens:
        return False
    found = []
    model.in_brief = True
    try:
        for fewest in (FEWEST, None):
            model.fewest_rounds = fewest
            found.append(_on_short_text(model, workload, short))
    finally:
        model.in_brief = False
    return all(is_close(cut, whole) for cut, whole in zip(*found, strict=True))


def _on_short_text(model: FakeModel, workload: Workload, tokens: int) -> list[TracedStep]:
    """The steps that tell of its loops: the prefill and one after it, or the one forward."""
    if not model.generates:
        return [model.forward(tokens)]
    if model.prompts.reads_whole:  # the decoder begins with another answer
        return [_prefill(model, tokens), _last(model, workload, tokens + workload.new_tokens)]
    return model.generate(tokens, steps=(0, 1), chunk=workload.prefill_chunk)


def is_close(one: TracedStep, other: TracedStep) -> bool:
    """Whether two steps are the same up to a round's temporaries, some of which only a round in the middle has."""
    if (one.state, one.executed, one.output) != (other.state, other.executed, other.output):
        return False
    (a, b) = one.peaks, other.peaks
    tables = [(a.beside, b.beside), (a.again, b.again), ({"": a.square}, {"": b.square})]
    tables += [(a.apart.get(name, {}), b.apart.get(name, {})) for name in a.apart | b.apart]
    return all(
        abs(first.get(name, 0) - second.get(name, 0)) <= _ROUND * max(abs(first.get(name, 0)), _SMALL)
        for first, second in tables
        for name in first | second
    )


def _grown(model: FakeModel, workload: Workload, failed: Exception) -> tuple[TracedStep, TracedStep | None, list[str]]:
    """The two steps as they grow over texts that are short enough, where no loop can be cut short.

    Raises:
        Exception: ``failed``, because the text is as short as those.
        ValueError: the model has a window that those texts are within, and this one is not.
    """
    prompt, whole = workload.context_length - workload.new_tokens, workload.context_length
    lengths = _lengths(model, prompt)
    if lengths is None:
        raise failed
    if within := [window for window in model.windows if lengths[0] <= window < whole]:
        raise ValueError(f"it loops over the text, and what it takes beyond {within[0]} tokens does not show before")
    shift = whole - prompt
    prefill = _extrapolated([_prefill(model, n, workload.prefill_chunk) for n in lengths], lengths, prompt)
    last = _extrapolated([_last(model, workload, n + shift) for n in lengths], lengths, prompt)
    return prefill, last, [f"{_LOOPS}: extrapolated from {lengths[-1]} tokens, so that it is an estimate"]


def _with_kernels(config: Any, workload: Workload) -> str | None:
    """What a layer of the gated delta rule takes with flash-linear-attention's kernels, which transformers prefers.

    By reading its ``chunk_gated_delta_rule``, all of whose tensors are taken to be alive at once; bytes a token and
    head of values: the decay (float32), a chunk's scores in float32 and once more, keys and values rewritten, a state
    a chunk, new values and the output. None for other models.
    """
    text = config.get_text_config(decoder=True)
    named = (getattr(text, f"linear_{n}", None) for n in ("num_value_heads", "key_head_dim", "value_head_dim"))
    sizes = [size for size in named if isinstance(size, int)]
    if len(sizes) < 3:
        return None
    heads, key, value = sizes
    chunk, half = 64, 2
    of_head = 4 + chunk * (4 + half) + half * (3 * key + 3 * value) + half * key * value // chunk
    nbytes = workload.batch_size * workload.context_length * heads * of_head
    return (
        f"with flash-linear-attention's kernels a layer of it takes at most {format_bytes(nbytes)} beside its inputs: "
        "read from their code, not measured"
    )


def _prefill(model: FakeModel, prompt: int, chunk: int | None = None) -> TracedStep:
    return model.generate(prompt, chunk=None if model.prompts.reads_whole else chunk)[0]


def _last(model: FakeModel, workload: Workload, context: int) -> TracedStep:
    """The step that fills the context.

    A step runs before it, which frees what only the prefill leaves behind, like the slice of a sliding window.
    """
    if model.prompts.reads_whole:
        prompt = context - workload.new_tokens
        answer = max(1, workload.new_tokens - 1)
        return model.generate(prompt, answer=answer, steps=(min(2, workload.new_tokens),))[0]
    start = max(1, context - 2, min(context - 1, model.image_tokens + 1))  # images have to fit in what is read first
    return model.generate(start, steps=(context - start,))[0]


def _blocks(prefill: TracedStep, last: TracedStep | None) -> tuple[BlockFootprint, ...]:
    from devctl.models.tracing.peaks import Peaks

    names = dict.fromkeys((*prefill.executed, *(last.executed if last else ())))
    first, final = prefill.peaks, last.peaks if last else Peaks()
    blocks = (
        BlockFootprint(
            name=name,
            prompt_state=prefill.state.get(name, 0),
            state=(last or prefill).state.get(name, 0),
            prefill=first.beside.get(name, 0),
            decode=final.beside.get(name, 0),
            again=first.again.get(name, 0),
            apart=_apart(first.apart.get(name, {}), final.apart.get(name, {})),
        )
        for name in names
    )
    return tuple(b for b in blocks if b.prompt_state or b.state or b.prefill or b.decode or b.again)


def _apart(first: dict[str, int], final: dict[str, int]) -> tuple[tuple[str, int, int], ...]:
    return tuple((other, first.get(other, 0), final.get(other, 0)) for other in dict.fromkeys((*first, *final)))


def _lengths(model: FakeModel, prompt: int) -> tuple[int, int, int] | None:
    """Three lengths of a text, equally far apart, whose last chunk is as full as that of ``prompt`` tokens.

    The last is as long as time allows. None where there is no time for three that are shorter than the prompt.
    """
    least = prompt % _CHUNK + _CHUNK * -(-(model.image_tokens + 1) // _CHUNK)
    most = model.most
    operations = []
    for tokens in (least, least + _CHUNK):
        _prefill(model, tokens)
        operations.append(model.operations)
    a_chunk = max(1, operations[1] - operations[0])
    chunks = min((most * 3 // 4 - operations[0]) // a_chunk, (prompt - least) // _CHUNK - 1)
    unit = chunks // 2 * _CHUNK
    return (least, least + unit, least + 2 * unit) if unit > 0 else None


def _extrapolated(steps: Sequence[TracedStep], lengths: Sequence[int], length: int) -> TracedStep:
    """The step at ``length`` tokens, extrapolated from steps at three ``lengths``.

    A figure that grows faster and faster is continued on the parabola through its three values, any other on the line
    through the last two.
    """
    from devctl.models.tracing.fake_run import TracedStep
    from devctl.models.tracing.held import Held
    from devctl.models.tracing.peaks import Peaks

    def at(values: list[int]) -> int:
        a, b, c = values
        curve = max(0, c - 2 * b + a)
        steps_on = (length - lengths[2]) / (lengths[2] - lengths[1])
        return round(c + (c - b) * steps_on + curve * steps_on * (steps_on + 1) / 2)

    def each(tables: Sequence[dict[str, int]]) -> dict[str, int]:
        return {name: at([table.get(name, 0) for table in tables]) for name in tables[-1]}

    def at_least_none(tables: Sequence[dict[str, int]]) -> dict[str, int]:
        return {name: max(0, nbytes) for name, nbytes in each(tables).items()}

    found = [step.peaks for step in steps]
    return TracedStep(
        state=at_least_none([step.state for step in steps]),
        executed=steps[-1].executed,
        peaks=Peaks(
            beside=at_least_none([peaks.beside for peaks in found]),
            again=at_least_none([peaks.again for peaks in found]),
            apart={name: each([peaks.apart.get(name, {}) for peaks in found]) for name in found[-1].apart},
            square=at([peaks.square for peaks in found]),
        ),
        output=steps[-1].output,
        held=Held.of([at(list(tops)) for tops in zip(*(step.held.tops for step in steps), strict=True)]),
    )


def _held(*steps: TracedStep | None) -> dict[str, Any]:
    """What a footprint says of the allocator of a device that has all blocks, in these steps."""
    from devctl.models.tracing.held import Held

    most = Held.most([step.held for step in steps if step is not None])
    return {
        "most": most.allocated,
        "rounded": most.rounded,
        "pages": most.pages,
        "unallocated": most.gaps,
        "given_back": most.given_back,
    }


def _with_kv_dtype(footprint: Footprint, dtype: str) -> Footprint:
    """``footprint`` with its states scaled to the workload's ``kv_dtype``.

    They are scaled and not traced in it, because transformers converts them only with another class of cache.
    """
    import torch

    wanted = footprint.workload.kv_dtype
    if wanted is None or wanted == dtype:
        return footprint
    numerator, denominator = getattr(torch, wanted).itemsize, getattr(torch, dtype).itemsize
    blocks = (
        replace(
            block,
            prompt_state=-(-block.prompt_state * numerator // denominator),
            state=-(-block.state * numerator // denominator),
        )
        for block in footprint.blocks
    )
    note = f"states are scaled from {dtype} to {wanted}; what a conversion takes is not counted"
    found = replace(footprint, blocks=tuple(blocks), exact=False, notes=(*footprint.notes, note))
    # of states that grow less is there at the peak, or all; of those that shrink less is saved, or nothing
    more = max(0, _states(found) - _states(footprint))
    return replace(found, most=footprint.most and footprint.most + more)


def _states(footprint: Footprint) -> int:
    """The most that all blocks keep, after the prompt or at the end."""
    return max(state_bytes(footprint), sum(block.prompt_state for block in footprint.blocks))
