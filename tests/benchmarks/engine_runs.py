"""What vLLM 0.19.0 logged of its memory on H100s with 80 GB, and the models that it ran.

From the logs that github llm-d-incubation/llm-d-planner has at commit d3121e05 (``accuracy/results/v0.19.0/logs``): no
prefix caching, graphs on, ``--max-num-batched-tokens 8192 --max-num-seqs 1024``. Sizes are GiB of two decimals, of one
rank; of several stages those of the first, and the pool of the smallest. A row is data.
"""

import json
from dataclasses import dataclass

from tests import quantised
from tests.benchmarks.published import PUBLISHED, text_config
from tests.conftest import CONFIGS

TOTAL = 79.19
"""GiB that CUDA says such a board has."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run.

    Attributes:
        model: on the hub.
        config: what its config.json says.
        weights, activations, non_torch, context, graphs, pool: GiB, as logged.
        tokens: of the cache.
        concurrency: sequences of ``length`` tokens.
        kv_dtype, quantize: as ``--kv-dtype`` and ``--quantize`` call it.
    """

    model: str
    config: dict
    weights: float
    activations: float
    non_torch: float
    context: float
    graphs: float
    pool: float
    tokens: int
    concurrency: float
    tp: int = 1
    pp: int = 1
    length: int = 8192
    utilisation: float = 0.95
    dtype: str = "auto"
    kv_dtype: str | None = None
    quantize: str | None = None

    @property
    def bytes_per_token(self):
        """Of the pool of a rank, as the log has it."""
        return self.pool * 2**30 / self.tokens


def _shared(name, **own):
    return json.loads((CONFIGS / name / "config.json").read_text(encoding="utf-8")) | own


def _published(name, **own):
    row = next(each for each in PUBLISHED if each.name == name)
    config = _shared(row.config) if isinstance(row.config, str) else row.config
    return config | row.own | own


_LLAMA = _shared("llama-3.1-8b")
_QWEN = _published("Qwen/Qwen2.5-7B-Instruct", max_position_embeddings=32_768)
_KIMI = text_config("Qwen2ForCausalLM", "qwen2", hidden=8192, inner=29_568, layers=80, heads=64, shared=8,
              vocab=152_064, max_position_embeddings=131_072)  # fmt: skip
_FP8_70B = _published("RedHatAI/Llama-3.3-70B-Instruct-fp8-dynamic")
_INT8_70B = _shared("llama-3.1-70b", quantization_config=quantised.COMPRESSED["int8 channels"])
_GEMMA = {"max_position_embeddings": 8192, "sliding_window": 4096}
_GEMMA_12B = {"hidden_size": 3840, "intermediate_size": 15_360, "num_hidden_layers": 48, "num_attention_heads": 16,
              "num_key_value_heads": 8}  # fmt: skip
_GEMMA_4B = {"hidden_size": 2560, "intermediate_size": 10_240, "num_hidden_layers": 34, "num_attention_heads": 8,
             "num_key_value_heads": 4}  # fmt: skip


def _gemma3(sizes):
    return {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "dtype": "bfloat16",
        "mm_tokens_per_image": 256,
        "text_config": {
            "model_type": "gemma3_text",
            "head_dim": 256,
            "vocab_size": 262_208,
            "max_position_embeddings": 131_072,
            "sliding_window": 1024,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            **sizes,
        },
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_hidden_layers": 27,
            "num_attention_heads": 16,
            "image_size": 896,
            "patch_size": 14,
        },
    }


_GRANITE_VISION = {
    "architectures": ["LlavaNextForConditionalGeneration"],
    "model_type": "llava_next",
    "dtype": "bfloat16",
    "tie_word_embeddings": True,
    "image_token_index": 49_155,
    "vision_feature_layer": [-24, -20, -12, -1],
    "text_config": text_config("GraniteForCausalLM", "granite", hidden=2048, inner=8192, layers=40, heads=32, shared=8,
                         vocab=49_156, max_position_embeddings=131_072) | {"tie_word_embeddings": True},
    "vision_config": {
        "model_type": "siglip_vision_model",
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "image_size": 384,
        "patch_size": 14,
    },
}  # fmt: skip
_MISTRAL = {
    "architectures": ["Mistral3ForConditionalGeneration"],
    "model_type": "mistral3",
    "dtype": "bfloat16",
    "spatial_merge_size": 2,
    "text_config": text_config("MistralForCausalLM", "mistral", hidden=5120, inner=32_768, layers=40, heads=32,
                         shared=8, vocab=131_072, max_position_embeddings=131_072, head_dim=128),
    "vision_config": {
        "model_type": "pixtral",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 1540,
        "patch_size": 14,
    },
}  # fmt: skip
_SCOUT = {
    "architectures": ["Llama4ForConditionalGeneration"],
    "model_type": "llama4",
    "dtype": "bfloat16",
    "text_config": {
        "model_type": "llama4_text",
        "attention_chunk_size": 8192,
        "head_dim": 128,
        "hidden_size": 5120,
        "interleave_moe_layer_step": 1,
        "intermediate_size": 8192,
        "intermediate_size_mlp": 16_384,
        "max_position_embeddings": 10_485_760,
        "num_attention_heads": 40,
        "num_experts_per_tok": 1,
        "num_hidden_layers": 48,
        "num_key_value_heads": 8,
        "num_local_experts": 16,
        "use_qk_norm": True,
        "vocab_size": 202_048,
    },
    "vision_config": {
        "model_type": "llama4_vision_model",
        "hidden_size": 1408,
        "intermediate_size": 5632,
        "num_hidden_layers": 34,
        "num_attention_heads": 16,
        "image_size": 336,
        "patch_size": 14,
        "pixel_shuffle_ratio": 0.5,
        "projector_input_dim": 4096,
        "projector_output_dim": 4096,
        "vision_output_dim": 4096,
    },
}
_GPT_OSS = _shared("gpt-oss-120b", num_hidden_layers=24, num_local_experts=32, layer_types=None,
                   quantization_config=quantised.MXFP4)  # fmt: skip
