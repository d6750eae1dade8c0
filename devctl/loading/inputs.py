"""Inputs for a smoke inference, from a config and a tokenizer, before any weight is read."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING

from devctl.errors import DevctlError, LoadError, UsageError, first_line
from devctl.models.inputs import most_tokens, random_inputs, reads_text
from devctl.models.resolve import ModelSource, SourceKind

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from devctl.models.skeleton import Skeleton

DEFAULT_PROMPT = "The quick brown fox jumps over the lazy dog."
_RANDOM_TOKENS = 16
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """Inputs of batch 1 on the CPU, made before a byte of weights is read.

    Attributes:
        source: "tokenizer" or "random".
        tokenizer: to read what is generated; None where the model has none.
        notes: why the tokenizer is not used, if so.
    """

    tensors: dict[str, torch.Tensor]
    source: str
    tokenizer: PreTrainedTokenizerBase | None
    notes: tuple[str, ...] = ()


def prepare(
    source: ModelSource, skeleton: Skeleton, *, prompt: str | None, new_tokens: int, trust_remote_code: bool
) -> Inputs:
    """Inputs for the model: text through its tokenizer if it has one that works, random ones else.

    Args:
        prompt: text for the tokenizer; None is a sentence of our own.
        trust_remote_code: run Python code that comes with the tokenizer.

    Raises:
        UsageError: a prompt was given, but there is no tokenizer; or more tokens are to be made than the model takes.
        LoadError: no inputs are known for this kind of model.
    """
    tokenizer, notes = load_tokenizer(source, trust_remote_code=trust_remote_code)
    if prompt is not None and tokenizer is None:
        raise UsageError("--prompt needs the model's tokenizer, which is missing", hint="leave it out: ids are random")
    config, model_class = skeleton.config, skeleton.model_class
    try:
        most = most_tokens(config)
        if most is not None and model_class.can_generate() and new_tokens >= most:
            raise UsageError(f"--max-new-tokens {new_tokens}: this model takes at most {most} tokens in all")
        tensors, origin = make_inputs(config, model_class, tokenizer, DEFAULT_PROMPT if prompt is None else prompt)
    except DevctlError:
        raise
    except Exception as error:  # a config, also one from remote code, may lack or refuse anything
        raise LoadError(f"no inputs are known for {model_class.__name__}: {first_line(error)}") from error
    return Inputs(tensors=tensors, source=origin, tokenizer=tokenizer, notes=notes)


def load_tokenizer(
    source: ModelSource, *, trust_remote_code: bool
) -> tuple[PreTrainedTokenizerBase | None, tuple[str, ...]]:
    """The model's tokenizer if it has one that works here, and a note if it has one that does not."""
    from transformers import AutoTokenizer

    folder = source.config_path.parent
    if source.kind is SourceKind.CONFIG:
        return None, ()
    if source.kind is SourceKind.DIRECTORY and not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        return None, ()
    try:
        # given, and not left to its default: then transformers would ask, on the terminal, whether to run such code
        return AutoTokenizer.from_pretrained(
            source.location, revision=source.revision, trust_remote_code=trust_remote_code
        ), ()
    except Exception as error:  # noqa: BLE001 - a tokenizer may need any package, or run code of its own
        return None, (f"the tokenizer can't be used, so the inputs are random: {first_line(error)}",)


def make_inputs(
    config: PreTrainedConfig, model_class: type[PreTrainedModel], tokenizer: PreTrainedTokenizerBase | None, prompt: str
) -> tuple[dict[str, torch.Tensor], str]:
    """Inputs of batch 1 on the CPU for the model's main modality; text beside an image where its forward wants both.

    Raises:
        LoadError: none are known for this kind of model.
    """
    made: dict[str, torch.Tensor] = {}
    read = tokenizer is not None and reads_text(config, model_class)
    if tokenizer is not None and read:
        takes = inspect.signature(model_class.forward).parameters
        encoded = tokenizer(prompt, return_tensors="pt")
        wanted = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in takes]
        if model_class.can_generate():
            wanted = [name for name in wanted if name != "token_type_ids"]  # generate takes none
        made |= {name: encoded[name] for name in wanted if name in encoded}
    most = most_tokens(config)
    length = _RANDOM_TOKENS if most is None else max(1, min(_RANDOM_TOKENS, most // 2))
    try:
        made |= random_inputs(config, model_class, tokens=length, text=not read)
    except ValueError as error:
        raise LoadError(str(error)) from None
    return made, "tokenizer" if read else "random"
