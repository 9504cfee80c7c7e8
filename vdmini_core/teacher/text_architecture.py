"""A T2V-Turbo-v2 at a size for tests, `nano-t2v`: every part real, widths tiny, weights random.

U-Net with four levels, told frame rate, guidance and motion guidance; per-frame autoencoder; CLIP text
encoder; a tokenizer made on the spot; the multi-step consistency sampler.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from vdmini_core.convert.unet_config import unet_config
from vdmini_core.models.fps_unet import UNet3DFpsConditionModel
from vdmini_core.models.t2v_pipeline import VideoCrafterPipeline
from vdmini_core.models.t2v_schedulers import ConsistencyScheduler, RescaledDDIMScheduler
from vdmini_core.teacher.tokens import END_TEXT, START_TEXT, caption_tokenizer

TEXT_WIDTH, TEXT_LENGTH = 32, 77
WIDTHS = {
    "model_channels": 32,
    "channel_mult": [1, 1, 1, 1],
    "num_head_channels": 16,
    "context_dim": TEXT_WIDTH,
}
GUIDANCE_WIDTHS = {"time_cond_proj_dim": 16, "motion_cond_proj_dim": 16}
NANO_T2V_CALL = {
    "num_frames": 4,
    "height": 32,
    "width": 32,
    "fps": 8,
    "num_inference_steps": 2,
    "guidance": 7.5,
    "decode_chunk_size": 4,
}


def build_text_pipeline(seed: int, kind: str = "t2v-turbo-v2") -> VideoCrafterPipeline:
    """A pipeline with random weights drawn from `seed`; the caller's random state is left alone.

    Args:
        kind: `t2v-turbo-v2`, or `videocrafter2` without the guidance embeddings.
    """
    turbo = kind == "t2v-turbo-v2"
    tokenizer = caption_tokenizer(TEXT_LENGTH)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet: Any = UNet3DFpsConditionModel.from_config(
            unet_config(kind, WIDTHS | (GUIDANCE_WIDTHS if turbo else {}))
        )
        _wake(unet)
        pipeline = VideoCrafterPipeline(
            vae=_vae(),
            text_encoder=_text_encoder(tokenizer),
            tokenizer=tokenizer,
            unet=unet.eval(),
            scheduler=ConsistencyScheduler() if turbo else RescaledDDIMScheduler(),
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(32, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=4,
        scaling_factor=1.0,
    ).eval()


def _text_encoder(tokenizer: Any) -> CLIPTextModel:
    words = tokenizer.get_vocab()
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=TEXT_LENGTH,
        bos_token_id=words[START_TEXT],
        eos_token_id=words[END_TEXT],
        initializer_factor=10.0,  # embeddings that tell texts apart: nobody trains them
    )
    return CLIPTextModel(config).eval()


def _wake(unet: nn.Module) -> None:
    """Draw what starts at zero: a layer that does nothing cannot be missed when it is cut."""
    with torch.no_grad():
        for parameter in unet.parameters():
            if not parameter.any():
                parameter.normal_(std=0.05)
