"""From a config to the built model's tree: the model is made on the meta device, where tensors have no bytes.

Imports torch and transformers, inside functions.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from devctl.errors import ModelError, first_line
from devctl.models import attention, kept_in_float32
from devctl.models.adapters import Adapter
from devctl.models.configs import OLD_CODE, find_class, is_remote, load_config, models_own, set_dtype
from devctl.models.files.checkpoint import Checkpoint, read_checkpoint
from devctl.models.files.headers import disagreement
from devctl.models.files.resolve import ModelSource
from devctl.models.files.untied import find_untied
from devctl.models.own_code import contained
from devctl.models.parallel_plan import read_sharding
from devctl.models.plain import in_plain_words
from devctl.models.quantised.by_headers import count_by_headers, is_packed
from devctl.models.quantised.counting import CannotCountError, Counting, dtype_name
from devctl.models.quantised.quantise import (
    Quantize,
    forced_dtype,
    loads_here,
    note_on_unpacked,
    notes_on,
    quantise,
    uncounted,
    wanted_settings,
)
from devctl.models.quantised.settings import label_of, not_loaded, too_large
from devctl.models.tree import Module, ModuleTree, Tensor, TensorKind
from devctl.models.while_loading import held_while_made

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel


class Purpose(StrEnum):
    """What a skeleton is read for, which decides how a quantised checkpoint is counted."""

    PLAN = "plan"
    """As on a machine that has what its quantisation needs."""
    LOAD = "load"
    """As transformers loads it here: in its dtype, where a library or the hardware is missing."""
    UNPACKED = "unpacked"
    """As on a machine that lacks what its quantisation needs, and where transformers unpacks its weights."""
    RANDOM = "random"
    """With random weights, which are not quantised."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Skeleton:
    """A model without weights.

    Attributes:
        config: as ``from_pretrained`` would use it, its dtype set.
        model_class: the class to load.
        tree: its modules.
        model: itself, on the meta device, as its quantisation makes it, and with its weights not tied yet; None where
            it was not kept.
        quantizer: transformers' own, where the model is quantised and that could prepare it here.
        adapters: what PEFT loads beside it, where that is looked at.
    """

    config: PreTrainedConfig
    model_class: type[PreTrainedModel]
    tree: ModuleTree
    model: PreTrainedModel | None = field(default=None, repr=False, compare=False)
    quantizer: Any = field(default=None, repr=False, compare=False)
    adapters: tuple[Adapter, ...] = ()


def read_skeleton(
    source: ModelSource,
    *,
    dtype: str = "auto",
    model_class: str | None = None,
    trust_remote_code: bool = False,
    quantize: Quantize | None = None,
    purpose: Purpose = Purpose.PLAN,
) -> Skeleton:
    """Build the model of ``source`` on the meta device, in the way ``from_pretrained`` does.

    Args:
        source: where its config is.
        dtype: torch's name of a floating dtype; "auto" is the config's, else the checkpoint's, else float32.
        model_class: a class of transformers, or an Auto class; None is the config's ``architectures[0]``.
        trust_remote_code: run Python code that comes with the model.
        quantize: as ``from_pretrained`` would quantise the weights while loading; not for a quantised checkpoint.

    Raises:
        ModelError: the config is broken, or its architecture unknown.
        UsageError: there is no such ``model_class``, or the checkpoint is quantised already.
    """
    import transformers

    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    notes: list[str] = []
    config = load_config(source, trust_remote_code=trust_remote_code)
    checkpoint = Checkpoint() if purpose is Purpose.RANDOM else read_checkpoint(source)
    if checkpoint.note is not None and purpose is Purpose.PLAN:
        notes.append(checkpoint.note)
    with models_own(type(config), source):
        found, config = find_class(config, source, name=model_class, trust_remote_code=trust_remote_code, notes=notes)
        settings = wanted_settings(config, source, quantize, checkpoint, notes)
        built_in = set_dtype(config, source, dtype, notes, quantised=settings is not None and quantize is None)
    if settings is not None and quantize is None and (why := not_loaded(settings)) is not None:
        if purpose is Purpose.LOAD:
            raise ModelError(why, hint="another engine may load it, as the one that it was made for")
        notes.append(f"{why} (another engine may load them)")
    with models_own(found, source):
        return _read(source, config, found, built_in, settings, quantize, purpose, checkpoint, notes)


