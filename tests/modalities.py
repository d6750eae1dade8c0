"""Small models of every modality: a config each, beside those of ``tiny``."""

import transformers as t

TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 256}
IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
LAYERS = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
VISION = {**LAYERS, "image_size": 32, "patch_size": 8}
SERIES = {
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
WAV2VEC = {**LAYERS, "conv_dim": [8] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
LLAMA = {**TEXT, "num_key_value_heads": 2, **IDS, "model_type": "llama"}
CLIP_VISION = {**VISION, "model_type": "clip_vision_model", "projection_dim": 16}
SIGLIP_VISION = {**VISION, "model_type": "siglip_vision_model", "vision_use_head": False}
QWEN_ROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
QWEN_IDS = {"image_token_id": 250, "video_token_id": 251, "vision_start_token_id": 252, "vision_end_token_id": 253}
CONV = {"hidden_sizes": [8, 16], "depths": [1, 1]}

CONFIGS = {
    # text
    "roberta-classes": lambda: (t.RobertaForSequenceClassification, t.RobertaConfig(**TEXT, **IDS)),
    "electra-classes": lambda: (t.ElectraForTokenClassification, t.ElectraConfig(**TEXT, embedding_size=16)),
    "bert-answers": lambda: (t.BertForQuestionAnswering, t.BertConfig(**TEXT)),
    "albert": lambda: (t.AlbertForMaskedLM, t.AlbertConfig(**TEXT, embedding_size=16)),
    "dpr": lambda: (t.DPRQuestionEncoder, t.DPRConfig(**TEXT)),
    "t5-encoder": lambda: (
        t.T5EncoderModel,
        t.T5Config(vocab_size=256, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4),
    ),
    "layoutlm": lambda: (t.LayoutLMForTokenClassification, t.LayoutLMConfig(**TEXT)),
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
            **TEXT,
            **IDS,
            num_key_value_heads=2,
            num_experts=2,
            mamba_dt_rank=4,
            attn_layer_period=2,
            attn_layer_offset=1,
        ),
    ),
    # images
    "convnext": lambda: (t.ConvNextForImageClassification, t.ConvNextConfig(**CONV, num_stages=2, image_size=32)),
    "resnet": lambda: (t.ResNetForImageClassification, t.ResNetConfig(**CONV, embedding_size=8)),
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
    "videomae": lambda: (t.VideoMAEModel, t.VideoMAEConfig(**VISION, num_frames=4, tubelet_size=2)),
    "timesformer": lambda: (t.TimesformerModel, t.TimesformerConfig(**VISION, num_frames=2)),
    "vivit": lambda: (t.VivitModel, t.VivitConfig(**VISION, num_frames=4, tubelet_size=[2, 8, 8])),
    "sam": lambda: (
        t.SamModel,
        t.SamConfig(
            vision_config={
                **LAYERS,
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
    "wav2vec2": lambda: (t.Wav2Vec2ForCTC, t.Wav2Vec2Config(**WAV2VEC, vocab_size=32)),
    "hubert": lambda: (t.HubertModel, t.HubertConfig(**WAV2VEC)),
    "ast": lambda: (t.ASTForAudioClassification, t.ASTConfig(**LAYERS, max_length=64, num_mel_bins=32)),
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
            text_config={**TEXT, **IDS, "projection_dim": 16},
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
    "siglip": lambda: (t.SiglipModel, t.SiglipConfig(text_config={**TEXT, **IDS}, vision_config=VISION)),
    "vilt": lambda: (t.ViltModel, t.ViltConfig(**TEXT, image_size=32, patch_size=8)),
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
            vision_config=VISION,
            qformer_config={**LAYERS, "vocab_size": 64, "encoder_hidden_size": 32},
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
        t.LlavaConfig(vision_config=CLIP_VISION, text_config=LLAMA, image_token_id=255, vision_feature_layer=-1),
    ),
    "paligemma": lambda: (
        t.PaliGemmaForConditionalGeneration,
        t.PaliGemmaConfig(
            vision_config={**SIGLIP_VISION, "projection_dim": 32},
            text_config={**TEXT, **IDS, "model_type": "gemma", "head_dim": 8, "num_key_value_heads": 2},
            image_token_id=255,
            projection_dim=32,
        ),
    ),
    "gemma3": lambda: (
        t.Gemma3ForConditionalGeneration,
        t.Gemma3Config(
            text_config={**TEXT, **IDS, "head_dim": 8, "num_key_value_heads": 2},
            vision_config=SIGLIP_VISION,
            mm_tokens_per_image=4,
            image_token_id=255,
            boi_token_index=253,
            eoi_token_index=254,
        ),
    ),
    "qwen2-vl": lambda: (
        t.Qwen2VLForConditionalGeneration,
        t.Qwen2VLConfig(
            text_config={**TEXT, **IDS, "num_key_value_heads": 2, "rope_parameters": QWEN_ROPE},
            vision_config={
                "depth": 1,
                "embed_dim": 32,
                "hidden_size": 32,
                "num_heads": 4,
                "patch_size": 4,
                "spatial_merge_size": 2,
                "mlp_ratio": 2,
            },
            **QWEN_IDS,
        ),
    ),
    "qwen2.5-vl": lambda: (
        t.Qwen2_5_VLForConditionalGeneration,
        t.Qwen2_5_VLConfig(
            text_config={**TEXT, **IDS, "num_key_value_heads": 2, "rope_parameters": QWEN_ROPE},
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
            **QWEN_IDS,
        ),
    ),
    "idefics3": lambda: (
        t.Idefics3ForConditionalGeneration,
        t.Idefics3Config(text_config=LLAMA, vision_config=VISION, scale_factor=2, image_token_id=255, pad_token_id=0),
    ),
    "internvl": lambda: (
        t.InternVLForConditionalGeneration,
        t.InternVLConfig(
            text_config={**LLAMA, "model_type": "qwen2"},
            vision_config={**VISION, "image_size": [32, 32], "patch_size": [8, 8]},
            image_token_id=255,
            downsample_ratio=0.5,
        ),
    ),
    # what is neither
    "time-series": lambda: (t.TimeSeriesTransformerForPrediction, t.TimeSeriesTransformerConfig(**SERIES)),
    "informer": lambda: (t.InformerForPrediction, t.InformerConfig(**SERIES)),
    "autoformer": lambda: (t.AutoformerForPrediction, t.AutoformerConfig(**SERIES, label_length=2, moving_average=3)),
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

PARTLY = {
    "qwen2-audio": lambda: (
        t.Qwen2AudioForConditionalGeneration,
        t.Qwen2AudioConfig(
            text_config={**LLAMA, "model_type": "qwen2"},
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
"""Of which only the text is tried."""