_GPT_OSS["layer_types"] = ["sliding_attention", "full_attention"] * 12


def _run(model, config, sizes, outside, tokens, concurrency, **more):
    weights, activations, non_torch, pool = sizes
    context, graphs = outside
    return Run(model=model, config=config, weights=weights, activations=activations, non_torch=non_torch, pool=pool,
               context=context, graphs=graphs, tokens=tokens, concurrency=concurrency, **more)  # fmt: skip


_8B, _7B = "meta-llama/Llama-3.1-8B-Instruct", "Qwen/Qwen2.5-7B-Instruct"
RUNS = (
    _run("RedHatAI/Llama-3.3-70B-Instruct-fp8-dynamic", _FP8_70B, (33.88, 1.96, 2.1, 37.28), (1.53, 1.79), 244304,
         29.82, tp=2),
    _run("RedHatAI/Llama-3.3-70B-Instruct-fp8-dynamic", _FP8_70B, (16.96, 1.97, 2.21, 54.09), (1.55, 1.66), 708992,
         86.55, tp=4),
    _run("google/gemma-2-27b-it", _shared("gemma-2-27b", **_GEMMA), (50.72, 3.66, 0.26, 20.59), (0.51, 1.23), 58672,
         7.16),
    _run("google/gemma-2-2b-it", _published("google/gemma-2-2b-it", **_GEMMA), (4.9, 3.62, 0.24, 66.47), (0.51, 0.71),
         670160, 81.73),
    _run("google/gemma-3-12b-it", _gemma3(_GEMMA_12B), (23.31, 3.94, 0.25, 47.72), (0.51, 0.94), 130304, 15.88),
    _run("google/gemma-3-4b-it", _gemma3(_GEMMA_4B), (8.58, 3.89, 0.25, 62.51), (0.51, 0.67), 468144, 57.05),
    _run("ibm-granite/granite-3.3-8b-instruct",
         _published("ibm-granite/granite-3.3-8b-instruct", max_position_embeddings=131_072),
         (15.25, 0.85, 0.46, 58.66), (0.51, 0.98), 384432, 46.93),
    _run("ibm-granite/granite-vision-3.3-2b", _GRANITE_VISION, (5.54, 0.79, 0.25, 68.65), (0.51, 0.82), 899792, 109.84),
    _run(_8B, _LLAMA, (14.99, 1.89, 0.25, 58.11), (0.51, 0.91), 952032, 116.21, kv_dtype="fp8"),
    _run(_8B, _LLAMA, (14.99, 1.89, 0.25, 58.11), (0.51, 0.91), 476000, 58.11),
    _run(_8B, _LLAMA, (8.49, 1.89, 0.25, 64.61), (0.51, 0.87), 529248, 64.61, quantize="fp8"),
    _run(_8B, _LLAMA, (14.99, 1.89, 0.25, 58.11), (0.51, 0.91), 476016, 58.11, dtype="float16"),
    _run(_8B, _LLAMA, (29.98, 2.21, 0.25, 42.8), (0.51, 0.79), 175296, 21.4, dtype="float32"),
    _run(_8B, _LLAMA, (14.99, 1.89, 0.25, 58.11), (0.51, 0.91), 476016, 232.43, length=2048),
    _run(_8B, _LLAMA, (14.99, 1.89, 0.25, 58.11), (0.51, 0.91), 476016, 116.21, length=4096),
    _run(_8B, _LLAMA, (14.99, 1.89, 0.25, 58.11), (0.51, 0.91), 476016, 29.05, length=16_384),
    _run(_8B, _LLAMA, (14.99, 1.89, 0.25, 58.11), (0.51, 0.91), 476016, 14.53, length=32_768),
    _run(_8B, _LLAMA, (7.51, 1.1, 0.07, 65.63), (1.43, 0.65), 1075312, 131.26, pp=2),
    _run(_8B, _LLAMA, (4.26, 1.1, 0.07, 68.89), (1.48, 0.51), 2257264, 275.54, pp=4),
    _run(_8B, _LLAMA, (7.51, 1.89, 2.07, 63.76), (1.53, 0.76), 1044688, 127.53, tp=2),
    _run(_8B, _LLAMA, (3.77, 1.89, 2.13, 67.44), (1.55, 0.67), 2209792, 269.75, tp=4),
    _run("meta-llama/Llama-4-Scout-17B-16E-Instruct", _SCOUT, (53.12, 3.19, 2.17, 16.75), (2.07, 1.13), 365968, 44.68,
         tp=4),
    _run("microsoft/phi-2", _published("microsoft/phi-2", max_position_embeddings=2048), (5.19, 0.79, 0.24, 69.0),
         (0.51, 0.76), 226112, 110.41, length=2048),
    _run("mistralai/Mistral-Small-3.1-24B-Instruct-2503", _MISTRAL, (44.76, 2.03, 0.25, 28.19), (0.51, 1.06), 184752,
         22.55),
    _run("moonshotai/Kimi-Dev-72B", _KIMI, (67.82, 2.29, 2.09, 3.02), (1.53, 1.61), 19776, 2.41, tp=2),
    _run("moonshotai/Kimi-Dev-72B", _KIMI, (34.01, 2.29, 2.21, 36.72), (1.55, 1.54), 481296, 58.75, tp=4),
    _run("openai/gpt-oss-20b", _GPT_OSS, (7.01, 2.87, 2.07, 59.32), (2.01, 1.55), 2591776, 316.07, tp=2,
         utilisation=0.9),
    _run("Qwen/Qwen1.5-MoE-A2.7B", _published("Qwen/Qwen1.5-MoE-A2.7B", max_position_embeddings=8192),
         (26.67, 2.47, 0.25, 45.83), (0.51, 1.1), 250304, 30.55),
    _run(_7B, _QWEN, (14.25, 2.21, 0.24, 58.53), (0.51, 0.86), 2192000, 267.58, kv_dtype="fp8"),
    _run(_7B, _QWEN, (14.25, 2.21, 0.24, 58.53), (0.51, 0.87), 1096000, 133.79),
    _run(_7B, _QWEN, (14.25, 2.21, 0.24, 58.53), (0.51, 0.87), 1095968, 66.89, length=16_384),
    _run(_7B, _QWEN, (14.25, 2.21, 0.24, 58.53), (0.51, 0.87), 1096000, 33.45, length=32_768),
    _run(_7B, _QWEN, (14.25, 2.21, 0.24, 58.53), (0.51, 0.87), 1096000, 535.16, length=2048),
    _run(_7B, _QWEN, (14.25, 2.21, 0.24, 58.53), (0.51, 0.87), 1096000, 267.58, length=4096),
    _run(_7B, _QWEN, (7.12, 2.21, 2.06, 63.84), (1.53, 0.71), 2390592, 291.82, tp=2),
    _run(_7B, _QWEN, (3.55, 2.21, 2.13, 67.34), (1.55, 0.64), 5043280, 615.63, tp=4),
    _run("Qwen/Qwen3-30B-A3B", _published("Qwen/Qwen3-30B-A3B", max_position_embeddings=40_960),
         (56.88, 2.68, 0.27, 15.41), (0.51, 1.41), 168288, 20.54),
    _run("redhatai/Llama-3.3-70B-Instruct-quantized.w8a8", _INT8_70B, (33.88, 1.96, 2.11, 37.28), (1.53, 1.85), 244304,
         29.82, tp=2),
    _run("RedHatAI/Meta-Llama-3.1-8B-Instruct-quantized.w4a16",
         _published("RedHatAI/Meta-Llama-3.1-8B-Instruct-quantized.w4a16"), (5.38, 1.89, 0.25, 67.71), (0.51, 0.96),
         554704, 67.71),
    _run("RedHatAI/Meta-Llama-3.1-8B-Instruct-quantized.w8a8",
         _published("RedHatAI/Meta-Llama-3.1-8B-Instruct-quantized.w8a8"), (8.49, 1.89, 0.25, 64.6), (0.51, 0.94),
         529200, 64.6),
    _run("RedHatAI/Qwen2.5-7B-Instruct-quantized.w8a8",
         _published("RedHatAI/Qwen2.5-7B-Instruct-quantized.w8a8", max_position_embeddings=32_768),
         (8.14, 2.21, 0.25, 64.64), (0.51, 0.88), 1210272, 147.74),
)  # fmt: skip
"""Without runs that say the same twice."""
