"""A GGUF model as a module tree, and which of its parts llama.cpp puts where."""

from __future__ import annotations

import re
from dataclasses import dataclass

from devctl.errors import ModelError
from devctl.models.gguf.files import GgufModel
from devctl.models.tree import Module, ModuleTree, Tensor, TensorKind

DTYPE = "gguf"
"""What stands for the dtype of a model whose tensors have types of their own."""

LAYERS = "blk"
"""The module whose children are the layers."""

_LAYER_CLASS = "Layer"

_MOST_LAYERS = 512
"""``LLAMA_MAX_LAYERS``."""

_LAYER = re.compile(r"blk\.(0|[1-9]\d{0,3})\.(.+)", re.DOTALL)

_INPUT = frozenset({"token_embd", "token_embd_norm", "position_embd", "token_types", "per_layer_token_embd"})
"""Parts that are on the CPU whatever is on GPUs (``LLM_TENSOR_LAYER_INPUT``)."""

_OUTPUT = frozenset({"output", "output_norm", "output_extra", "cls", "cls.output"})
"""Parts that are where the output is (``LLM_TENSOR_LAYER_OUTPUT``)."""

_ROPE = frozenset({"rope_freqs", "rope_factors_long", "rope_factors_short"})
"""Parts that every device with layers has (``TENSOR_DUPLICATED``)."""

_CONVERT_AGAIN = "download it again, or convert the model again"

_OUTPUT_WEIGHT, _EMBEDDING = "output.weight", "token_embd.weight"


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The parts of a model, by name.

    Attributes:
        tree: all of them.
        first: what is always on the CPU: embeddings.
        layers: in their order.
        last: what is with the output.
        everywhere: what every device with layers has.
        tied: bytes of the embedding that is the output too: where that is on another device, it is there again.
        unplaced: of ``everywhere``, those of which it is not known where llama.cpp puts them.
    """

    tree: ModuleTree
    first: tuple[str, ...]
    layers: tuple[str, ...]
    last: tuple[str, ...]
    everywhere: tuple[str, ...]
    tied: int
    unplaced: tuple[str, ...] = ()


def layout_of(model: GgufModel) -> Layout:
    """The parts of ``model``.

    Raises:
        ModelError: it has no layers that llama.cpp could place, or not as many as it says.
    """
    inside: dict[int, list[Tensor]] = {}
    around: dict[str, list[Tensor]] = {}
    for stored in model.tensors:
        tensor = Tensor(
            name=stored.name, kind=TensorKind.PARAMETER, nbytes=stored.nbytes, shape=stored.shape, dtype=stored.kind
        )
        if (found := _LAYER.fullmatch(stored.name)) is not None:
            inside.setdefault(int(found[1]), []).append(tensor)
        else:
            around.setdefault(_part_of(stored.name), []).append(tensor)
    count = _count_of_layers(model, inside, around)
    layers = tuple(
        Module(name=f"{LAYERS}.{number}", class_name=_LAYER_CLASS, parameters=tuple(inside[number]))
        for number in range(count)
    )
    parts = {name: Module(name=name, class_name="Part", parameters=tuple(inner)) for name, inner in around.items()}
    first = tuple(name for name in parts if name in _INPUT)
    last = tuple(name for name in parts if name in _OUTPUT)
    everywhere = tuple(name for name in parts if name not in _INPUT | _OUTPUT)
    listed = Module(name=LAYERS, class_name="Layers", children=layers)
    children = (*(parts[name] for name in first), listed, *(parts[name] for name in (*everywhere, *last)))
    sizes = {tensor.name: tensor.nbytes for tensor in model.tensors}
    return Layout(
        tree=ModuleTree(
            root=Module(name="", class_name=model.architecture, children=children),
            class_name=model.architecture,
            dtype=DTYPE,
            no_split=frozenset({_LAYER_CLASS}),
            quantisation=model.file_type,
        ),
        first=first,
        layers=tuple(layer.name for layer in layers),
        last=last,
        everywhere=everywhere,
        tied=0 if _OUTPUT_WEIGHT in sizes else sizes.get(_EMBEDDING, 0),
        unplaced=tuple(name for name in everywhere if name not in _ROPE),
    )


def _part_of(name: str) -> str:
    """The module of a tensor beside the layers: what is before its last word, which is weight, bias or the like."""
    return name.rpartition(".")[0] or name


def _count_of_layers(model: GgufModel, inside: dict[int, list[Tensor]], around: dict[str, list[Tensor]]) -> int:
    other = next((name for name in around if re.match(r"(enc|dec)\.blk\.", name)), None)
    if other is not None:
        raise ModelError(
            f"{model.name} has an encoder and a decoder ({other}…): such a model is not planned",
            hint="llama.cpp runs it, and fits it by itself: `llama-fit-params`",
        )
    said = model.key("block_count")
    if type(said) is not int or not 0 < said <= _MOST_LAYERS:
        raise ModelError(
            f"{model.name} does not say how many layers it has: its block_count is {said!r}", hint=_CONVERT_AGAIN
        )
    if set(inside) != set(range(said)):
        missing = sorted(set(range(said)) - set(inside))
        told = f"blk.{missing[0]} is not there" if missing else f"blk.{max(inside)} is one more"
        raise ModelError(
            f"{model.name} has {len(inside)} layers, and says that it has {said}: {told}", hint=_CONVERT_AGAIN
        )
    return said
