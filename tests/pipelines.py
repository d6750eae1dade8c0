"""Small pipelines that diffusers makes, and what it holds once it has loaded them."""

import json
import warnings

import torch
import transformers as t

_BLOCKS = {"layers_per_block": 1, "norm_num_groups": 4}


def _parts():
    import diffusers as d

    torch.manual_seed(0)
    unet = d.UNet2DConditionModel(
        block_out_channels=(8, 16),
        sample_size=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=4,
        **_BLOCKS,
    )
    vae = d.AutoencoderKL(
        block_out_channels=[8, 16],
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        latent_channels=4,
        **_BLOCKS,
    )
    text = t.CLIPTextConfig(
        hidden_size=32,
        intermediate_size=37,
        num_attention_heads=4,
        num_hidden_layers=2,
        vocab_size=1000,
        projection_dim=32,
        bos_token_id=0,
        eos_token_id=1,
    )
    return {"unet": unet, "vae": vae, "text_encoder": t.CLIPTextModel(text), "scheduler": d.DDIMScheduler()}


_ABSENT = dict.fromkeys(("tokenizer", "safety_checker", "feature_extractor", "image_encoder"))


def save(folder, *, dtype=torch.float32, variant=None, shard="10GB"):
    """A pipeline of stable diffusion in ``folder``."""
    import diffusers as d

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = d.StableDiffusionPipeline(**_parts(), **_ABSENT, requires_safety_checker=False)
        made.to(dtype).save_pretrained(folder, variant=variant, max_shard_size=shard)
    return folder


def loaded(folder, **told):
    """Bytes of each component once diffusers has loaded the pipeline."""
    import diffusers as d

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline = d.StableDiffusionPipeline.from_pretrained(folder, **_ABSENT, **told)
    models = {name: each for name, each in pipeline.components.items() if isinstance(each, torch.nn.Module)}
    return {name: sum(x.nbytes for x in (*each.parameters(), *each.buffers())) for name, each in models.items()}


def save_kept(folder, dtype):
    """A pipeline whose denoiser has modules that diffusers keeps in float32."""
    import diffusers as d

    model = d.WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=32,
        ffn_dim=32,
        num_layers=1,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=32,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(folder / "transformer")
        again = d.WanTransformer3DModel.from_pretrained(folder / "transformer", torch_dtype=dtype)
    write_index(folder, {"transformer": ["diffusers", "WanTransformer3DModel"]}, class_name="WanPipeline")
    return sum(x.nbytes for x in again.parameters()), {n: str(x.dtype) for n, x in again.named_parameters()}


def write_index(folder, components, class_name="StableDiffusionPipeline"):
    """An index by hand."""
    folder.mkdir(exist_ok=True, parents=True)
    index = {"_class_name": class_name, "_diffusers_version": "0.42.1", **components}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder
