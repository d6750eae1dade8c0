"""What a real generate holds beside its weights, by torch's profiler, which shares nothing with the tracer, and
the same as predicted."""

import inspect
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

_TEXT = {**DECODER, "pad_token_id": 0}
_TOWER = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
_OF_QWEN = {"image_token_id": 1020, "video_token_id": 1021, "vision_start_token_id": 1022, "vision_end_token_id": 1023}
_ROPE = {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 10000.0}

SEEING = {
    "qwen2-vl": lambda: (
        transformers.Qwen2VLForConditionalGeneration,
        transformers.Qwen2VLConfig(
            text_config={**_TEXT, "rope_parameters": _ROPE},
            vision_config={"depth": 2, "embed_dim": 128, "hidden_size": 128, "num_heads": 4, "patch_size": 14},
            **_OF_QWEN,
        ),
    ),
    "qwen3-vl": lambda: (
        transformers.Qwen3VLForConditionalGeneration,
        transformers.Qwen3VLConfig(
            text_config={**_TEXT, "head_dim": 32, "rope_parameters": _ROPE},
            vision_config={
                "depth": 2,
                "hidden_size": 128,
                "intermediate_size": 256,
                "num_heads": 4,
                "patch_size": 16,
                "out_hidden_size": 128,
                "deepstack_visual_indexes": [0],
            },
            **_OF_QWEN,
        ),
    ),
    "llava": lambda: (
        transformers.LlavaForConditionalGeneration,
        transformers.LlavaConfig(
            text_config={**_TEXT, "model_type": "llama"},
            vision_config={**_TOWER, "model_type": "clip_vision_model", "image_size": 112, "patch_size": 14},
            image_token_id=1020,
            vision_feature_layer=-1,
        ),
    ),
    "gemma3": lambda: (
        transformers.Gemma3ForConditionalGeneration,
        transformers.Gemma3Config(
            text_config={**_TEXT, "head_dim": 32},
            vision_config={
                **_TOWER,
                "model_type": "siglip_vision_model",
                "vision_use_head": False,
                "image_size": 112,
                "patch_size": 14,
            },
            mm_tokens_per_image=16,
            image_token_id=1020,
            boi_token_index=1022,
            eoi_token_index=1023,
        ),
    ),
}
"""Models that see."""


def seen(config, height, width, count):
    """What the processors of `SEEING` make of images, written down without devctl: ids of the text, and tensors.

    Args:
        height, width: pixels, as the processor leaves them.
    """
    vision = config.vision_config
    if config.model_type.startswith("qwen"):
        rows, columns = height // vision.patch_size, width // vision.patch_size
        pixels = torch.randn(count * rows * columns, 3 * 2 * vision.patch_size**2)
        ids = [1022, *[1020] * (rows * columns // 4), 1023] * count
        return ids, {"pixel_values": pixels, "image_grid_thw": torch.tensor([[1, rows, columns]] * count)}
    tensors = {"pixel_values": torch.randn(count, 3, height, width)}
    if config.model_type == "gemma3":
        return [1022, *[1020] * 16, 1023] * count, tensors
    one = [1020] * (height // 14 * (width // 14))
    return (one if count == 1 else [*one, 1] * count), tensors


def error(name, workload, *, dtype="float32", change=None, images=None, **generation):
    """By how much the predicted peak is above that of a real run on the CPU; below it where negative.

    Args:
        change: done to the config, in place.
        images: height, width and number of the images that each sequence really has, of a model of `SEEING`.
        generation: what generate is told.
    """
    model_class, config = ({**MEASURED, **HELD_OUT} if images is None else SEEING)[name]()
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
    of_images = None if images is None else seen(config, *images)
    return predicted / peak_of(lambda: run(model, workload, of_images, **generation)) - 1


def run(model, workload, of_images=None, **generation):
    """What ``workload`` says, on the CPU.

    Args:
        of_images: what `seen` gives, for each sequence.
    """
    made = workload.new_tokens if model.can_generate() else 0
    ids = torch.randint(1, 1000, (workload.batch_size, workload.context_length - made))
    mask = torch.ones_like(ids)
    beside = {}
    if of_images is not None:
        row, tensors = of_images
        ids[:, : len(row)] = torch.tensor(row)
        rows = workload.batch_size
        # made for each run, as its other inputs are
        beside = {name: t.clone().repeat(rows, *[1] * (t.dim() - 1)) for name, t in tensors.items()}
        if "mm_token_type_ids" in inspect.signature(model.forward).parameters:
            beside["mm_token_type_ids"] = (ids == 1020).long()
        if model.config.model_type == "gemma3":  # as its processor does
            beside["token_type_ids"] = (ids == 1020).long()
    if workload.padded:
        mask[1:, : ids.shape[1] // 4] = 0
    with torch.no_grad():
        if not made:
            model(input_ids=ids, attention_mask=mask, **beside)
            return
        settings = model.generation_config
        settings.eos_token_id, settings.pad_token_id, settings.forced_eos_token_id = None, 0, None
        settings.decoder_start_token_id = 0
        # a step more than tokens: generate does not run the model on its last one
        told = {"do_sample": False, "max_new_tokens": workload.new_tokens + 1, **generation}
        model.generate(input_ids=ids, attention_mask=mask, **beside, **told)


def peak_of(run):
    """The most bytes that the allocator gave out at one time during ``run``, which runs once before."""
    run()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    alive = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
    return peak
