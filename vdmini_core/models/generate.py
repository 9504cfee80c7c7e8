"""First frames or prompts in, video clips out: what the stock pipeline call gives, in batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vdmini_core.errors import DataError
from vdmini_core.models.base import SamplingSettings
from vdmini_core.models.inputs import ClipInputs
from vdmini_core.models.registry import family_of


def generate(
    pipeline: Any,
    inputs: ClipInputs,
    seeds: Sequence[int],
    settings: SamplingSettings,
    batch_size: int = 8,
    denoiser: nn.Module | None = None,
) -> Tensor:
    """One clip per first frame, or per prompt.

    Clip i equals the stock call with `generator=torch.Generator().manual_seed(seeds[i])` and the guidance
    of the settings (Stable Video Diffusion: `min_guidance_scale=1`, `max_guidance_scale=settings.guidance`),
    batching apart, which rounds differently.

    Args:
        pipeline: loaded pipeline (`vdmini_core.models.registry.load_pipeline`).
        inputs: what the B clips start from.
        seeds: one per clip.
        settings: how to sample.
        batch_size: clips denoised at once.
        denoiser: in place of the pipeline's own.

    Returns:
        uint8 (B, F, H, W, 3) on the CPU.
    """
    if len(seeds) != len(inputs):
        raise DataError("one seed per clip", expected=f"{len(inputs)} seeds", found=f"{len(seeds)}")
    family = family_of(pipeline)
    model = getattr(pipeline, family.denoiser_name) if denoiser is None else denoiser
    clips = []
    for start in range(0, len(seeds), batch_size):
        part = list(seeds[start : start + batch_size])
        given = inputs[start : start + batch_size]
        conditions = family.conditions(pipeline, given, settings, part)
        noise = family.noise(model, settings, part)
        latents = family.sample(pipeline, model, noise, conditions, settings)
        clips.append(family.decode_latents(pipeline, latents, settings))
    return torch.cat(clips)
