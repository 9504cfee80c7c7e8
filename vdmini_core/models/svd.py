"""The SVD family: `StableVideoDiffusionPipeline` and its U-Net, stock or pruned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vdmini_core.models import svd_sampling
from vdmini_core.models.base import Conditions, SamplingSettings
from vdmini_core.models.inputs import ClipInputs, Need
from vdmini_core.models.registry import register_family
from vdmini_core.models.unet_family import UNetFamily


@register_family("StableVideoDiffusionPipeline")
class SVDFamily(UNetFamily):
    """Units, bypass, surgery and sampling of Stable Video Diffusion and everything shaped like it."""

    name = "svd"
    needs: tuple[Need, ...] = ("first_frames",)

    def conditions(
        self, pipeline: Any, inputs: ClipInputs, settings: SamplingSettings, seed: int | Sequence[int]
    ) -> Conditions:
        """First frames uint8 (B, H, W, 3) -> `image_latents`, `image_embeds`, `added_time_ids`."""
        return svd_sampling.prepare_conditions(pipeline, inputs.need_first_frames(), settings, seed)

    def encode_clips(self, pipeline: Any, clips_BFHWC: Tensor) -> Tensor:
        """Clips uint8 (B, F, H, W, 3) -> scaled latents (B, F, C, h, w), the mode of the posterior."""
        return svd_sampling.encode_clips(pipeline, clips_BFHWC)

    def decode_latents(self, pipeline: Any, latents_BFChw: Tensor, settings: SamplingSettings) -> Tensor:
        """Scaled latents (B, F, C, h, w) -> clips uint8 (B, F, H, W, 3) on the CPU."""
        return svd_sampling.decode_latents(pipeline, latents_BFChw, settings)

    def noise(self, denoiser: nn.Module, settings: SamplingSettings, seeds: Sequence[int]) -> Tensor:
        """Unit noise (B, F, C, h, w), one generator per clip, as the stock call draws it."""
        return svd_sampling.unit_noise(denoiser, settings, seeds)

    def denoise(
        self, denoiser: nn.Module, noisy_BFChw: Tensor, sigma_B: Tensor, conditions: Conditions
    ) -> Tensor:
        """Predicted clean latents (B, F, C, h, w) at noise levels (B,)."""
        return svd_sampling.denoise(denoiser, noisy_BFChw, sigma_B, conditions)

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
            return svd_sampling.sample(pipeline, denoiser, noise_BFChw, conditions, settings)

    def training_sigmas(self, settings: SamplingSettings, count: int, generator: torch.Generator) -> Tensor:
        """Noise levels (count,) for recovery."""
        return svd_sampling.training_sigmas(settings, count, generator)
