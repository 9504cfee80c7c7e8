"""Small autoencoders of the stock class, and plans by hand, for the tests of the decoder's compression."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKLTemporalDecoder

from vdmini_core.models.base import SamplingSettings
from vdmini_core.models.flops import decoder_flops
from vdmini_core.models.pruned_vae import AutoencoderKLTemporalPrunedDecoder
from vdmini_core.pruning.vae_decoder import DecoderPlan

SMALL = SamplingSettings(
    frames=2, height=16, width=16, fps=8, steps=1, guidance=1, motion_bucket_id=127,
    noise_aug_strength=0, decode_chunk_size=2, latent_scale=4,
)  # fmt: skip


def tiny_vae(widths: tuple[int, ...] = (64, 96, 96), layers: int = 1, seed: int = 0) -> Any:
    """A stock autoencoder, widths from full resolution inwards, with norms that are not the identity."""
    torch.manual_seed(seed)
    vae: Any = AutoencoderKLTemporalDecoder(
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        layers_per_block=layers,
        latent_channels=4,
        sample_size=16,
        force_upcast=False,
    ).eval()
    for parameter in vae.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    return vae


def decoded(vae: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        out: torch.Tensor = vae.decode(torch.randn(2, 4, 4, 4, generator=generator), num_frames=2).sample
    return out


def plan_of(
    vae: Any,
    channels: tuple[int, ...],
    layers: tuple[int, ...],
    mid: bool,
    inner: tuple[int, ...] | None = None,
) -> DecoderPlan:
    """A plan by hand, sizes counted on a fresh student."""
    inner = inner or channels
    own = {k: v for k, v in vae.config.items() if not k.startswith("_")}
    student: Any = AutoencoderKLTemporalPrunedDecoder.from_config(
        {
            **own,
            "decoder_channels": channels,
            "decoder_inner_channels": inner,
            "decoder_layers": layers,
            "decoder_mid_block": mid,
        }
    )
    size = sum(p.numel() for p in student.decoder.parameters())
    widths = tuple(reversed(vae.config.block_out_channels))
    flops = decoder_flops(student, SMALL)[""]
    return DecoderPlan("manual", channels, inner, layers, mid, widths, 0, 0, size, flops)
