"""Pipelines of diffusers: what their components hold, from the headers of their files.

A component that is a model of transformers is counted as every one is, by its tree; of the others the headers say what
their weights take. No weight is read, and no code of a pipeline is run.
"""

from __future__ import annotations

import inspect
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from devctl.errors import ModelError, first_line
from devctl.models.files.checkpoint import bytes_of
from devctl.models.files.hub import NoSuchFileError, explained, fetch, fetch_if_there, in_cache
from devctl.models.files.index import shards
from devctl.models.files.kinds import PIPELINE
from devctl.models.files.safetensors import StoredTensor, parse_header, read_whole
from devctl.reading import read_document

MOST_COMPONENTS = 100
_MOST = 16 * 2**20

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
_WITHOUT_WEIGHTS = re.compile(r"\w*(Tokenizer|TokenizerFast|Scheduler|Processor|ProcessorFast|FeatureExtractor)(Pil)?")
"""Classes of what has no weights."""

_FILES = ("diffusion_pytorch_model", "model")
"""What files of weights are called: those of diffusers, and those of transformers."""
_PICKLES = ("diffusion_pytorch_model.bin", "pytorch_model.bin", "pytorch_model.bin.index.json")
_WEIGHTS = frozenset({".safetensors", ".bin"})
_VARIANTS = ("fp16", "bf16", "fp32")
"""Variants that are asked for where files can't be listed."""

_FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_ITEMSIZE = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}


class Kind(StrEnum):
    """What a component is counted by."""

    TREE = "tree"
    """Its module tree: it is a model of transformers."""
    HEADERS = "headers"
    """The headers of its files."""
    NOTHING = "nothing"
    """It has no weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """One of a pipeline's, as its index names it.

    Attributes:
        library: where its class is from: diffusers, transformers, or a module of either.
    """

    name: str
    library: str
    class_name: str

    @property
    def kind(self) -> Kind:
        """What it is counted by."""
        if _WITHOUT_WEIGHTS.fullmatch(self.class_name):
            return Kind.NOTHING
        return Kind.TREE if self.library == "transformers" else Kind.HEADERS


@dataclass(frozen=True, slots=True, kw_only=True)
class Weighed:
    """What a component holds once it is loaded.

    Attributes:
        nbytes: None where that is not known.
        dtypes: in which, by torch's names; of packed weights, safetensors' own.
        variant: of the files that it was read from, like "fp16"; None of those without one.
        why: why its bytes are not known; empty where they are.
        notes: what a reader of its bytes should know.
    """

    component: Component
    nbytes: int | None
    dtypes: tuple[str, ...] = ()
    variant: str | None = None
    why: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """What a pipeline's index says.

    Attributes:
        name: the folder or id, as it was asked for.
        class_name: of the pipeline.
        components: in the order of the index.
        lacking: what diffusers does not make it without, and its index says nothing of, where that is known.
    """

    name: str
    class_name: str
    components: tuple[Component, ...]
    lacking: tuple[str, ...] = ()


class Files(Protocol):
    """Where a pipeline's files are."""

    def path(self, name: str) -> Path | None:
        """The small file ``name`` on this machine; None where there is none."""

    def header(self, name: str) -> Mapping[str, StoredTensor] | None:
        """The tensors of the file of safetensors ``name``; None where there is none."""

    def variants(self, component: str, file: str) -> tuple[str, ...]:
        """The variants that there are of a component's ``file`` of weights."""


@dataclass(frozen=True, slots=True)
class InFolder:
    """Files of a pipeline in ``folder``."""

    folder: Path

    def path(self, name: str) -> Path | None:
        """As `Files`."""
        found = self.folder / name
        try:
            return found if found.is_file() else None
        except OSError:
            return None

    def header(self, name: str) -> Mapping[str, StoredTensor] | None:
        """As `Files`."""
        found = self.path(name)
        return None if found is None else read_whole(found).tensors

    def variants(self, component: str, file: str) -> tuple[str, ...]:
        """As `Files`."""
        try:
            names = sorted(path.name for path in (self.folder / component).iterdir())
        except OSError:
            return ()
        whole = re.compile(rf"{file}\.(\w+)(-\d{{5}}-of-\d{{5}})?\.safetensors")
        return tuple(dict.fromkeys(found[1] for name in names if (found := whole.fullmatch(name))))


