"""The small models that tests and benchmarks run, by name: a class and a config each, with random weights.

``TINY`` have some thousand parameters, ``WIDE`` the widths that quantisation needs, ``BOXED`` and ``MEASURED`` some
MiB, so that what lives beside the weights is worth measuring. ``MODALITIES`` are of images, sounds and what else a
model may take. ``SWEPT`` are more architectures still: each its default config, with small sizes.

What a catalogue has for a name makes the class and a config anew: ``model_class, config = TINY["llama"]()``. Tables
rest on these models, so none changes its size.
"""

import functools
import inspect
import tempfile
from dataclasses import dataclass
from functools import partial

import transformers as t

# architectures in several sizes


@dataclass(frozen=True, kw_only=True)
class Size:
    """Of a decoder or encoder, and, for models of both, ``coder_layers`` and ``coder_inner`` of each.

    ``positions`` are the most tokens; None is what the architecture has of itself.
    """

    vocab: int = 256
    hidden: int = 32
    inner: int = 64
    layers: int = 4
    heads: int = 4
    positions: int | None = 64
    coder_layers: int = 2
    coder_inner: int = 64

    @property
    def head(self):
        return self.hidden // self.heads

    @property
    def text(self):
        """As most configs call them."""
        return {
            "vocab_size": self.vocab,
            "hidden_size": self.hidden,
            "intermediate_size": self.inner,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            **self._positions("max_position_embeddings"),
        }

    @property
    def grouped(self):
        """With two heads of keys and values."""
        return {**self.text, "num_key_value_heads": 2}

    @property
    def coders(self):
        """As BART's and Whisper's configs call them."""
        return {
            "vocab_size": self.vocab,
            "d_model": self.hidden,
            **dict.fromkeys(("encoder_layers", "decoder_layers"), self.coder_layers),
            **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), self.heads),
            **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), self.coder_inner),
        }

    def _positions(self, name):
        return {} if self.positions is None else {name: self.positions}


_TINY = Size()
_WIDE = Size(hidden=128, inner=256)
_BOXED = Size(vocab=1024, hidden=128, inner=384, layers=12, positions=None, coder_layers=6, coder_inner=512)
_MEASURED = Size(vocab=2048, hidden=256, inner=768, heads=8, positions=4096, coder_layers=3, coder_inner=1024)


def _llama(size, **own):
    return t.LlamaForCausalLM, t.LlamaConfig(**size.grouped, **own)


def _mixtral(size, **own):
    return t.MixtralForCausalLM, t.MixtralConfig(**size.grouped, num_local_experts=4, **own)


def _gemma2(size, **own):
    return t.Gemma2ForCausalLM, t.Gemma2Config(**size.grouped, head_dim=size.head, **own)


def _gpt_oss(size, **own):
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2}
    return t.GptOssForCausalLM, t.GptOssConfig(**size.grouped, head_dim=size.head, **experts, **own)


def _gpt2(size):
    config = t.GPT2Config(
        vocab_size=size.vocab, n_embd=size.hidden, n_layer=size.layers, n_head=size.heads, n_positions=size.positions
    )
    return t.GPT2LMHeadModel, config


def _mamba(size, **own):
    config = t.MambaConfig(vocab_size=size.vocab, hidden_size=size.hidden, **{"num_hidden_layers": size.layers, **own})
    return t.MambaForCausalLM, config


def _bert(size, **own):
    return t.BertForMaskedLM, t.BertConfig(**{**size.text, **own})


def _t5(size):
    config = t.T5Config(
        vocab_size=size.vocab,
        d_model=size.hidden,
        d_kv=size.head,
        d_ff=size.coder_inner,
        num_layers=size.coder_layers,
        num_heads=size.heads,
        decoder_start_token_id=0,
    )
    return t.T5ForConditionalGeneration, config


def _bart(size, **own):
    return t.BartForConditionalGeneration, t.BartConfig(
        **size.coders, **size._positions("max_position_embeddings"), **own
    )


_SEEN = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}

