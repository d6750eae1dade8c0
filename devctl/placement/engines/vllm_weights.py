"""What the weights of a rank take in vLLM, as torch's allocator counts them.

Rules from vLLM 0.33.0 (``model_executor/layers/linear.py``, ``vocab_parallel_embedding.py``, ``fused_moe``): queries,
keys and values are one tensor, and so are gate and up; a rank has its part of them, keys and values at least of one
head; the vocabulary is filled up to a multiple of 64; what has no rule here is whole on every rank. Held against the
logs of 43 runs of vLLM 0.19.0 in ``tests/benchmarks/engine.md``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction

from devctl.models.tree import ModuleTree, Tensor, TensorKind, held_bytes
from devctl.placement.engines.text_model import TextModel

_KEYS = frozenset({"k_proj", "v_proj"})
_FUSED = frozenset({"qkv_proj", "query_key_value", "Wqkv", "qkv", "c_attn"})
_COLUMNS = frozenset(
    {
        "q_proj", "gate_proj", "up_proj", "gate_up_proj", "w1", "w3", "fc1", "c_fc", "dense_h_to_4h",
        "q_b_proj", "kv_b_proj", "linear_fc1", "in_proj", "in_proj_qkv", "in_proj_z", "in_proj_a", "in_proj_b",
        "in_proj_qkvz", "in_proj_ba", "conv1d"
    }
)  # fmt: skip
"""Layers of whose output a rank has its part: weights and biases are cut."""
_ROWS = frozenset(
    {
        "o_proj", "out_proj", "down_proj", "w2", "fc2", "dense", "dense_4h_to_h", "c_proj", "linear_fc2", "proj"
    }
)  # fmt: skip
"""Layers of whose input a rank has its part: biases are whole."""
_VOCABULARY = frozenset(
    {
        "embed_tokens", "wte", "word_embeddings", "lm_head", "embed_out", "embed_in"
    }
)  # fmt: skip
_PADDED = 64
"""Rows that a vocabulary is filled up to a multiple of (``DEFAULT_VOCAB_PADDING_SIZE``)."""

_MERGED = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj"), "qkv"),
    **dict.fromkeys(("gate_proj", "up_proj", "w1", "w3", "gate_up_proj"), "gate_up"),
    **dict.fromkeys(("down_proj", "w2"), "down"),
}
"""Layers whose weights vLLM keeps as one tensor."""
_EXPERTS = re.compile(r"^(?P<all>.*\.experts)\.")
TIED = "tied"
_OTHERS = re.compile(r"vision|visual|audio|image")
_PARTS = frozenset(
    {
        "weight", "bias", "qweight", "qzeros", "scales", "g_idx", "weight_scale", "weight_scale_2",
        "weight_scale_inv", "weight_packed", "weight_shape", "weight_zero_point", "weight_g_idx", "input_scale"
    }
)  # fmt: skip

_MXFP4_HIDDEN, _MXFP4_WITHIN = 256, 128
"""Channels that MXFP4 experts are filled up to multiples of, for Marlin (``Mxfp4MoEMethod.create_weights``)."""

_LARGE, _STEP, _KEPT = 10 * 2**20, 2 * 2**20, 2**20
"""From how many bytes on torch's allocator takes steps of how many, and how many are left at the end rather than given
to others (``kMinLargeAlloc``, ``kRoundLarge``, ``kSmallSize`` of ``c10/cuda/CUDACachingAllocator``)."""


def weights_of_rank(
    tree: ModuleTree,
    model: TextModel,
    ranks: int,
    part_of: Callable[[str], str],
    *,
    experts_whole: bool = False,
) -> dict[str, int]:
    """Bytes that a rank's weights take once they are loaded, by the part of the model that they are of.

    Tables of rotary embeddings (`TextModel.rope_bytes`) are not among them.

    Args:
        ranks: that share every layer.
        part_of: names the part that the tensor of a name is in. What is tied is by itself, in the part ``TIED``.
        experts_whole: whether a rank has its part of the experts, each as it is.
    """
    tied = {target for target, _ in tree.ties if target not in tree.untied}
    # transformers unpacks these when they are first used, vLLM does not
    unpacked_later = tree.quantisation == "compressed-tensors"
    sizes: dict[tuple[str, str], Fraction] = {}
    for tensor in tree.index.tensors:
        is_kept = tensor.kind is TensorKind.PARAMETER or (tree.quantisation and "inv_freq" not in tensor.name)
        if tensor.same_as is not None or not is_kept:
            continue
        held = tensor.nbytes if unpacked_later else held_bytes(tensor)
        size = held * _share(tensor, model, ranks)
        if tree.quantisation == "mxfp4" and ".experts." in tensor.name:
            size *= _filled(model, ranks, whole=experts_whole)
        key = (TIED if tensor.name in tied else part_of(tensor.name)), _key(tensor.name)
        sizes[key] = sizes.get(key, Fraction(0)) + size
    found: dict[str, int] = {}
    for (part, _), size in sizes.items():
        found[part] = found.get(part, 0) + _taken(-(-size.numerator // size.denominator))
    return found


def _share(tensor: Tensor, model: TextModel, ranks: int) -> Fraction:
    """The part of a tensor that a rank has; above 1 where it is filled up."""
    name = _layer(tensor.name)
    if name in _VOCABULARY and len(tensor.shape) > 1:
        rows = tensor.shape[0]
        return Fraction(-(-rows // _PADDED) * _PADDED, rows * ranks)
    if ranks == 1:
        return Fraction(1)
    even, in_tower = Fraction(1, ranks), _OTHERS.search(tensor.name) is not None
    one_each = max(Fraction(1, model.kv_heads), even)
    if name in _KEYS:
        return even if in_tower else one_each
    if name in _FUSED:
        heads, pairs = model.heads, 2 * model.kv_heads
        return even if in_tower else (heads * even + pairs * one_each) / (heads + pairs)
    is_cut = name in _COLUMNS or ".experts." in tensor.name or (name in _ROWS and len(tensor.shape) > 1)
    return even if is_cut else Fraction(1)


def _filled(model: TextModel, ranks: int, *, whole: bool) -> Fraction:
    """Times its bytes that an MXFP4 expert takes, filled up as its kernels want it."""
    within = model.expert_intermediate // (1 if whole else ranks)
    found = Fraction(1)
    for channels, multiple in ((model.hidden, _MXFP4_HIDDEN), (within, _MXFP4_WITHIN)):
        if channels:
            found *= Fraction(-(-channels // multiple) * multiple, channels)
    return found


def _layer(name: str) -> str:
    """The layer's own name: of a tensor in it, or of one that is named like a layer, as those of experts are."""
    parts = name.split(".")
    last = parts[-1]
    if last in _PARTS and len(parts) > 1:
        return parts[-2]
    return re.sub(r"_(bias|scales|blocks|scale|scale_inv)$", "", last)


def _key(name: str) -> str:
    """What is one tensor in vLLM: its name, or one for all that are merged."""
    layer = _layer(name)
    is_weight = name.rpartition(".")[2] in {"weight", "qweight", "weight_packed"} or name.endswith(layer)
    if layer not in _MERGED or not is_weight:
        return name
    above = _EXPERTS.match(name)
    parent = above["all"] if above else name[: name.rindex(layer)]
    return f"{parent}:{_MERGED[layer]}"


def _taken(size: int) -> int:
    """Bytes of a block that torch's allocator gives for ``size``."""
    if size < _LARGE:
        return -(-size // 512) * 512
    stepped = -(-size // _STEP) * _STEP
    return stepped if stepped - size <= _KEPT else -(-size // 512) * 512
