"""What families of video transformers with a video autoencoder share: clips to latents and back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vdmini_core.models.base import SamplingSettings
from vdmini_core.models.dit.structure import TransformerFamily
from vdmini_core.models.inputs import Need
from vdmini_core.models.pixels import clips_of, pixels_of


class ClipFamily(TransformerFamily):
    """Text-to-video with an autoencoder that sees whole clips (B, C, F, H, W).

    A family of it says how its autoencoder scales latents.
    """

    needs: tuple[Need, ...] = ("prompts",)

    def scaled(self, vae: Any, latents_BCFhw: Tensor) -> Tensor:
        """The autoencoder's latents as the transformer sees them."""
        raise NotImplementedError

    def unscaled(self, vae: Any, latents_BCFhw: Tensor) -> Tensor:
        """The transformer's latents as the autoencoder takes them."""
        raise NotImplementedError

    def decoded(self, vae: Any, latents_BCFhw: Tensor) -> Tensor:
        """The autoencoder's own latents -> video (B, 3, F, H, W), about -1 to 1."""
        video: Tensor = vae.decode(latents_BCFhw, return_dict=False)[0]
        return video

    def encode_clips(self, pipeline: Any, clips_BFHWC: Tensor) -> Tensor:
        """Clips uint8 (B, F, H, W, 3) -> scaled latents (B, f, C, h, w), the mode of the posterior."""
        parameter = next(pipeline.vae.parameters())
        rows = []
        for clip in clips_BFHWC:
            pixels = pixels_of(clip, parameter.device).transpose(0, 1)[None]
            with torch.no_grad():
                latents = pipeline.vae.encode(pixels.to(parameter.dtype)).latent_dist.mode()
            rows.append(self.scaled(pipeline.vae, latents)[0].transpose(0, 1))
        return torch.stack(rows)

    @torch.no_grad()
    def decode_latents(self, pipeline: Any, latents_BFChw: Tensor, settings: SamplingSettings) -> Tensor:
        """Scaled latents (B, f, C, h, w) -> clips uint8 (B, F, H, W, 3) on the CPU, clip by clip."""
        vae = pipeline.vae
        scaled = (latents.transpose(0, 1)[None].to(vae.dtype) for latents in latents_BFChw)
        videos = (self.decoded(vae, self.unscaled(vae, latents))[0] for latents in scaled)
        return clips_of(videos, settings)
