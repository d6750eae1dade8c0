"""Reads how transformers would shard a model over ranks, without a process group: from the built model itself.

Imports torch and transformers, inside functions.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from devctl.errors import first_line
from devctl.models.sharding import CUTS, KEY_HEADS, Cut, Parts, Sharding, Styles, generic

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_OF_KEYS = ("k_proj", "v_proj", "qkv_proj", "query_key_value")
"""Projections whose output has the heads of keys and values, by the last part of their names."""

_ATTENDS = re.compile("attention|attn", re.IGNORECASE)
"""Found in the names of classes whose projections have heads."""

_LINEAR = ("colwise", "colwise_gather_output", "colwise_rep")
_READS_COLUMNS = ("rowwise", "rowwise_split_input", "rowwise_rep")
"""Styles that transformers refuses for a module which does not tell its ``out_features`` or ``in_features``."""


def read_sharding(model: PreTrainedModel, *, quantised: bool) -> Sharding:
    """How the installed transformers shards ``model``, whose weights are not tied yet.

    Args:
        quantised: whether its weights are quantised, which changes the plan in ways of each method's own.
    """
    import transformers

    release = f"transformers {transformers.__version__}"
    if quantised:
        return Sharding(release=release, refusal="how quantised weights are cut is not known")
    try:
        return _read(model, release)
    except (ImportError, AttributeError):
        why = f"{release} shards models otherwise than 5.23, whose rules are known"
    except Exception as error:  # noqa: BLE001 - a plan that transformers itself does not take, for whatever reason
        why = f"{release} does not take its plan: {first_line(error)}"
    return Sharding(release=release, refusal=why)


def _read(model: PreTrainedModel, release: str) -> Sharding:
    from transformers.distributed.configuration_utils import DistributedConfig

    resolve = model._resolve_parallel_plans
    if not model.tp_plan:
        return Sharding(release=release)
    tensor = resolve(DistributedConfig(tp_size=2))[0]
    beside, experts = resolve(DistributedConfig(tp_size=2, ep_size=2))[:2] if model.ep_plan else ({}, {})
    return Sharding(
        tensor=_by_rule(tensor),
        experts=_by_rule({**beside, **experts}) if experts else (),
        heads=tuple(dict.fromkeys(_heads(model, tensor))),
        widths=tuple(dict.fromkeys(_widths(model, tensor))),
        expert_counts=tuple(sorted({p.shape[0] for p in _parameters(model, experts, "grouped_gemm")})),
        refusal=_refusal(model, tensor, release),
        release=release,
    )


def _by_rule(plan: Mapping[str, str]) -> Styles:
    """The plan with one name for all layers."""
    return tuple({generic(name): style for name, style in plan.items()}.items())


def _parameters(model: PreTrainedModel, plan: Mapping[str, str], style: str) -> Iterator[torch.nn.Parameter]:
    return (p for name, p in model.named_parameters() if plan.get(name) == style)


def _heads(model: PreTrainedModel, plan: Mapping[str, str]) -> Iterator[Parts]:
    """The heads of attention that each rank has a share of.

    A projection is cut anywhere, and its output is viewed as whole heads: where a rank has no whole number of them,
    the view fails, or, if the number of tokens makes up for it, mixes heads without an error.
    """
    modules = dict(model.named_modules())
    for name, style in plan.items():
        if style != "colwise" or name not in modules:
            continue
        above, _, last = name.rpartition(".")
        holder: Any = modules.get(above)
        if holder is None or not _ATTENDS.search(type(holder).__name__):
            continue
        config = getattr(holder, "config", None) or model.config.get_text_config(decoder=True)
        count = getattr(config, "num_attention_heads", None)
        if isinstance(count, int):
            yield Parts(what="attention heads", count=count)
        if last not in _OF_KEYS:
            continue
        count = getattr(config, "num_key_value_heads", None)
        if isinstance(count, int):
            yield Parts(what=KEY_HEADS, count=count)
        size, width = getattr(holder, "head_dim", None), getattr(modules[name], "out_features", None)
        if last in ("k_proj", "v_proj") and isinstance(size, int) and isinstance(width, int) and width % size == 0:
            yield Parts(what=KEY_HEADS, count=width // size)


def _widths(model: PreTrainedModel, plan: Mapping[str, str]) -> Iterator[Parts]:
    """The blocks of 16 bytes of which torch's grouped product takes whole ones alone, in the size that is cut.

    transformers does not look at this before it calls it: the forward fails ("strides should be multiple of 16 bytes").
    """
    if "grouped_mm" not in model.get_experts_implementation().values():
        return
    for name, parameter in model.named_parameters():
        cut = CUTS.get(plan.get(name, ""), Cut.WHOLE)
        if parameter.dim() != 3 or cut is Cut.WHOLE:
            continue
        size = parameter.shape[-1 if cut in (Cut.COLUMNS, Cut.PACKED_COLUMNS) else -2]
        size //= 2 if cut in (Cut.PACKED_ROWS, Cut.PACKED_COLUMNS) else 1
        block = 16 // parameter.element_size()
        if size % block == 0:
            yield Parts(what=f"blocks of {block} in the inner size of an expert", count=size // block)


def _refusal(model: PreTrainedModel, plan: Mapping[str, str], release: str) -> str | None:
    """Why transformers does not apply the plan to this model; None where it does."""
    modules = dict(model.named_modules())
    for name, style in plan.items():
        if name not in modules:
            continue
        needed = "out_features" if style in _LINEAR else "in_features" if style in _READS_COLUMNS else None
        kind = type(modules[name]).__name__
        if needed is not None and not hasattr(modules[name], needed):
            return f"{release} refuses {style} for {generic(name)}, a {kind}: no {needed}"
        if style.startswith("embedding") and any(True for _ in modules[name].children()):
            # what it does behind its lookup, a norm above all, is done with parts of a sum, where torch fails
            return f"{generic(name)}, a {kind}, does more than look up rows, of which its ranks have parts"
    for target, source in dict(model.all_tied_weights_keys).items():
        if _cuts(plan.get(target)) != _cuts(plan.get(source)):
            one, other = (plan.get(each) or "no style" for each in (target, source))
            return f"{generic(target)} has {one} in its plan and {generic(source)}, which it is tied to, {other}"
    return None


def _cuts(style: str | None) -> object:
    """What two tied tensors must share: unknown styles only themselves."""
    cut = Cut.WHOLE if style is None else CUTS.get(style, style)
    return Cut.ROWS if cut is Cut.FIRST else cut  # of a matrix they are the same
