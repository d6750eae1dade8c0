"""From a config to the built model's tree: the model is made on the meta device, where tensors have no bytes.

Imports torch and transformers, inside functions.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from devctl.errors import ModelError, UsageError, first_line
from devctl.models import attention
from devctl.models.files.headers import disagreement
from devctl.models.files.resolve import ModelSource, SourceKind
from devctl.models.files.weights import checkpoint_dtype
from devctl.models.quantised.counting import CannotCountError, Counting, dtype_name
from devctl.models.quantised.quantise import (
    Quantize,
    forced_dtype,
    loads_here,
    method_of,
    notes_on,
    quantise,
    uncounted,
    wanted_settings,
)
from devctl.models.tree import Module, ModuleTree, Tensor, TensorKind
from devctl.units import format_bytes

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel


class Purpose(StrEnum):
    """What a skeleton is read for, which decides how a quantised checkpoint is counted."""

    PLAN = "plan"
    """As on a machine that has what its quantisation needs."""
    LOAD = "load"
    """As transformers loads it here: in its dtype, where a library or the hardware is missing."""
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
    """

    config: PreTrainedConfig
    model_class: type[PreTrainedModel]
    tree: ModuleTree
    model: PreTrainedModel | None = field(default=None, repr=False, compare=False)
    quantizer: Any = field(default=None, repr=False, compare=False)


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
    config = _load_config(source, trust_remote_code=trust_remote_code)
    found = _find_class(config, source, name=model_class, trust_remote_code=trust_remote_code, notes=notes)
    built_in = _set_dtype(config, source, dtype, notes)
    settings = wanted_settings(config, source, quantize)
    if settings is not None and purpose is not Purpose.PLAN and (purpose is Purpose.RANDOM or not loads_here(settings)):
        notes.append(uncounted(settings, quantize, built_in, "it is not loaded quantised here"))
        settings = None
    counting = None
    if settings is None:
        model = _build(found, config, built_in)
    else:
        built_in = forced_dtype(settings, built_in, notes)
        model, counting = _build_quantised(found, config, built_in, settings, quantize, notes)
    tree = tree_of(model, built_in, counting)
    tree = replace(tree, attention=attention.of_config(config), attentions=attention.of_class(found))
    if settings is not None and counting is not None:
        label = str(quantize or method_of(settings))
        tree = replace(tree, quantisation=label, budget_share=counting.budget_share, no_offload=counting.no_offload)
        notes += notes_on(tree, counting, quantize)
    notes += _kept_in_fp32(model, built_in)
    if purpose is Purpose.PLAN and quantize is None and (settings is None or counting is not None):
        note = disagreement(model, tree, source, hidden=counting.hidden if counting else 0)
        notes += [note] if note else []
    return Skeleton(
        config=config,
        model_class=found,
        tree=replace(tree, notes=tuple(notes)),
        model=model,
        quantizer=None if counting is None else counting.quantizer,
    )


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
    notes: list[str],
) -> tuple[PreTrainedModel, Counting | None]:
    """The quantised model and how it is counted; where that is not known, the model as it is built, and a note."""
    found: list[Counting] = []

    def finish(model: PreTrainedModel) -> None:
        found.append(quantise(model, dtype, settings, on_the_fly=quantize is not None))

    try:
        return _build(model_class, config, dtype, finish), found[0]
    except CannotCountError as error:
        notes.append(uncounted(settings, quantize, dtype, str(error)))
        return _build(model_class, config, dtype), None


def tree_of(model: PreTrainedModel, dtype: torch.dtype, counting: Counting | None = None) -> ModuleTree:
    """The tree of a model that is built in ``dtype`` and whose weights are not tied yet.

    Args:
        counting: bytes of the tensors that are not counted as they are built.
    """
    return _tree_of(model, dtype_name(dtype), dict(model.all_tied_weights_keys), counting)


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
        return _tree_of(module, dtype, {}, None)
    tree = _tree_of(module, dtype, dict(module.all_tied_weights_keys.items()), None)
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


