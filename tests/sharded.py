"""Small models that ranks can share, and what transformers' own sharding makes of them, without a second process."""

from contextlib import ExitStack, contextmanager

import torch
import torch.distributed as dist
import transformers as t

_TEXT = {
    "vocab_size": 129,  # so that the halves differ
    "hidden_size": 64,
    "intermediate_size": 90,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_HEADS = {**_TEXT, "head_dim": 8}
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 22}
_LATENT = {
    "num_key_value_heads": 8,
    "q_lora_rank": 32,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "n_routed_experts": 4,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}

SHARDED = {
    "llama": lambda: (t.LlamaForCausalLM, t.LlamaConfig(**_TEXT, attention_bias=True, mlp_bias=True)),
    "llama-tied": lambda: (t.LlamaForCausalLM, t.LlamaConfig(**_TEXT, tie_word_embeddings=True)),
    "qwen2": lambda: (t.Qwen2ForCausalLM, t.Qwen2Config(**_TEXT)),
    "qwen3": lambda: (t.Qwen3ForCausalLM, t.Qwen3Config(**_HEADS)),
    "mixtral": lambda: (t.MixtralForCausalLM, t.MixtralConfig(**_TEXT, num_local_experts=4, num_experts_per_tok=2)),
    "qwen3-moe": lambda: (t.Qwen3MoeForCausalLM, t.Qwen3MoeConfig(**_HEADS, num_experts=4, **_EXPERTS)),
    "gpt-oss": lambda: (
        t.GptOssForCausalLM,
        t.GptOssConfig(**_HEADS, num_local_experts=4, num_experts_per_tok=2, sliding_window=16),
    ),
    "deepseek-v3": lambda: (t.DeepseekV3ForCausalLM, t.DeepseekV3Config(**{**_TEXT, **_EXPERTS, **_LATENT})),
    "deepseek-v2": lambda: (
        t.DeepseekV2ForCausalLM,
        t.DeepseekV2Config(
            **{**_TEXT, **_EXPERTS, **_LATENT},
            rope_parameters={"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 1.0},
        ),
    ),
    "qwen3-next": lambda: (
        t.Qwen3NextForCausalLM,
        t.Qwen3NextConfig(
            **_HEADS,
            **_EXPERTS,
            num_experts=4,
            shared_expert_intermediate_size=22,
            layer_types=["linear_attention", "full_attention"],
            linear_num_key_heads=4,
            linear_num_value_heads=8,
            linear_key_head_dim=8,
            linear_value_head_dim=8,
        ),
    ),
    "phi3": lambda: (t.Phi3ForCausalLM, t.Phi3Config(**_TEXT)),
    "olmo2": lambda: (t.Olmo2ForCausalLM, t.Olmo2Config(**_TEXT)),
    "glm4-moe": lambda: (
        t.Glm4MoeForCausalLM,
        t.Glm4MoeConfig(**_HEADS, **_EXPERTS, n_routed_experts=4, first_k_dense_replace=1, n_group=1, topk_group=1),
    ),
    "gemma2": lambda: (t.Gemma2ForCausalLM, t.Gemma2Config(**_HEADS, sliding_window=16)),
    "gemma3": lambda: (t.Gemma3ForCausalLM, t.Gemma3TextConfig(**_HEADS, sliding_window=16)),
}
"""By name, a class and a config, made anew each time."""

EXPERTS = ("mixtral", "qwen3-moe", "gpt-oss", "deepseek-v3", "deepseek-v2", "qwen3-next", "glm4-moe")
"""Those whose experts can be shared out."""


@contextmanager
def one_of(ranks, rank):
    """This process as one of several, none of which is there: torch's fake process group."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=ranks)
    try:
        yield
    finally:
        dist.destroy_process_group()


def local_bytes(model_class, config, *, ranks, rank, experts=False, dtype=torch.float32):
    """Bytes of every tensor that transformers' own sharding leaves a rank; a target of a tie is left out."""
    from torch.distributed.tensor import DTensor
    from transformers.distributed import DistributedConfig
    from transformers.distributed.utils import TransformersDeviceMesh

    with one_of(ranks, rank):
        with ExitStack() as stack:
            for context in model_class.get_init_context(dtype, False, False, None):
                stack.enter_context(context)
            model = model_class(config)
        wanted = DistributedConfig(tp_size=ranks, ep_size=ranks if experts else 1)
        dense = dist.init_device_mesh("cpu", (1, 1, 1, ranks), mesh_dim_names=("pp", "dp_replicate", "fsdp", "tp"))
        expert = dist.init_device_mesh(
            "cpu",
            (1, 1, 1 if experts else ranks, ranks if experts else 1),
            mesh_dim_names=("pp", "dp_replicate", "efsdp", "ep"),
        )
        model = model_class.maybe_distribute_model(model, wanted, TransformersDeviceMesh(dense, expert))
        tied = dict(model.all_tied_weights_keys)
        found = {}
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
            if name not in tied:
                found[name] = local.numel() * local.element_size()
        return found
