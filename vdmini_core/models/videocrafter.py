"""The family of VideoCrafter2 and T2V-Turbo-v2: `VideoCrafterPipeline` and its U-Net, whole or pruned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vdmini_core.models import videocrafter_sampling
from vdmini_core.models.base import Conditions, SamplingSettings
from vdmini_core.models.inputs import ClipInputs, Need, clip_seeds
from vdmini_core.models.registry import register_family
from vdmini_core.models.t2v_schedulers import ConsistencyScheduler, RescaledDDIMScheduler
from vdmini_core.models.unet_family import UNetFamily


@register_family("VideoCrafterPipeline")
class VideoCrafterFamily(UNetFamily):
    """Units, bypass, surgery and sampling of ModelScope-type text-to-video U-Nets."""

    name = "videocrafter"
    needs: tuple[Need, ...] = ("prompts",)

    def conditions(
        self, pipeline: Any, inputs: ClipInputs, settings: SamplingSettings, seed: int | Sequence[int]
    ) -> Conditions:
        """Prompts, one for each clip -> `text`, `negative_text`, `fps`, `guidance`, `seed`."""
        seeds = clip_seeds(seed, len(inputs))
        return videocrafter_sampling.prepare_prompts(pipeline, inputs.need_prompts(), settings, seeds)

    def encode_clips(self, pipeline: Any, clips_BFHWC: Tensor) -> Tensor:
        """Clips uint8 (B, F, H, W, 3) -> scaled latents (B, F, C, h, w), the mode of the posterior."""
        return videocrafter_sampling.encode_clips(pipeline, clips_BFHWC)

    def decode_latents(self, pipeline: Any, latents_BFChw: Tensor, settings: SamplingSettings) -> Tensor:
        """Scaled latents (B, F, C, h, w) -> clips uint8 (B, F, H, W, 3) on the CPU."""
        return videocrafter_sampling.decode_latents(pipeline, latents_BFChw, settings)

    def noise(self, denoiser: nn.Module, settings: SamplingSettings, seeds: Sequence[int]) -> Tensor:
        """Unit noise (B, F, C, h, w), one generator per clip, as the stock call draws it."""
        return videocrafter_sampling.unit_noise(denoiser, settings, seeds)

    def denoise(
        self, denoiser: nn.Module, noisy_BFChw: Tensor, sigma_B: Tensor, conditions: Conditions
    ) -> Tensor:
        """Predicted clean latents (B, F, C, h, w) at noise levels (B,)."""
        return videocrafter_sampling.denoise(denoiser, noisy_BFChw, sigma_B, conditions)

    def sample(
        self,
        pipeline: Any,
        denoiser: nn.Module,
        noise_BFChw: Tensor,
        conditions: Conditions,
        settings: SamplingSettings,
    ) -> Tensor:
        """Unit noise -> clean scaled latents (B, F, C, h, w); without gradients."""
        with torch.no_grad():
            return videocrafter_sampling.sample(pipeline, denoiser, noise_BFChw, conditions, settings)

    def passes(self, denoiser: nn.Module, settings: SamplingSettings) -> int:
        """Of one clip in one step of sampling: T2V-Turbo-v2 is told the scale and needs one."""
        return 2 if videocrafter_sampling.takes_two_passes(denoiser, settings) else 1

    def training_sigmas(self, settings: SamplingSettings, count: int, generator: torch.Generator) -> Tensor:
        """Noise levels (count,) for recovery, of the base model's schedule."""
        return videocrafter_sampling.training_sigmas(_schedule(settings), settings.steps, count, generator)

    def own_task(self, settings: SamplingSettings) -> Literal["noise", "consistency"]:
        """VideoCrafter2 learned to predict noise, T2V-Turbo-v2 by consistency distillation."""
        return "noise" if settings.rescaled_schedule else "consistency"

    def lower_sigmas(self, sigma_B: Tensor, settings: SamplingSettings) -> Tensor:
        """The next lower noise levels (B,) on the grid that T2V-Turbo-v2 was distilled on; 0 below it."""
        return videocrafter_sampling.lower_sigmas(_schedule(settings), sigma_B)

    def training_guidance(
        self, settings: SamplingSettings, count: int, generator: torch.Generator
    ) -> Tensor | None:
        """Guidance scales (count,) as T2V-Turbo-v2's training draws them; VideoCrafter2 is told none."""
        if settings.rescaled_schedule:
            return None
        low, high = videocrafter_sampling.TRAINED_GUIDANCE
        return low + (high - low) * torch.rand(count, generator=generator)


def _schedule(settings: SamplingSettings) -> RescaledDDIMScheduler | ConsistencyScheduler:
    return RescaledDDIMScheduler() if settings.rescaled_schedule else ConsistencyScheduler()
