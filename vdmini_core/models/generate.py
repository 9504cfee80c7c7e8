"""First frames or prompts in, video clips out: what the stock pipeline call gives, in batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from vdmini_core.errors import DataError, ModelError, VDMiniError
from vdmini_core.models.base import SamplingSettings
from vdmini_core.models.inputs import ClipInputs
from vdmini_core.models.parts import of_the_machine
from vdmini_core.models.pixels import demand_numbers
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

    Raises:
        DataError: as many seeds as clips are needed.
        ModelError: the model fails, as parts do that do not fit each other, or its latents are no numbers.
    """
    if len(seeds) != len(inputs):
        raise DataError("one seed per clip", expected=f"{len(inputs)} seeds", found=f"{len(seeds)}")
    family = family_of(pipeline)
    model = getattr(pipeline, family.denoiser_name) if denoiser is None else denoiser
    clips = []
    for start in range(0, len(seeds), batch_size):
        part = list(seeds[start : start + batch_size])
        given = inputs[start : start + batch_size]
        with _as_configured(settings):
            conditions = family.conditions(pipeline, given, settings, part)
            noise = family.noise(model, settings, part)
            latents = family.sample(pipeline, model, noise, conditions, settings)
            demand_numbers(latents, "latents")
            clips.append(family.decode_latents(pipeline, latents, settings))
    return torch.cat(clips)


@contextmanager
def _as_configured(settings: SamplingSettings) -> Iterator[None]:
    """Parts from outside can be loaded and still not fit each other, or the size: said as one error."""
    try:
        yield
    except Exception as error:  # whatever the libraries' code makes of sizes that it did not expect
        if isinstance(error, VDMiniError) or of_the_machine(error):
            raise
        size = f"{settings.frames} frames of {settings.width}x{settings.height}"
        raise ModelError(
            f"the model makes no video of {size} in {settings.steps} steps",
            expected="parts that fit each other, and a size that the model takes",
            found=f"{type(error).__name__}: {error}".split("\n")[0][:200],
            fix="correct the size in its vdmini.json, or the configs of its parts",
        ) from error
