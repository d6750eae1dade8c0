"""Adapters of PEFT beside a model: what a folder or a repository says of one, from its config and a header.

No weight is read and nothing is unpickled; of a repository on the hub, the header alone is fetched.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from devctl.errors import ModelError, first_line
from devctl.models.files.checkpoint import bytes_of
from devctl.models.files.hub import NoSuchFileError, explained, fetch
from devctl.models.files.index import DOWNLOAD_AGAIN
from devctl.models.files.safetensors import StoredTensor, parse_header, read_whole
from devctl.reading import read_document

CONFIG, WEIGHTS, PICKLED = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
PREFIX = "base_model.model."
"""What PEFT puts before the names of a model's tensors in an adapter's file."""

MOST_CONFIG = 16 * 2**20
"""Bytes of an adapter's config; those that name every module of a large model have some hundred thousand."""

MOST_RANK, MOST_NAMES, MOST_COPIES = 2**20, 1_000_000, 1_000
"""A rank, and names in one setting, at most; no model's modules are so wide, or so many, or copied by so many names."""

_UNKNOWN_SHAPES = (
    "layer_replication",
    "megatron_config",
    "use_qalora",
    "use_bdlora",
    "arrow_config",
    "kasa_config",
    "velora_config",
    "monteclora_config",
    "alora_invocation_tokens",
)
"""Settings of LoRA with which PEFT makes, or computes, something else than two products beside a module."""

_WHAT_TO_GIVE = "give a folder that PEFT's save_pretrained wrote, or the id of one on the hub"


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """A LoRA beside a model.

    Attributes:
        name: the folder or id, as it was asked for.
        revision: the hub's commit; None for files.
        base: the model that it says it is for; None where it does not say.
        base_revision: the commit of that.
        task: what PEFT calls the model's task, like "CAUSAL_LM"; None where it does not say.
        rank: of the modules that ``ranks`` says nothing of.
        ranks: those that a pattern gives to some modules.
        targets: last parts of the names of the modules that it is beside; None where a pattern says which.
        excluded: names, or last parts of names, of modules that it leaves out; None where a pattern says which.
        layers_given: whether it says which layers it is in.
        parameters: names of parameters, not modules, that it is beside.
        copied: ends of the names of modules of which it has a whole copy (``modules_to_save``).
        shares_ties: whether copies and additions to tied modules are tied, too.
        dora, bias: whether there is a magnitude beside each product, and a bias in it.
        tensors: what its file has, by the file's names without ``PREFIX``.
    """

    name: str
    revision: str | None
    base: str | None
    base_revision: str | None
    task: str | None
    rank: int
    ranks: frozenset[int]
    targets: tuple[str, ...] | None
    excluded: tuple[str, ...] | None
    layers_given: bool
    parameters: tuple[str, ...]
    copied: tuple[str, ...]
    shares_ties: bool
    dora: bool
    bias: bool
    tensors: Mapping[str, StoredTensor]

    @property
    def identity(self) -> list[object]:
        """What it computes, as JSON values: what tells it from another one."""
        shapes = [[name, tensor.dtype, *tensor.shape] for name, tensor in self.tensors.items()]
        return [self.rank, self.dora, self.bias, list(self.copied), self.shares_ties, list(self.parameters), shapes]


def read_adapter(name: str) -> Adapter:
    """The adapter ``name``: a folder, a file of one, or an id on the hub.

    Raises:
        ModelError: there is none, it is of a method that is not counted, or it is broken.
    """
    try:
        folder = adapter_folder(Path(name).expanduser())
    except (OSError, RuntimeError, ValueError) as error:  # no permission; no such user's home; a name that can't be
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ModelError(f"cannot look at {name}: {reason}", hint=_WHAT_TO_GIVE) from None
    if folder is not None:
        return parse_adapter(name, read_config(folder / CONFIG), _in_folder(folder, name))
    path = Path(name).expanduser()
    if path.exists():
        raise ModelError(f"{name} is no adapter: it has no {CONFIG}", hint=_WHAT_TO_GIVE)
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name:
        raise ModelError(f"{name}: no such folder", hint=_WHAT_TO_GIVE)
    try:
        config_path = fetch(name, CONFIG, None)
    except NoSuchFileError:
        raise ModelError(f"{name} is no adapter of PEFT: it has no {CONFIG}", hint=_WHAT_TO_GIVE) from None
    commit = config_path.parent.name if config_path.parent.parent.name == "snapshots" else None
    return parse_adapter(name, read_config(config_path), _on_hub(name, commit), revision=commit)