@dataclass(frozen=True, slots=True)
class OnHub:
    """Files of a pipeline on the hub; of weights, the header is fetched alone."""

    model: str
    revision: str | None

    def path(self, name: str) -> Path | None:
        """As `Files`."""
        return fetch_if_there(self.model, name, self.revision)

    def header(self, name: str) -> Mapping[str, StoredTensor] | None:
        """As `Files`."""
        from huggingface_hub import parse_safetensors_file_metadata

        if (cached := in_cache(self.model, name, self.revision)) is not None:
            return read_whole(cached).tensors
        try:
            metadata = parse_safetensors_file_metadata(self.model, name, revision=self.revision)
        except Exception as error:  # besides its own, those of the HTTP library that the hub's client uses
            found = explained(error, self.model, name, self.revision)
            if isinstance(found, NoSuchFileError):
                return None
            raise found from error
        entries = {
            tensor: {"dtype": info.dtype, "shape": list(info.shape), "data_offsets": list(info.data_offsets)}
            for tensor, info in metadata.tensors.items()
        }
        try:
            return parse_header(json.dumps(entries).encode()).tensors
        except ValueError as error:
            raise ModelError(f"{name} of {self.model} is corrupt: {first_line(error)}") from None

    def variants(self, component: str, file: str) -> tuple[str, ...]:
        """As `Files`."""
        names = {
            variant: (
                f"{component}/{file}.{variant}.safetensors",
                f"{component}/{file}.safetensors.index.{variant}.json",
            )
            for variant in _VARIANTS
        }
        return tuple(v for v, (one, index) in names.items() if self.header(one) is not None or self.path(index))


def find_pipeline(name: str, *, on_hub: bool, revision: str | None) -> tuple[Pipeline, Files]:
    """The pipeline ``name``, and where its files are.

    Raises:
        ModelError: its index can't be read, or is none.
    """
    if not on_hub:
        folder = Path(name).expanduser()
        index, files = _read_json(folder / PIPELINE), InFolder(folder)
        return _whole(parse_pipeline(name, index), index, files), files
    path = fetch(name, PIPELINE, revision)
    commit = path.parent.name if path.parent.parent.name == "snapshots" else revision
    index, there = _read_json(path), OnHub(name, commit)
    return _whole(parse_pipeline(name, index), index, there), there


def _whole(pipeline: Pipeline, index: Mapping[str, Any], files: Files) -> Pipeline:
    """``pipeline``, whose index says of every component that it has what it is.

    Raises:
        ModelError: it says of one what is no class, or nothing: what is left out would not be counted.
    """
    known = {each.name for each in pipeline.components}
    for key, value in index.items():
        is_said = key in known or isinstance(value, bool | int | float | None) or value in ([None, None], [])
        if is_said or key.startswith("_") or not _NAME.fullmatch(key):
            continue
        if files.path(f"{key}/config.json") is not None:
            raise _no_component(pipeline.name, key, value)
    lacking = tuple(key for key in needed_by(pipeline.class_name) or () if key not in index)
    return replace(pipeline, lacking=lacking)


def _no_component(name: str, key: str, value: object) -> ModelError:
    return ModelError(f"{name} is no pipeline: its {PIPELINE} says {json.dumps(value)[:60]} of {key[:60]!r}")


