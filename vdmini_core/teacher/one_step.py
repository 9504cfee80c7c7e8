"""One denoising step on the latents of clips: from pure noise or any level, its error, a probe of its blocks.

Legend: B clips, F frames, C latent channels, h and w latent cells, E image embedding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import StableVideoDiffusionPipeline
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vdmini_core.teacher import bypass
from vdmini_core.teacher.vae_training import iterate_latents, to_unit_range

FPS, MOTION_BUCKET, NOISE_AUGMENTATION = 8, 127, 0.0


@dataclass(frozen=True)
class LatentClips:
    """What the U-Net trains on: scaled latents (n, F, C, h, w) and image embeddings (n, 1, E).

    `weights` (C,) say how much the pixels depend on each latent channel; their mean is 1.
    """

    latents: Tensor
    embeddings: Tensor
    weights: Tensor


@torch.no_grad()
def encode_clips(
    pipeline: StableVideoDiffusionPipeline, clips_uint8: NDArray[np.uint8], bf16: bool = False, batch: int = 4
) -> LatentClips:
    """Latents (kept in float16) and image embeddings of clips (n, F, H, W, 3)."""
    factor = pipeline.vae.config.scaling_factor
    latents = [(z * factor).half() for z in iterate_latents(pipeline.vae, clips_uint8, bf16, batch)]
    return LatentClips(
        torch.cat(latents),
        image_embeddings(pipeline, clips_uint8),
        channel_weights(pipeline, clips_uint8[:8]),
    )


@torch.no_grad()
def image_embeddings(pipeline: StableVideoDiffusionPipeline, clips_uint8: NDArray[np.uint8]) -> Tensor:
    """What the image encoder makes of the first frames of clips (n, F, H, W, 3): (n, 1, E)."""
    images = [Image.fromarray(clip[0]) for clip in clips_uint8]
    parts = [
        pipeline._encode_image(images[start : start + 32], pipeline.image_encoder.device, 1, False)
        for start in range(0, len(images), 32)
    ]
    return torch.cat(parts).float()


@torch.no_grad()
def channel_weights(
    pipeline: StableVideoDiffusionPipeline, clips_uint8: NDArray[np.uint8], least: float = 0.15
) -> Tensor:
    """Precision of the autoencoder's posterior, a channel (C,), divided by its mean, at least `least`.

    The posterior is narrow where the decoder is sensitive, so that the weighted latent error follows the
    pixel error (here the colour channels count over ten times as much as the detail channels).
    """
    first_BCHW = to_unit_range(clips_uint8)[:, 0]
    precision_C = 1 / pipeline.vae.encode(first_BCHW).latent_dist.var.mean(dim=(0, 2, 3)).float()
    weights_C = (precision_C / precision_C.mean()).clamp(min=least)
    return weights_C / weights_C.mean()


def weighted_mse(made_BFChw: Tensor, target_BFChw: Tensor, weights_C: Tensor) -> Tensor:
    """Mean squared error with a weight for each latent channel."""
    return ((made_BFChw - target_BFChw).square() * weights_C[:, None, None]).mean()


def one_step(
    pipeline: StableVideoDiffusionPipeline,
    noise_BFChw: Tensor,
    image_latents_BChw: Tensor,
    embedding_B1E: Tensor,
) -> Tensor:
    """The clip's scaled latents (B, F, C, h, w), as the stock pipeline makes them in one step.

    `noise` is unit noise; `image_latents` are unscaled, as the pipeline concatenates them.
    """
    scheduler = pipeline.scheduler
    scheduler.set_timesteps(1)
    sigma_B = scheduler.sigmas[:1].to(noise_BFChw.device).expand(len(noise_BFChw))
    sample = noise_BFChw * scheduler.init_noise_sigma
    return denoised(pipeline, sample, sigma_B, image_latents_BChw, embedding_B1E)


def denoised(
    pipeline: StableVideoDiffusionPipeline,
    sample_BFChw: Tensor,
    sigma_B: Tensor,
    image_latents_BChw: Tensor,
    embedding_B1E: Tensor,
) -> Tensor:
    """What the network holds for the clean clip (B, F, C, h, w) in noised scaled latents, each at its level.

    EDM with v-prediction, as SVD: -F(x / sqrt(sigma^2 + 1)) sigma / sqrt(sigma^2 + 1) + x / (sigma^2 + 1)
    (arXiv 2206.00364, equation 7). `image_latents` are unscaled, as the pipeline concatenates them.
    """
    sigma = sigma_B[:, None, None, None, None].float()
    repeated = image_latents_BChw[:, None].expand(-1, sample_BFChw.shape[1], -1, -1, -1)
    one = torch.tensor([[FPS - 1.0, MOTION_BUCKET, NOISE_AUGMENTATION]], device=sample_BFChw.device)
    ids = one.repeat(len(sample_BFChw), 1)
    inputs = torch.cat([sample_BFChw / (sigma**2 + 1).sqrt(), repeated.to(sample_BFChw.dtype)], dim=2)
    output = pipeline.unet(inputs, 0.25 * sigma_B.float().log(), embedding_B1E, added_time_ids=ids).sample
    return -output.float() * (sigma / (sigma**2 + 1).sqrt()) + sample_BFChw / (sigma**2 + 1)


def first_frame(pipeline: StableVideoDiffusionPipeline, latents_BFChw: Tensor) -> Tensor:
    """Unscaled latents of the first frame: (B, C, h, w)."""
    return latents_BFChw[:, 0].float() / pipeline.vae.config.scaling_factor


@torch.no_grad()
def probe(
    pipeline: StableVideoDiffusionPipeline, clips: LatentClips, bf16: bool = False, count: int = 8
) -> dict[str, Any]:
    """Held-out error and the effect of every block's second pair, on the latents.

    Channels count by their weights. `mse` and `mse_copy` (repeating the first frame) cover all clips;
    `effect` is ||sample without the pair - sample|| / ||sample - repeated first frame|| on the first `count`.
    """

    root_C = clips.weights.sqrt()[:, None, None]
    device = pipeline.unet.device

    def sample(part: slice) -> Tensor:
        target = clips.latents[part].float()
        noise = torch.randn(target.shape, generator=torch.Generator().manual_seed(1)).to(device)
        image, embedding = first_frame(pipeline, target).to(device), clips.embeddings[part].to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            made = one_step(pipeline, noise, image, embedding)
        return made.cpu() * root_C

    target = clips.latents.float() * root_C
    made = torch.cat([sample(slice(i, i + count)) for i in range(0, len(target), count)])
    copied = target[:, :1].expand_as(target)
    few = slice(0, count)
    moved = (made[few] - copied[few]).norm()
    effect = {}
    for name in bypass.BLOCKS:
        with bypass.without_pair(pipeline.unet, name, 1):
            effect[name] = round(((sample(few) - made[few]).norm() / moved).item(), 4)
    mse, mse_copy = (made - target).square().mean().item(), (copied - target).square().mean().item()
    return {
        "mse": round(mse, 5),
        "mse_copy": round(mse_copy, 5),
        "ratio": round(mse / mse_copy, 4),
        "effect": effect,
    }
