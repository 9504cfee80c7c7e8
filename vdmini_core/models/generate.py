"""First frames in, video clips out: what the stock pipeline call gives, in batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vdmini_core.errors import DataError
from vdmini_core.models.base import SamplingSettings
from vdmini_core.models.registry import family_of


def generate(
    pipeline: Any,
    first_frames_BHWC: Tensor,
    seeds: Sequence[int],
    settings: SamplingSettings,
    batch_size: int = 8,
    denoiser: nn.Module | None = None,
) -> Tensor:
    """One clip per first frame.

    Clip i equals the stock call with `generator=torch.Generator().manual_seed(seeds[i])`,
    `min_guidance_scale=1` and `max_guidance_scale=settings.guidance` (batching
    apart, which rounds differently).

    Args:
        pipeline: loaded pipeline (`vdmini_core.models.registry.load_pipeline`).
        first_frames_BHWC: uint8 (B, H, W, 3).
        seeds: one per clip.
        settings: how to sample.
        batch_size: clips denoised at once.
        denoiser: in place of the pipeline's own.

    Returns:
        uint8 (B, F, H, W, 3) on the CPU.
    """
    if len(seeds) != len(first_frames_BHWC):
        raise DataError(
            "one seed per clip", expected=f"{len(first_frames_BHWC)} seeds", found=f"{len(seeds)}"
        )
    family = family_of(pipeline)
    model = getattr(pipeline, family.denoiser_name) if denoiser is None else denoiser
    clips = []
    for start in range(0, len(seeds), batch_size):
        part = list(seeds[start : start + batch_size])
        frames = first_frames_BHWC[start : start + batch_size]
        conditions = family.prepare_conditions(pipeline, frames, settings, part)
        noise = family.noise(model, settings, part)
        latents = family.sample(pipeline, model, noise, conditions, settings)
        clips.append(family.decode_latents(pipeline, latents, settings))
    return torch.cat(clips)
