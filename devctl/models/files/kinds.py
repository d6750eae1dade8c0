"""What people hand over that is no model of transformers: called what it is, with the next command to type."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from devctl.errors import ModelError, first_line
from devctl.models.files.index import missing_shards, read_index
from devctl.reading import read_document
from devctl.units import format_bytes

ADAPTER, PIPELINE, SENTENCES = "adapter_config.json", "model_index.json", "modules.json"
"""The files by which an adapter of PEFT, a pipeline of diffusers, and a model of sentence-transformers are known."""

WHAT_TO_GIVE = "give a folder that save_pretrained wrote, a config file, or a hub id like org/name"

INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_WEIGHTS = frozenset({".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx"})
_MOST = 16 * 2**20
_MOST_LOOKED_AT = 1000
"""Of what is in a folder."""
_LONGEST_NAME = 512


class AdapterFoundError(ModelError):
    """A MODEL is an adapter.

    Args:
        given: what was given for a model.
        config: what its config says.
        on_hub: whether it is an id.
    """

    def __init__(self, given: str, config: Mapping[str, Any], *, on_hub: bool = False) -> None:
        base = config.get("base_model_name_or_path")
        self.given, self.on_hub = given, on_hub
        self.base = base if isinstance(base, str) and 0 < len(base) <= _LONGEST_NAME else None
        of = f"of {self.base}" if self.base else "that does not say of which model"
        named = shlex.quote(self.base) if self.base else "MODEL"
        super().__init__(
            f"{given} is an adapter {of}, not a model",
            hint=f"plan it beside its base: `devctl plan {named} --adapter {shlex.quote(given)}`",
        )


class PipelineFoundError(ModelError):
    """A MODEL is a pipeline of diffusers.

    Args:
        given: what was given for a model.
        on_hub: whether it is an id.
    """

    def __init__(self, given: str, *, on_hub: bool = False) -> None:
        self.given, self.on_hub = given, on_hub
        super().__init__(
            f"{given} is a pipeline of diffusers, not a model",
            hint=f"`devctl plan {shlex.quote(given)}` plans it component by component",
        )


def of_folder(folder: Path, given: str) -> ModelError:
    """What ``folder``, which is no model's, is.

    Raises:
        OSError: it can't be looked at.
    """
    if (folder / PIPELINE).is_file():
        return PipelineFoundError(given)
    if (folder / ADAPTER).is_file():
        return AdapterFoundError(given, _object(folder / ADAPTER))
    if (inner := _transformer_of(folder)) is not None:
        return ModelError(
            f"{given} is a model of sentence-transformers in its old layout: its transformer is in {inner}",
            hint=f"give that: `devctl plan {shlex.quote(str(folder / inner))}`",
        )
    for name in INDEXES:
        if (folder / name).is_file():
            return _index_alone(folder, name, given)
    return _of_what_is_in_it(folder, given)


def _of_what_is_in_it(folder: Path, given: str) -> ModelError:
    """What a folder without a config.json has instead: models in folders of their own, or weights of nobody knows what.

    Raises:
        OSError: it can't be looked at.
    """
    there = list(islice(folder.iterdir(), _MOST_LOOKED_AT))
    models = [path.name for path in there if (path / "config.json").is_file()]
    if models:
        last = max(models, key=lambda name: (len(name), name))  # checkpoint-1000 after checkpoint-500
        told = f"{last} has one" if len(models) == 1 else f"{len(models)} folders in it have one, like {last}"
        return ModelError(
            f"{given} has no config.json; {told}",
            hint=f"give that: `devctl plan {shlex.quote(str(folder / last))}`",
        )
    weights = sorted(path.name for path in there if path.suffix in _WEIGHTS and path.is_file())
    if weights:
        more = f" and {len(weights) - 1} more" if len(weights) > 1 else ""
        return ModelError(
            f"{given} has no config.json beside its weights ({weights[0]}{more}): nothing says what they are of",
            hint="put the model's config.json there, as transformers has it, or give the model's hub id",
        )
    return ModelError(f"{given} has no config.json", hint=WHAT_TO_GIVE)


def is_adapter(folder: Path) -> bool:
    """Whether a folder with a config.json is an adapter's all the same: ``from_pretrained`` loads the adapter's base.

    Raises:
        OSError: it can't be looked at.
    """
    of_model = (*INDEXES, "model.safetensors", "pytorch_model.bin")
    return (folder / ADAPTER).is_file() and not any((folder / name).is_file() for name in of_model)


def of_hub(given: str, config_path: Path) -> ModelError:
    """What the repository ``given``, which has the file at ``config_path`` and no config.json, is."""
    if config_path.name == ADAPTER:
        return AdapterFoundError(given, _object(config_path), on_hub=True)
    return PipelineFoundError(given, on_hub=True)


def _object(path: Path) -> dict[str, Any]:
    """The JSON object at ``path``.

    Raises:
        ModelError: it is none.
    """
    try:
        found = json.loads(read_document(path, _MOST))
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else first_line(error)
        raise ModelError(f"{path} is broken: {reason}") from None
    if not isinstance(found, dict):
        raise ModelError(f"{path} is broken: it is a JSON {type(found).__name__}, not an object")
    return found


def _transformer_of(folder: Path) -> str | None:
    """The folder of the transformer in one that sentence-transformers wrote; None where there is none."""
    named = ["0_Transformer"]
    if (folder / SENTENCES).is_file():
        try:
            modules = json.loads(read_document(folder / SENTENCES, _MOST))
            named += [m["path"] for m in modules if str(m["type"]).endswith(".Transformer")]
        except (OSError, ValueError, RecursionError, TypeError, KeyError):
            pass  # it is known by its usual folder then
    for name in named:
        # a name of one folder in it, and nowhere else
        if isinstance(name, str) and Path(name).name == name and (folder / name / "config.json").is_file():
            return name
    return None


def _index_alone(folder: Path, index: str, given: str) -> ModelError:
    """What an index says of a checkpoint of which the config is not there."""
    weights = read_index(folder / index)
    files = sorted(set(weights.values()))
    missing = len(missing_shards(folder, files))
    return ModelError(
        f"{given} has no config.json, and {index}, which names {len(weights):,} tensors in {len(files)} files, "
        f"{missing} of which are not there",
        hint="download the rest of the model; its config.json alone is enough for a plan",
    )


def folder_of(path: Path, given: str) -> Path:
    """The folder of the model that the file of weights at ``path``, or the index of such, is read for.

    Raises:
        ModelError: it is of something else, which it is called.
        OSError: it can't be looked at.
    """
    folder = path.parent
    if path.name in INDEXES:
        if not (folder / "config.json").is_file():
            raise _index_alone(folder, path.name, str(folder))
        return folder
    if path.name in ("adapter_model.safetensors", "adapter_model.bin") and (folder / ADAPTER).is_file():
        raise AdapterFoundError(str(folder), _object(folder / ADAPTER))
    if not (folder / "config.json").is_file():
        raise _of_weights(path, given)
    named = {"model.safetensors", "pytorch_model.bin"}
    for index in INDEXES:
        if (folder / index).is_file():
            named |= set(read_index(folder / index).values())
    if path.name in named:
        return folder
    config = _object(folder / "config.json")
    if "_class_name" in config and "model_type" not in config:
        raise ModelError(
            f"{given} is of a part of a pipeline of diffusers ({str(config['_class_name'])[:60]}), not a model",
            hint="give the pipeline's folder, the one with its model_index.json",
        )
    raise ModelError(
        f"{given} is not what the model in its folder is read from", hint=f"give the folder: {shlex.quote(str(folder))}"
    )


def _of_weights(path: Path, given: str) -> ModelError:
    """What the file of weights ``given``, beside which there is no model's config, is."""
    if path.suffix != ".safetensors":
        return ModelError(
            f"{given} is a file of weights, a pickle, which is not opened, without a config.json beside it",
            hint=WHAT_TO_GIVE,
        )
    from devctl.models.files.safetensors import read_whole

    tensors = read_whole(path).tensors
    nbytes = sum(tensor.end - tensor.start for tensor in tensors.values())
    dtypes = ", ".join(sorted({tensor.dtype for tensor in tensors.values()}))
    what = f"{len(tensors):,} tensor{'s' * (len(tensors) != 1)}, {format_bytes(nbytes)}" + (
        f" in {dtypes}" if dtypes else ""
    )
    kind = "a safetensors file"
    if any(".lora_" in name or "lora_down" in name for name in tensors):
        kind = "a file of LoRA weights"
    elif any(name.startswith("model.diffusion_model.") for name in tensors):
        kind = "a diffusion model in a single file"
    return ModelError(
        f"{given} is {kind} ({what}) without a config.json beside it, so that nothing says what model it is of",
        hint=WHAT_TO_GIVE,
    )
