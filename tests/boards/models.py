"""What is tried on a board: architectures of some hundred MiB, and large ones that fill it. Configs, no weights."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from tests.boards.measuring import Job, Make

CONFIGS = Path(__file__).parents[1] / "configs"

_WIDE: Mapping[str, Any] = {
    **dict.fromkeys(("vocab_size",), 8192),
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "n_embed", "dim", "emb_dim"), 1024),
    **dict.fromkeys(("embed_dim",), 256),
    **dict.fromkeys(("embedding_size",), 1024),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "d_ff", "hidden_dim", "n_inner", "ffn_hidden_size"), 2816),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 2816),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 704),
    **dict.fromkeys(("num_hidden_layers", "num_layers", "n_layer", "n_layers"), 4),
    **dict.fromkeys(("encoder_layers", "decoder_layers", "num_decoder_layers"), 3),
    **dict.fromkeys(("num_attention_heads", "num_heads", "n_head", "n_heads"), 16),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 16),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads"), 4),
    **dict.fromkeys(("head_dim", "d_kv"), 64),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "seq_length", "max_seq_len"), 4096),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 8),
    "rotary_dim": 32,
    "num_experts_per_tok": 2,
    "q_lora_rank": 256,
    "kv_lora_rank": 128,
    "qk_rope_head_dim": 32,
    "qk_nope_head_dim": 64,
    "v_head_dim": 64,
    "state_size": 16,
    "image_size": 384,
    "patch_size": 16,
    "projection_dim": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
"""Sizes by the names that configs give them: wide enough for kernels' own memory to be little beside the tensors."""


def wide(class_name: str, **own: Any) -> tuple[Any, Any]:
    """(class, config) of a model of the class: its default config with these sizes, and its ``own``."""
    import transformers

    model_class = getattr(transformers, class_name)
    config_class = model_class.config_class
    known = config_class().to_dict()
    takes = inspect.signature(config_class.__init__).parameters
    sizes = {key: value for key, value in _WIDE.items() if key in known or key in takes}
    config = config_class(**{**sizes, **own})
    config.architectures = [class_name]
    return model_class, config


