"""Adapters that PEFT makes for small models, and what it holds once it has loaded them."""

import json
import struct
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers as t

_TEXT = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}


def _llama(**own):
    return t.LlamaForCausalLM, t.LlamaConfig(**_TEXT, num_key_value_heads=2, **own)


def _tied():
    return _llama(tie_word_embeddings=True)


def _mixtral():
    return t.MixtralForCausalLM, t.MixtralConfig(**_TEXT, num_key_value_heads=2, num_local_experts=4)


def _bert():
    return t.BertForSequenceClassification, t.BertConfig(**_TEXT, num_labels=3)


def _gpt2():
    return t.GPT2LMHeadModel, t.GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=128, n_positions=64)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model, and the settings of a LoRA beside it."""

    model: Any = _llama
    settings: dict[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.bfloat16


CASES = {
    "plain": Case(settings={"target_modules": ["q_proj", "v_proj"]}),
    "scaled by its rank": Case(settings={"target_modules": ["q_proj", "v_proj"], "use_rslora": True}),
    "float16": Case(settings={"target_modules": ["q_proj"]}, dtype=torch.float16),
    "float32": Case(settings={"target_modules": ["q_proj"]}, dtype=torch.float32),
    "float64": Case(
        settings={"target_modules": ["q_proj"], "trainable_token_indices": [1, 2]},
        dtype=torch.float64,
    ),
    "a pattern": Case(
        settings={"target_modules": r".*\.mlp\.(up|down)_proj", "rank_pattern": {"layers.1.mlp.up_proj": 9}}
    ),
    "one layer": Case(settings={"target_modules": ["q_proj"], "layers_to_transform": [1]}),
    "copies": Case(settings={"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "norm"]}),
    "a copied head that is tied": Case(
        model=_tied, settings={"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}
    ),
    "copied embeddings that are tied": Case(
        model=_tied, settings={"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}
    ),
    "copies that stay tied": Case(
        model=_tied,
        settings={"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    ),
    "embeddings": Case(model=_tied, settings={"target_modules": ["embed_tokens", "lm_head"]}),
    "magnitudes": Case(settings={"target_modules": ["q_proj"], "use_dora": True}),
    "a bias of the model": Case(
        model=_bert, settings={"target_modules": ["query"], "bias": "lora_only", "task_type": "SEQ_CLS"}
    ),
    "all biases of the model, and a copy": Case(
        model=_bert, settings={"target_modules": ["query"], "bias": "all", "task_type": "SEQ_CLS"}
    ),
    "a bias of its own": Case(settings={"target_modules": ["q_proj"], "lora_bias": True}),
    "experts": Case(
        model=_mixtral,
        settings={
            "r": 2,
            "target_modules": ["q_proj"],
            "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
        },
    ),
    "some tokens": Case(settings={"target_modules": ["q_proj"], "trainable_token_indices": [1, 2, 3]}),
    "some tokens that are tied": Case(
        model=_tied, settings={"target_modules": ["q_proj"], "trainable_token_indices": [1, 2, 3]}
    ),
    "weights the other way around": Case(model=_gpt2, settings={"target_modules": ["c_attn"], "fan_in_fan_out": True}),
}


_WIDE = {**_TEXT, "vocab_size": 1024, "hidden_size": 128, "intermediate_size": 256, "max_position_embeddings": 4096}


def _wide():
    return t.LlamaForCausalLM, t.LlamaConfig(**_WIDE, num_key_value_heads=2)


def _wide_mixtral():
    return t.MixtralForCausalLM, t.MixtralConfig(**_WIDE, num_key_value_heads=2, num_local_experts=4)


_ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
MEASURED = {
    "half precision": Case(model=_wide, settings={"target_modules": _ALL}),
    "float32": Case(model=_wide, settings={"target_modules": _ALL}, dtype=torch.float32),
    "magnitudes": Case(model=_wide, settings={"target_modules": _ALL, "use_dora": True}, dtype=torch.float32),
    "tokens": Case(model=_wide, settings={"target_modules": ["q_proj"], "trainable_token_indices": [1, 2, 3]}),
    "experts": Case(
        model=_wide_mixtral,
        settings={"target_modules": ["q_proj"], "target_parameters": ["mlp.experts.gate_up_proj"]},
        dtype=torch.float32,
    ),
}
"""Large enough that what is computed is worth measuring."""


@dataclass(frozen=True, kw_only=True)
class Made:
    """The folders of a model and of its adapter."""

    base: Path
    adapter: Path
    model_class: Any


def make(name: str, folder: Path) -> Made:
    """The adapter of case ``name``, in ``folder``."""
    import peft

    case = {**CASES, **{f"measured {key}": each for key, each in MEASURED.items()}}[name]
    model_class, config = case.model()
    made = Made(base=folder / "base", adapter=folder / "adapter", model_class=model_class)
    torch.manual_seed(0)
    model = model_class(config).to(case.dtype)
    model.save_pretrained(made.base)
    settings = {"r": 4, **case.settings}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of what the cases are about
        peft.get_peft_model(model, peft.LoraConfig(**settings)).save_pretrained(made.adapter)
    rewrite(made.adapter, base_model_name_or_path=str(made.base))
    return made


def rewrite(adapter: Path, **changes: Any) -> None:
    """Change what an adapter's config says."""
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def held(model: Any) -> dict[str, int]:
    """Bytes of each storage of a model, by its first name without what PEFT puts around modules."""
    found, seen = {}, set()
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if (storage := tensor.untyped_storage().data_ptr()) not in seen:
            seen.add(storage)
            found[name.removeprefix("base_model.model.")] = tensor.nbytes
    return found


def by_module(names: dict[str, int]) -> dict[str, int]:
    """The same by the module of the model that they are beside."""
    cuts = (".base_layer", ".original_module", ".modules_to_save.", ".lora_", ".token_adapter")
    found: dict[str, int] = {}
    for name, nbytes in names.items():
        module = min((name.partition(cut)[0] for cut in cuts if cut in name), key=len, default=name.rpartition(".")[0])
        found[module] = found.get(module, 0) + nbytes
    return found


def loaded(made: Made) -> tuple[Any, Any]:
    """The model, and the same with its adapter, as PEFT loads it for use."""
    import peft

    plain = made.model_class.from_pretrained(made.base, dtype="auto")
    base = made.model_class.from_pretrained(made.base, dtype="auto")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return plain, peft.PeftModel.from_pretrained(base, made.adapter)


def write_safetensors(path: Path, entries: dict[str, Any], size: int | None = None) -> None:
    """A file of safetensors by hand: ``entries`` as they are, and ``size`` bytes, or as many as they end at."""
    header = json.dumps(entries).encode()
    end = max((entry["data_offsets"][1] for entry in entries.values()), default=0) if size is None else size
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(end))