TINY = {
    "llama": partial(_llama, _TINY),
    "llama-tied": partial(_llama, _TINY, tie_word_embeddings=True),
    "mixtral": partial(_mixtral, _TINY),
    "gemma2": partial(_gemma2, _TINY),
    "qwen3": lambda: (t.Qwen3ForCausalLM, t.Qwen3Config(**_TINY.grouped, head_dim=8)),
    "gpt2": partial(_gpt2, _TINY),
    "phi3": lambda: (t.Phi3ForCausalLM, t.Phi3Config(**_TINY.grouped, pad_token_id=0)),
    "gpt-oss": partial(_gpt_oss, _TINY),
    "mamba": partial(_mamba, _TINY, state_size=4),
    "bert": partial(_bert, _TINY),
    "roberta": lambda: (t.RobertaForMaskedLM, t.RobertaConfig(**_TINY.text)),
    "deberta": lambda: (t.DebertaV2ForMaskedLM, t.DebertaV2Config(**_TINY.text)),
    "t5": partial(_t5, _TINY),
    "bart": partial(_bart, _TINY),
    "whisper": lambda: (
        t.WhisperForConditionalGeneration,
        t.WhisperConfig(
            **_TINY.coders,
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
    "vit": lambda: (t.ViTForImageClassification, t.ViTConfig(**_SEEN)),
    "clip": lambda: (
        t.CLIPModel,
        t.CLIPConfig(
            text_config={**_TINY.text, "projection_dim": 16, "bos_token_id": 1, "eos_token_id": 2},
            vision_config=_SEEN,
            projection_dim=16,
        ),
    ),
}

WIDE = {
    "llama": partial(_llama, _WIDE, attention_bias=True),
    "llama-tied": partial(_llama, _WIDE, tie_word_embeddings=True),
    "mixtral": partial(_mixtral, _WIDE),
    "gpt-oss": partial(_gpt_oss, _WIDE),
    "gpt2": TINY["gpt2"],
    "opt": lambda: (
        t.OPTForCausalLM,
        t.OPTConfig(
            vocab_size=256,
            hidden_size=128,
            ffn_dim=256,
            num_hidden_layers=3,
            num_attention_heads=4,
            word_embed_proj_dim=128,
        ),
    ),
    "t5": TINY["t5"],
}
"""Wide enough for groups of 32 and blocks of 128; 4-bit sizes are whole."""

BOXED = {
    "llama": partial(_llama, _BOXED),
    "gemma2": partial(_gemma2, _BOXED, sliding_window=64),
    "mixtral": partial(_mixtral, _BOXED),
    "t5": partial(_t5, _BOXED),
    "bart": partial(_bart, _BOXED, forced_eos_token_id=None),
    # its logits, of every token, are returned to where the inputs were
    "bert": partial(_bert, _BOXED, vocab_size=2048, tie_word_embeddings=False),
}

MEASURED = {
    "llama": partial(_llama, _MEASURED),
    "mixtral": partial(_mixtral, _MEASURED),
    "gemma2": partial(_gemma2, _MEASURED, sliding_window=256),
    "gpt-oss": partial(_gpt_oss, _MEASURED, sliding_window=128),
    "deepseek-v3": lambda: (
        t.DeepseekV3ForCausalLM,
        t.DeepseekV3Config(
            **_MEASURED.text,
            moe_intermediate_size=128,
            n_routed_experts=8,
            num_experts_per_tok=2,
            n_group=2,
            topk_group=1,
            first_k_dense_replace=1,
            q_lora_rank=128,
            kv_lora_rank=64,
            qk_rope_head_dim=16,
            qk_nope_head_dim=32,
            v_head_dim=32,
        ),
    ),
    "gpt2": partial(_gpt2, _MEASURED),
    "mamba": partial(_mamba, _MEASURED, num_hidden_layers=2),
    "rwkv": lambda: (t.RwkvForCausalLM, t.RwkvConfig(vocab_size=2048, hidden_size=256, num_hidden_layers=2)),
    "qwen3-next": lambda: (
        t.Qwen3NextForCausalLM,
        t.Qwen3NextConfig(
            **_MEASURED.grouped,
            head_dim=32,
            num_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=128,
            shared_expert_intermediate_size=128,
            linear_num_key_heads=4,
            linear_num_value_heads=8,
            linear_key_head_dim=32,
            linear_value_head_dim=32,
        ),
    ),
    "bert": partial(_bert, _MEASURED),
    "t5": partial(_t5, _MEASURED),
    "bart": partial(_bart, _MEASURED, forced_eos_token_id=None),
}

# every modality

_TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 256,
}
_IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_LAYERS = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
_VISION = {**_LAYERS, "image_size": 32, "patch_size": 8}
_SERIES = {
    "prediction_length": 4,
    "context_length": 8,
    "lags_sequence": [1, 2],
    "num_time_features": 2,
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
}
_WAV2VEC = {**_LAYERS, "conv_dim": [8] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
_LLAMA = {**_TEXT, "num_key_value_heads": 2, **_IDS, "model_type": "llama"}
_CLIP_VISION = {**_VISION, "model_type": "clip_vision_model", "projection_dim": 16}
_SIGLIP_VISION = {**_VISION, "model_type": "siglip_vision_model", "vision_use_head": False}
_QWEN_ROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
_QWEN_IDS = {"image_token_id": 250, "video_token_id": 251, "vision_start_token_id": 252, "vision_end_token_id": 253}
_CONV = {"hidden_sizes": [8, 16], "depths": [1, 1]}

MODALITIES = {
    # text
    "roberta-classes": lambda: (t.RobertaForSequenceClassification, t.RobertaConfig(**_TEXT, **_IDS)),
    "electra-classes": lambda: (t.ElectraForTokenClassification, t.ElectraConfig(**_TEXT, embedding_size=16)),
    "bert-answers": lambda: (t.BertForQuestionAnswering, t.BertConfig(**_TEXT)),
    "albert": lambda: (t.AlbertForMaskedLM, t.AlbertConfig(**_TEXT, embedding_size=16)),
    "dpr": lambda: (t.DPRQuestionEncoder, t.DPRConfig(**_TEXT)),
    "t5-encoder": lambda: (
        t.T5EncoderModel,
        t.T5Config(vocab_size=256, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4),
    ),
    "layoutlm": lambda: (t.LayoutLMForTokenClassification, t.LayoutLMConfig(**_TEXT)),
    "xlnet": lambda: (t.XLNetLMHeadModel, t.XLNetConfig(vocab_size=256, d_model=32, n_layer=2, n_head=4, d_inner=64)),
    # state spaces
    "mamba2": lambda: (
        t.Mamba2ForCausalLM,
        t.Mamba2Config(
            vocab_size=256, hidden_size=32, num_hidden_layers=2, num_heads=8, head_dim=8, state_size=8, n_groups=1
        ),
    ),
    "rwkv": lambda: (
        t.RwkvForCausalLM,
        t.RwkvConfig(vocab_size=256, hidden_size=32, num_hidden_layers=2, attention_hidden_size=32, context_length=64),
    ),
    "jamba": lambda: (
        t.JambaForCausalLM,
        t.JambaConfig(
            **_TEXT,
            **_IDS,
            num_key_value_heads=2,
            num_experts=2,
            mamba_dt_rank=4,
            attn_layer_period=2,
            attn_layer_offset=1,
        ),
    ),
    # images
    "convnext": lambda: (t.ConvNextForImageClassification, t.ConvNextConfig(**_CONV, num_stages=2, image_size=32)),
    "resnet": lambda: (t.ResNetForImageClassification, t.ResNetConfig(**_CONV, embedding_size=8)),
    "swin": lambda: (
        t.SwinForImageClassification,
        t.SwinConfig(image_size=32, patch_size=4, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=2),
    ),
    "segformer": lambda: (
        t.SegformerForSemanticSegmentation,
        t.SegformerConfig(
            hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], num_attention_heads=[1, 1, 1, 1], decoder_hidden_size=8
        ),
    ),
    "videomae": lambda: (t.VideoMAEModel, t.VideoMAEConfig(**_VISION, num_frames=4, tubelet_size=2)),
    "timesformer": lambda: (t.TimesformerModel, t.TimesformerConfig(**_VISION, num_frames=2)),
    "vivit": lambda: (t.VivitModel, t.VivitConfig(**_VISION, num_frames=4, tubelet_size=[2, 8, 8])),
    "sam": lambda: (
        t.SamModel,
        t.SamConfig(
            vision_config={
                **_LAYERS,
                "image_size": 32,
                "patch_size": 8,
                "output_channels": 16,
                "global_attn_indexes": [1],
                "window_size": 2,
                "num_pos_feats": 8,
                "mlp_dim": 32,
            },
            prompt_encoder_config={"hidden_size": 16, "image_size": 32, "patch_size": 8, "mask_input_channels": 4},
            mask_decoder_config={
                "hidden_size": 16,
                "mlp_dim": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "iou_head_hidden_dim": 16,
            },
        ),
    ),
    # sound
    "wav2vec2": lambda: (t.Wav2Vec2ForCTC, t.Wav2Vec2Config(**_WAV2VEC, vocab_size=32)),
    "hubert": lambda: (t.HubertModel, t.HubertConfig(**_WAV2VEC)),
    "ast": lambda: (t.ASTForAudioClassification, t.ASTConfig(**_LAYERS, max_length=64, num_mel_bins=32)),
    "speech-to-text": lambda: (
        t.Speech2TextForConditionalGeneration,
        t.Speech2TextConfig(
            vocab_size=256,
            d_model=32,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=32,
            decoder_ffn_dim=32,
            input_feat_per_channel=16,
            conv_channels=16,
            max_source_positions=100,
            max_target_positions=60,
        ),
    ),
    "encodec": lambda: (
        t.EncodecModel,
        t.EncodecConfig(
            num_filters=4,
            hidden_size=16,
            codebook_dim=16,
            codebook_size=32,
            num_lstm_layers=1,
            upsampling_ratios=[4, 4],
        ),
    ),
    "speecht5": lambda: (
        t.SpeechT5ForTextToSpeech,
        t.SpeechT5Config(
            vocab_size=81,
            hidden_size=32,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=32,
            decoder_ffn_dim=32,
            speech_decoder_prenet_units=32,
            num_mel_bins=16,
            speaker_embedding_dim=8,
            speech_decoder_postnet_units=16,
            positional_dropout=0.0,
        ),
    ),
    "musicgen": lambda: (
        t.MusicgenForConditionalGeneration,
        t.MusicgenConfig(
            text_encoder=t.T5Config(vocab_size=99, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4).to_dict(),
            audio_encoder=t.EncodecConfig(
                num_filters=4,
                hidden_size=16,
                codebook_dim=16,
                codebook_size=64,
                num_lstm_layers=1,
                upsampling_ratios=[4, 4],
            ).to_dict(),
            decoder=t.MusicgenDecoderConfig(
                vocab_size=64,
                hidden_size=32,
                num_hidden_layers=1,
                num_attention_heads=4,
                ffn_dim=32,
                num_codebooks=2,
                pad_token_id=64,
                bos_token_id=64,
            ).to_dict(),
        ),
    ),
    # texts beside images or sounds
    "clap": lambda: (
        t.ClapModel,
        t.ClapConfig(
            text_config={**_TEXT, **_IDS, "projection_dim": 16},
            audio_config={
                "spec_size": 64,
                "num_mel_bins": 16,
                "patch_size": 4,
                "patch_stride": [4, 4],
                "patch_embeds_hidden_size": 16,
                "depths": [1, 1],
                "num_attention_heads": [2, 2],
                "hidden_size": 32,
                "window_size": 4,
                "num_hidden_layers": 2,
                "projection_dim": 16,
            },
            projection_dim=16,
        ),
    ),
    "siglip": lambda: (t.SiglipModel, t.SiglipConfig(text_config={**_TEXT, **_IDS}, vision_config=_VISION)),
    "vilt": lambda: (t.ViltModel, t.ViltConfig(**_TEXT, image_size=32, patch_size=8)),
    "lxmert": lambda: (
        t.LxmertModel,
        t.LxmertConfig(
            vocab_size=256,
            hidden_size=32,
            num_attention_heads=4,
            intermediate_size=64,
            l_layers=1,
            x_layers=1,
            r_layers=1,
            visual_feat_dim=16,
        ),
    ),
    "blip2": lambda: (
        t.Blip2ForConditionalGeneration,
        t.Blip2Config(
            vision_config=_VISION,
            qformer_config={**_LAYERS, "vocab_size": 64, "encoder_hidden_size": 32},
            text_config={
                "model_type": "opt",
                "vocab_size": 256,
                "hidden_size": 32,
                "ffn_dim": 64,
                "num_hidden_layers": 1,
                "num_attention_heads": 4,
                "word_embed_proj_dim": 32,
                "max_position_embeddings": 128,
            },
            num_query_tokens=4,
            image_token_index=255,
        ),
    ),
    "llava": lambda: (
        t.LlavaForConditionalGeneration,
        t.LlavaConfig(vision_config=_CLIP_VISION, text_config=_LLAMA, image_token_id=255, vision_feature_layer=-1),
    ),
    "paligemma": lambda: (
        t.PaliGemmaForConditionalGeneration,
        t.PaliGemmaConfig(
            vision_config={**_SIGLIP_VISION, "projection_dim": 32},
            text_config={**_TEXT, **_IDS, "model_type": "gemma", "head_dim": 8, "num_key_value_heads": 2},
            image_token_id=255,
            projection_dim=32,
        ),
    ),
    "gemma3": lambda: (
        t.Gemma3ForConditionalGeneration,
        t.Gemma3Config(
            text_config={**_TEXT, **_IDS, "head_dim": 8, "num_key_value_heads": 2},
            vision_config=_SIGLIP_VISION,
            mm_tokens_per_image=4,
            image_token_id=255,
            boi_token_index=253,
            eoi_token_index=254,
        ),
    ),
    "qwen2-vl": lambda: (
        t.Qwen2VLForConditionalGeneration,
        t.Qwen2VLConfig(
            text_config={**_TEXT, **_IDS, "num_key_value_heads": 2, "rope_parameters": _QWEN_ROPE},
            vision_config={
                "depth": 1,
                "embed_dim": 32,
                "hidden_size": 32,
                "num_heads": 4,
                "patch_size": 4,
                "spatial_merge_size": 2,
                "mlp_ratio": 2,
            },
            **_QWEN_IDS,
        ),
    ),
    "qwen2.5-vl": lambda: (
        t.Qwen2_5_VLForConditionalGeneration,
        t.Qwen2_5_VLConfig(
            text_config={**_TEXT, **_IDS, "num_key_value_heads": 2, "rope_parameters": _QWEN_ROPE},
            vision_config={
                "depth": 1,
                "hidden_size": 32,
                "out_hidden_size": 32,
                "num_heads": 4,
                "patch_size": 4,
                "spatial_merge_size": 2,
                "intermediate_size": 32,
                "fullatt_block_indexes": [0],
                "window_size": 16,
            },
            **_QWEN_IDS,
        ),
    ),
    "idefics3": lambda: (
        t.Idefics3ForConditionalGeneration,
        t.Idefics3Config(text_config=_LLAMA, vision_config=_VISION, scale_factor=2, image_token_id=255, pad_token_id=0),
    ),
    "internvl": lambda: (
        t.InternVLForConditionalGeneration,
        t.InternVLConfig(
            text_config={**_LLAMA, "model_type": "qwen2"},
            vision_config={**_VISION, "image_size": [32, 32], "patch_size": [8, 8]},
            image_token_id=255,
            downsample_ratio=0.5,
        ),
    ),
    # what is neither
    "time-series": lambda: (t.TimeSeriesTransformerForPrediction, t.TimeSeriesTransformerConfig(**_SERIES)),
    "informer": lambda: (t.InformerForPrediction, t.InformerConfig(**_SERIES)),
    "autoformer": lambda: (t.AutoformerForPrediction, t.AutoformerConfig(**_SERIES, label_length=2, moving_average=3)),
    "patchtst": lambda: (
        t.PatchTSTForPrediction,
        t.PatchTSTConfig(
            num_input_channels=2,
            context_length=16,
            patch_length=4,
            patch_stride=4,
            d_model=16,
            ffn_dim=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            prediction_length=4,
        ),
    ),
    "patchtsmixer": lambda: (
        t.PatchTSMixerForPrediction,
        t.PatchTSMixerConfig(
            num_input_channels=2,
            context_length=16,
            patch_length=4,
            patch_stride=4,
            d_model=8,
            num_layers=1,
            prediction_length=4,
        ),
    ),
    "perceiver-text": lambda: (
        t.PerceiverForMaskedLM,
        t.PerceiverConfig(
            num_latents=8,
            d_latents=16,
            d_model=16,
            num_blocks=1,
            num_self_attends_per_block=1,
            num_self_attention_heads=2,
            num_cross_attention_heads=2,
            vocab_size=64,
            max_position_embeddings=24,
            qk_channels=16,
            v_channels=16,
        ),
    ),
    "perceiver": lambda: (
        t.PerceiverModel,
        t.PerceiverConfig(
            num_latents=8,
            d_latents=16,
            d_model=16,
            num_blocks=1,
            num_self_attends_per_block=1,
            num_self_attention_heads=2,
            num_cross_attention_heads=2,
        ),
    ),
    "decision": lambda: (
        t.DecisionTransformerModel,
        t.DecisionTransformerConfig(state_dim=3, act_dim=2, hidden_size=16, n_layer=1, n_head=2, max_ep_len=32),
    ),
    "pix2struct": lambda: (
        t.Pix2StructForConditionalGeneration,
        t.Pix2StructConfig(
            text_config={"vocab_size": 64, "hidden_size": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2},
            vision_config={
                "hidden_size": 16,
                "patch_embed_hidden_size": 16,
                "d_ff": 16,
                "d_kv": 8,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "patch_size": 4,
            },
        ),
    ),
}

TEXT_ONLY = {
    "qwen2-audio": lambda: (
        t.Qwen2AudioForConditionalGeneration,
        t.Qwen2AudioConfig(
            text_config={**_LLAMA, "model_type": "qwen2"},
            audio_config={
                "d_model": 32,
                "encoder_layers": 1,
                "encoder_attention_heads": 4,
                "encoder_ffn_dim": 32,
                "num_mel_bins": 16,
                "max_source_positions": 20,
            },
            audio_token_index=255,
        ),
    ),
}
"""Of more than text, of which only the text is tried."""

# more architectures, by class

_SIZES = {
    "vocab_size": 256,
    "hidden_size": 32,
    "d_model": 32,
    "n_embd": 32,
    "n_embed": 32,
    "dim": 32,
    "emb_dim": 32,
    "embed_dim": 32,
    "embedding_size": 32,
    "intermediate_size": 64,
    "ffn_dim": 64,
    "d_ff": 64,
    "hidden_dim": 64,
    "n_inner": 64,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "ffn_hidden_size": 64,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "moe_shared_expert_intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_layers": 4,
    "n_layer": 4,
    "n_layers": 4,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "num_decoder_layers": 2,
    "num_attention_heads": 4,
    "num_heads": 4,
    "n_head": 4,
    "n_heads": 4,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_kv_heads": 2,
    "head_dim": 8,
    "d_kv": 8,
    "rotary_dim": 4,
    "max_position_embeddings": 128,
    "n_positions": 128,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "state_size": 4,
    "image_size": 32,
    "patch_size": 8,
    "projection_dim": 16,
    "layers_block_type": None,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
"""Sizes by the names that configs give them."""


def of_class(class_name, **own):
    """(class, config) of a small model: its default config with small sizes, and ``own``, which it needs besides."""
    model_class = getattr(t, class_name)
    config_class = model_class.config_class
    known = config_class().to_dict()
    takes = inspect.signature(config_class.__init__).parameters
    sizes = {key: value for key, value in _SIZES.items() if value is not None and (key in known or key in takes)}
    config = config_class(**(sizes | own))
    config.architectures = [class_name]
    return model_class, config


_TEXT_BESIDE = {
    "vocab_size": 256,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "projection_dim": 16,
}
_BOTH = {"text_config": _TEXT_BESIDE, "vision_config": _SEEN, "projection_dim": 16}
_HEARD = {"conv_dim": [8] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
_DEEPSEEK = {
    "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 1.0},
    "num_key_value_heads": 4,
}
_STAGES = {"hidden_sizes": [8, 16, 32, 64], "depths": [1, 1, 2, 1]}

_PLAIN = """
LlamaForCausalLM MistralForCausalLM MixtralForCausalLM Qwen2ForCausalLM Qwen3ForCausalLM Qwen2MoeForCausalLM
Qwen3MoeForCausalLM GemmaForCausalLM Gemma2ForCausalLM Gemma3ForCausalLM PhiForCausalLM Phi3ForCausalLM
PhimoeForCausalLM GPT2LMHeadModel GPTNeoXForCausalLM GPTJForCausalLM GPTBigCodeForCausalLM BloomForCausalLM
OPTForCausalLM FalconForCausalLM MptForCausalLM StableLmForCausalLM Starcoder2ForCausalLM CohereForCausalLM
OlmoForCausalLM Olmo2ForCausalLM OlmoeForCausalLM GraniteForCausalLM GraniteMoeForCausalLM
GptOssForCausalLM GlmForCausalLM NemotronForCausalLM SmolLM3ForCausalLM MambaForCausalLM
FalconMambaForCausalLM RecurrentGemmaForCausalLM CodeGenForCausalLM XGLMForCausalLM BertForMaskedLM
RobertaForMaskedLM DistilBertForMaskedLM AlbertForMaskedLM ElectraForMaskedLM DebertaV2ForMaskedLM MPNetForMaskedLM
ModernBertForMaskedLM ConvBertForMaskedLM FNetForMaskedLM T5ForConditionalGeneration MT5ForConditionalGeneration
BartForConditionalGeneration PegasusForConditionalGeneration MarianMTModel M2M100ForConditionalGeneration
ViTForImageClassification DeiTForImageClassification BeitForImageClassification Dinov2ForImageClassification
CLIPTextModel CLIPVisionModel
"""

SWEPT = {
    **{name: {} for name in _PLAIN.split()},
    "DeepseekV2ForCausalLM": _DEEPSEEK,
    "DeepseekV3ForCausalLM": {**_DEEPSEEK, "n_group": 2, "topk_group": 1},
    "Mamba2ForCausalLM": {"num_heads": 8, "head_dim": 8, "n_groups": 2},
    "GPTNeoForCausalLM": {"num_layers": 2, "attention_types": [[["global", "local"], 1]]},
    "WhisperForConditionalGeneration": {
        "num_mel_bins": 16,
        "max_source_positions": 50,
        "max_target_positions": 40,
        "suppress_tokens": None,
        "begin_suppress_tokens": None,
    },
    "CLIPModel": _BOTH,
    "SiglipModel": _BOTH,
    "ConvNextForImageClassification": {**_STAGES, "image_size": 64},
    "ResNetForImageClassification": {**_STAGES, "embedding_size": 8},
    "RegNetForImageClassification": {**_STAGES, "embedding_size": 8, "groups_width": 8},
    "SwinForImageClassification": {
        "num_heads": [1, 2],
        "depths": [1, 2],
        "embed_dim": 16,
        "patch_size": 4,
        "window_size": 4,
    },
    "ASTForAudioClassification": {"max_length": 64, "num_mel_bins": 32},
    "Wav2Vec2ForCTC": _HEARD,
    "HubertForCTC": _HEARD,
    "PerceiverForMaskedLM": {"num_latents": 8, "d_latents": 32, "qk_channels": 32, "v_channels": 32},
}
"""By class, what its config needs beside small sizes."""


# what is made of them


def build(make):
    """The model that ``make`` is of, with random weights, the same each time."""
    import torch

    model_class, config = make()
    torch.manual_seed(0)
    return model_class(config)


def save(name, folder, catalogue=TINY, dtype=None):
    """Save the model called ``name`` with random weights; returns the folder."""
    model = build(catalogue[name])
    if dtype is not None:
        model = model.to(dtype)
    model.save_pretrained(folder)
    return folder


@functools.cache
def skeleton(name):
    """The tiny model called ``name`` without weights, as devctl reads it."""
    from devctl.models.files.resolve import resolve
    from devctl.models.skeleton import read_skeleton

    model_class, config = TINY[name]()
    config.architectures = [model_class.__name__]
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        return read_skeleton(resolve(folder))