def parse_pipeline(name: str, index: Mapping[str, Any]) -> Pipeline:
    """The pipeline whose ``model_index.json`` says ``index``.

    Raises:
        ModelError: it is none, or a component's name is none of a folder.
    """
    class_name = index.get("_class_name")
    if not isinstance(class_name, str) or not class_name.isidentifier():
        raise ModelError(f"{name} is no pipeline: its {PIPELINE} names no class")
    found = []
    for key, value in index.items():
        if key.startswith("_") or not isinstance(value, list) or value in ([None, None], []):
            continue
        if all(type(each) in (int, float) for each in value):
            continue  # layers to take, or means: what the pipeline itself is told
        if len(value) < 2 or not all(isinstance(each, str) for each in value[:2]):
            raise _no_component(name, key, value)
        library, of_component = value[:2]
        if not _NAME.fullmatch(key) or not of_component.isidentifier():
            raise ModelError(f"{name} is no pipeline: its {PIPELINE} names {key[:60]!r}, which is no component's name")
        found.append(Component(name=key, library=library, class_name=of_component[:100]))
    if not found or len(found) > MOST_COMPONENTS:
        raise ModelError(f"{name} is no pipeline: its {PIPELINE} names {len(found)} components")
    return Pipeline(name=name, class_name=class_name[:100], components=tuple(found))


def weigh(component: Component, files: Files, dtype: str) -> Weighed:
    """What ``component`` holds once diffusers has loaded it in ``dtype``, by the headers of its files.

    Where that is "auto", diffusers makes its own models in float32, whatever their files have, and lets transformers
    take theirs from the config, else the files (``DiffusionPipeline.from_pretrained`` without ``torch_dtype``).

    Raises:
        ModelError: a file is broken, or the hub can't be reached.
    """
    for file in _FILES:
        tensors, variant = _tensors(component, files, file)
        if tensors is None:
            continue
        path = files.path(f"{component.name}/config.json")
        config = {} if path is None else _read_json(path)
        if config.get("quantization_config"):
            return Weighed(
                component=component,
                nbytes=sum(tensor.end - tensor.start for tensor in tensors.values()),
                dtypes=_named({tensor.dtype for tensor in tensors.values()}),
                variant=variant,
                notes=(f"{component.name} is quantised: counted as its files have it",),
            )
        named = config.get("dtype") or config.get("torch_dtype")
        of_files = named if isinstance(named, str) and named in _ITEMSIZE else None
        wanted = dtype if dtype != "auto" else "float32" if file == _FILES[0] else of_files
        return _loaded(component, tensors, wanted, variant)
    pickled = [name for name in _PICKLES if files.path(f"{component.name}/{name}") is not None]
    why = f"its weights are in {pickled[0]}, a pickle, which is not opened" if pickled else "its weights are not there"
    return Weighed(component=component, nbytes=None, why=why)


def variant_of(component: Component, files: Files) -> str | None:
    """The variant that alone there is of a component's weights; None where there is one without, or none.

    Raises:
        ModelError: a file is broken, or the hub can't be reached.
    """
    for file in _FILES:
        if _is_there(component, files, file):
            return None
        if found := files.variants(component.name, file):
            return found[0]
    return None


def has_weights(component: Component, files: InFolder) -> bool:
    """Whether the folder of a component has files of weights, whatever they are called."""
    try:
        return any(path.suffix in _WEIGHTS for path in (files.folder / component.name).iterdir())
    except OSError:
        return False


def _is_there(component: Component, files: Files, file: str) -> bool:
    start = f"{component.name}/{file}.safetensors"
    return files.path(f"{start}.index.json") is not None or files.header(start) is not None


def _tensors(component: Component, files: Files, file: str) -> tuple[Mapping[str, StoredTensor] | None, str | None]:
    """The tensors of a component's weights, and their variant: one without a variant is what is loaded by default."""
    start = f"{component.name}/{file}"
    if (whole := files.header(f"{start}.safetensors")) is not None:
        return _checked(component, whole), None
    if (index := files.path(f"{start}.safetensors.index.json")) is not None:
        return _of_shards(component, files, index), None
    for variant in files.variants(component.name, file):
        if (whole := files.header(f"{start}.{variant}.safetensors")) is not None:
            return _checked(component, whole), variant
        for name in (f"{start}.safetensors.index.{variant}.json", f"{start}.safetensors.{variant}.index.json"):
            if (index := files.path(name)) is not None:
                return _of_shards(component, files, index), variant
    return None, None


