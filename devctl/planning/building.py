"""From a request to a model on the meta device: the step that imports frameworks."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from devctl.errors import ModelError
from devctl.models.adapters import read_adapter
from devctl.models.files.kinds import ADAPTER, AdapterFoundError
from devctl.models.files.resolve import ModelSource, SourceKind, resolve
from devctl.models.quantised.quantise import Quantize
from devctl.planning.progress import reporter
from devctl.planning.request import ModelRequest

if TYPE_CHECKING:
    from devctl.models.skeleton import Purpose, Skeleton

BUILDING = threading.RLock()
"""Held while a model is built or traced: transformers and torch are patched then, for the whole process."""


def find_source(request: ModelRequest) -> ModelSource:
    """Where the model of ``request``, which is no live module, is read from.

    Raises:
        ModelError: nowhere.
    """
    assert isinstance(request.model, str), "a live module is read from nowhere"
    where = "" if os.path.lexists(request.model) else " on the hub"
    with reporter().status(f"looking for {request.model}{where}"):
        return resolve(request.model, revision=request.revision)


def find_planned(request: ModelRequest) -> tuple[ModelRequest, ModelSource]:
    """The same, and the request; where its model is an adapter, that of the adapter's base with it.

    Raises:
        ModelError: nowhere, or it is an adapter whose base is not known, or not at hand.
    """
    try:
        return _with_embedded(request, find_source(request))
    except AdapterFoundError as error:
        found = error
    # not while that is handled: it would be taken for the cause of what a hub answers
    return _of_base(request, found)


def _with_embedded(request: ModelRequest, source: ModelSource) -> tuple[ModelRequest, ModelSource]:
    """The request with the adapter that is in the model's own folder, which transformers loads too where PEFT is."""
    folder = str(source.config_path.parent)
    if source.kind is not SourceKind.DIRECTORY or not (source.config_path.parent / ADAPTER).is_file():
        return request, source
    if folder in request.adapters:
        return request, source
    try:
        read_adapter(folder)
    except ModelError as error:
        reporter().warn(f"{folder} has an adapter in it, which is not counted: {error.message}")
        return request, source
    reporter().warn(f"{folder} has an adapter in it, which transformers loads, too, where PEFT is installed")
    return replace(request, adapters=(folder, *request.adapters)), source


def _of_base(request: ModelRequest, found: AdapterFoundError) -> tuple[ModelRequest, ModelSource]:
    """The request for the base of an adapter, with it.

    What an adapter names is not what somebody typed: no code of it is run, and no path of another machine is followed.
    """
    base = found.base
    if base is None or request.trust_remote_code or request.revision is not None:
        raise found
    if found.on_hub and (base.startswith((".", "/", "~")) or base.count("/") > 1 or "\\" in base):
        raise found
    whole = replace(request, model=base, adapters=(found.given, *request.adapters))
    try:
        source = find_source(whole)
    except ModelError as error:
        raise ModelError(f"{found.message}: {error.message}", hint=found.hint) from error
    reporter().warn(f"{found.given} is an adapter: its base {base} is planned with it")
    return whole, source


def read(source: ModelSource, request: ModelRequest, purpose: Purpose) -> Skeleton:
    """Build the model of ``source`` on the meta device.

    Raises:
        ModelError, UsageError: as `open_model`.
    """
    from devctl.models.skeleton import read_skeleton

    assert request.quantize is None or isinstance(request.quantize, Quantize), "the request made one of it"
    with BUILDING, reporter().building():
        with reporter().status("importing torch and transformers"):
            import torch  # noqa: F401
            import transformers  # noqa: F401
        with reporter().status(f"building {request.model} from its config, without its weights"):
            return read_skeleton(
                source,
                dtype=request.dtype,
                model_class=request.model_class,
                trust_remote_code=request.trust_remote_code,
                quantize=request.quantize,
                purpose=purpose,
            )


_PER_TOKEN = (
    "num_experts_per_tok",
    "num_experts_per_token",
    "experts_per_token",
    "top_k_experts",
    "moe_topk",
    "moe_top_k",
    "moe_k",
)
"""Names that configs have for how many experts of a layer a token is sent to, beside shared ones."""


def experts_per_token(config: Mapping[str, object]) -> int | None:
    """How many experts of a layer a model of ``config`` sends a token to; None where it does not say, or differs."""
    found: set[int] = set()
    waiting: list[object] = [config]
    while waiting:
        part = waiting.pop()
        if isinstance(part, Mapping):
            for key, value in part.items():
                told = value if isinstance(value, list) else [value]
                if key in _PER_TOKEN:
                    found |= {each for each in told if type(each) is int and each > 0}
                elif isinstance(value, Mapping):
                    waiting.append(value)
    return next(iter(found)) if len(found) == 1 else None


def made_for(config: dict[str, object]) -> int | None:
    """Tokens that a model of ``config`` is made for; None where it does not say."""
    for part in (config, config.get("text_config"), config.get("decoder")):
        if isinstance(part, dict):
            for key in ("max_position_embeddings", "n_positions", "max_target_positions", "max_sequence_length"):
                if isinstance(value := part.get(key), int) and value > 1:
                    return value
    return None


def hidden_size(config: Mapping[str, object]) -> int | None:
    """How wide the hidden states of a model of ``config`` are; None where it does not say."""
    for part in (config, config.get("text_config")):
        if isinstance(part, Mapping):
            for key in ("hidden_size", "n_embd", "d_model"):
                if isinstance(value := part.get(key), int) and value > 0:
                    return value
    return None
