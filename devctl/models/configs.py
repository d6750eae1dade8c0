"""From files to the config, the class and the dtype that ``from_pretrained`` would use.

Imports torch and transformers, inside functions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from devctl.errors import DevctlError, ModelError, UsageError, did_you_mean, first_line
from devctl.models.files.resolve import ModelSource, SourceKind
from devctl.models.files.told import told_by_headers
from devctl.models.files.weights import checkpoint_dtype
from devctl.models.own_code import contained
from devctl.models.plain import in_plain_words
from devctl.models.quantised.counting import dtype_name

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel


OLD_CODE = "code written for another release of transformers may need that one, or a newer revision of the model"


@contextmanager
def models_own(found: type, source: ModelSource) -> Iterator[None]:
    """What goes wrong in a model that brings its own code is that code's, and no bug of devctl.

    Raises:
        ModelError: in place of any other exception, where ``found`` is no class of transformers.
    """
    import transformers

    try:
        with contained():
            yield
    except DevctlError:
        raise
    except Exception as error:  # whatever its code raises
        if not is_remote(found):
            raise
        raise ModelError(
            f"{found.__name__}, code that comes with {source.location}, does not work with transformers "
            f"{transformers.__version__}: {type(error).__name__}: {first_line(error)}",
            hint=OLD_CODE,
        ) from error


def is_remote(found: type) -> bool:
    """Whether a class is of code that came with a model."""
    return found.__module__.partition(".")[0] == "transformers_modules"


def load_config(source: ModelSource, *, trust_remote_code: bool) -> PreTrainedConfig:
    """The config of ``source`` as ``AutoConfig`` reads it.

    Raises:
        ModelError: it is broken, unknown, or of code that is not to be run.
        UsageError: code of its own is looked for where no model's folder is.
    """
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
        with contained():
            config: object = AutoConfig.from_pretrained(
                location, revision=source.revision if remote else None, trust_remote_code=trust_remote_code
            )
    except Exception as error:  # a config class, also one from remote code, may raise anything
        if model_type is None and "_class_name" in data:
            raise ModelError(
                f"{source.config_path} is the config of diffusers' {str(data['_class_name'])[:60]}, a part of a "
                "pipeline, and not of a model of transformers",
                hint="give the pipeline's folder, the one with its model_index.json",
            ) from None
        if model_type is None:
            raise ModelError(
                f"{source.config_path} does not say its model_type", hint="is it the config of a transformers model?"
            ) from None
        if model_type not in transformers.CONFIG_MAPPING and not trust_remote_code:
            raise ModelError(
                f"transformers {transformers.__version__} does not know the model type {model_type!r}",
                findings=told_by_headers(source),
                hint="a newer transformers may, or code that comes with the model (--trust-remote-code)",
            ) from None
        said = in_plain_words(error, data)
        raise ModelError(f"transformers can't read {source.config_path}: {said}") from error
    if not isinstance(config, transformers.PreTrainedConfig):
        raise ModelError(
            f"the code of {source.location} makes a {type(config).__name__} of its config, and no PreTrainedConfig",
            hint=OLD_CODE,
        )
    return config


def find_class(
    config: PreTrainedConfig, source: ModelSource, *, name: str | None, trust_remote_code: bool, notes: list[str]
) -> tuple[type[PreTrainedModel], PreTrainedConfig]:
    """The class to build, and the config that ``from_pretrained`` builds it from: a text class takes its text config.

    Raises:
        ModelError: the config's architecture is unknown, or its code can't be imported.
        UsageError: there is no class ``name``.
    """
    found, by_auto = _find_class(config, source, name=name, trust_remote_code=trust_remote_code, notes=notes)
    return found, config if is_remote(found) else _config_of(found, config, source, by_auto=by_auto, notes=notes)


def _config_of(
    found: type[PreTrainedModel], config: PreTrainedConfig, source: ModelSource, *, by_auto: bool, notes: list[str]
) -> PreTrainedConfig:
    """The config, or the part of it that is of the class ``found``.

    An Auto class hands a text class the text config, with the quantisation of the whole
    (``_BaseAutoModelClass.from_pretrained``); the class itself reads the part that is of its kind
    (``PreTrainedConfig.from_pretrained``), and does not look beyond it.
    """
    wanted = getattr(found, "config_class", None)
    if wanted is None or isinstance(config, wanted):
        return config
    quantised = getattr(config, "quantization_config", None)
    if by_auto and config.sub_configs.get("text_config") is wanted:
        part: PreTrainedConfig = config.get_text_config()
        if quantised is not None:
            part.quantization_config = quantised
        return part
    data = source.config
    parts = [data.get(wanted.base_config_key)] if wanted.base_config_key else []
    parts += [part for part in data.values() if isinstance(part, dict) and part.get("model_type") == wanted.model_type]
    if not any(isinstance(part, dict) for part in parts):
        return config
    try:
        part = wanted.from_pretrained(str(source.config_path))
    except Exception as error:  # a config class may raise anything
        raise ModelError(
            f"transformers can't read {source.config_path} as a {wanted.__name__}: {in_plain_words(error, data)}"
        ) from error
    if quantised is not None and getattr(part, "quantization_config", None) is None:
        notes.append(
            f"{found.__name__} reads a part of the config alone, which does not name the quantisation of the whole: "
            "transformers does not see that the weights are quantised"
        )
    return part


def _find_class(
    config: PreTrainedConfig, source: ModelSource, *, name: str | None, trust_remote_code: bool, notes: list[str]
) -> tuple[type[PreTrainedModel], bool]:
    """The class, and whether an Auto class found it."""
    import transformers

    architectures: Any = getattr(config, "architectures", None) or []
    wanted = name or next(iter([architectures] if isinstance(architectures, str) else architectures), None)
    auto_map = getattr(config, "auto_map", None) or {}
    if trust_remote_code and (remote := _remote_class(auto_map, wanted)):
        return _import_remote(remote, source), True
    if wanted is None:
        notes.append(f"the config names no architecture: planned for {type(config).__name__}'s base model (AutoModel)")
        wanted = "AutoModel"
    found: Any = getattr(transformers, wanted, None)
    by_auto = hasattr(found, "_model_mapping")
    if by_auto:
        try:
            found = found._model_mapping[type(config)]
        except (KeyError, ValueError):  # ValueError: a mapping that names a class which is not exported
            raise ModelError(f"{wanted} knows no model for the config {type(config).__name__}") from None
        found = found[0] if isinstance(found, list | tuple) else found
    base = transformers.PreTrainedModel
    if isinstance(found, type) and issubclass(found, base) and found is not base:
        return found, by_auto
    if name is not None:
        raise UsageError(
            f"transformers has no model class {name!r}"
            + did_you_mean(name, [each for each in dir(transformers) if each[:2] == name[:2]]),
            hint="for example AutoModelForCausalLM, or a class like BertModel",
        )
    if (other := _of_its_kind(config, source)) is not None:
        notes.append(
            f"transformers has no class {wanted}, which the config names: planned as {other.__name__}, which it has "
            f"for {config.model_type}"
        )
        return other, True
    raise ModelError(
        f"transformers {transformers.__version__} has no class {wanted!r}, which the config names as its architecture",
        findings=told_by_headers(source),
        hint="a newer transformers may, or code that comes with the model (--trust-remote-code); "
        "--model-class AutoModel plans the base model",
    )


def _of_its_kind(config: PreTrainedConfig, source: ModelSource) -> type[PreTrainedModel] | None:
    """The class with a head that transformers has for a config whose architecture goes by a name of its own elsewhere.

    None where the config has not all the parts that transformers' class for it has: the rest would be its defaults, and
    the model another one.
    """
    from transformers.models.auto import modeling_auto as auto

    if not config.sub_configs or not all(isinstance(source.config.get(key), dict) for key in config.sub_configs):
        return None
    for mapping in (auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, auto.MODEL_FOR_CAUSAL_LM_MAPPING):
        try:
            found = mapping[type(config)]
        except (KeyError, ValueError):
            continue
        return found[0] if isinstance(found, list | tuple) else found
    return None


def _remote_class(auto_map: dict[str, Any], wanted: str | None) -> str | None:
    """The reference in ``auto_map`` whose class is ``wanted``, or that an Auto class of this name has."""
    for auto, reference in auto_map.items():
        if auto.startswith("AutoModel") and isinstance(reference, str):
            class_name = reference.rpartition(".")[2]
            if wanted in (None, auto, class_name):
                return reference
    return None


def _import_remote(reference: str, source: ModelSource) -> type[PreTrainedModel]:
    from transformers import PreTrainedModel
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    try:
        location = source.location if source.kind is SourceKind.HUB else source.config_path.parent
        with contained():
            found: object = get_class_from_dynamic_module(reference, location, revision=source.revision)
    except Exception as error:  # it runs code that comes with the model
        raise ModelError(
            f"the code of {source.location} can't be imported: {first_line(error)}",
            hint=OLD_CODE if isinstance(error, AttributeError | ImportError) else "",
        ) from error
    if not (isinstance(found, type) and issubclass(found, PreTrainedModel)):
        raise ModelError(f"the code of {source.location} has no model in {reference}, but a {type(found).__name__}")
    return found


def set_dtype(
    config: PreTrainedConfig, source: ModelSource, wanted: str, notes: list[str], *, quantised: bool
) -> torch.dtype:
    """Set the dtype on the config and its parts, as ``from_pretrained`` does, and return it.

    Args:
        wanted: "auto" is the config's, else the checkpoint's. Where neither is at hand, a part of the config may name
            one; published checkpoints that are quantised compute in bfloat16; else it is float32.

    Raises:
        ModelError: the config's is none to build in, or a local checkpoint is broken.
        UsageError: so is ``wanted``.
    """
    import torch

    named: object = getattr(config, "dtype", None) if wanted == "auto" else wanted
    if isinstance(named, dict):
        named = named.get("", "float32")
        notes.append(f"the config names a dtype for each part; transformers takes that of the whole for all: {named}")
    dtype = getattr(torch, named, None) if isinstance(named, str) else named
    if named is None:
        dtype = getattr(torch, checkpoint_dtype(source) or _likely_dtype(config, notes, quantised=quantised))
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        if wanted == "auto":
            raise ModelError(f"the config's dtype {named!r} is not one to build in", hint="give another with --dtype")
        raise UsageError(f"{wanted!r} is not a floating dtype", hint="for example bfloat16, float16 or float32")
    config.dtype = dtype
    for key in config.sub_configs:
        if (part := getattr(config, key, None)) is not None:
            part.dtype = dtype
    return dtype


def _likely_dtype(config: PreTrainedConfig, notes: list[str], *, quantised: bool) -> str:
    """The dtype of a checkpoint that is not at hand, and whose config names none for the whole."""
    part, found = next(_dtypes_of_parts(config), (None, None))
    if found is not None:
        notes.append(f"the config names a dtype only for its {part}, and no checkpoint is at hand: planned in {found}")
        return found
    unnamed = "neither the config nor a checkpoint at hand names a dtype"
    if quantised:
        notes.append(f"{unnamed}: planned in bfloat16, which quantised checkpoints compute in")
        return "bfloat16"
    notes.append(f"{unnamed}: planned in float32")
    return "float32"


def _dtypes_of_parts(config: PreTrainedConfig) -> Iterator[tuple[str, str]]:
    """(name, dtype) of the parts of a config that name a floating dtype, the text's first."""
    import torch

    for key in sorted(config.sub_configs, key=lambda key: (key != "text_config", "text" not in key)):
        part: Any = getattr(config, key, None)
        dtype = getattr(part, "dtype", None)
        if isinstance(dtype, torch.dtype) and dtype.is_floating_point and dtype.itemsize > 1:
            yield key, dtype_name(dtype)
        elif getattr(part, "sub_configs", None):
            yield from ((f"{key}.{name}", found) for name, found in _dtypes_of_parts(part))
