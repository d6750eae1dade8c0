"""From a MODEL argument to files: a directory, a config file, or a model id on the hub.

Only the config is read or downloaded, never a weight.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any

from devctl.as_json import kind_in_json
from devctl.errors import ModelError, UsageError, first_line
from devctl.models.files.hub import (
    CONFIG,
    GENERATION_CONFIG,
    MOST_CONFIG,
    NoSuchFileError,
    fetch,
    fetch_if_there,
    in_cache,
)
from devctl.models.files.kinds import (
    ADAPTER,
    INDEXES,
    PIPELINE,
    WHAT_TO_GIVE,
    folder_of,
    is_adapter,
    of_folder,
    of_hub,
)
from devctl.models.gguf.files import SUFFIX as GGUF
from devctl.models.gguf.files import gguf_at
from devctl.reading import read_document

MOST_LAYERS = 10_000
"""Ten times as many as the deepest model; building more than can be meant takes RAM until there is none."""

_LAYERS = re.compile(r"num_(\w+_)?layers|n_layers?|(encoder|decoder)_layers")
"""Names of how many layers a model has."""

_READ = {".json", ".safetensors", ".bin", ".txt", ".model", ".tiktoken", ".py", ".jinja"}
"""Suffixes of the files that a model is read from."""

_WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".ckpt"}
"""Suffixes of files of weights."""


class SourceKind(StrEnum):
    """What a MODEL argument turned out to be."""

    DIRECTORY = "directory"
    CONFIG = "config"
    HUB = "hub"


@dataclass(frozen=True, kw_only=True)  # without slots, as what is read once is kept
class ModelSource:
    """Where a model is read from.

    Attributes:
        location: what ``from_pretrained`` takes: a folder or a hub id. For a bare config, the file itself.
        config_path: the config on this machine.
        revision: the hub's commit; None for files.
    """

    kind: SourceKind
    location: str
    config_path: Path
    revision: str | None = None

    @cached_property
    def config(self) -> dict[str, object]:
        """What the config says, read once; nobody changes it.

        Raises:
            ModelError: it can't be read, is no JSON, or none of a model.
        """
        return read_config(self.config_path)


def generation_of(source: ModelSource) -> dict[str, Any]:
    """What the model's files say of ``generate``: its generation config, else what its config has of one, as
    ``from_pretrained`` takes it.

    Raises:
        ModelError: the config can't be read, or the hub can't be reached.
    """
    path = file_of(source, GENERATION_CONFIG)
    try:
        found = None if path is None else json.loads(read_document(path, MOST_CONFIG))
    except (OSError, ValueError, RecursionError):  # transformers passes over one that it can't read, too
        found = None
    if isinstance(found, dict):
        return found
    config: dict[str, Any] = dict(source.config)
    parts = (config.get(name) for name in ("decoder", "generator", "text_config"))
    inner = next((part for part in parts if isinstance(part, dict) and part), {})
    return {**inner, **{name: value for name, value in config.items() if value is not None}}


def file_of(source: ModelSource, name: str) -> Path | None:
    """Where the file ``name`` beside the config is; on the hub, None where there is none.

    Raises:
        ModelError: the hub can't be reached.
    """
    if source.kind is SourceKind.HUB:
        return fetch_if_there(source.location, name, source.revision)
    return source.config_path.parent / name


def resolve(model: str, *, revision: str | None = None) -> ModelSource:
    """Find the config of ``model``; for a hub id, download it unless it is in the cache.

    A folder or file of that name comes before the hub. Offline (``HF_HUB_OFFLINE=1``), the cache must have it.

    Raises:
        ModelError: there is no such file, folder or id, it is gated, or the hub can't be reached; or it is something
            else than a model, which it is called.
        UsageError: a revision of something that is not on the hub.
    """
    if not model:
        raise ModelError("MODEL is empty", hint=WHAT_TO_GIVE)
    if model == "-":
        raise ModelError("MODEL is '-', but a model is not read from standard input", hint=WHAT_TO_GIVE)
    try:
        found = _resolve_here(model)
    except (OSError, RuntimeError, ValueError) as error:  # no permission; no such user's home; a name that can't be
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ModelError(f"cannot look at {model}: {reason}", hint=WHAT_TO_GIVE) from None
    if found is not None:
        if revision is not None:
            raise UsageError(f"{model} is here, and has no --revision", hint="that is for a model on the hub")
        return found
    if model.startswith(("http://", "https://")):
        raise ModelError(f"{model} is an address", hint="give the model's id, the org/name at its end")
    if _looks_like_a_path(model):
        raise ModelError(
            f"{model}: no such file or folder", hint="give a folder, a config file, or a hub id like org/name"
        )
    return _resolve_on_hub(model, revision)


def _resolve_here(model: str) -> ModelSource | None:
    path = Path(model).expanduser()
    if path.is_file() and path.name in (ADAPTER, PIPELINE):
        raise of_folder(path.parent, str(path.parent))
    if gguf_at(model) is not None:
        what = "a folder of GGUF files" if path.is_dir() else "a GGUF file"
        raise ModelError(
            f"{model} is {what}, which llama.cpp runs: devctl plans it, and loads what transformers does",
            hint=f"`devctl plan {model} --to llama.cpp` says how it is run",
        )
    if path.is_file() and (path.suffix in _WEIGHTS or path.name in INDEXES):
        path = folder_of(path, model)
    if path.is_file():
        return ModelSource(kind=SourceKind.CONFIG, location=str(path), config_path=path)
    if not path.is_dir():
        if path.is_fifo():
            raise ModelError(f"{model} is a pipe, which a model is not read from", hint=WHAT_TO_GIVE)
        if path.exists():
            raise ModelError(f"{model} is neither a file nor a folder", hint=WHAT_TO_GIVE)
        return None
    _refuse_what_waits(path)
    config = path / "config.json"
    if not config.is_file() or is_adapter(path):
        raise of_folder(path, model)
    return ModelSource(kind=SourceKind.DIRECTORY, location=str(path), config_path=config)


def _refuse_what_waits(folder: Path) -> None:
    """Refuse pipes and devices in place of a model's files: transformers would wait for them, or read on for ever."""
    for path in folder.iterdir():
        if path.suffix in _READ and not path.is_file() and not path.is_dir() and path.exists():
            raise ModelError(f"{path} is a pipe, a socket or a device, not a file", hint=WHAT_TO_GIVE)


