"""The HunyuanVideo family: `HunyuanVideoPipeline` and its transformer of double- and single-stream layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vdmini_core.models.base import Conditions, SamplingSettings
from vdmini_core.models.dit.flow_family import TIMESTEPS, FlowFamily
from vdmini_core.models.inputs import ClipInputs
from vdmini_core.models.registry import register_family


@register_family("HunyuanVideoPipeline")
class HunyuanVideoFamily(FlowFamily):
    """HunyuanVideo's two text encoders, embedded guidance, and latents by one factor."""

    name = "hunyuan-video"

    def conditions(
        self, pipeline: Any, inputs: ClipInputs, settings: SamplingSettings, seed: int | Sequence[int]
    ) -> Conditions:
        """Prompts -> `text` (B, N, D), `text_mask` (B, N), `pooled` (B, P), `guidance` (B,)."""
        prompts = list(inputs.need_prompts())
        device = next(pipeline.transformer.parameters()).device
        with torch.no_grad():
            text, pooled, mask = pipeline.encode_prompt(prompts, device=device)
        dtype = pipeline.transformer.dtype
        guidance = torch.full((len(prompts),), settings.guidance, device=device, dtype=dtype)
        return Conditions(
            {
                "text": text.to(dtype),
                "text_mask": mask.to(dtype),
                "pooled": pooled.to(dtype),
                "guidance": guidance,
            }
        )

    def velocity(
        self, denoiser: Any, sample_BCFhw: Tensor, timestep_B: Tensor, tensors: dict[str, Tensor]
    ) -> Tensor:
        """Velocity (B, C, f, h, w); a model distilled for guidance is told its scale.

        A clip whose conditions are blanked is told nothing but one empty token: a mask without any would
        divide by nothing.
        """
        mask = tensors["text_mask"].clone()
        mask[:, 0] = torch.where(mask.any(dim=1), mask[:, 0], torch.ones_like(mask[:, 0]))
        told = {"guidance": tensors["guidance"] * TIMESTEPS} if denoiser.config.guidance_embeds else {}
        return denoiser(
            sample_BCFhw,
            timestep_B.to(sample_BCFhw.dtype),
            encoder_hidden_states=tensors["text"],
            encoder_attention_mask=mask,
            pooled_projections=tensors["pooled"],
            return_dict=False,
            **told,
        )[0]

    def passes(self, denoiser: nn.Module, settings: SamplingSettings) -> int:
        """One, whatever the guidance: the transformer is told its scale."""
        return 1

    def scaled(self, vae: Any, latents_BCFhw: Tensor) -> Tensor:
        """Times the scaling factor."""
        return latents_BCFhw * vae.config.scaling_factor

    def unscaled(self, vae: Any, latents_BCFhw: Tensor) -> Tensor:
        """By the scaling factor."""
        return latents_BCFhw / vae.config.scaling_factor

    def set_timesteps(self, scheduler: Any, settings: SamplingSettings, device: torch.device) -> None:
        """Evenly spaced times; the scheduler shifts them."""
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 0.0, settings.steps + 1)[:-1], device=device)
