"""Exact floating point operations, per module, without memory: everything runs on the meta device.

Counted: convolutions, linear layers and attention products, two operations per multiply-add
(`torch.utils.flop_counter`). Normalisation and activations are not counted, as in the paper's figures.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vdmini_core.models.base import SamplingSettings
from vdmini_core.models.dit.table import ARCHITECTURES
from vdmini_core.models.pruned_unet import build_on_meta

TEXT_TOKENS = 77  # of a prompt, padded


def module_flops(model: nn.Module, call: Callable[[], Any]) -> dict[str, int]:
    """Dotted module path -> operations while `call` runs `model` (on meta); "" is the whole call."""
    with torch.no_grad(), torch.device("meta"), FlopCounterMode(display=False) as counter:
        call()
    prefix = type(model).__name__ + "."
    counts = {
        path.removeprefix(prefix): sum(by_operator.values())
        for path, by_operator in counter.get_flop_counts().items()
        if path.startswith(prefix)
    }
    counts[""] = counter.get_total_flops()
    return counts


def denoiser_flops(denoiser: Any, settings: SamplingSettings) -> dict[str, int]:
    """Operations of one pass at batch 1, per module path; "" is the total.

    Raises:
        ModelError: for a transformer whose attention cannot be counted.
    """
    if type(denoiser).__name__ in ARCHITECTURES:
        from vdmini_core.models.dit.counting import dit_flops

        return dit_flops(denoiser, settings)
    config = json.dumps({k: v for k, v in denoiser.config.items() if not k.startswith("_")}, sort_keys=True)
    cls: Any = type(denoiser)
    return dict(_unet_flops(cls, config, settings.frames, *settings.latent_size))


def total_flops(denoiser: nn.Module, settings: SamplingSettings) -> int:
    """Operations of one U-Net pass at batch 1."""
    return denoiser_flops(denoiser, settings)[""]


def decoder_flops(vae: Any, settings: SamplingSettings) -> dict[str, int]:
    """Operations of decoding one clip in one go, per module path of the VAE decoder, temporal or not.

    Raises:
        ModelError: for a decoder too large to be counted.
    """
    if hasattr(vae.config, "z_dim") or "temporal_compression_ratio" in vae.config:
        from vdmini_core.models.dit.counting import video_decoder_flops

        return video_decoder_flops(vae, settings)
    config = {k: v for k, v in vae.config.items() if not k.startswith("_")}
    decoder: Any = build_on_meta(type(vae), config).decoder
    latents = torch.zeros(settings.frames, config["latent_channels"], *settings.latent_size, device="meta")
    if not hasattr(decoder, "time_conv_out"):  # one frame at a time
        return module_flops(decoder, lambda: decoder(latents))
    images = torch.zeros(1, settings.frames, device="meta")  # no frame is a still image
    return module_flops(
        decoder, lambda: decoder(latents, num_frames=settings.frames, image_only_indicator=images)
    )


@functools.lru_cache(maxsize=64)
def _unet_flops(cls: Any, config: str, frames: int, height: int, width: int) -> dict[str, int]:
    unet = build_on_meta(cls, json.loads(config))
    inputs = unet_inputs(unet, frames, height, width)
    return module_flops(unet, lambda: unet(*inputs))


def unet_inputs(unet: Any, frames: int, height: int, width: int, device: str = "meta") -> tuple[Any, ...]:
    """Sample (1, F, C, h, w), timestep (1,), image embedding (1, 1, D), time ids (1, n).

    Of a ModelScope-type U-Net: sample (1, C, F, h, w), timestep (1,), text (1, 77, D), frame rate (1,), and
    embeddings of guidance scales, or None, (1, n).
    """
    if hasattr(unet, "transformer_in"):
        return _text_inputs(unet, frames, height, width, device)
    embedding = unet.config.cross_attention_dim
    width_of_embedding = embedding if isinstance(embedding, int) else embedding[0]
    ids = unet.config.projection_class_embeddings_input_dim // unet.config.addition_time_embed_dim
    return (
        torch.zeros(1, frames, unet.config.in_channels, height, width, device=device),
        torch.zeros(1, device=device),
        torch.zeros(1, 1, width_of_embedding, device=device),
        torch.zeros(1, ids, device=device),
    )


def _text_inputs(unet: Any, frames: int, height: int, width: int, device: str) -> tuple[Any, ...]:
    if not hasattr(unet.config, "motion_cond_proj_dim"):
        return _stock_text_inputs(unet, frames, height, width, device)
    widths = (unet.config.time_cond_proj_dim, unet.config.motion_cond_proj_dim)
    return (
        torch.zeros(1, unet.config.in_channels, frames, height, width, device=device),
        torch.zeros(1, device=device),
        torch.zeros(1, TEXT_TOKENS, unet.config.cross_attention_dim, device=device),
        torch.zeros(1, device=device),
        *(None if width is None else torch.zeros(1, width, device=device) for width in widths),
    )


def _stock_text_inputs(unet: Any, frames: int, height: int, width: int, device: str) -> tuple[Any, ...]:
    """Of ModelScope's own class the sample, timestep and text; of I2VGen-XL's frame rate and picture, too."""
    sample = torch.zeros(1, unet.config.in_channels, frames, height, width, device=device)
    time = torch.zeros(1, device=device)
    text = torch.zeros(1, TEXT_TOKENS, unet.config.cross_attention_dim, device=device)
    if not hasattr(unet, "image_latents_proj_in"):
        return sample, time, text
    picture = torch.zeros(1, unet.config.cross_attention_dim, device=device)
    return sample, time, time, sample, picture, text
