"""Conditions, latents and sampling of `VideoCrafterPipeline`, step by step as its own call does.

Noise levels are those of the clean latents: noisy = clean + sigma noise. The U-Net sees x_t = k (noisy) at
the training timestep t whose sigma is nearest: sigma = sqrt(1 - a) / (sqrt(a) s), k = sqrt(a) s, with s the
scale that VideoCrafter2 was trained with and 1 for T2V-Turbo-v2.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from vdmini_core.errors import ModelError
from vdmini_core.models.base import Conditions, SamplingSettings
from vdmini_core.models.pixels import clips_of, pixels_of
from vdmini_core.models.precision import working_dtype
from vdmini_core.models.t2v_pipeline import guided_noise
from vdmini_core.models.t2v_schedulers import ConsistencyScheduler, RescaledDDIMScheduler

TRAINED_GUIDANCE = (5.0, 15.0)  # between which T2V-Turbo-v2's training draws the guidance scale


def prepare_prompts(
    pipeline: Any, prompts: Sequence[str], settings: SamplingSettings, seeds: Sequence[int]
) -> Conditions:
    """Prompts -> `text` (B, N, D), `negative_text` (B, N, D), `fps`, `guidance`, `seed` (B,).

    Args:
        pipeline: `VideoCrafterPipeline`; its U-Net's device is where the tensors go.
        prompts: one for each clip.
        settings: frame rate and guidance scale.
        seeds: of the clips' noise, as given to `unit_noise`: sampling draws on from there.

    Raises:
        ModelError: without a tokenizer.
    """
    device, count = next(pipeline.unet.parameters()).device, len(prompts)
    with torch.no_grad():
        text = pipeline.encode_text(list(prompts), None, device)
        negative = pipeline.encode_text("", None, device).expand(count, -1, -1)
    return Conditions(
        {
            "text": text,
            "negative_text": negative.contiguous(),
            "fps": torch.full((count,), settings.fps, device=device),
            "guidance": torch.full((count,), settings.guidance, device=device),
            "seed": torch.tensor(list(seeds), dtype=torch.long, device=device),
        }
    )


def unit_noise(denoiser: Any, settings: SamplingSettings, seeds: Sequence[int]) -> Tensor:
    """Unit noise (B, F, C, h, w): the first that the stock call draws from each clip's generator."""
    parameter = next(denoiser.parameters())
    shape = (1, denoiser.config.in_channels, settings.frames, *settings.latent_size)
    dtype = working_dtype(parameter.dtype)
    rows = [torch.randn(shape, generator=_generator(seed), dtype=dtype) for seed in seeds]
    return torch.cat(rows).transpose(1, 2).contiguous().to(parameter.device, parameter.dtype)


def encode_clips(pipeline: Any, clips_BFHWC: Tensor) -> Tensor:
    """Clips uint8 (B, F, H, W, 3) -> scaled latents (B, F, C, h, w); one clip at a time to bound memory."""
    parameter = next(pipeline.vae.parameters())
    rows = []
    for clip in clips_BFHWC:
        pixels = pixels_of(clip, parameter.device)
        with torch.no_grad():
            latents = pipeline.vae.encode(pixels.to(parameter.dtype)).latent_dist.mode()
        rows.append(latents * pipeline.vae.config.scaling_factor)
    return torch.stack(rows)


@torch.no_grad()
def decode_latents(pipeline: Any, latents_BFChw: Tensor, settings: SamplingSettings) -> Tensor:
    """Scaled latents (B, F, C, h, w) -> clips uint8 (B, F, H, W, 3) on the CPU."""
    chunk = settings.decode_chunk_size
    videos = (pipeline.decode(latents[None].transpose(1, 2), chunk)[0] for latents in latents_BFChw)
    return clips_of(videos, settings)


