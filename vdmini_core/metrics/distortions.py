"""Known damage of known strength, to train and to judge metrics (Unterthiner et al. 2018, sanity checks).

Content damage is the same in every frame of a clip; motion damage leaves single frames natural. All
functions take clips (n, F, H, W, 3) as floats in [0, 1] and a strength, and return the same shape.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from vdmini_core.metrics.filters import gaussian_filter


def static_noise(clips: Tensor, sd: float, generator: torch.Generator) -> Tensor:
    """One Gaussian noise image per clip, the same in all frames."""
    shape = (len(clips), 1, *clips.shape[2:])
    return (clips + sd * torch.randn(shape, generator=generator)).clamp(0, 1)


def blur(clips: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    """Gaussian blur, sigma in pixels."""
    images = clips.flatten(0, 1).permute(0, 3, 1, 2)
    return gaussian_filter(images, sigma).permute(0, 2, 3, 1).reshape(clips.shape)


def colour_shift(clips: Tensor, amount: float, generator: torch.Generator) -> Tensor:
    """Add a random RGB direction of length `amount`."""
    direction = F.normalize(torch.randn((len(clips), 1, 1, 1, 3), generator=generator), dim=-1)
    return (clips + amount * direction).clamp(0, 1)


def contrast(clips: Tensor, factor: float, generator: torch.Generator) -> Tensor:
    """Scale about each clip's mean; 1 leaves it as it is."""
    mean = clips.mean(dim=(1, 2, 3), keepdim=True)
    return mean + factor * (clips - mean)


def shuffle(clips: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Permute a random share of each clip's frames among themselves, none staying in its place."""
    frames, out = clips.shape[1], clips.clone()
    count = max(2, round(share * frames))
    for index, clip in enumerate(clips):
        chosen = torch.randperm(frames, generator=generator)[:count]
        out[index, chosen] = clip[chosen.roll(1)]
    return out


def freeze(clips: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Replace the last share of the frames by the last frame before them."""
    frames = clips.shape[1]
    kept = max(1, frames - round(share * frames))
    return clips[:, torch.arange(frames).clamp(max=kept - 1)]


def jitter(clips: Tensor, sd: float, generator: torch.Generator) -> Tensor:
    """Shift every frame by its own Gaussian vector, sd in pixels; edges are reflected."""
    n, frames, height, width = clips.shape[:4]
    shift = torch.randn((n * frames, 2), generator=generator) * sd * 2 / torch.tensor([width, height])
    theta = torch.eye(2, 3).repeat(n * frames, 1, 1)
    theta[:, :, 2] = shift
    images = clips.flatten(0, 1).permute(0, 3, 1, 2)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    return moved.permute(0, 2, 3, 1).reshape(clips.shape)


def speed(long_clips: Tensor, factor: float, frames: int) -> Tensor:
    """The first `frames` frames of longer clips played `factor` times as fast (nearest frame)."""
    index = (torch.arange(frames) * factor).round().long().clamp(max=long_clips.shape[1] - 1)
    return long_clips[:, index]


Distortion = Callable[[Tensor, float, torch.Generator], Tensor]
CONTENT: dict[str, tuple[Distortion, tuple[float, ...]]] = {
    "noise": (static_noise, (0.02, 0.05, 0.1, 0.2)),
    "blur": (blur, (0.5, 1.0, 1.5, 2.0)),
    "colour": (colour_shift, (0.05, 0.1, 0.2, 0.3)),
    "contrast": (contrast, (0.9, 0.75, 0.6, 0.4)),
}
MOTION: dict[str, tuple[Distortion, tuple[float, ...]]] = {
    "shuffle": (shuffle, (0.25, 0.5, 0.75, 1.0)),
    "freeze": (freeze, (0.25, 0.5, 0.75, 1.0)),
    "jitter": (jitter, (0.5, 1.0, 2.0, 3.0)),
}
SPEEDS = (1.25, 1.5, 2.0, 3.0)
