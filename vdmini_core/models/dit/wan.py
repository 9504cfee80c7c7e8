"""The Wan family: `WanPipeline` (Wan 2.1, text to video) and its transformer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vdmini_core.models.base import Conditions, SamplingSettings
from vdmini_core.models.dit.flow_family import FlowFamily
from vdmini_core.models.inputs import ClipInputs
from vdmini_core.models.pipeline_dir import check_single
from vdmini_core.models.registry import register_family


@register_family("WanPipeline")
class WanFamily(FlowFamily):
    """Wan's text conditions, classifier-free guidance in two calls, and latents by channel statistics."""

    name = "wan"

    def conditions(
        self, pipeline: Any, inputs: ClipInputs, settings: SamplingSettings, seed: int | Sequence[int]
    ) -> Conditions:
        """Prompts -> `text` and `negative_text` (B, N, D); nothing here is random.

        Raises:
            ModelError: for a pipeline of two transformers (Wan 2.2), of which one alone would be cut.
        """
        check_single(pipeline.config)
        prompts = list(inputs.need_prompts())
        device = next(pipeline.transformer.parameters()).device
        with torch.no_grad():
            text, negative = pipeline.encode_prompt(prompts, device=device, max_sequence_length=512)
        dtype = pipeline.transformer.dtype
        return Conditions({"text": text.to(dtype), "negative_text": negative.to(dtype)})

    def velocity(
        self, denoiser: Any, sample_BCFhw: Tensor, timestep_B: Tensor, tensors: dict[str, Tensor]
    ) -> Tensor:
        """Velocity (B, C, f, h, w) with the prompt."""
        return denoiser(sample_BCFhw, timestep_B, encoder_hidden_states=tensors["text"], return_dict=False)[0]

    def guided_velocity(
        self, denoiser: Any, sample: Tensor, timestep_B: Tensor, tensors: dict[str, Tensor], guidance: float
    ) -> Tensor:
        """Velocity moved away from the negative prompt's."""
        with_text = self.velocity(denoiser, sample, timestep_B, tensors)
        if guidance <= 1:
            return with_text
        without = self.velocity(denoiser, sample, timestep_B, {"text": tensors["negative_text"]})
        return without + guidance * (with_text - without)

    def scaled(self, vae: Any, latents_BCFhw: Tensor) -> Tensor:
        """Channels at mean 0 and deviation 1."""
        mean, std = _statistics(vae, latents_BCFhw)
        return (latents_BCFhw - mean) * (1.0 / std)

    def unscaled(self, vae: Any, latents_BCFhw: Tensor) -> Tensor:
        """The channels' own mean and deviation, as the stock call computes them."""
        mean, std = _statistics(vae, latents_BCFhw)
        return latents_BCFhw / (1.0 / std) + mean


def _statistics(vae: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    mean, std = (torch.tensor(vae.config[key]) for key in ("latents_mean", "latents_std"))
    return mean.to(like).reshape(1, -1, 1, 1, 1), std.to(like).reshape(1, -1, 1, 1, 1)
