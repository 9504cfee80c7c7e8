"""What families of flow-matching video pipelines share: noise, recovery's view of the model, sampling."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vdmini_core.models.base import Conditions, SamplingSettings
from vdmini_core.models.dit import flow
from vdmini_core.models.dit.structure import TransformerFamily
from vdmini_core.models.inputs import Need

TIMESTEPS = 1000.0  # of the schedulers: flow time 1


class FlowFamily(TransformerFamily):
    """Text-to-video by flow matching with a transformer that sees clips (B, C, f, h, w).

    A family of it says how prompts become conditions, how the transformer is called with them, and how its
    autoencoder scales latents.
    """

    needs: tuple[Need, ...] = ("prompts",)

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

    def scaled(self, vae: Any, latents_BCFhw: Tensor) -> Tensor:
        """The autoencoder's latents as the transformer sees them."""
        raise NotImplementedError

    def unscaled(self, vae: Any, latents_BCFhw: Tensor) -> Tensor:
        """The transformer's latents as the autoencoder takes them."""
        raise NotImplementedError

    def set_timesteps(self, scheduler: Any, steps: int, device: torch.device) -> None:
        """As the stock pipeline prepares its scheduler."""
        scheduler.set_timesteps(steps, device=device)

    def noise(self, denoiser: Any, settings: SamplingSettings, seeds: Sequence[int]) -> Tensor:
        """Unit noise (B, F, C, h, w), one generator per clip, as the stock call draws it."""
        parameter = next(denoiser.parameters())
        shape = (1, denoiser.config.in_channels, settings.latent_frames, *settings.latent_size)
        rows = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return torch.cat(rows).transpose(1, 2).contiguous().to(parameter.device, parameter.dtype)

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
        dtype = next(denoiser.parameters()).dtype
        latents = noise_BFChw.transpose(1, 2).contiguous().float()
        self.set_timesteps(scheduler, settings.steps, latents.device)
        scheduler.set_begin_index(0)
        with torch.no_grad():
            for t in scheduler.timesteps:
                timestep_B = t.expand(len(latents))
                tensors, guidance = conditions.tensors, settings.guidance
                velocity = self.guided_velocity(denoiser, latents.to(dtype), timestep_B, tensors, guidance)
                latents = scheduler.step(velocity, t, latents, return_dict=False)[0]
        return latents.transpose(1, 2)

    def encode_clips(self, pipeline: Any, clips_BFHWC: Tensor) -> Tensor:
        """Clips uint8 (B, F, H, W, 3) -> scaled latents (B, f, C, h, w), the mode of the posterior."""
        parameter = next(pipeline.vae.parameters())
        rows = []
        for clip in clips_BFHWC:
            pixels = clip.to(parameter.device).permute(3, 0, 1, 2)[None].float() / 255.0 * 2.0 - 1.0
            with torch.no_grad():
                latents = pipeline.vae.encode(pixels.to(parameter.dtype)).latent_dist.mode()
            rows.append(self.scaled(pipeline.vae, latents)[0].transpose(0, 1))
        return torch.stack(rows)

    def decode_latents(self, pipeline: Any, latents_BFChw: Tensor, settings: SamplingSettings) -> Tensor:
        """Scaled latents (B, f, C, h, w) -> clips uint8 (B, F, H, W, 3) on the CPU, clip by clip."""
        clips = []
        for latents in latents_BFChw:
            scaled = latents.transpose(0, 1)[None].to(pipeline.vae.dtype)
            with torch.no_grad():
                video = pipeline.vae.decode(self.unscaled(pipeline.vae, scaled), return_dict=False)[0]
            frames = (video[0].permute(1, 2, 3, 0).float() * 0.5 + 0.5).clamp(0, 1)
            clips.append((frames * 255).round().to(torch.uint8).cpu())
        if not clips:
            return torch.empty(0, settings.frames, settings.height, settings.width, 3, dtype=torch.uint8)
        return torch.stack(clips)

    def training_sigmas(self, settings: SamplingSettings, count: int, generator: torch.Generator) -> Tensor:
        """Noise levels (count,) for recovery, by the scheduler's own shift."""
        return flow.training_sigmas(settings.flow_shift, settings.steps == 1, count, generator)

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
