"""Complete stock Stable Video Diffusion pipelines at sizes a CPU can train: `nano` and `mini`.

Every part is the `diffusers` or `transformers` class that the real checkpoint uses, with the real
four-level topology (three attention levels, one without, mid block, two layers a block); only widths
and sizes differ. The scheduler is SVD's own, so one step from its highest noise level is SF-V's
one-step generator.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from diffusers import (
    AutoencoderKLTemporalDecoder,
    EulerDiscreteScheduler,
    StableVideoDiffusionPipeline,
    UNetSpatioTemporalConditionModel,
)
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

Size = Literal["nano", "mini"]

# stabilityai/stable-video-diffusion-img2vid, scheduler/scheduler_config.json
SVD_SCHEDULER = {
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "interpolation_type": "linear",
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "sigma_max": 700.0,
    "sigma_min": 0.002,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "timestep_type": "continuous",
    "use_karras_sigmas": True,
}


@dataclass(frozen=True)
class Architecture:
    """Widths and sizes of a pipeline; lengths in pixels, `vae_widths` from full resolution inwards."""

    frames: int
    height: int
    width: int
    unet_widths: tuple[int, int, int, int]
    heads: tuple[int, int, int, int]
    embedding: int
    latent_channels: int
    vae_widths: tuple[int, ...]
    clip_width: int
    clip_patch: int


ARCHITECTURES: dict[str, Architecture] = {
    "nano": Architecture(
        frames=4,
        height=32,
        width=32,
        unet_widths=(32, 32, 32, 32),
        heads=(1, 1, 1, 1),
        embedding=16,
        latent_channels=4,
        vae_widths=(32, 32),
        clip_width=16,
        clip_patch=56,
    ),
    "mini": Architecture(
        frames=8,
        height=64,
        width=64,
        unet_widths=(96, 64, 96, 96),
        heads=(3, 2, 3, 3),
        embedding=32,
        latent_channels=16,
        vae_widths=(96, 64, 96),
        clip_width=32,
        clip_patch=32,
    ),
}


def build_pipeline(size: Size, seed: int) -> StableVideoDiffusionPipeline:
    """A stock pipeline with random weights drawn from `seed`; the caller's random state is left alone."""
    return build_from(ARCHITECTURES[size], seed)


def build_from(architecture: Architecture, seed: int) -> StableVideoDiffusionPipeline:
    """As `build_pipeline`, for any `Architecture`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = StableVideoDiffusionPipeline(
            vae=build_vae(architecture),
            image_encoder=build_image_encoder(architecture),
            unet=build_unet(unet_config(architecture)),
            scheduler=EulerDiscreteScheduler(**SVD_SCHEDULER),
            feature_extractor=CLIPImageProcessor(size={"shortest_edge": 224}, crop_size=224),
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def unet_config(architecture: Architecture) -> dict[str, Any]:
    """Constructor arguments of the U-Net that belongs to an architecture."""
    return {
        "sample_size": architecture.height // 2 ** (len(architecture.vae_widths) - 1),
        "in_channels": 2 * architecture.latent_channels,
        "out_channels": architecture.latent_channels,
        "block_out_channels": architecture.unet_widths,
        "num_attention_heads": architecture.heads,
        "cross_attention_dim": architecture.embedding,
        "addition_time_embed_dim": 32,
        "projection_class_embeddings_input_dim": 3 * 32,
        "layers_per_block": 2,
        "num_frames": architecture.frames,
    }


def build_unet(config: Mapping[str, Any], seed: int | None = None) -> UNetSpatioTemporalConditionModel:
    """A U-Net from constructor arguments; with `seed`, reproducible and without touching the global state."""
    if seed is None:
        return UNetSpatioTemporalConditionModel(**config).eval()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UNetSpatioTemporalConditionModel(**config).eval()


def build_vae(architecture: Architecture) -> AutoencoderKLTemporalDecoder:
    """SVD's autoencoder (2-D encoder, temporal decoder), one layer a block."""
    levels = len(architecture.vae_widths)
    return AutoencoderKLTemporalDecoder(
        down_block_types=("DownEncoderBlock2D",) * levels,
        block_out_channels=architecture.vae_widths,
        layers_per_block=1,
        latent_channels=architecture.latent_channels,
        sample_size=architecture.height,
        scaling_factor=1.0,
        force_upcast=False,
    ).eval()


def build_image_encoder(architecture: Architecture) -> CLIPVisionModelWithProjection:
    """A one-layer CLIP vision tower on 224-pixel images with large patches."""
    config = CLIPVisionConfig(
        hidden_size=architecture.clip_width,
        intermediate_size=2 * architecture.clip_width,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=224,
        patch_size=architecture.clip_patch,
        projection_dim=architecture.embedding,
    )
    return CLIPVisionModelWithProjection(config).eval()


def call_arguments(size: Size) -> dict[str, Any]:
    """Arguments of `pipeline(image, ...)` a teacher of this size is made for (its `vdmini.json`)."""
    architecture = ARCHITECTURES[size]
    return {
        "num_frames": architecture.frames,
        "height": architecture.height,
        "width": architecture.width,
        "fps": 8,
        "motion_bucket_id": 127,
        "noise_aug_strength": 0.0,
        "num_inference_steps": 1,
        "min_guidance_scale": 1.0,
        "max_guidance_scale": 1.0,
        "decode_chunk_size": architecture.frames,
    }
