"""A Wan 2.1 at a size for tests, `nano-dit`: every part real, widths tiny, weights random.

Transformer of six layers, causal video autoencoder (eight pixels and four frames in a latent cell), UMT5 text
encoder, a tokenizer made on the spot, flow matching in two steps.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from transformers import UMT5Config, UMT5EncoderModel

from vdmini_core.teacher.tokens import word_tokenizer

TEXT_WIDTH = 16
NANO_DIT_CALL = {
    "num_frames": 5,
    "height": 32,
    "width": 32,
    "fps": 8,
    "num_inference_steps": 2,
    "guidance": 3.0,
    "decode_chunk_size": 5,
}


def build_dit_pipeline(seed: int) -> WanPipeline:
    """A pipeline with random weights drawn from `seed`; the caller's random state is left alone."""
    tokenizer = word_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline: Any = WanPipeline(
            tokenizer=tokenizer,
            text_encoder=_text_encoder(len(tokenizer)),
            vae=_vae(),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            transformer=_transformer(),
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _transformer() -> Any:
    return WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=TEXT_WIDTH,
        freq_dim=16,
        ffn_dim=48,
        num_layers=6,
        rope_max_seq_len=32,
    ).eval()


def _vae() -> Any:
    """Latents of four channels; the stock normalisation has numbers for sixteen, here is none."""
    return AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    ).eval()


def _text_encoder(words: int) -> Any:
    config = UMT5Config(
        vocab_size=words,
        d_model=TEXT_WIDTH,
        d_kv=8,
        d_ff=32,
        num_layers=1,
        num_heads=2,
        relative_attention_num_buckets=8,
    )
    return UMT5EncoderModel(config).eval()
