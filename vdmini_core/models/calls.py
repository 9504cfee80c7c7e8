"""One call of a denoiser or of an autoencoder's decoder with made-up inputs, for clocks and comparisons."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from vdmini_core.models.base import SamplingSettings
from vdmini_core.models.dit.arguments import Maker, arguments
from vdmini_core.models.dit.table import ARCHITECTURES, architecture_of
from vdmini_core.models.flops import unet_inputs
from vdmini_core.models.precision import dtype_of, working_dtype

Call = Callable[[Any], Tensor]


def example_call(
    denoiser: nn.Module,
    settings: SamplingSettings,
    device: torch.device | str = "cpu",
    seed: int | None = None,
) -> Call:
    """A function of a denoiser, this one or one of its students: its answer at batch 1, always to the same.

    The inputs are of the denoiser's dtype.

    Args:
        settings: size of the clip.
        device: of the inputs.
        seed: of random inputs; zeros where None.
    """
    if type(denoiser).__name__ in ARCHITECTURES:
        tokens = architecture_of(denoiser).text_tokens
        maker = Maker(1, settings.latent_frames, *settings.latent_size, tokens, device, seed)
        given = _as_weights(arguments(denoiser, maker), denoiser)
        return lambda model: model(**given, return_dict=False)[0]
    inputs = unet_inputs(denoiser, settings.frames, *settings.latent_size, device=str(device))
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        inputs = tuple(
            None if like is None else torch.rand(tuple(like.shape), generator=generator).to(device)
            for like in inputs
        )
    inputs = tuple(_as_weights(dict(enumerate(inputs)), denoiser).values())
    return lambda model: model(*inputs, return_dict=False)[0]


def _as_weights(given: dict[Any, Any], denoiser: Any) -> dict[Any, Any]:
    """Floating tensors in the denoiser's dtype, where that is a half one."""
    dtype = dtype_of(denoiser)
    if working_dtype(dtype) == dtype:
        return given
    return {
        name: value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in given.items()
    }


def smallest(denoiser: Any, settings: SamplingSettings) -> SamplingSettings:
    """The settings at two frames of the fewest latent cells that a denoiser can see."""
    if type(denoiser).__name__ in ARCHITECTURES:
        cells, frames = 4, 1 + settings.frame_scale
    else:
        cells, frames = 2 ** (len(denoiser.config.block_out_channels) - 1), 2
    side = cells * settings.latent_scale
    return replace(settings, frames=frames, height=side, width=side)


def example_decoding(vae: Any, device: torch.device | str = "cpu", seed: int = 0) -> Call:
    """A function of an autoencoder: two small frames, or one latent frame of a video autoencoder, decoded."""
    generator = torch.Generator().manual_seed(seed)
    channels = vae.config.get("z_dim") or vae.config.latent_channels
    of_video = vae.config.get("z_dim") is not None or "temporal_compression_ratio" in vae.config
    shape = (1, channels, 1, 8, 8) if of_video else (2, channels, 8, 8)
    latents = torch.randn(shape, generator=generator).to(device)
    told = {"num_frames": 2} if hasattr(vae.decoder, "time_conv_out") else {}  # a temporal decoder
    return lambda model: model.decode(latents, **told, return_dict=False)[0]