def adapter_folder(path: Path) -> Path | None:
    """The folder of the adapter that ``path``, a folder or one of its files, is of; None where it is of none.

    Raises:
        OSError: it can't be looked at.
    """
    if path.is_file() and path.name in (CONFIG, WEIGHTS, PICKLED):
        path = path.parent
    return path if path.is_dir() and (path / CONFIG).is_file() else None


def read_config(path: Path) -> dict[str, Any]:
    """What an adapter's config says.

    Raises:
        ModelError: it can't be read, or is no object.
    """
    try:
        config = json.loads(read_document(path, MOST_CONFIG))
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else first_line(error)
        raise ModelError(f"{path} is no adapter's config: {reason}", hint=DOWNLOAD_AGAIN) from None
    if not isinstance(config, dict):
        raise ModelError(f"{path} is no adapter's config: it is a JSON {type(config).__name__}, not an object")
    return config


def base_of(config: Mapping[str, Any]) -> str | None:
    """The model that an adapter's config says it is for; None where it does not say."""
    base = config.get("base_model_name_or_path")
    return base if isinstance(base, str) and base else None


def method_of(config: Mapping[str, Any]) -> str:
    """What an adapter's config says of its method, in one word."""
    method = config.get("peft_type")
    return method if isinstance(method, str) and method.isidentifier() else "of unknown method"


def parse_adapter(
    name: str, config: Mapping[str, Any], tensors: Mapping[str, StoredTensor], *, revision: str | None = None
) -> Adapter:
    """The adapter ``name`` whose config says ``config``, and whose file has ``tensors``.

    Raises:
        ModelError: it is of a method that is not counted, or says what can't be meant.
    """
    said = _Said(name, config)
    if said.text("peft_type") != "LORA":
        raise ModelError(f"{name} is an adapter of PEFT's {method_of(config)}, which is not counted: LoRA is")
    if unknown := [setting for setting in _UNKNOWN_SHAPES if config.get(setting)]:
        raise ModelError(f"{name} is a LoRA with {unknown[0]}, which is not counted")
    if foreign := [tensor for tensor in tensors if not tensor.startswith(PREFIX)]:
        raise ModelError(
            f"{name} has a tensor {foreign[0][:80]!r}, and PEFT's names begin with {PREFIX}",
            hint="is it an adapter of another library?",
        )
    if not tensors:
        raise ModelError(f"{name} has no tensor in its {WEIGHTS}", hint=DOWNLOAD_AGAIN)
    pattern = said.mapping("rank_pattern")
    return Adapter(
        name=name,
        revision=revision,
        base=base_of(config),
        base_revision=said.text("revision"),
        task=said.text("task_type"),
        rank=said.rank("r", config.get("r", 8)),
        ranks=frozenset(said.rank("rank_pattern", rank) for rank in pattern.values()),
        targets=said.names("target_modules"),
        excluded=said.names("exclude_modules"),
        layers_given=config.get("layers_to_transform") is not None,
        parameters=said.names("target_parameters") or (),
        copied=said.names("modules_to_save") or (),
        shares_ties=said.flag("ensure_weight_tying"),
        dora=said.flag("use_dora"),
        bias=said.flag("lora_bias"),
        tensors={tensor.removeprefix(PREFIX): entry for tensor, entry in tensors.items()},
    )