def _read(
    source: ModelSource,
    config: PreTrainedConfig,
    found: type[PreTrainedModel],
    built_in: torch.dtype,
    settings: dict[str, Any] | None,
    quantize: Quantize | None,
    purpose: Purpose,
    checkpoint: Checkpoint,
    notes: list[str],
) -> Skeleton:
    unpacked = settings if settings is not None and settings.get("dequantize") else None
    packed_as = None
    if settings is not None and purpose is Purpose.UNPACKED:
        unpacked, packed_as, settings = settings, label_of(settings), None
    elif (
        settings is not None and purpose is not Purpose.PLAN and (purpose is Purpose.RANDOM or not loads_here(settings))
    ):
        notes.append(uncounted(settings, quantize, built_in, "it is not loaded quantised here"))
        unpacked = settings if purpose is Purpose.LOAD and quantize is None else None
        settings = None
    counting = None
    if settings is None:
        model = _build(found, config, built_in)
    else:
        built_in = forced_dtype(settings, built_in, notes)
        model, counting = _build_quantised(found, config, built_in, settings, quantize, checkpoint, notes)
    made = {}
    if purpose is not Purpose.RANDOM:
        made = held_while_made(model, checkpoint.tensors, counting, unpacked)
    wider = kept_in_float32.bytes_more(model, built_in, counting, random=purpose is Purpose.RANDOM)
    tree = tree_of(model, built_in, counting, wider, made)
    tree = replace(tree, attention=attention.of_config(config), attentions=attention.of_class(found))
    tree = replace(tree, sharding=read_sharding(model, quantised=_is_quantised(config, settings, quantize)))
    if settings is not None and counting is not None:
        label = str(quantize or label_of(settings))
        tree = replace(tree, quantisation=label, budget_share=counting.budget_share, no_offload=counting.no_offload)
        if counting.without is not None:
            tree = replace(tree, unpacked=counting.without + sum(wider.values()))
        notes += notes_on(tree, counting, quantize)
    if packed_as is not None:
        tree = replace(tree, packed_as=packed_as)
        notes.append(note_on_unpacked(tree))
    notes += kept_in_float32.note_on(model, built_in, wider)
    if purpose is not Purpose.RANDOM:
        untied, told = find_untied(model, source, checkpoint, built_in)
        tree = replace(tree, untied=untied)
        notes += told
    if purpose is Purpose.PLAN and quantize is None and (settings is None or counting is not None):
        note = disagreement(model, tree, checkpoint.tensors, hidden=counting.all_hidden if counting else 0)
        notes += [note] if note else []
    return Skeleton(
        config=config,
        model_class=found,
        tree=replace(tree, notes=tuple(notes)),
        model=model,
        quantizer=None if counting is None else counting.quantizer,
    )


def _is_quantised(config: PreTrainedConfig, settings: Mapping[str, Any] | None, quantize: Quantize | None) -> bool:
    """Whether weights are quantised in the checkpoint or while loading, even where they are counted plain."""
    named = getattr(config, "quantization_config", None)
    return settings is not None or quantize is not None or bool(named)


def empty_model(skeleton: Skeleton) -> PreTrainedModel:
    """The model of ``skeleton`` once more, on the meta device; its weights are not tied yet."""
    import torch

    return _build(skeleton.model_class, skeleton.config, getattr(torch, skeleton.tree.dtype))


def _build_quantised(
    model_class: type[PreTrainedModel],
    config: PreTrainedConfig,
    dtype: torch.dtype,
    settings: dict[str, Any],
    quantize: Quantize | None,
    checkpoint: Checkpoint,
    notes: list[str],
) -> tuple[PreTrainedModel, Counting | None]:
    """The quantised model and how it is counted.

    Where that is not known, the headers of its files tell; where there are none, it is the model as it is built, with a
    note.
    """
    found: list[Counting] = []

    def finish(model: PreTrainedModel) -> None:
        found.append(quantise(model, dtype, settings, on_the_fly=quantize is not None))

    try:
        return _build(model_class, config, dtype, finish), found[0]
    except CannotCountError as error:
        model = _build(model_class, config, dtype)
        if quantize is None and is_packed(checkpoint.tensors):
            return model, count_by_headers(model, checkpoint.tensors)
        more = "" if quantize is not None else too_large(settings, dtype)
        notes.append(uncounted(settings, quantize, dtype, str(error)) + more)
        return model, None


def tree_of(
    model: PreTrainedModel,
    dtype: torch.dtype,
    counting: Counting | None = None,
    wider: Mapping[str, int] | None = None,
    made: Mapping[str, int] | None = None,
) -> ModuleTree:
    """The tree of a model that is built in ``dtype`` and whose weights are not tied yet.

    Args:
        counting: bytes of the tensors that are not counted as they are built.
        wider: bytes that loading adds to tensors, by name.
        made: bytes that are held for a while as a parameter is made, by name.
    """
    ties = dict(model.all_tied_weights_keys)
    return _tree_of(model, dtype_name(dtype), ties, counting or Counting(), wider or {}, made or {})


def live_tree(module: torch.nn.Module) -> ModuleTree:
    """The tree of a module as it is in this process, its weights tied or not.

    A model of transformers has its ties and no-split blocks from its class; of any other, tensors that are one object
    count once, and nothing is kept whole.
    """
    import torch
    from transformers import PreTrainedModel

    floats = (p.dtype for p in module.parameters() if p.is_floating_point())
    dtype = dtype_name(next(floats, torch.float32))
    if not isinstance(module, PreTrainedModel):
        return _tree_of(module, dtype, {}, Counting(), {}, {})
    tree = _tree_of(module, dtype, dict(module.all_tied_weights_keys.items()), Counting(), {}, {})
    return replace(tree, attention=attention.of_config(module.config), attentions=attention.of_class(type(module)))