def read_config(path: Path) -> dict[str, object]:
    """The config as JSON.

    Raises:
        ModelError: it can't be read, is no JSON, or none of a model.
    """
    try:
        config = json.loads(read_document(path, MOST_CONFIG))
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ModelError(f"{path} is not text", hint="give a config.json, or the folder it is in") from None
    except json.JSONDecodeError as error:
        what = (
            f"broken JSON: {error.msg} at line {error.lineno}, column {error.colno}" if error.doc.strip() else "empty"
        )
        raise ModelError(f"{path} is {what}", hint=WHAT_TO_GIVE) from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; nested too deeply
        raise ModelError(f"{path} is no config: {first_line(error)}") from None
    if not isinstance(config, dict):
        raise ModelError(f"{path} is not a model config: it is {kind_in_json(type(config).__name__)}, not an object")
    architectures = config.get("architectures") or []
    if isinstance(architectures, str):  # transformers reads that too
        architectures = [architectures]
    for key, good in (
        ("model_type", isinstance(config.get("model_type", ""), str)),
        ("architectures", isinstance(architectures, list) and all(isinstance(a, str) for a in architectures)),
        ("auto_map", isinstance(config.get("auto_map") or {}, dict)),
    ):
        if not good:
            raise ModelError(f"{path} is not a model config: its {key} is {json.dumps(config[key])[:80]}")
    for name, number in _numbers(config):
        layers = _LAYERS.fullmatch(name) is not None
        if abs(number) >= 2**63 or (layers and not 0 <= number <= MOST_LAYERS):
            shown = str(number) if abs(number) < 2**63 else "larger than any tensor"
            most = f" (0 to {MOST_LAYERS} can be)" if layers else ""
            raise ModelError(f"{path} is not a model config: its {name} is {shown}{most}")
    return config


def _numbers(config: object) -> Iterator[tuple[str, int]]:
    """Every integer that a config gives a name to, at any depth."""
    waiting = [("", config)]
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, dict):
            waiting += [(str(key), inner) for key, inner in value.items()]
        elif isinstance(value, list):
            waiting += [(name, inner) for inner in value]
        elif isinstance(value, int) and not isinstance(value, bool):
            yield name, value


def _looks_like_a_path(model: str) -> bool:
    return model.startswith((".", "/", "~")) or model.count("/") > 1 or model.endswith((".json", GGUF, "/"))


def _resolve_on_hub(model: str, revision: str | None) -> ModelSource:
    try:
        path = fetch(model, CONFIG, revision)
    except ModelError as error:
        failed = error
    else:
        return _on_hub(model, path, revision)
    # not while that is handled: it would be taken for the cause of what the hub answers next
    look = fetch_if_there if isinstance(failed, NoSuchFileError) else in_cache
    for name in (ADAPTER, PIPELINE):
        if (found := look(model, name, revision)) is not None:
            raise of_hub(model, found)
    raise failed


def _on_hub(model: str, path: Path, revision: str | None) -> ModelSource:
    commit = path.parent.name if path.parent.parent.name == "snapshots" else revision
    return ModelSource(kind=SourceKind.HUB, location=model, config_path=path, revision=commit)
