"""What families of flow-matching video pipelines share: noise, recovery's view of the model, sampling."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vdmini_core.models.base import Conditions, SamplingSettings
from vdmini_core.models.dit import flow
from vdmini_core.models.dit.clip_family import ClipFamily
from vdmini_core.models.precision import dtype_of

TIMESTEPS = 1000.0  # of the schedulers: flow time 1


class FlowFamily(ClipFamily):
    """Text-to-video by flow matching with a transformer that sees clips (B, C, f, h, w).

    A family of it says how prompts become conditions, how the transformer is called with them, and how its
    autoencoder scales latents.
    """

    def velocity(
        self, denoiser: Any, sample_BCFhw: Tensor, timestep_B: Tensor, tensors: dict[str, Tensor]
    ) -> Tensor:
        """One call of the transformer with a clip's own conditions: velocity (B, C, f, h, w)."""
        raise NotImplementedError

    def guided_velocity(
        self, denoiser: Any, sample: Tensor, timestep_B: Tensor, tensors: dict[str, Tensor], guidance: float
    ) -> Tensor:
        """As the stock pipeline calls the transformer in a sampling step."""
        return self.velocity(denoiser, sample, timestep_B, tensors)

    def set_timesteps(self, scheduler: Any, settings: SamplingSettings, device: torch.device) -> None:
        """As the stock pipeline prepares its scheduler."""
        scheduler.set_timesteps(settings.steps, device=device)

    def noise(self, denoiser: Any, settings: SamplingSettings, seeds: Sequence[int]) -> Tensor:
        """Unit noise (B, F, C, h, w), one generator per clip, as the stock call draws it."""
        parameter = next(denoiser.parameters())
        shape = (1, denoiser.config.in_channels, settings.latent_frames, *settings.latent_size)
        rows = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return torch.cat(rows).transpose(1, 2).contiguous().to(parameter.device, dtype_of(denoiser))

    def denoise(
        self, denoiser: nn.Module, noisy_BFChw: Tensor, sigma_B: Tensor, conditions: Conditions
    ) -> Tensor:
        """Predicted clean latents (B, F, C, h, w) at noise levels (B,): x0 = x_s - s v."""

        def velocity(sample: Tensor, time_B: Tensor) -> Tensor:
            return self.velocity(denoiser, sample, time_B * TIMESTEPS, conditions.tensors)

        return flow.clean_of(noisy_BFChw.transpose(1, 2), sigma_B, velocity).transpose(1, 2)

    def sample(
        self,
        pipeline: Any,
        denoiser: Any,
        noise_BFChw: Tensor,
        conditions: Conditions,
        settings: SamplingSettings,
    ) -> Tensor:
        """Unit noise -> clean scaled latents (B, F, C, h, w), as the stock call steps; no gradients."""
        scheduler: Any = copy.deepcopy(pipeline.scheduler)
        dtype = dtype_of(denoiser)
        latents = noise_BFChw.transpose(1, 2).contiguous().float()
        self.set_timesteps(scheduler, settings, latents.device)
        scheduler.set_begin_index(0)
        with torch.no_grad():
            for t in scheduler.timesteps:
                timestep_B = t.expand(len(latents))
                tensors, guidance = conditions.tensors, settings.guidance
                velocity = self.guided_velocity(denoiser, latents.to(dtype), timestep_B, tensors, guidance)
                latents = scheduler.step(velocity, t, latents, return_dict=False)[0]
        return latents.transpose(1, 2)

    def training_sigmas(self, settings: SamplingSettings, count: int, generator: torch.Generator) -> Tensor:
        """Noise levels (count,) for recovery, by the scheduler's own shift."""
        return flow.training_sigmas(flow.shift_of(settings), settings.steps == 1, count, generator)

    def own_task(self, settings: SamplingSettings) -> Literal["flow"]:
        """These models learned to predict the velocity."""
        return "flow"

    def lower_sigmas(self, sigma_B: Tensor, settings: SamplingSettings) -> Tensor:
        """No consistency model: its levels have no grid; zeros (B,)."""
        return torch.zeros_like(sigma_B)

    def training_guidance(
        self, settings: SamplingSettings, count: int, generator: torch.Generator
    ) -> Tensor | None:
        """None: recovery calls the model as the conditions say."""
        return None