def live_skeleton(module: torch.nn.Module, tree: ModuleTree) -> Skeleton | None:
    """What builds such a module once more; None where its class does not build from its config what it is now.

    Args:
        tree: of the module.
    """
    import torch
    from transformers import PreTrainedModel

    if not isinstance(module, PreTrainedModel):
        return None
    config = copy.deepcopy(module.config)
    skeleton = Skeleton(config=config, model_class=type(module), tree=tree)
    try:
        built = tree_of(_build(type(module), config, getattr(torch, tree.dtype)), getattr(torch, tree.dtype))
    except ModelError:
        return None
    return skeleton if _tensors(built.root) == _tensors(tree.root) else None


def _tensors(module: Module) -> list[tuple[str, tuple[int, ...], str]]:
    own = [(t.name, t.shape, t.dtype) for t in (*module.parameters, *module.buffers)]
    return own + [found for child in module.children for found in _tensors(child)]


def _tree_of(
    model: torch.nn.Module,
    dtype: str,
    ties: dict[str, str],
    counting: Counting,
    wider: Mapping[str, int],
    made: Mapping[str, int],
) -> ModuleTree:
    seen: dict[int, str] = {}

    def tensor(name: str, value: torch.Tensor, kind: TensorKind, *, persistent: bool = True) -> Tensor:
        # what the class ties is told by the ties, whether they are made already or not
        first = name if name in ties else seen.setdefault(id(value), name)
        nbytes = counting.planned.get(name, value.numel() * value.element_size())
        return Tensor(
            name=name,
            kind=kind,
            nbytes=nbytes,
            held=counting.held(name, nbytes, wider.get(name, 0)),
            shape=tuple(value.shape),
            dtype=counting.dtypes.get(name, dtype_name(value.dtype)),
            persistent=persistent,
            same_as=None if first == name else first,
            loading=made.get(name, 0),
        )

    def visit(module: torch.nn.Module, name: str) -> Module:
        prefix = f"{name}." if name else ""
        transient = module._non_persistent_buffers_set
        return Module(
            name=name,
            class_name=type(module).__name__,
            parameters=tuple(
                tensor(prefix + n, p, TensorKind.PARAMETER) for n, p in module.named_parameters(recurse=False)
            ),
            buffers=tuple(
                tensor(prefix + n, b, TensorKind.BUFFER, persistent=n not in transient)
                for n, b in module.named_buffers(recurse=False)
            ),
            children=tuple(visit(child, prefix + n) for n, child in module.named_children()),
        )

    unplaced = getattr(model, "_no_placement_params", None)
    return ModuleTree(
        root=visit(model, ""),
        class_name=type(model).__name__,
        dtype=dtype,
        ties=tuple(ties.items()),
        no_split=frozenset(getattr(model, "_no_split_modules", None) or ()),
        unplaced=None if unplaced is None else frozenset(unplaced),
    )


def _data_of(config: PreTrainedConfig) -> dict[str, Any] | None:
    """What the config says, as far as it can be written."""
    try:
        return config.to_dict()
    except Exception:  # noqa: BLE001 - one that is wrong in itself: the failure that is told is another
        return None


def _build(
    model_class: type[PreTrainedModel],
    config: PreTrainedConfig,
    dtype: torch.dtype,
    finish: Callable[[PreTrainedModel], None] | None = None,
) -> PreTrainedModel:
    """Build on the meta device; ``finish`` is done to the model where its dtype and device are the default ones."""
    try:
        with ExitStack() as stack:
            stack.enter_context(contained())
            stack.enter_context(attention.without_packages())
            for context in model_class.get_init_context(dtype, False, False, None):
                stack.enter_context(context)
            model = model_class(config)
            if not hasattr(model, "all_tied_weights_keys"):
                raise AttributeError("its __init__ does not call self.post_init(), which transformers 5 needs")
            if finish is not None:
                finish(model)
            return model
    except CannotCountError:
        raise
    except ImportError as error:
        raise ModelError(f"{model_class.__name__} needs a package that is missing: {first_line(error)}") from error
    except Exception as error:  # a constructor, also one from remote code, may raise anything
        own = is_remote(model_class)  # whoever wrote it reads Python
        why = f"{type(error).__name__}: {first_line(error)}" if own else in_plain_words(error, _data_of(config))
        if isinstance(getattr(model_class, "_tied_weights_keys", None), list):
            why += " (its _tied_weights_keys is a list, as transformers 4 had it)"
        raise ModelError(
            f"{model_class.__name__} can't be built from this config: {why}",
            hint=OLD_CODE if is_remote(model_class) else "",
        ) from error