def _of_shards(component: Component, files: Files, index: Path) -> Mapping[str, StoredTensor]:
    found: dict[str, StoredTensor] = {}
    for name in shards(index):
        tensors = files.header(f"{component.name}/{name}")
        if tensors is None:
            raise ModelError(f"{component.name} lacks {name}, which {index.name} names", hint="download it again")
        found |= tensors
    return _checked(component, found)


def _checked(component: Component, tensors: Mapping[str, StoredTensor]) -> Mapping[str, StoredTensor]:
    for name, tensor in tensors.items():
        if bytes_of(tensor.shape, tensor.dtype) != tensor.end - tensor.start:
            raise ModelError(
                f"the weights of {component.name} are corrupt: {name[:80]!r} has {tensor.end - tensor.start:,} bytes",
                hint="download them again",
            )
    return tensors


def _loaded(
    component: Component, tensors: Mapping[str, StoredTensor], wanted: str | None, variant: str | None
) -> Weighed:
    """What tensors take once their floating ones are in ``wanted``; None leaves them as they are."""
    kept: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()
    if wanted in ("float16", "bfloat16") and component.library == "diffusers":
        known = kept_in_float32(component.class_name)
        if known is None:
            notes = (
                f"which modules of {component.name} diffusers keeps in float32 is not known here: it is not installed, "
                f"or has no {component.class_name}",
            )
        kept = known or kept
    nbytes, dtypes = 0, set()
    for name, tensor in tensors.items():
        dtype = tensor.dtype
        if wanted is not None and (dtype in _FLOATS or dtype.startswith("F8")):
            as_loaded = "float32" if kept and not kept.isdisjoint(name.split(".")) else wanted
            nbytes += math.prod(tensor.shape) * _ITEMSIZE[as_loaded]
            dtypes.add(as_loaded)
        else:
            nbytes += tensor.end - tensor.start
            dtypes.add(_FLOATS.get(dtype, dtype))
    return Weighed(component=component, nbytes=nbytes, dtypes=_named(dtypes), variant=variant, notes=notes)


def kept_in_float32(class_name: str) -> frozenset[str] | None:
    """Parts of the names of what diffusers keeps in float32 in a model of its own; None where that is not known."""
    known, names = _of_class(class_name, "_keep_in_fp32_modules")
    if not known:
        return None
    return frozenset([names] if isinstance(names, str) else names or ())


def offload_order(class_name: str) -> tuple[str, ...] | None:
    """Components of a pipeline that ``enable_model_cpu_offload`` brings one after another; those that it does not name
    stay once they are there. None where that is not known, and none where it can't be offloaded so.
    """
    known, order = _of_class(class_name, "model_cpu_offload_seq")
    if not known:
        return None
    return tuple(order.split("->")) if isinstance(order, str) else ()


def needed_by(class_name: str) -> tuple[str, ...] | None:
    """What a pipeline of diffusers is not made without; None where that is not known."""
    known, made = _of_class(class_name, "__init__")
    if not known:
        return None
    given = inspect.signature(made).parameters.values()
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return tuple(
        each.name for each in given if each.default is each.empty and each.kind in kinds and each.name != "self"
    )


def _of_class(class_name: str, attribute: str) -> tuple[bool, Any]:
    """Whether an attribute of a class of diffusers is known here, and what it is."""
    if find_spec("diffusers") is None:
        return False, None
    import diffusers

    try:
        found = getattr(diffusers, class_name, None)
        if isinstance(found, type) and hasattr(found, attribute):
            return True, getattr(found, attribute)
    except (ImportError, RuntimeError):  # what it needs is not here
        pass
    return False, None


def _named(dtypes: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(dtypes))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(read_document(path, _MOST))
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else first_line(error)
        raise ModelError(f"{path} is broken: {reason}", hint="download it again") from None
    if not isinstance(found, dict):
        raise ModelError(f"{path} is broken: it is a JSON {type(found).__name__}, not an object")
    return found
