"""Tiny U-Nets and pipelines of the SVD family for tests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from diffusers import UNetSpatioTemporalConditionModel
from torch import Tensor

from vdmini_core.models.base import SamplingSettings
from vdmini_core.models.svd import SVDFamily
from vdmini_core.teacher.architecture import ARCHITECTURES, build_from

FAMILY = SVDFamily()
SETTINGS = SamplingSettings(
    frames=2, height=16, width=16, fps=7, steps=1, latent_scale=2, decode_chunk_size=2
)
SECOND_PAIRS = ("D.0.pair.1", "D.1.pair.1", "U.2.pair.1", "U.3.pair.1")
PAPER = ("D.0.pair.1", "D.1.pair.1", "D.3", "M", "U.0", "U.2.pair.1", "U.3.pair.1")


def tiny_unet(widths: tuple[int, ...] = (32, 32, 64, 64), seed: int = 0, **changes: Any) -> Any:
    """A random four-level U-Net; like SVD's its two innermost levels are as wide."""
    count = len(widths)
    config = {
        "in_channels": 8,
        "out_channels": 4,
        "down_block_types": ("CrossAttnDownBlockSpatioTemporal",) * (count - 1)
        + ("DownBlockSpatioTemporal",),
        "up_block_types": ("UpBlockSpatioTemporal",) + ("CrossAttnUpBlockSpatioTemporal",) * (count - 1),
        "block_out_channels": widths,
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 24,
        "layers_per_block": 2,
        "cross_attention_dim": 16,
        "num_attention_heads": tuple(width // 32 for width in widths),
        "num_frames": 2,
        "sample_size": 8,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return UNetSpatioTemporalConditionModel(**(config | changes)).eval().requires_grad_(False)


def tiny_pipeline(seed: int = 0) -> Any:
    """A complete pipeline: nano at 2 frames of 16x16."""
    pipeline: Any = build_from(replace(ARCHITECTURES["nano"], frames=2, height=16, width=16), seed)
    # Frozen like a loaded one: weights that need gradients take other code paths, even without gradients.
    for part in (pipeline.unet, pipeline.vae, pipeline.image_encoder):
        part.requires_grad_(False)
    return pipeline


def inputs(seed: int = 0, height: int = 8, width: int = 8) -> tuple[Tensor, ...]:
    """Sample (2, 2, 8, h, w), timesteps, image embedding, time ids."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    return draw(2, 2, 8, height, width), torch.tensor([0.5, 1.0]), draw(2, 1, 16), draw(2, 3)


def forward(unet: Any, args: tuple[Tensor, ...]) -> Tensor:
    """Output (B, F, C, h, w) without gradients."""
    with torch.no_grad():
        return unet(*args, return_dict=False)[0]
