"""Conditions, latents and sampling of `StableVideoDiffusionPipeline`, step by step as its own call does.

EDM, v-prediction, Karras sigmas (`EulerDiscreteScheduler`): x0 = c_skip x + c_out F(c_in x, ln(sigma) / 4)
with c_skip = 1 / (sigma^2 + 1), c_out = -sigma / sqrt(sigma^2 + 1), c_in = 1 / sqrt(sigma^2 + 1).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import EulerDiscreteScheduler
from PIL import Image
from torch import Tensor, nn

from vdmini_core.errors import ModelError
from vdmini_core.models.base import Conditions, SamplingSettings
from vdmini_core.models.inputs import clip_seeds
from vdmini_core.models.pixels import clips_of, pixels_of
from vdmini_core.models.precision import working_dtype

# SVD's training distribution of noise levels: ln sigma ~ N(0.7, 1.6) (Stable Video Diffusion, App. D).
LOG_SIGMA_MEAN, LOG_SIGMA_STD, SIGMA_MAX = 0.7, 1.6, 700.0


def prepare_conditions(
    pipeline: Any, first_frames_BHWC: Tensor, settings: SamplingSettings, seed: int | Sequence[int]
) -> Conditions:
    """First frames uint8 (B, H, W, 3) -> image latents, CLIP embedding, time ids.

    Args:
        seed: of the noise added to the image (`noise_aug_strength`). One seed per clip draws what the
            stock call draws from a list of generators; a single seed gives every clip the same noise,
            so that the batch a clip is in does not matter.
    """
    device = next(pipeline.unet.parameters()).device
    images = [Image.fromarray(frame.cpu().numpy()) for frame in first_frames_BHWC]
    seeds = clip_seeds(seed, len(images))
    with torch.no_grad():
        embeds = pipeline._encode_image(images, device, 1, False)
        pixels = pipeline.video_processor.preprocess(images, height=settings.height, width=settings.width)
        noise = torch.cat([augmentation_noise(_generator(s), pixels.shape[1:]) for s in seeds])
        pixels = (pixels + settings.noise_aug_strength * noise).to(device)
        latents = _encode_upcast(
            pipeline, lambda: pipeline._encode_vae_image(pixels.to(pipeline.vae.dtype), device, 1, False)
        )
    ids = pipeline._get_add_time_ids(
        settings.fps - 1,
        settings.motion_bucket_id,
        settings.noise_aug_strength,
        embeds.dtype,
        len(images),
        1,
        False,
    )
    return Conditions(
        {
            "image_latents": latents.to(embeds.dtype),
            "image_embeds": embeds,
            "added_time_ids": ids.to(device),
        }
    )


def augmentation_noise(generator: torch.Generator, shape: Sequence[int]) -> Tensor:
    """Noise on the image of one clip (1, 3, H, W): the first thing the stock call draws."""
    return torch.randn((1, *shape), generator=generator)


def unit_noise(denoiser: Any, settings: SamplingSettings, seeds: Sequence[int]) -> Tensor:
    """Unit noise (B, F, C, h, w): from each clip's generator, what follows the noise on the image."""
    parameter = next(denoiser.parameters())
    channels = denoiser.config.in_channels // 2
    rows = []
    for seed in seeds:
        generator = _generator(seed)
        augmentation_noise(generator, (3, settings.height, settings.width))
        shape = (1, settings.frames, channels, *settings.latent_size)
        rows.append(torch.randn(shape, generator=generator, dtype=working_dtype(parameter.dtype)))
    return torch.cat(rows).to(parameter.device, parameter.dtype)


def encode_clips(pipeline: Any, clips_BFHWC: Tensor) -> Tensor:
    """Clips uint8 (B, F, H, W, 3) -> scaled latents (B, F, C, h, w); one clip at a time to bound memory."""
    parameter = next(pipeline.vae.parameters())
    rows = []
    for clip in clips_BFHWC:
        pixels = pixels_of(clip, parameter.device)
        with torch.no_grad():
            latents = _encode_upcast(
                pipeline,
                lambda pixels=pixels: pipeline.vae.encode(pixels.to(pipeline.vae.dtype)).latent_dist.mode(),
            )
        rows.append(latents * pipeline.vae.config.scaling_factor)
    return torch.stack(rows)