def denoise(denoiser: Any, noisy_BFChw: Tensor, sigma_B: Tensor, conditions: Conditions) -> Tensor:
    """Predicted clean latents (B, F, C, h, w) at noise levels `sigma_B` (B,), one pass of the U-Net.

    Of T2V-Turbo-v2 that is its consistency function.
    """
    scheduler = scheduler_of(denoiser)
    levels, roots = noise_levels(scheduler)
    timestep = (levels.log()[None, :] - sigma_B.detach().cpu().log()[:, None]).abs().argmin(dim=1)
    factor = roots[timestep].to(noisy_BFChw.device, noisy_BFChw.dtype).reshape(-1, 1, 1, 1, 1)
    sample = (noisy_BFChw * factor).transpose(1, 2)
    output = guided_noise(denoiser, sample, timestep.to(sample.device), conditions.tensors, two_passes=False)
    if isinstance(scheduler, ConsistencyScheduler):
        return scheduler.denoised(output, timestep, sample).transpose(1, 2)
    scale = scheduler.scales[timestep].to(sample.device, sample.dtype).reshape(-1, 1, 1, 1, 1)
    return (scheduler.predicted_clean(output, timestep, sample) / scale).transpose(1, 2)


def takes_two_passes(denoiser: Any, settings: SamplingSettings) -> bool:
    """Whether guidance is classifier-free: the U-Net has no embedding of its scale."""
    return denoiser.config.time_cond_proj_dim is None and settings.guidance != 1


def sample(
    pipeline: Any,
    denoiser: Any,
    noise_BFChw: Tensor,
    conditions: Conditions,
    settings: SamplingSettings,
) -> Tensor:
    """Unit noise -> clean scaled latents (B, F, C, h, w), as the stock call with one generator per clip."""
    scheduler: Any = copy.deepcopy(pipeline.scheduler)
    if not isinstance(scheduler, ConsistencyScheduler | RescaledDDIMScheduler):
        raise ModelError(
            "the pipeline's scheduler is not supported",
            expected="ConsistencyScheduler or RescaledDDIMScheduler",
            found=type(scheduler).__name__,
        )
    dtype = noise_BFChw.dtype
    current = final = noise_BFChw.transpose(1, 2).contiguous().to(working_dtype(dtype))
    generators = [_generator(int(seed)) for seed in conditions.tensors["seed"]]
    for generator in generators:  # past the noise that sampling starts from
        torch.randn(current[:1].shape, generator=generator, dtype=current.dtype)
    scheduler.set_timesteps(settings.steps, device=current.device)
    two_passes = takes_two_passes(denoiser, settings)
    for t in scheduler.timesteps:
        output = guided_noise(denoiser, current.to(dtype), t, conditions.tensors, two_passes)
        step = scheduler.step(output.to(current.dtype), t, current, generator=generators)
        current, final = step.prev_sample, step.denoised
    clean = final if isinstance(scheduler, ConsistencyScheduler) else current
    return clean.transpose(1, 2)


def training_sigmas(scheduler: Any, steps: int, count: int, generator: torch.Generator) -> Tensor:
    """Noise levels (count,): the top one for a one-step teacher, else of uniform training timesteps.

    T2V-Turbo-v2 was trained on a grid of 200 of them, VideoCrafter2 on all.
    """
    levels = _trained_levels(scheduler)
    if steps == 1:
        return levels[-1:].repeat(count)
    return levels[torch.randint(0, len(levels), (count,), generator=generator)]


def lower_sigmas(scheduler: ConsistencyScheduler, sigma_B: Tensor) -> Tensor:
    """The next lower level of the grid for each of `sigma_B` (B,); 0 for the lowest."""
    levels = torch.cat([torch.zeros(1), _trained_levels(scheduler)]).to(sigma_B)
    at = (levels[None, 1:].log() - sigma_B[:, None].log()).abs().argmin(dim=1)  # one place lower in `levels`
    return levels[at]


def _trained_levels(scheduler: Any) -> Tensor:
    levels, _ = noise_levels(scheduler)
    if isinstance(scheduler, ConsistencyScheduler):
        stride = len(levels) // cast(Any, scheduler).config.original_inference_steps
        return levels[stride - 1 :: stride]
    return levels


def scheduler_of(denoiser: Any) -> ConsistencyScheduler | RescaledDDIMScheduler:
    """The schedule a U-Net of this family was trained on; one told the guidance scale is T2V-Turbo's."""
    return RescaledDDIMScheduler() if denoiser.config.time_cond_proj_dim is None else ConsistencyScheduler()


def noise_levels(scheduler: Any) -> tuple[Tensor, Tensor]:
    """Sigma and k of every training timestep, float32 (T,)."""
    alphas = scheduler.alphas_cumprod
    scales = scheduler.scales[: len(alphas)] if isinstance(scheduler, RescaledDDIMScheduler) else 1.0
    roots = alphas.sqrt() * scales
    return (1 - alphas).sqrt() / roots, roots


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
