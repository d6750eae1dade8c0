"""What a real generate holds beside its weights, by torch's profiler, which shares nothing with the tracer, and
the same as predicted."""

import tempfile
from dataclasses import replace

import torch
import transformers

from devctl.models.files.resolve import resolve
from devctl.models.footprint import Kernels, peak_bytes
from devctl.models.skeleton import read_skeleton
from devctl.models.tracing.trace import trace_footprint
from tests.small_models import MEASURED

FREE = {"vocab_size": 1024, "hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4}
DECODER = {**FREE, "num_hidden_layers": 2, "num_key_value_heads": 2, "max_position_embeddings": 4096}

HELD_OUT = {
    "mistral": lambda: (transformers.MistralForCausalLM, transformers.MistralConfig(**DECODER, sliding_window=96)),
    "gemma3": lambda: (
        transformers.Gemma3ForCausalLM,
        transformers.Gemma3TextConfig(**DECODER, head_dim=32, sliding_window=96),
    ),
    "qwen3-moe": lambda: (
        transformers.Qwen3MoeForCausalLM,
        transformers.Qwen3MoeConfig(
            **DECODER, head_dim=32, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=64
        ),
    ),
    "phi3": lambda: (transformers.Phi3ForCausalLM, transformers.Phi3Config(**DECODER, pad_token_id=0)),
    "gpt_neox": lambda: (
        transformers.GPTNeoXForCausalLM,
        transformers.GPTNeoXConfig(**FREE, num_hidden_layers=2, max_position_embeddings=4096),
    ),
}
"""Architectures that no part of the tracer was made with."""


def error(name, workload, *, dtype="float32", change=None, **generation):
    """By how much the predicted peak is above that of a real run on the CPU; below it where negative.

    Args:
        change: done to the config, in place.
        generation: what generate is told.
    """
    model_class, config = ({**MEASURED, **HELD_OUT})[name]()
    if change is not None:
        change(config)
    config.architectures, config.dtype = [model_class.__name__], dtype
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        skeleton = read_skeleton(resolve(folder))
    workload = replace(workload, kernels=Kernels.CPU)
    predicted = peak_bytes(trace_footprint(skeleton, workload))
    torch.manual_seed(0)
    config = skeleton.config
    if workload.attention is not None:
        config._attn_implementation = workload.attention
    model = model_class._from_config(config, dtype=getattr(torch, dtype)).eval()
    return predicted / peak_of(lambda: run(model, workload, **generation)) - 1


def run(model, workload, **generation):
    """What ``workload`` says, on the CPU."""
    made = workload.new_tokens if model.can_generate() else 0
    ids = torch.randint(1, 1000, (workload.batch_size, workload.context_length - made))
    mask = torch.ones_like(ids)
    if workload.padded:
        mask[1:, : ids.shape[1] // 4] = 0
    with torch.no_grad():
        if not made:
            model(input_ids=ids, attention_mask=mask)
            return
        settings = model.generation_config
        settings.eos_token_id, settings.pad_token_id, settings.forced_eos_token_id = None, 0, None
        settings.decoder_start_token_id = 0
        # a step more than tokens: generate does not run the model on its last one
        told = {"do_sample": False, "max_new_tokens": workload.new_tokens + 1, **generation}
        model.generate(input_ids=ids, attention_mask=mask, **told)


def peak_of(run):
    """The most bytes that the allocator gave out at one time during ``run``, which runs once before."""
    run()
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True, acc_events=True
    ) as profiler:
        run()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    alive = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
    return peak
