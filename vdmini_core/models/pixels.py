"""Clips of bytes, and the pixels in -1..1 that autoencoders take and give."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from vdmini_core.errors import ModelError
from vdmini_core.models.base import SamplingSettings


def pixels_of(clip_FHWC: Tensor, device: torch.device) -> Tensor:
    """A clip uint8 (F, H, W, 3) -> float32 pixels (F, 3, H, W) in -1..1."""
    return clip_FHWC.to(device).permute(0, 3, 1, 2).float() / 255.0 * 2.0 - 1.0


def clips_of(videos_CFHW: Iterable[Tensor], settings: SamplingSettings) -> Tensor:
    """Videos (3, F, H, W), about -1 to 1, made one by one -> clips uint8 (B, F, H, W, 3) on the CPU.

    Raises:
        ModelError: a video that is no numbers, which would be black.
    """
    clips = []
    for video in videos_CFHW:
        demand_numbers(video, "decoded frames")
        frames = (video.permute(1, 2, 3, 0).float() * 0.5 + 0.5).clamp(0, 1)
        clips.append((frames * 255).round().to(torch.uint8).cpu())
    if not clips:
        return torch.empty(0, settings.frames, settings.height, settings.width, 3, dtype=torch.uint8)
    return torch.stack(clips)


def demand_numbers(values: Tensor, what: str) -> None:
    """Refuse what would become a black video.

    Raises:
        ModelError: with the share that is no number.
    """
    if not (finite := torch.isfinite(values)).all():
        raise ModelError(
            f"the model's {what} are not numbers",
            expected="finite values",
            found=f"NaN or infinity in {1 - finite.float().mean().item():.0%} of them",
            fix="use float32 or bfloat16 (--dtype), or look at its weights and its scheduler's config",
        )
