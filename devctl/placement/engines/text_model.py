"""A decoder as engines see it: read from the config that comes with its weights."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from devctl.models.tree import ModuleTree

ITEM_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4, "float8_e4m3fn": 1}
_LATENT = frozenset(
    {"deepseek_v2", "deepseek_v3", "deepseek_v32", "glm_moe_dsa", "glm4_moe_lite", "kimi_k2", "longcat_flash"}
)
"""Kinds of model whose latents vLLM keeps (``ModelConfig.is_deepseek_mla``)."""
LATENT_PAGE = 64
"""Tokens of a page of latents, of the backend for them on Hopper (FlashMLA)."""
_FUSED = re.compile(r"\.(qkv_proj|query_key_value|Wqkv|qkv|c_attn)\.(weight|qweight|weight_packed)$")
_KEYS = re.compile(r"\.k_proj\.(weight|qweight|weight_packed)$")
_VISION = re.compile(r"vision|visual|audio|image")
_GATED = re.compile(r"(vision|visual).*\.(gate_proj|gate_up_proj)\.")
_HEARD = re.compile(r"^(audio|speech|sound|encoder).*_config$")

_LARGEST_IMAGE = 16384
_ANY_SIZE = {"qwen2_vl": 7, "qwen2_5_vl": 7, "qwen3_vl": 1, "qwen3_vl_moe": 1, "qwen3_5": 1, "qwen3_5_moe": 1}
"""Kinds of model that see images of any size, up to so many tokens as their processors on the hub say; and of how many
such images their longest video is. It is ``_MAX_FRAMES_PER_VIDEO`` of ``vllm.model_executor.models.qwen2_vl``, of which
two are an image; a video of Qwen3-VL has no more pixels in all than an image."""
_TILES = {"llama4": 17, "internvl": 13}
"""Parts that an image is cut to at most, the whole one among them, where configs do not list how it is cut."""


@dataclass(frozen=True, slots=True)
class Kept:
    """What a layer keeps of a sequence.

    Attributes:
        kind: "full", "sliding", "chunked", "recurrent", or "none".
        span: tokens of its window or chunk; 0 for the others.
    """

    kind: str
    span: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a model sees images with.

    Attributes:
        pixels: of an image, for each token that the text gets of it.
        patches: of the tower, for each such token.
        hidden: channels of the tower.
        within: channels alive in its widest layer, for a patch.
        image: tokens of the largest image.
        video: such images that the longest video is as long as.
        levels: hidden states that the text gets of a token beside the first (``deepstack_visual_indexes``).
    """

    pixels: int
    patches: int
    hidden: int
    within: int
    image: int = 0
    video: int = 1
    levels: int = 0

    def most(self, batched: int, context: int) -> int:
        """Tokens of the images that vLLM has it see at its start: a step's, or the largest image's or video's
        (``MultiModalBudget``, ``compute_mm_encoder_budget``).
        """
        if not self.image:
            return batched
        return max(batched, self.image * max(1, min(self.video, context // self.image)))


@dataclass(frozen=True, slots=True, kw_only=True)
class TextModel:
    """The decoder.

    Attributes:
        item: bytes of a number of its activations.
        layers: what each keeps.
        hidden, intermediate: channels between its layers, and within the widest of its dense ones.
        heads, kv_heads, head_dim: of its attention.
        latent: numbers that a token keeps in a layer instead of keys and values; 0 where it keeps those.
        beside_latent: bytes that it keeps beside them.
        unpacked: channels that a latent is unpacked to for a head while it attends.
        restored: those of them that are its keys and values, less what is rotated.
        absorbed: bytes of the matrices of a layer, of all heads, that unpack it, in the model's dtype: vLLM has them
            beside those of the checkpoint where those are quantised (``split_kv_b_proj``), else 0.
        recurrent: bytes of the state of a recurrent layer, of which each rank has a part.
        experts, experts_per_token, expert_intermediate: of its sparse layers; 0 for none.
        packed_experts: whether those are of MXFP4.
        block: channels that are quantised together, of which a rank has whole ones; 1 where they are not.
        rope_bytes: of the cosines and sines that are kept for all positions.
        longest: tokens of the longest text that vLLM runs it with; 0 where its config does not say.
        seen: what it sees with; None where it reads only.
    """

    item: int
    layers: tuple[Kept, ...]
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    latent: int
    beside_latent: int
    unpacked: int
    restored: int
    absorbed: int
    recurrent: int
    experts: int
    experts_per_token: int
    expert_intermediate: int
    packed_experts: bool
    block: int
    rope_bytes: int
    longest: int
    seen: Seen | None


def text_model(config: Mapping[str, Any], tree: ModuleTree) -> TextModel | str:
    """The decoder of a model with this config, or why it is not known what vLLM keeps for it.

    Args:
        tree: of the same model, which the config is held against.
    """
    if config.get("is_encoder_decoder"):
        return f"{tree.class_name} is an encoder and a decoder"
    text = _text(config)
    item = ITEM_BYTES.get(tree.dtype)
    if item is None:
        return f"vLLM does not compute in {tree.dtype}"
    try:
        return _read(config, text, tree, item)
    except _UnknownError as error:
        return f"{error.what % tree.class_name} is not known here: {error}"


class _UnknownError(Exception):
    what = "how vLLM keeps the cache of %s"


class _UnseenError(_UnknownError):
    what = "how much the towers of %s take when vLLM starts"


def _read(config: Mapping[str, Any], text: Mapping[str, Any], tree: ModuleTree, item: int) -> TextModel:
    hidden, heads = _number(text, "hidden_size", "n_embd"), _number(text, "num_attention_heads", "n_head")
    count = _number(text, "num_hidden_layers", "n_layer")
    kv_heads = _or(text, heads, "num_key_value_heads", "num_kv_heads")
    if text.get("multi_query") is True and not text.get("new_decoder_architecture"):
        kv_heads = 1  # falcon's and gpt_bigcode's older configs
    head_dim = _or(text, hidden // heads, "head_dim")
    latent, beside = _latent(text)
    layers = _layers(text, count)
    if not latent:
        _require_alike(tree, heads, kv_heads, head_dim)
    nope, rope, values = (_or(text, 0, key) for key in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"))
    per_token = _or(text, 0, "num_experts_per_tok", "experts_per_token", "moe_top_k")
    experts = _or(text, 0, "num_experts", "num_local_experts", "n_routed_experts")
    dense = _or(text, 4 * hidden, "intermediate_size", "n_inner", "ffn_hidden_size")
    within = _or(text, dense, "moe_intermediate_size")
    shared = _or(text, 0, "shared_expert_intermediate_size", "moe_shared_expert_intermediate_size")
    return TextModel(
        item=item,
        layers=layers,
        hidden=hidden,
        intermediate=max(dense, shared, _or(text, 0, "intermediate_size_mlp")),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocabulary=_number(text, "vocab_size"),
        latent=latent,
        beside_latent=beside,
        unpacked=2 * (nope + rope + values) if latent else 0,
        restored=nope + values if latent else 0,
        absorbed=heads * (nope + values) * (latent - rope) * item if latent and tree.quantisation else 0,
        recurrent=_recurrent(text, item) if Kept("recurrent") in layers else 0,
        experts=experts if per_token else 0,
        experts_per_token=per_token if experts else 0,
        expert_intermediate=within if experts and per_token else 0,
        packed_experts="mxfp4" in (tree.quantisation, tree.packed_as) and bool(experts),
        block=_block(config),
        rope_bytes=_rope(text, rope or head_dim, item),
        longest=_longest(text),
        seen=_seen(config, tree),
    )


def _text(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a config that is about the decoder."""
    for key in ("text_config", "llm_config", "language_config"):
        if isinstance(config.get(key), dict):
            return {**config, **config[key]}
    return config


def _layers(text: Mapping[str, Any], count: int) -> tuple[Kept, ...]:
    """What each layer keeps.

    Raises:
        _UnknownError: there is a kind of layer whose rules are not known.
    """
    model_type = str(text.get("model_type", ""))
    odd = (
        "hybrid_layer_pattern",
        "global_head_dim",
        "num_kv_shared_layers",
        "compress_ratios",
        "sparse_attention_config",
    )
    if found := [key for key in odd if text.get(key)]:
        raise _UnknownError(f"its config has {found[0]}")
    window = _or(text, 0, "sliding_window")
    if isinstance(pattern := text.get("hybrid_override_pattern"), str):
        names = {"M": Kept("recurrent"), "*": Kept("full"), "E": Kept("none"), "-": Kept("none")}
        if len(pattern) != count or set(pattern) - set(names):
            raise _UnknownError("its layers are called otherwise")
        return tuple(names[each] for each in pattern)
    if isinstance(types := text.get("layer_types", text.get("layers_block_type")), list) and types:
        return _by_name(types, count, window, _or(text, 0, "attention_chunk_size"))
    every = {"gemma2": 2, "cohere2": 4, "gemma3_text": 6, "gemma3": 6}.get(model_type)
    if every is not None and window:
        every = _or(text, every, "sliding_window_pattern", "_sliding_window_pattern")
        return tuple(Kept("full") if at % every == 0 else Kept("sliding", window) for at in range(1, count + 1))
    if model_type in {"llama4", "llama4_text"}:
        chunk = Kept("chunked", _or(text, 8192, "attention_chunk_size"))
        with_rope = text.get("no_rope_layers") or [at % 4 for at in range(1, count + 1)]
        return tuple(chunk if each else Kept("full") for each in with_rope)
    if every := _or(text, 0, "full_attention_interval"):
        return tuple(Kept("recurrent") if at % every else Kept("full") for at in range(1, count + 1))
    if any(key in text for key in ("mamba_d_state", "ssm_state_size", "state_size", "linear_num_value_heads")):
        raise _UnknownError("its config does not say which layers are recurrent")
    # a window of all layers is left out: a sequence then takes no fewer pages than it does
    return (Kept("full"),) * count


def _by_name(types: list[Any], count: int, window: int, chunk: int) -> tuple[Kept, ...]:
    names = {
        "full_attention": Kept("full"),
        "attention": Kept("full"),
        "sliding_attention": Kept("sliding", window),
        "chunked_attention": Kept("chunked", chunk),
        "linear_attention": Kept("recurrent"),
        "mamba": Kept("recurrent"),
    }
    unknown = [str(each) for each in types if each not in names]
    if unknown or len(types) != count:
        raise _UnknownError(
            f"its layers are {', '.join(dict.fromkeys(unknown)) or 'fewer or more than its config says'}"
        )
    found = tuple(names[each] for each in types)
    if any(each.kind in {"sliding", "chunked"} and not each.span for each in found):
        raise _UnknownError("its config does not say how long the windows are")
    return found


def _latent(text: Mapping[str, Any]) -> tuple[int, int]:
    """Numbers that a token keeps in a layer as its latent, and bytes beside; zeros where it keeps keys and values."""
    rank = _or(text, 0, "kv_lora_rank")
    if not rank:
        return 0, 0
    if text.get("model_type") not in _LATENT:
        raise _UnknownError("its latents are not of a kind that is")
    # the indexer of sparse attention: keys in 8 bits, and a scale for each 128 of them
    index = _or(text, 0, "index_head_dim")
    return rank + _number(text, "qk_rope_head_dim"), index + math.ceil(index / 128) * 4


def _recurrent(text: Mapping[str, Any], item: int) -> int:
    """Bytes of the state of a recurrent layer, of all ranks together: what a convolution keeps, and the state itself.

    As ``MambaStateShapeCalculator`` of ``vllm.model_executor.layers.mamba`` has it for gated delta nets and Mamba 2.
    """
    if "linear_num_value_heads" in text:
        keys = _number(text, "linear_num_key_heads") * _number(text, "linear_key_head_dim")
        values = _number(text, "linear_num_value_heads") * _number(text, "linear_value_head_dim")
        channels, state = 2 * keys + values, values * _number(text, "linear_key_head_dim")
        kernel = _number(text, "linear_conv_kernel_dim")
    else:
        inner = _number(text, "mamba_num_heads", "mamba_n_heads") * _number(text, "mamba_head_dim", "mamba_d_head")
        size = _number(text, "ssm_state_size", "mamba_d_state")
        channels = inner + 2 * _number(text, "n_groups", "mamba_n_groups") * size
        kernel, state = _number(text, "conv_kernel", "mamba_d_conv"), inner * size
    # where the config does not say what the state is kept in, it is counted in the most
    kept_in = text.get("mamba_ssm_dtype", text.get("mamba_ssm_cache_dtype", "float32"))
    return channels * (kernel - 1) * item + state * ITEM_BYTES.get(str(kept_in), 4)


def _block(config: Mapping[str, Any]) -> int:
    """Channels that are quantised together, where vLLM refuses ranks that have a part of them."""
    said = config.get("quantization_config")
    if not isinstance(said, dict):
        return 1
    if isinstance(sizes := said.get("weight_block_size"), list) and sizes and all(type(n) is int for n in sizes):
        return max(1, *map(int, sizes))
    return _or(said, 1, "group_size") if said.get("quant_method") in {"gptq", "awq"} else 1


def _longest(text: Mapping[str, Any]) -> int:
    """As ``_get_and_verify_max_len`` of ``vllm.config.model`` has it; of yarn, where releases differ, the longer."""
    positions = _or(text, 0, "max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
    said = _rotating(text)
    is_scaled_already = str(text.get("model_type", "")).startswith("gemma3")
    return positions if is_scaled_already else max(positions, *(_rows(way, positions) for way in _ways(said)))


def _rope(text: Mapping[str, Any], rotated: int, item: int) -> int:
    """Bytes of the cosines and sines: a row for each position, and a table for each way to rotate.

    As ``get_rope`` of ``vllm.model_executor.layers.rotary_embedding`` has it: linear scaling makes as many times the
    rows, and yarn as many times those that the model was first made for.
    """
    positions = _or(text, 0, "max_position_embeddings", "n_positions")
    said = _rotating(text)
    ways = _ways(said)
    if len(ways) == 1 and str(text.get("model_type", "")).startswith("gemma3"):
        ways.append({})  # that of the layers with a window, which older configs do not list
    share = text.get("partial_rotary_factor", ways[0].get("partial_rotary_factor", 1))
    rows = sum(_rows(way, positions) for way in ways)
    return int(rows * rotated * float(share or 1)) * item


def _rotating(text: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a config says of its rotary embeddings, under the key of its age."""
    said = text.get("rope_parameters") or text.get("rope_scaling")
    return said if isinstance(said, dict) else {}


def _ways(said: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What a config says of each way to rotate."""
    return [each for each in said.values() if isinstance(each, dict)] or [said]


def _rows(way: Mapping[str, Any], positions: int) -> int:
    factor, kind = way.get("factor"), way.get("rope_type", way.get("type"))
    if not isinstance(factor, (int, float)) or kind not in {"linear", "yarn", "dynamic"}:
        return positions
    first = _or(way, positions, "original_max_position_embeddings") if kind == "yarn" else positions
    return int(first * max(1, factor))


def _seen(config: Mapping[str, Any], tree: ModuleTree) -> Seen | None:
    """What a model sees with, from its tower's config; what that does not say is taken to be as large as is known.

    Raises:
        _UnseenError: it hears, or sees images of any size, and how large is not known.
    """
    if heard := [key for key in config if _HEARD.search(key) and isinstance(config[key], dict)]:
        raise _UnseenError(f"its config has {heard[0]}")
    vision = config.get("vision_config")
    if not isinstance(vision, dict):
        if tower := next((tensor.name for tensor in tree.index.tensors if _VISION.search(tensor.name)), None):
            raise _UnseenError(f"its config has no vision_config, and it has {tower[:60]}")
        return None
    patch = _or(vision, 14, "patch_size")
    side = _side(vision)
    merged = _or(vision, _or(config, 1, "spatial_merge_size", "scale_factor"), "spatial_merge_size") ** 2
    ratio = vision.get("pixel_shuffle_ratio", config.get("downsample_ratio"))
    if isinstance(ratio, (int, float)) and 0 < ratio <= 1:
        merged = round(1 / ratio**2)
    if tokens := _or(config, 0, "mm_tokens_per_image"):
        merged = max(1, (side // patch) ** 2 // tokens)
    said = tokens or _or(config, _or(vision, 0, "num_image_tokens"), "image_seq_length")
    width = _or(vision, 1280, "embed_dim", "hidden_size")
    intermediate = _or(vision, 4 * width, "intermediate_size")
    is_gated = any(_GATED.search(tensor.name) for tensor in tree.index.tensors)
    image, video = _largest(config, said or math.ceil((side // patch) ** 2 / merged), side)
    levels = vision.get("deepstack_visual_indexes")
    return Seen(
        pixels=merged * patch**2 * _or(vision, 1, "temporal_patch_size"),
        patches=merged,
        hidden=width,
        # of attention: what it is given, queries, keys and values, both again as they are rotated, and what comes out
        within=max((3 if is_gated else 2) * intermediate + 4 * width, 11 * width),
        image=image,
        video=video,
        levels=len(levels) if isinstance(levels, list) else 0,
    )


def _side(vision: Mapping[str, Any]) -> int:
    """Pixels of an image's side; 0 where it is not said."""
    size = vision.get("image_size")
    if isinstance(size, list) and size and all(type(each) is int for each in size):
        return int(max(0, *size))
    return _or(vision, 0, "image_size")


def _largest(config: Mapping[str, Any], tokens: int, side: int) -> tuple[int, int]:
    """Tokens of the largest image, and such images that the longest video is as long as.

    Args:
        tokens: of an image, or of a part that it is cut to; 0 where that is not said.
        side: pixels of its side.

    Raises:
        _UnseenError: it sees images of any size, and how large is not known.
    """
    kind = config.get("model_type")
    if kind in _ANY_SIZE:
        return _LARGEST_IMAGE, _ANY_SIZE[str(kind)]
    if not tokens:
        raise _UnseenError("its config does not say how large an image is")
    cuts = config.get("image_grid_pinpoints")
    if not isinstance(cuts, list) or not side:
        return tokens * _TILES.get(str(kind), 1), 1
    parts = [1]
    for size in cuts:
        if isinstance(size, list) and len(size) == 2 and all(type(each) is int for each in size):
            parts.append(1 + size[0] * size[1] // side**2)
    return tokens * int(max(parts)), 1


def _require_alike(tree: ModuleTree, heads: int, kv_heads: int, head_dim: int) -> None:
    """Hold the config against the weights: every layer has as many keys.

    Raises:
        _UnknownError: one has others, or there are none by a known name.
    """
    wanted = {_KEYS: kv_heads * head_dim, _FUSED: (heads + 2 * kv_heads) * head_dim}
    is_known = False
    for tensor in tree.index.tensors:
        if _VISION.search(tensor.name):
            continue
        for name, rows in wanted.items():
            if not name.search(tensor.name):
                continue
            is_known = True
            found = tensor.shape[:1] if name is _KEYS else tensor.shape  # GPT-2's are the other way round
            if tree.quantisation is None and rows not in found:
                raise _UnknownError(f"{tensor.name} is not of {rows} rows, as its config says")
    if not is_known:
        raise _UnknownError("its attention has other weights than are")


def _number(values: Mapping[str, Any], *keys: str) -> int:
    for key in keys:
        value = values.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    raise _UnknownError(f"its config has no {keys[0]}")


def _or(values: Mapping[str, Any], default: int, *keys: str) -> int:
    try:
        return _number(values, *keys)
    except _UnknownError:
        return default
