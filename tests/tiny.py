"""Small models of many architectures: a config each, of some thousand parameters."""

import functools

import transformers as t

_TEXT = {
    "vocab_size": 256,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
_GQA = {**_TEXT, "num_key_value_heads": 2}
_ENCODER_DECODER = {
    "vocab_size": 256,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
}
_VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}

CONFIGS = {
    "llama": lambda: (t.LlamaForCausalLM, t.LlamaConfig(**_GQA)),
    "llama-tied": lambda: (t.LlamaForCausalLM, t.LlamaConfig(**_GQA, tie_word_embeddings=True)),
    "mixtral": lambda: (t.MixtralForCausalLM, t.MixtralConfig(**_GQA, num_local_experts=4)),
    "gemma2": lambda: (t.Gemma2ForCausalLM, t.Gemma2Config(**_GQA, head_dim=8)),
    "qwen3": lambda: (t.Qwen3ForCausalLM, t.Qwen3Config(**_GQA, head_dim=8)),
    "gpt2": lambda: (t.GPT2LMHeadModel, t.GPT2Config(vocab_size=256, n_embd=32, n_layer=4, n_head=4, n_positions=64)),
    "phi3": lambda: (t.Phi3ForCausalLM, t.Phi3Config(**_GQA, pad_token_id=0)),
    "gpt-oss": lambda: (
        t.GptOssForCausalLM,
        t.GptOssConfig(**_GQA, head_dim=8, num_local_experts=4, num_experts_per_tok=2),
    ),
    "mamba": lambda: (
        t.MambaForCausalLM,
        t.MambaConfig(vocab_size=256, hidden_size=32, num_hidden_layers=4, state_size=4),
    ),
    "bert": lambda: (t.BertForMaskedLM, t.BertConfig(**_TEXT)),
    "roberta": lambda: (t.RobertaForMaskedLM, t.RobertaConfig(**_TEXT)),
    "deberta": lambda: (t.DebertaV2ForMaskedLM, t.DebertaV2Config(**_TEXT)),
    "t5": lambda: (
        t.T5ForConditionalGeneration,
        t.T5Config(vocab_size=256, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=0),
    ),
    "bart": lambda: (
        t.BartForConditionalGeneration,
        t.BartConfig(
            **_ENCODER_DECODER,
            max_position_embeddings=64,
        ),
    ),
    "whisper": lambda: (
        t.WhisperForConditionalGeneration,
        t.WhisperConfig(
            **_ENCODER_DECODER,
            num_mel_bins=16,
            max_source_positions=50,
            max_target_positions=40,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            decoder_start_token_id=1,
            suppress_tokens=None,
            begin_suppress_tokens=None,
        ),
    ),
    "vit": lambda: (t.ViTForImageClassification, t.ViTConfig(**_VISION)),
    "clip": lambda: (
        t.CLIPModel,
        t.CLIPConfig(
            text_config={**_TEXT, "projection_dim": 16, "bos_token_id": 1, "eos_token_id": 2},
            vision_config=_VISION,
            projection_dim=16,
        ),
    ),
}


def save(name, folder, dtype=None):
    """Save the model called ``name`` with random weights; returns the folder."""
    import torch

    model_class, config = CONFIGS[name]()
    torch.manual_seed(0)
    model = model_class(config)
    if dtype is not None:
        model = model.to(dtype)
    model.save_pretrained(folder)
    return folder


@functools.cache
def skeleton(name):
    """The model called ``name`` without weights, as devctl reads it."""
    import tempfile
    from pathlib import Path

    from devctl.models.files.resolve import resolve
    from devctl.models.skeleton import read_skeleton

    model_class, config = CONFIGS[name]()
    config.architectures = [model_class.__name__]
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        return read_skeleton(resolve(str(Path(folder))))