def _tree_of(model: torch.nn.Module, dtype: str, ties: dict[str, str], counting: Counting | None) -> ModuleTree:
    seen: dict[int, str] = {}
    planned = {} if counting is None else counting.planned
    dtypes = {} if counting is None else counting.dtypes

    def tensor(name: str, value: torch.Tensor, kind: TensorKind, *, persistent: bool = True) -> Tensor:
        # what the class ties is told by the ties, whether they are made already or not
        first = name if name in ties else seen.setdefault(id(value), name)
        return Tensor(
            name=name,
            kind=kind,
            nbytes=planned.get(name, value.numel() * value.element_size()),
            shape=tuple(value.shape),
            dtype=dtypes.get(name, dtype_name(value.dtype)),
            persistent=persistent,
            same_as=None if first == name else first,
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


def _load_config(source: ModelSource, *, trust_remote_code: bool) -> PreTrainedConfig:
    import transformers
    from transformers import AutoConfig

    data = source.config
    model_type = data.get("model_type")
    if "auto_map" in data and not trust_remote_code and model_type not in transformers.CONFIG_MAPPING:
        raise ModelError(
            f"{source.location} comes with Python code of its own, which is not run unless you say so",
            hint="read it, then add --trust-remote-code",
        )
    # the code of a hub model is fetched by its id; everything else is here already
    remote = source.kind is SourceKind.HUB and trust_remote_code
    if remote:
        location = source.location
    elif source.kind is SourceKind.CONFIG and not (trust_remote_code and "auto_map" in data):
        location = str(source.config_path)
    elif source.config_path.name == "config.json":
        location = str(source.config_path.parent)
    else:
        raise UsageError(
            f"{source.config_path} names code of its own, which is looked for beside a file called config.json",
            hint="give the model's folder",
        )
    try:
        config = AutoConfig.from_pretrained(
            location, revision=source.revision if remote else None, trust_remote_code=trust_remote_code
        )
    except Exception as error:  # a config class, also one from remote code, may raise anything
        if model_type is None:
            raise ModelError(
                f"{source.config_path} does not say its model_type", hint="is it the config of a transformers model?"
            ) from None
        if model_type not in transformers.CONFIG_MAPPING and not trust_remote_code:
            raise ModelError(
                f"transformers {transformers.__version__} does not know the model type {model_type!r}",
                hint="a newer transformers may, or code that comes with the model (--trust-remote-code)",
            ) from None
        raise ModelError(f"transformers can't read {source.config_path}: {first_line(error)}") from error
    assert isinstance(config, transformers.PreTrainedConfig)
    return config


def _find_class(
    config: PreTrainedConfig, source: ModelSource, *, name: str | None, trust_remote_code: bool, notes: list[str]
) -> type[PreTrainedModel]:
    import transformers

    architectures = getattr(config, "architectures", None) or []
    wanted = name or next(iter(architectures), None)
    auto_map = getattr(config, "auto_map", None) or {}
    if trust_remote_code and (remote := _remote_class(auto_map, wanted)):
        return _import_remote(remote, source)
    if wanted is None:
        notes.append(f"the config names no architecture: planned for {type(config).__name__}'s base model (AutoModel)")
        wanted = "AutoModel"
    found: Any = getattr(transformers, wanted, None)
    if hasattr(found, "_model_mapping"):
        try:
            found = found._model_mapping[type(config)]
        except (KeyError, ValueError):  # ValueError: a mapping that names a class which is not exported
            raise ModelError(f"{wanted} knows no model for the config {type(config).__name__}") from None
        found = found[0] if isinstance(found, list | tuple) else found
    base = transformers.PreTrainedModel
    if isinstance(found, type) and issubclass(found, base) and found is not base:
        return found
    if name is not None:
        raise UsageError(
            f"transformers has no model class {name!r}",
            hint="for example AutoModelForCausalLM, or a class like BertModel",
        )
    raise ModelError(
        f"transformers {transformers.__version__} has no class {wanted!r}, which the config names as its architecture",
        hint="a newer transformers may, or code that comes with the model (--trust-remote-code); "
        "--model-class AutoModel plans the base model",
    )


def _remote_class(auto_map: dict[str, Any], wanted: str | None) -> str | None:
    """The reference in ``auto_map`` whose class is ``wanted``, or that an Auto class of this name has."""
    for auto, reference in auto_map.items():
        if auto.startswith("AutoModel") and isinstance(reference, str):
            class_name = reference.rpartition(".")[2]
            if wanted in (None, auto, class_name):
                return reference
    return None


def _import_remote(reference: str, source: ModelSource) -> type[PreTrainedModel]:
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    try:
        location = source.location if source.kind is SourceKind.HUB else source.config_path.parent
        found = get_class_from_dynamic_module(reference, location, revision=source.revision)
    except Exception as error:  # it runs code that comes with the model
        raise ModelError(f"the code of {source.location} can't be imported: {first_line(error)}") from error
    return found


def _set_dtype(config: PreTrainedConfig, source: ModelSource, wanted: str, notes: list[str]) -> torch.dtype:
    """Set the dtype on the config and its parts, as ``from_pretrained`` does, and return it."""
    import torch

    named = getattr(config, "dtype", None) if wanted == "auto" else wanted
    dtype = getattr(torch, named, None) if isinstance(named, str) else named
    if named is None:
        found = checkpoint_dtype(source)
        dtype = getattr(torch, found or "float32")
        if found is None:
            notes.append("neither the config nor a checkpoint at hand names a dtype: planned in float32")
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        if wanted == "auto":
            raise ModelError(f"the config's dtype {named!r} is not one to build in", hint="give another with --dtype")
        raise UsageError(f"{wanted!r} is not a floating dtype", hint="for example bfloat16, float16 or float32")
    config.dtype = dtype
    for key in config.sub_configs:
        if (part := getattr(config, key, None)) is not None:
            part.dtype = dtype
    return dtype


def _build(
    model_class: type[PreTrainedModel],
    config: PreTrainedConfig,
    dtype: torch.dtype,
    finish: Callable[[PreTrainedModel], None] | None = None,
) -> PreTrainedModel:
    """Build on the meta device; ``finish`` is done to the model where its dtype and device are the default ones."""
    try:
        with ExitStack() as stack:
            stack.enter_context(attention.without_packages())
            for context in model_class.get_init_context(dtype, False, False, None):
                stack.enter_context(context)
            model = model_class(config)
            if finish is not None:
                finish(model)
            return model
    except CannotCountError:
        raise
    except ImportError as error:
        raise ModelError(f"{model_class.__name__} needs a package that is missing: {first_line(error)}") from error
    except Exception as error:  # a constructor, also one from remote code, may raise anything
        raise ModelError(
            f"{model_class.__name__} can't be built from this config: {type(error).__name__}: {first_line(error)}"
        ) from error


def _kept_in_fp32(model: PreTrainedModel, dtype: torch.dtype) -> list[str]:
    """A note on the bytes that loading adds by keeping some modules in float32, which transformers plans without."""
    import torch
    from transformers.core_model_loading import build_glob_alternation

    plan = model._get_dtype_plan(dtype)
    if not plan:
        return []
    pattern: re.Pattern[str] = build_glob_alternation(list(plan))[0]
    extra = sum(
        p.numel() * (torch.float32.itemsize - p.element_size())
        for name, p in model.named_parameters()
        if pattern.search(name) and name not in model.all_tied_weights_keys
    )
    if not extra:
        return []
    return [
        f"{', '.join(sorted(plan))} stay in float32 when loaded: {format_bytes(extra)} more than the "
        f"{dtype_name(dtype)} sizes that transformers plans with"
    ]