@torch.no_grad()
def decode_latents(pipeline: Any, latents_BFChw: Tensor, settings: SamplingSettings) -> Tensor:
    """Scaled latents (B, F, C, h, w) -> clips uint8 (B, F, H, W, 3), clip by clip like the stock call."""
    chunk = settings.decode_chunk_size
    latents_BFChw = latents_BFChw.to(pipeline.vae.dtype)
    videos = (pipeline.decode_latents(latents[None], settings.frames, chunk)[0] for latents in latents_BFChw)
    return clips_of(videos, settings)


def denoise(denoiser: nn.Module, noisy_BFChw: Tensor, sigma_B: Tensor, conditions: Conditions) -> Tensor:
    """Predicted clean latents (B, F, C, h, w) at noise levels `sigma_B` (B,)."""
    dtype = noisy_BFChw.dtype
    sigma = sigma_B.to(working_dtype(dtype)).reshape(-1, 1, 1, 1, 1)  # its square is beyond float16
    scaled = (noisy_BFChw / (sigma**2 + 1) ** 0.5).to(dtype)
    output = _call(denoiser, scaled, 0.25 * sigma_B.log(), conditions)
    return (noisy_BFChw / (sigma**2 + 1) - output * sigma / (sigma**2 + 1) ** 0.5).to(dtype)


def sample(
    pipeline: Any,
    denoiser: nn.Module,
    noise_BFChw: Tensor,
    conditions: Conditions,
    settings: SamplingSettings,
) -> Tensor:
    """Unit noise -> clean latents (B, F, C, h, w) with frame-wise guidance from 1 to `settings.guidance`."""
    if not isinstance(pipeline.scheduler, EulerDiscreteScheduler):
        raise ModelError(
            "the pipeline's scheduler is not supported",
            expected="EulerDiscreteScheduler",
            found=type(pipeline.scheduler).__name__,
        )
    scheduler: Any = copy.deepcopy(pipeline.scheduler)
    scheduler.set_timesteps(settings.steps, device=noise_BFChw.device)
    dtype = noise_BFChw.dtype
    latents = noise_BFChw.to(working_dtype(dtype)) * scheduler.init_noise_sigma
    guidance = torch.linspace(1.0, settings.guidance, settings.frames)
    guidance = guidance.to(latents.device, latents.dtype).reshape(1, -1, 1, 1, 1)
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(latents, t).to(dtype)
        output = _guided(denoiser, scaled, t, conditions, guidance if settings.guidance > 1 else None)
        latents = scheduler.step(output.to(latents.dtype), t, latents).prev_sample
    return latents


def training_sigmas(settings: SamplingSettings, count: int, generator: torch.Generator) -> Tensor:
    """Noise levels (count,): the top one for a one-step teacher, else SVD's own training distribution."""
    if settings.steps == 1:
        return torch.full((count,), SIGMA_MAX)
    normal = torch.randn(count, generator=generator)
    return (LOG_SIGMA_MEAN + LOG_SIGMA_STD * normal).exp().clamp(max=SIGMA_MAX)


def _guided(
    denoiser: nn.Module, scaled: Tensor, t: Tensor, conditions: Conditions, guidance: Tensor | None
) -> Tensor:
    if guidance is None:
        return _call(denoiser, scaled, t, conditions)
    tensors = conditions.tensors
    both = {
        name: torch.cat([tensor if name == "added_time_ids" else torch.zeros_like(tensor), tensor])
        for name, tensor in tensors.items()
    }
    without, with_image = _call(denoiser, torch.cat([scaled, scaled]), t, Conditions(both)).chunk(2)
    return without + guidance * (with_image - without)


def _call(denoiser: nn.Module, scaled: Tensor, t: Tensor, conditions: Conditions) -> Tensor:
    tensors = conditions.tensors
    image = tensors["image_latents"].unsqueeze(1).repeat(1, scaled.shape[1], 1, 1, 1)
    return denoiser(
        torch.cat([scaled, image], dim=2),
        t,
        encoder_hidden_states=tensors["image_embeds"],
        added_time_ids=tensors["added_time_ids"],
        return_dict=False,
    )[0]


def _encode_upcast(pipeline: Any, encode: Any) -> Tensor:
    """SVD's VAE asks for float32 (float16 overflows): as the stock call does, and in bfloat16 likewise."""
    dtype = pipeline.vae.dtype
    if working_dtype(dtype) == dtype or not pipeline.vae.config.force_upcast:
        return encode()
    pipeline.vae.to(dtype=torch.float32)
    try:
        return encode().to(dtype)
    finally:
        pipeline.vae.to(dtype=dtype)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