_DEEPSEEK = {
    "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 1.0},
    "num_key_value_heads": 16,
    "head_dim": 32,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
_WINDOWED = {"sliding_window": 512, "layer_types": ["sliding_attention", "full_attention"] * 2}
_DELTA = {
    "linear_num_key_heads": 4,
    "linear_num_value_heads": 8,
    "linear_key_head_dim": 64,
    "linear_value_head_dim": 64,
    "layer_types": ["linear_attention", "linear_attention", "linear_attention", "full_attention"],
}
_TEXT = {
    "vocab_size": 8192,
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 4,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "max_position_embeddings": 4096,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_SEEN = {
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "image_size": 168,
    "patch_size": 14,
}
_ROPE = {"rope_type": "default", "mrope_section": [8, 12, 12], "rope_theta": 10_000.0}
_OF_QWEN = {"image_token_id": 8180, "video_token_id": 8181, "vision_start_token_id": 8182, "vision_end_token_id": 8183}

FAMILIES: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "decoders": {
        "LlamaForCausalLM": {},
        "MistralForCausalLM": {},
        "Qwen2ForCausalLM": {},
        "Qwen3ForCausalLM": {},
        "PhiForCausalLM": {},
        "Phi3ForCausalLM": {},
        "GraniteForCausalLM": {},
    },
    "more-decoders": {
        "Olmo2ForCausalLM": {},
        "GlmForCausalLM": {},
        "SmolLM3ForCausalLM": {},
        "StableLmForCausalLM": {},
        "Starcoder2ForCausalLM": {},
        "CohereForCausalLM": {},
        "NemotronForCausalLM": {},
    },
    "old-decoders": {
        "GPT2LMHeadModel": {},
        "GPTNeoXForCausalLM": {},
        "GPTJForCausalLM": {},
        "BloomForCausalLM": {},
        "OPTForCausalLM": {"word_embed_proj_dim": 1024},
        "FalconForCausalLM": {},
        "CodeGenForCausalLM": {},
    },
    "windows": {
        "GemmaForCausalLM": {},
        "Gemma2ForCausalLM": _WINDOWED,
        "Gemma3ForCausalLM": _WINDOWED,
        "Cohere2ForCausalLM": _WINDOWED,
    },
    "experts": {
        "MixtralForCausalLM": {},
        "Qwen2MoeForCausalLM": {},
        "Qwen3MoeForCausalLM": {},
        "OlmoeForCausalLM": {},
        "GptOssForCausalLM": {"sliding_window": 128},
        "DeepseekV3ForCausalLM": _DEEPSEEK,
        "GraniteMoeForCausalLM": {},
    },
    "states": {
        "MambaForCausalLM": {"num_hidden_layers": 2},
        "Mamba2ForCausalLM": {"num_hidden_layers": 2, "num_heads": 32, "head_dim": 64, "n_groups": 2},
        "Qwen3NextForCausalLM": _DELTA,
    },
    "encoders": {
        "BertForMaskedLM": {},
        "RobertaForMaskedLM": {},
        "DebertaV2ForMaskedLM": {},
        "ModernBertForMaskedLM": {},
        "ViTForImageClassification": {},
        "Dinov2ForImageClassification": {},
    },
    "encoder-decoders": {
        "T5ForConditionalGeneration": {},
        "MT5ForConditionalGeneration": {},
        "BartForConditionalGeneration": {},
        "PegasusForConditionalGeneration": {},
    },
    "seeing": {
        "LlavaForConditionalGeneration": {
            "text_config": {**_TEXT, "model_type": "llama"},
            "vision_config": {**_SEEN, "model_type": "clip_vision_model"},
            "image_token_id": 8180,
            "vision_feature_layer": -1,
        },
        "Qwen2VLForConditionalGeneration": {
            "text_config": {**_TEXT, "rope_parameters": _ROPE},
            "vision_config": {"depth": 4, "embed_dim": 512, "hidden_size": 1024, "num_heads": 8, "patch_size": 14},
            **_OF_QWEN,
        },
    },
}
"""Small architectures by what sets them apart, with what their configs need beside sizes."""

JOBS = (
    Job(context=2049, new=1),
    Job(context=516, new=4, batch=6),
    Job(context=680, new=40, batch=4),
)
"""A long prompt, a batch of mixed lengths, and a long answer."""

DTYPES = ("bfloat16", "float16")


def small(family: str) -> dict[str, Make]:
    """The architectures of a family, by class."""
    return {name: partial(wide, name, **own) for name, own in FAMILIES[family].items()}


LARGE = ("llama-3.1-8b", "qwen3-14b", "mixtral-8x7b", "llava-7b")
"""Models that fill a board: plain ones of 8 and 14 billion parameters, a mixture of experts, and one that sees."""

CONTEXTS = (1024, 8192, 32_768)
BATCHES = (1, 4)
ATTENTIONS = ("sdpa", "eager")

SHARE = 0.75
"""Of a board's room, what the weights of a large model may take: its layers are cut down to that."""


def large(name: str, room: int) -> tuple[Make, str]:
    """A large model with as many of its layers as leave a part of ``room`` bytes free, and how many those are."""
    whole, text, per_layer, beside = _large(name)
    layers = text["num_hidden_layers"]
    kept = max(1, min(layers, int((room * SHARE - beside) // per_layer)))
    text["num_hidden_layers"] = kept
    if isinstance(text.get("layer_types"), list):
        text["layer_types"] = text["layer_types"][:kept]
    said = "all its layers" if kept == layers else f"{kept} of its {layers} layers"
    return partial(_made, whole), said


def _made(data: Mapping[str, Any]) -> tuple[Any, Any]:
    import transformers

    model_class = getattr(transformers, data["architectures"][0])
    return model_class, model_class.config_class.from_dict(dict(data))


def _large(name: str) -> tuple[dict[str, Any], dict[str, Any], int, int]:
    """The config, the part of it that has the layers, and bytes of a layer and of the rest, in two bytes a weight."""
    data: dict[str, Any]
    if name == "qwen3-14b":
        data = dict(_QWEN3_14B)
    elif name == "llava-7b":
        data = {**_LLAVA_7B, "text_config": dict(_LLAVA_7B["text_config"])}
    else:
        data = json.loads((CONFIGS / name / "config.json").read_text(encoding="utf-8"))
    text = data.get("text_config", data)
    hidden, inner = text["hidden_size"], text["intermediate_size"]
    heads = text["num_attention_heads"]
    head = text.get("head_dim") or hidden // heads
    keys = text.get("num_key_value_heads", heads)
    feed = 3 * hidden * inner * text.get("num_local_experts", 1)
    layer = 2 * (feed + 2 * hidden * head * (heads + keys))
    vision = 2**30 if "vision_config" in data else 0
    return data, text, layer, 4 * hidden * text["vocab_size"] + vision


_QWEN3_14B = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 5120,
    "intermediate_size": 17_408,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151_936,
    "max_position_embeddings": 40_960,
    "rope_theta": 1_000_000,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}
_LLAVA_7B: dict[str, Any] = {
    "architectures": ["LlavaForConditionalGeneration"],
    "model_type": "llava",
    "image_token_id": 32_000,
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
    "dtype": "bfloat16",
    "text_config": {
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 11_008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "vocab_size": 32_064,
        "max_position_embeddings": 40_960,
        "rms_norm_eps": 1e-5,
        "pad_token_id": 0,
    },
    "vision_config": {
        "model_type": "clip_vision_model",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 336,
        "patch_size": 14,
        "projection_dim": 768,
        "vocab_size": 32_000,
    },
}
