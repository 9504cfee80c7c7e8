"""A tiny config of every video transformer of diffusers: a few layers, few channels, random weights."""

from __future__ import annotations

from typing import Any

import torch

from vdmini_core.models.dit.arguments import Maker

HEADS = {"num_attention_heads": 2, "attention_head_dim": 12}
WAN = {
    **HEADS,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 8,
    "freq_dim": 8,
    "ffn_dim": 16,
    "num_layers": 4,
}
CHANNELS = {"in_channels": 4, "out_channels": 4}
ROPE = (4, 4, 4)
HUNYUAN = {
    **CHANNELS,
    **HEADS,
    "num_layers": 3,
    "num_single_layers": 4,
    "num_refiner_layers": 1,
    "text_embed_dim": 8,
    "pooled_projection_dim": 8,
    "rope_axes_dim": ROPE,
    "mlp_ratio": 1.0,
}
COG = {
    **CHANNELS,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "time_embed_dim": 8,
    "text_embed_dim": 8,
    "num_layers": 4,
    "sample_width": 4,
    "sample_height": 4,
    "sample_frames": 5,
    "max_text_seq_length": 3,
}
LTX = {
    **CHANNELS,
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "cross_attention_dim": 24,
    "caption_channels": 8,
    "num_layers": 4,
}
SOUND = {
    "audio_in_channels": 4,
    "audio_out_channels": 4,
    "audio_num_attention_heads": 2,
    "audio_attention_head_dim": 12,
    "audio_cross_attention_dim": 24,
}
VISUAL = {
    "in_visual_dim": 4,
    "out_visual_dim": 4,
    "in_text_dim": 8,
    "in_text_dim2": 8,
    "time_dim": 8,
    "model_dim": 24,
    "ff_dim": 16,
    "num_text_blocks": 1,
    "num_visual_blocks": 4,
    "axes_dims": ROPE,
}
MOTION = {"4": 4, "8": 4, "16": 4}
FACE = {
    "is_train_face": True,
    "cross_attn_dim_head": 4,
    "cross_attn_num_heads": 2,
    "LFE_id_dim": 8,
    "LFE_vit_dim": 8,
    "LFE_depth": 1,
    "LFE_dim_head": 4,
    "LFE_num_heads": 2,
    "LFE_num_id_token": 2,
    "LFE_num_querie": 2,
    "LFE_output_dim": 21,
    "LFE_ff_mult": 1,
    "LFE_num_scale": 1,
}
# A class may have several: what pins or groups its layers is a matter of the config.
CONFIGS: dict[str, tuple[dict[str, Any], ...]] = {
    "AllegroTransformer3DModel": (
        {**CHANNELS, **HEADS, "num_layers": 4, "cross_attention_dim": 24, "caption_channels": 8},
    ),
    "AnyFlowTransformer3DModel": (WAN,),
    "AnyFlowFARTransformer3DModel": ({**WAN, "chunk_partition": (3,)},),
    "ChronoEditTransformer3DModel": (WAN,),
    "CogVideoXTransformer3DModel": (COG,),
    "ConsisIDTransformer3DModel": (COG, {**COG, **FACE}),
    "Cosmos3OmniTransformer": (
        {
            "head_dim": 12,
            "hidden_size": 24,
            "intermediate_size": 16,
            "latent_channel": 4,
            "num_attention_heads": 2,
            "num_hidden_layers": 4,
            "num_key_value_heads": 1,
            "patch_latent_dim": 16,
            "vocab_size": 8,
            "rope_axes_dim": (2, 2, 2),
        },
    ),
    "CosmosTransformer3DModel": (
        {
            **CHANNELS,
            **HEADS,
            "num_layers": 4,
            "mlp_ratio": 1.0,
            "text_embed_dim": 8,
            "adaln_lora_dim": 4,
            "max_size": (4, 8, 8),
            "concat_padding_mask": False,
        },
    ),
    "EasyAnimateTransformer3DModel": (
        {
            **CHANNELS,
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "patch_size": 2,
            "num_layers": 4,
            "mmdit_layers": 2,
            "time_embed_dim": 8,
            "text_embed_dim": 8,
        },
    ),
    "HeliosTransformer3DModel": ({**WAN, "rope_dim": ROPE},),
    "HunyuanVideo15Transformer3DModel": (
        {
            **CHANNELS,
            **HEADS,
            "num_layers": 4,
            "num_refiner_layers": 1,
            "mlp_ratio": 1.0,
            "text_embed_dim": 8,
            "text_embed_2_dim": 8,
            "image_embed_dim": 8,
            "rope_axes_dim": ROPE,
        },
    ),
    "HunyuanVideoFramepackTransformer3DModel": (
        {**HUNYUAN, "has_image_proj": True, "image_proj_dim": 8, "has_clean_x_embedder": True},
    ),
    "HunyuanVideoTransformer3DModel": (HUNYUAN, {**HUNYUAN, "image_condition_type": "token_replace"}),
    "JoyImageEditPlusTransformer3DModel": (
        {
            "in_channels": 4,
            "hidden_size": 24,
            "num_attention_heads": 2,
            "text_dim": 8,
            "num_layers": 4,
            "rope_dim_list": list(ROPE),
        },
    ),
    "JoyImageEditTransformer3DModel": (
        {
            "in_channels": 4,
            "hidden_size": 24,
            "num_attention_heads": 2,
            "text_dim": 8,
            "num_layers": 4,
            "rope_dim_list": list(ROPE),
        },
    ),
    "Kandinsky5Transformer3DModel": (VISUAL,),
    "Kandinsky6SRTransformer3DModel": (
        {
            "in_visual_dim": 4,
            "out_visual_dim": 4,
            "time_dim": 8,
            "model_dim": 24,
            "ff_dim": 16,
            "num_visual_blocks": 4,
            "axes_dims": ROPE,
        },
    ),
    "Kandinsky6Transformer3DModel": ({**VISUAL, "in_audio_dim": 4, "out_audio_dim": 4},),
    "LTX2VideoTransformer3DModel": ({**LTX, **SOUND},),
    "LTXVideoTransformer3DModel": (LTX,),
    "LatteTransformer3DModel": (
        {
            **CHANNELS,
            **HEADS,
            "num_layers": 4,
            "cross_attention_dim": 24,
            "sample_size": 4,
            "patch_size": 2,
            "activation_fn": "gelu-approximate",
            "norm_type": "ada_norm_single",
            "norm_elementwise_affine": False,
            "caption_channels": 8,
            "video_length": 3,
        },
    ),
    "MiniMaxH3Transformer3DModel": (
        {
            **HEADS,
            "hidden_size": 16,
            "num_layers": 4,
            "num_refiner_layers": 1,
            "ffn_dim": 16,
            "in_channels": 4,
            "audio_in_channels": 4,
            "text_dim": 8,
            "freq_dim": 8,
            "time_embed_hidden_dim": 8,
            "time_embed_dim": 8,
            "rope_freq_dim": 2,
        },
    ),
    "MochiTransformer3DModel": (
        {
            **CHANNELS,
            **HEADS,
            "num_layers": 4,
            "pooled_projection_dim": 8,
            "text_embed_dim": 8,
            "time_embed_dim": 8,
        },
    ),
    "MotifVideoTransformer3DModel": (
        {
            key: value
            for key, value in HUNYUAN.items()
            if key not in ("num_refiner_layers", "pooled_projection_dim")
        }
        | {"num_decoder_layers": 2},
    ),
    "SanaVideoTransformer3DModel": (
        {
            **CHANNELS,
            **HEADS,
            "num_layers": 4,
            "num_cross_attention_heads": 2,
            "cross_attention_head_dim": 12,
            "cross_attention_dim": 24,
            "caption_channels": 8,
            "mlp_ratio": 1.0,
        },
    ),
    "SanaWMLTX2RefinerTransformer3DModel": ({**LTX, **SOUND},),
    "SanaWMTransformer3DModel": (
        {
            "in_channels": 4,
            "num_layers": 5,
            "hidden_size": 24,
            "num_attention_heads": 2,
            "softmax_every_n": 2,
            "linear_head_dim": 12,
            "chunk_plucker_channels": 4,
            "chunk_plucker_post_attn_blocks": 3,
            "caption_channels": 8,
            "mlp_ratio": 1.0,
        },
    ),
    "SkyReelsV2Transformer3DModel": (WAN,),
    "WanAnimate2Transformer3DModel": (
        {
            "text_len": 4,
            "in_dim": 8,
            "dim": 24,
            "ffn_dim": 16,
            "freq_dim": 8,
            "text_dim": 8,
            "out_dim": 4,
            "num_heads": 2,
            "num_layers": 13,
            "use_img_emb": False,
        },
    ),
    "WanAnimateTransformer3DModel": (
        {
            **WAN,
            "in_channels": 12,
            "latent_channels": 4,
            "image_dim": 8,
            "added_kv_proj_dim": 24,
            "motion_encoder_channel_sizes": MOTION,
            "motion_encoder_size": 16,
            "motion_style_dim": 4,
            "motion_dim": 2,
            "motion_encoder_dim": 4,
            "face_encoder_hidden_dim": 8,
            "face_encoder_num_heads": 2,
            "inject_face_latents_blocks": 2,
        },
    ),
    "WanTransformer3DModel": (WAN,),
    "WanVACETransformer3DModel": ({**WAN, "vace_layers": [0, 2], "vace_in_channels": 4},),
}
# Latent frames, height and width; Kandinsky's sparse attention wants tiles of 8x8 tokens.
SIZES = {"Kandinsky6SRTransformer3DModel": (3, 8, 8)}


def tiny_dit(name: str, config: dict[str, Any], seed: int = 0) -> Any:
    """A random model of a diffusers class; every weight far from zero, so that every path is felt."""
    import diffusers

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = getattr(diffusers, name)(**config).eval()
        for parameter in model.parameters():
            parameter.data.normal_(0, 0.3)
    return model


def tiny_maker(name: str, seed: int | None = 0, device: str = "cpu") -> Maker:
    """Arguments' size for a tiny model: two clips, or one where a class packs a single clip."""
    frames, height, width = SIZES.get(name, (3, 4, 4))
    single = name in ("Cosmos3OmniTransformer", "MiniMaxH3Transformer3DModel")
    return Maker(1 if single else 2, frames, height, width, 3, device, seed)
