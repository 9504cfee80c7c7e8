"""The LTX-Video family: `LTXPipeline` and its transformer, which sees a clip as one row of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vdmini_core.errors import ModelError
from vdmini_core.models.base import Conditions, SamplingSettings
from vdmini_core.models.dit.defaults import token_shift
from vdmini_core.models.dit.flow_family import FlowFamily
from vdmini_core.models.inputs import ClipInputs
from vdmini_core.models.registry import register_family


@register_family("LTXPipeline")
class LTXFamily(FlowFamily):
    """LTX-Video's masked text, positions in seconds and pixels, guidance by one call of twice the batch."""

    name = "ltx-video"

    def conditions(
        self, pipeline: Any, inputs: ClipInputs, settings: SamplingSettings, seed: int | Sequence[int]
    ) -> Conditions:
        """Prompts -> `text` (B, N, D), `text_mask` (B, N), and `negative_...` of both for the empty prompt.

        `frame_rate` (B,) and `cell` (B, 2), frames and pixels a side of a latent cell, say when and where a
        token is: the transformer's rotary positions are in seconds and pixels.

        Raises:
            ModelError: for a transformer whose tokens are more than one latent cell.
        """
        config = pipeline.transformer.config
        if (config.patch_size, config.patch_size_t) != (1, 1):
            raise ModelError(
                "this LTX transformer is not supported",
                expected="a token for each latent cell, patch_size and patch_size_t 1",
                found=f"patches of {config.patch_size_t}x{config.patch_size}x{config.patch_size}",
            )
        prompts = list(inputs.need_prompts())
        device, dtype = next(pipeline.transformer.parameters()).device, pipeline.transformer.dtype
        with torch.no_grad():
            text, mask, negative, negative_mask = pipeline.encode_prompt(prompts, device=device)
        cell = torch.tensor([settings.frame_scale, settings.latent_scale], device=device)
        return Conditions(
            {
                "text": text.to(dtype),
                "text_mask": mask.long(),
                "negative_text": negative.to(dtype),
                "negative_text_mask": negative_mask.long(),
                "frame_rate": torch.full((len(prompts),), settings.fps, device=device),
                "cell": cell.repeat(len(prompts), 1),
            }
        )

    def velocity(
        self, denoiser: Any, sample_BCFhw: Tensor, timestep_B: Tensor, tensors: dict[str, Tensor]
    ) -> Tensor:
        """Velocity (B, C, f, h, w) with the prompt; one frame rate for the whole batch."""
        size = sample_BCFhw.shape[2:]
        frames, pixels = tensors["cell"][0].tolist()
        row = denoiser(
            sample_BCFhw.flatten(2).transpose(1, 2).contiguous(),
            encoder_hidden_states=tensors["text"],
            timestep=timestep_B,
            encoder_attention_mask=tensors["text_mask"],
            **dict(zip(("num_frames", "height", "width"), size, strict=True)),
            rope_interpolation_scale=(frames / float(tensors["frame_rate"][0]), pixels, pixels),
            return_dict=False,
        )[0]
        velocity: Tensor = row.transpose(1, 2).unflatten(2, size)
        return velocity

    def guided_velocity(
        self, denoiser: Any, sample: Tensor, timestep_B: Tensor, tensors: dict[str, Tensor], guidance: float
    ) -> Tensor:
        """Velocity moved away from the negative prompt's, float32."""
        if guidance <= 1:
            return self.velocity(denoiser, sample, timestep_B, tensors).float()
        own = {name: tensor for name, tensor in tensors.items() if not name.startswith("negative_")}
        both = {name: torch.cat([tensors.get(f"negative_{name}", own[name]), own[name]]) for name in own}
        twice = torch.cat([sample, sample])
        found = self.velocity(denoiser, twice, torch.cat([timestep_B, timestep_B]), both).float()
        without, with_text = found.chunk(2)
        return without + guidance * (with_text - without)

    def scaled(self, vae: Any, latents_BCFhw: Tensor) -> Tensor:
        """Channels at mean 0 and deviation 1, times the scaling factor."""
        mean, std = _statistics(vae, latents_BCFhw)
        return (latents_BCFhw - mean) * vae.config.scaling_factor / std

    def unscaled(self, vae: Any, latents_BCFhw: Tensor) -> Tensor:
        """The channels' own mean and deviation."""
        mean, std = _statistics(vae, latents_BCFhw)
        return latents_BCFhw * std / vae.config.scaling_factor + mean

    def decoded(self, vae: Any, latents_BCFhw: Tensor) -> Tensor:
        """Video (B, 3, F, H, W); a decoder that is told a noise level is told 0, as the stock call does."""
        told = latents_BCFhw.new_zeros(len(latents_BCFhw)) if vae.config.timestep_conditioning else None
        video: Tensor = vae.decode(latents_BCFhw, told, return_dict=False)[0]
        return video

    def set_timesteps(self, scheduler: Any, settings: SamplingSettings, device: torch.device) -> None:
        """Evenly spaced times down to 1 / steps, shifted by the number of tokens if the scheduler says so."""
        height, width = settings.latent_size
        at_none, per_token = token_shift(scheduler.config)
        tokens = settings.latent_frames * height * width
        scheduler.set_timesteps(
            sigmas=np.linspace(1.0, 1 / settings.steps, settings.steps),
            device=device,
            mu=tokens * per_token + at_none,
        )


def _statistics(vae: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    mean, std = (buffer.to(like).reshape(1, -1, 1, 1, 1) for buffer in (vae.latents_mean, vae.latents_std))
    return mean, std