@dataclass(frozen=True, slots=True)
class _Said:
    """What the config of the adapter ``name`` says, of the kind that it should be."""

    name: str
    config: Mapping[str, Any]

    def _refused(self, key: str, wanted: str) -> ModelError:
        said = json.dumps(self.config.get(key))[:60]
        return ModelError(f"{self.name}: the {key} of its {CONFIG} is {said}, and no {wanted}", hint=DOWNLOAD_AGAIN)

    def text(self, key: str) -> str | None:
        value = self.config.get(key)
        if not isinstance(value, str | None):
            raise self._refused(key, "text")
        return value

    def flag(self, key: str) -> bool:
        value = self.config.get(key)
        if not isinstance(value, bool | None):
            raise self._refused(key, "true or false")
        return bool(value)

    def mapping(self, key: str) -> Mapping[str, Any]:
        value = self.config.get(key)
        if not isinstance(value, dict | None):
            raise self._refused(key, "object")
        return value or {}

    def rank(self, key: str, value: Any) -> int:
        if type(value) is not int or not 0 < value <= MOST_RANK:
            raise self._refused(key, f"rank (1 to {MOST_RANK})")
        return value

    def names(self, key: str) -> tuple[str, ...] | None:
        """Names; none where nothing is said, None where a pattern is."""
        value = self.config.get(key)
        if value is None:
            return ()
        if isinstance(value, str) and value and key in ("target_modules", "exclude_modules"):
            return None
        if not isinstance(value, list) or not all(isinstance(each, str) and each for each in value):
            raise self._refused(key, "list of names")
        if len(value) > (MOST_COPIES if key == "modules_to_save" else MOST_NAMES):
            raise ModelError(f"{self.name}: the {key} of its {CONFIG} has {len(value):,} names", hint=DOWNLOAD_AGAIN)
        return tuple(value)


def _in_folder(folder: Path, name: str) -> dict[str, StoredTensor]:
    if not (folder / WEIGHTS).is_file():
        if (folder / PICKLED).is_file():
            raise ModelError(
                f"{name} has its weights in {PICKLED} alone, a pickle, which is not opened",
                hint="save it anew with PEFT's save_pretrained, which writes safetensors",
            )
        raise ModelError(f"{name} has no {WEIGHTS}", hint=DOWNLOAD_AGAIN)
    return checked(name, read_whole(folder / WEIGHTS).tensors)


def checked(name: str, tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """``tensors``, whose shapes are as long as their bytes.

    Raises:
        ModelError: one is not.
    """
    for tensor, entry in tensors.items():
        if bytes_of(entry.shape, entry.dtype) != entry.end - entry.start:
            size, nbytes = "x".join(map(str, entry.shape))[:60], entry.end - entry.start
            raise ModelError(
                f"{name} is corrupt: {tensor[:80]!r} of {size} in {entry.dtype} has {nbytes:,} bytes",
                hint=DOWNLOAD_AGAIN,
            )
    return dict(tensors)


def _on_hub(name: str, revision: str | None) -> dict[str, StoredTensor]:
    """The tensors of the adapter's file: from the cache, else from its header, which is fetched alone."""
    from huggingface_hub import parse_safetensors_file_metadata, try_to_load_from_cache

    cached = try_to_load_from_cache(name, WEIGHTS, revision=revision)
    if isinstance(cached, str):
        return checked(name, read_whole(Path(cached)).tensors)
    try:
        metadata = parse_safetensors_file_metadata(name, WEIGHTS, revision=revision)
    except Exception as error:  # besides its own, those of the HTTP library that the hub's client uses
        found = explained(error, name, WEIGHTS, revision)
        if isinstance(found, NoSuchFileError):
            raise ModelError(f"{name} has no {WEIGHTS}", hint=f"a {PICKLED} is a pickle, which is not opened") from None
        raise found from error
    # parsed once more, so that what the hub says is held to the same rules as a file
    entries = {
        tensor: {"dtype": info.dtype, "shape": list(info.shape), "data_offsets": list(info.data_offsets)}
        for tensor, info in metadata.tensors.items()
    }
    try:
        return checked(name, parse_header(json.dumps(entries).encode()).tensors)
    except ValueError as error:
        raise ModelError(f"{WEIGHTS} of {name} is corrupt: {first_line(error)}") from None


def elements(tensor: StoredTensor) -> int:
    """How many numbers a tensor has."""
    return math.prod(tensor.shape)
