"""What transformers, or a model's code, says of a config, in our own words.

They raise whatever Python does: that a list has no attribute tells a user nothing of the config that has it in a wrong
place. What they say themselves, in a sentence, is kept.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from devctl.as_json import kind_in_json, shown_as_json
from devctl.errors import first_line

_PYTHONS = (AttributeError, TypeError, LookupError, ArithmeticError, NameError, RecursionError)
"""Exceptions whose text is about code; that of ``ValueError`` and others is about what was given."""

_FIELD = re.compile(r"Validation error for field '(\w+)': *(?:\w+: )?(.*)", re.DOTALL)
_WHOLE = re.compile(r"Class validation error for validator '\w+': *(\w+): (.*)", re.DOTALL)
_EXPECTED = re.compile(r"expected (\w+), got")
_ANY_OF = re.compile(r"doesn't match any type in \((.*?)\)(?:\. Errors|$)", re.DOTALL)
_CODE = re.compile(
    r"object has no attribute|is not (iterable|callable|subscriptable)|unsupported operand|unhashable type"
)

_OBJECTS = "id2label label2id rope_parameters rope_scaling auto_map quantization_config text_config vision_config"
_MAY_BE = {
    **dict.fromkeys(_OBJECTS.split(), (dict,)),
    "torch_dtype": (str,),
    "dtype": (str, dict),
    "num_labels": (int,),
    "layer_types": (list,),
    "architectures": (list, str),
    "model_type": (str,),
    "attn_implementation": (str, dict),
    "_attn_implementation": (str, dict),
}
"""Of keys whose default tells nothing; any may be null but ``auto_map``."""

_MOST_TOLD = 3


def in_plain_words(error: BaseException, data: Mapping[str, Any] | None = None) -> str:
    """What went wrong, in a line.

    Args:
        data: the config that it may be in, of which the values are named that can't be right.
    """
    text = first_line(error)
    of = getattr(error, "obj", None)
    if isinstance(error, AttributeError) and type(of).__name__.endswith("Config"):
        return f"a {type(of).__name__} has no {error.name}, which the model needs"
    if (field := _FIELD.match(text)) is not None:
        name, why = field.groups()
        value = shown_as_json((data or {}).get(name)) if data is not None and name in data else "what it is"
        return f"its {name} is {value}" + (f", and should be {kinds}" if (kinds := _kinds(why)) else "")
    kind, said = type(error).__name__, text
    if (whole := _WHOLE.match(text)) is not None:
        kind, said = whole.groups()
    names = {each.__name__ for each in type(error).__mro__} if whole is None else {kind}
    is_code = bool(names & {each.__name__ for each in _PYTHONS}) or bool(names & _BENEATH) or bool(_CODE.search(said))
    wrong = list(suspects(data)) if data is not None and (is_code or "RuntimeError" in names) else []
    found = "; ".join(wrong[:_MOST_TOLD]) + (f", and {len(wrong) - _MOST_TOLD} more" * (len(wrong) > _MOST_TOLD))
    if not is_code:
        own = type(error).__module__ != "builtins" and whole is None  # what is Python's own says nothing by its name
        return (f"{kind}: {said}" if own else said) + (f" ({found})" if found else "")
    if found:
        return found
    if isinstance(error, KeyError) and data is not None and (unknown := _unknown(data, error.args[:1])):
        return f"{unknown}, which {_whose(error)} does not know"
    return f"{_whose(error)} does not work with a value in it{_place(error)}"


def _unknown(data: Mapping[str, Any], key: tuple[object, ...], above: str = "") -> str:
    """Which value of a config the key is that code looked for in vain, in a part of a sentence; empty where none is."""
    for name, value in data.items():
        if isinstance(value, dict) and (found := _unknown(value, key, f"{above}{name}.")):
            return found
        if isinstance(value, str) and (value,) == key:
            return f"its {above}{name} is {shown_as_json(value)}"
    return ""


_BENEATH = {"KeyError", "IndexError", "ZeroDivisionError", "OverflowError", "FloatingPointError", "UnboundLocalError"}


_MAY_BE_NONE = {"num_nextn_predict_layers"}
"""Counts of what a model may well have none of, though its kind has some by default."""


def suspects(data: Mapping[str, Any]) -> Iterator[str]:
    """A sentence for each value of a config that is not of the kind that transformers' own default has there."""
    yield from _suspects(data, _defaults(data.get("model_type")), "")


def _suspects(data: Mapping[str, Any], defaults: Mapping[str, Any], above: str) -> Iterator[str]:
    for key, value in data.items():
        name = f"{above}{key}"
        if key in ("dtype", "torch_dtype") and isinstance(value, str):
            yield from _of_dtype(name, value)
            continue
        default = defaults.get(key)
        kinds = _MAY_BE.get(key) or (() if default is None else (type(default),))
        if value is None:
            if key == "auto_map":
                yield f"its {name} is null, and should be an object, or not be there"
        elif kinds and not any(_is_one(value, kind) for kind in kinds):
            wanted = " or ".join(dict.fromkeys((kind_in_json(kind.__name__) or "of another kind") for kind in kinds))
            yield f"its {name} is {shown_as_json(value)}, and should be {wanted}"
        elif default is not None and _is_number(value) and _is_number(default) and value <= 0 < default:
            if value == 0 and key in _MAY_BE_NONE:
                continue
            yield f"its {name} is {shown_as_json(value)}, and should be more than 0"
        elif isinstance(value, dict):
            inner = default if isinstance(default, dict) else _defaults(value.get("model_type"))
            yield from _suspects(value, inner, f"{name}.")


def _of_dtype(name: str, value: str) -> Iterator[str]:
    import torch

    if value == "auto" or isinstance(getattr(torch, value, None), torch.dtype):
        return
    short = value.removeprefix("torch.")
    right = (
        f'"{short}"' if isinstance(getattr(torch, short, None), torch.dtype) else 'a dtype of torch, like "bfloat16"'
    )
    yield f"its {name} is {shown_as_json(value)}, and should be {right}"


def _defaults(model_type: object) -> Mapping[str, Any]:
    """The config of that kind as transformers makes it; empty where it makes none."""
    import transformers

    try:
        found: dict[str, Any] = transformers.CONFIG_MAPPING[str(model_type)]().to_dict()
    except Exception:  # noqa: BLE001 - no such kind, or one that can't be made of nothing: then nothing is known of it
        return {}
    return found


def _is_one(value: object, kind: type) -> bool:
    if kind is float:
        return _is_number(value)
    if kind in (list, tuple):
        return isinstance(value, list | tuple)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _kinds(why: str) -> str:
    """What a value should be, as huggingface_hub's validation says it."""
    if (expected := _EXPECTED.search(why)) is not None and "doesn't match any" not in why:
        return kind_in_json(expected[1])
    if (any_of := _ANY_OF.search(why)) is None:
        return ""
    words = []
    for part in re.split(r",\s*(?![^\[]*\])", any_of[1]):
        name = re.sub(r"^<class '|'>$", "", part.strip()).partition("[")[0].rpartition(".")[2]
        words.append("an object" if name == "RopeParameters" else kind_in_json(name))
    return " or ".join(dict.fromkeys(word for word in words if word))


def _whose(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return "the model's code" if any("modeling_" in frame.filename for frame in frames) else "transformers"


def _place(error: BaseException) -> str:
    """Where the code of a model stopped, for whoever looks there."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        name = Path(frame.filename).name
        if name.startswith(("modeling_", "configuration_")):
            return f" ({type(error).__name__} in {name}, line {frame.lineno})"
    return f" ({type(error).__name__})"
