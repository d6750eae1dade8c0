"""GGUF files of small models, written by the format's own package."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.constants import GGMLQuantizationType as T
from gguf.quants import quant_shape_from_byte_shape, quantize

VOCABULARY = 320

LLAMA = {
    "block_count": 4,
    "context_length": 4096,
    "embedding_length": 256,
    "feed_forward_length": 512,
    "attention.head_count": 8,
    "attention.head_count_kv": 2,
}
MOE = LLAMA | {"expert_count": 4, "expert_used_count": 2, "attention.key_length": 64, "attention.value_length": 64}
GEMMA3 = LLAMA | {
    "block_count": 7,
    "attention.key_length": 64,
    "attention.value_length": 64,
    "attention.sliding_window": 512,
}
DEEPSEEK2 = LLAMA | {
    "attention.head_count_kv": 1,
    "attention.kv_lora_rank": 128,
    "attention.key_length": 160,
    "attention.value_length": 128,
    "attention.key_length_mla": 96,
    "attention.value_length_mla": 64,
    "rope.dimension_count": 32,
    "leading_dense_block_count": 1,
    "expert_count": 4,
}


def stored(kind: T, *shape: int) -> np.ndarray:
    """Zeros of a type, as the writer takes them; rows are last, as in numpy."""
    zeros = np.zeros(shape, np.float32)
    if kind in (T.F32, T.F16):
        return zeros.astype(np.float16 if kind is T.F16 else np.float32)
    try:
        return quantize(zeros, kind)
    except NotImplementedError:  # the package reads this type and does not write it
        block, size = gguf.GGML_QUANT_SIZES[kind]
        return np.zeros((*shape[:-1], shape[-1] // block * size), np.uint8)


def tensors(
    keys: Mapping[str, Any], kind: T = T.Q4_K, *, tied: bool = False, experts: int = 0
) -> dict[str, tuple[T, np.ndarray]]:
    """Those of a model with ``keys``: its layers differ in size, so that none stands for another."""
    width, inner = int(keys["embedding_length"]), int(keys["feed_forward_length"])
    found = {"token_embd.weight": (T.Q6_K, stored(T.Q6_K, VOCABULARY, width))}
    found["rope_freqs.weight"] = (T.F32, stored(T.F32, 16))
    for number in range(int(keys["block_count"])):
        at, more = f"blk.{number}", 256 * (number % 3)
        found[f"{at}.attn_norm.weight"] = (T.F32, stored(T.F32, width))
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            found[f"{at}.{name}.weight"] = (kind, stored(kind, 64, width))
        if experts and number:
            for name in ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"):
                found[f"{at}.{name}.weight"] = (kind, stored(kind, experts, inner + more, width))
            found[f"{at}.ffn_gate_inp.weight"] = (T.F32, stored(T.F32, experts, width))
        else:
            for name in ("ffn_gate", "ffn_up"):
                found[f"{at}.{name}.weight"] = (kind, stored(kind, inner + more, width))
            found[f"{at}.ffn_down.weight"] = (T.Q6_K, stored(T.Q6_K, width, inner + more))
    found["output_norm.weight"] = (T.F32, stored(T.F32, width))
    if not tied:
        found["output.weight"] = (T.Q8_0, stored(T.Q8_0, VOCABULARY, width))
    return found


def write(
    path: Path,
    architecture: str = "llama",
    keys: Mapping[str, object] = LLAMA,
    given: Mapping[str, tuple[T, np.ndarray]] | None = None,
    *,
    file_type: int | None = 15,
    split: int = 0,
    endianess: gguf.GGUFEndian = gguf.GGUFEndian.LITTLE,
    general: Mapping[str, str] = {},
) -> Path:
    """Write a model to ``path``, and give that; with ``split``, in parts of so many tensors, whose first is given."""
    writer = gguf.GGUFWriter(path, architecture, endianess=endianess, split_max_tensors=split)
    for name, text in general.items():
        writer.add_string(name, text)
    if file_type is not None:
        writer.add_file_type(file_type)
    for name, value in keys.items():
        if isinstance(value, list):
            writer.add_array(f"{architecture}.{name}", value)
        elif isinstance(value, bool):
            writer.add_bool(f"{architecture}.{name}", value)
        elif isinstance(value, float):
            writer.add_float32(f"{architecture}.{name}", value)
        else:
            writer.add_uint32(f"{architecture}.{name}", value)
    writer.add_token_list([f"token {number}" for number in range(VOCABULARY)])
    writer.add_array("tokenizer.ggml.scores", [0.0] * VOCABULARY)
    writer.add_string("tokenizer.chat_template", "{{ messages }}" * 1000)
    for name, (kind, data) in (tensors(keys) if given is None else given).items():
        shape = quant_shape_from_byte_shape(data.shape, kind) if data.dtype == np.uint8 else None
        writer.add_tensor(name, data, raw_shape=None if shape is None else data.shape, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    if not split:
        return path
    return next(iter(sorted(path.parent.glob(f"{path.stem}-00001-of-*.gguf"))))
