"""The discriminator of L_MCA: small heads on the encoder half of the frozen teacher.

After SF-V (arXiv 2406.04324). The backbone is the teacher itself: same weights, no copy, read through
taps. One spatial and one temporal head follow each down-sampling block; the heads alone are trained.
Shape letters: B batch, F frames, C channels, h w (feature grid), K head width.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vdmini_core.distillation.feature_taps import encoder_taps
from vdmini_core.errors import TrainingError
from vdmini_core.models.base import Conditions, Family

HEAD_WIDTH = 64
LEVEL_EMBEDDING = 32
DEPTHS = 4  # levels read where the backbone has no down-sampling blocks
BLIND = 0.02  # a `sight` below this says that the backbone does not look at what it would have to judge
RENOISE_LOG_MEAN, RENOISE_LOG_STD = -1.0, 1.0  # log-normal σ', as EDM training levels, moved to low noise


def renoise_sigmas(count: int, generator: torch.Generator) -> Tensor:
    """Re-noise levels σ' (count,): log-normal, mostly low, where content and motion are still visible."""
    return torch.exp(RENOISE_LOG_MEAN + RENOISE_LOG_STD * torch.randn(count, generator=generator))


def encoder_points(family: Family, denoiser: nn.Module) -> tuple[str, ...]:
    """Module paths of the down-sampling blocks, in the order the data meets them.

    Found from the features of `D.*`: a U-Net's block is the first two parts of their paths
    (`down_blocks.1.attentions.0` lies in `down_blocks.1`). A family without them (a DiT) gives up to
    `DEPTHS` layers, evenly spread over the first half of its feature points.
    """
    points = family.feature_points(denoiser)
    inside = [path for name, path in points.items() if re.match(r"D\.\d+", name)]
    blocks = tuple(dict.fromkeys(".".join(path.split(".")[:2]) for path in inside))
    half = tuple(points.values())[: max(1, len(points) // 2)]
    count = min(DEPTHS, len(half))
    return blocks or tuple(half[(place + 1) * len(half) // count - 1] for place in range(count))


def encode(
    family: Family,
    teacher: nn.Module,
    points: Sequence[str],
    noisy_BFChw: Tensor,
    sigma_B: Tensor,
    given: Conditions,
) -> list[Tensor]:
    """Features (B*F, C, h, w) of re-noised latents after each point; gradient reaches `noisy` alone."""
    with encoder_taps(teacher, points) as features:
        family.denoise(teacher, noisy_BFChw, sigma_B, given)
    return [features[path] for path in points]


def sight(with_clip: Sequence[Tensor], without: Sequence[Tensor]) -> list[float]:
    """How much the features of each level change when what is judged is taken away from the input.

    Root mean square of the difference over the features' own standard deviation. Near nought where the
    backbone leaves its noisy input alone, as a generator that starts from pure noise has learned to: heads on
    such features see the condition, and L_MCA can teach nothing.
    """
    pairs = [(seen.float(), blind.float()) for seen, blind in zip(with_clip, without, strict=True)]
    return [float(((seen - blind).square().mean() / seen.var()).sqrt()) for seen, blind in pairs]


class LevelEmbedding(nn.Module):
    """σ' -> vector: sines of EDM's c_noise = ln(σ)/4, then a small perceptron."""

    frequencies: Tensor

    def __init__(self, width: int = LEVEL_EMBEDDING) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.exp(torch.linspace(0, math.log(32), width // 2)))
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, sigma_B: Tensor) -> Tensor:
        """(B,) -> (B, width)."""
        angles = (sigma_B.float().log() / 4)[:, None] * self.frequencies
        return self.mlp(torch.cat([angles.sin(), angles.cos()], dim=1))


class SpatialHead(nn.Module):
    """Judges every frame alone: frames are folded into the batch, convolution over space."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, channels)
        self.conv = nn.Conv2d(channels, width, 3, padding=1)
        self.level = nn.Linear(LEVEL_EMBEDDING, width)
        self.out = nn.Conv2d(width, 1, 1)

    def forward(self, feature_BFChw: Tensor, level_BK: Tensor) -> Tensor:
        """Logits (B, F, h, w)."""
        batch, frames = feature_BFChw.shape[:2]
        hidden = self.conv(self.norm(feature_BFChw.flatten(0, 1)))
        hidden = hidden + self.level(level_BK).repeat_interleave(frames, dim=0)[:, :, None, None]
        return self.out(F.leaky_relu(hidden, 0.2)).squeeze(1).unflatten(0, (batch, frames))


class TemporalHead(nn.Module):
    """Judges how every place moves: space is folded into the batch, convolution over time."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, channels)
        self.conv = nn.Conv1d(channels, width, 3, padding=1)
        self.level = nn.Linear(LEVEL_EMBEDDING, width)
        self.out = nn.Conv1d(width, 1, 3, padding=1)

    def forward(self, feature_BFChw: Tensor, level_BK: Tensor) -> Tensor:
        """Logits (B, h, w, F)."""
        batch, _, _, height, width = feature_BFChw.shape
        lines = feature_BFChw.permute(0, 3, 4, 2, 1).flatten(0, 2)  # (B*h*w, C, F)
        hidden = self.conv(self.norm(lines))
        hidden = hidden + self.level(level_BK).repeat_interleave(height * width, dim=0)[:, :, None]
        return self.out(F.leaky_relu(hidden, 0.2)).squeeze(1).unflatten(0, (batch, height, width))


class DiscriminatorHeads(nn.Module):
    """All the trainable part of D: a spatial and a temporal head per level, told the re-noise level σ'.

    Args:
        channels: channels of the feature after each down-sampling block.
        seed: of the initial weights, so that every worker starts with the same heads.
    """

    def __init__(self, channels: Sequence[int], seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.level = LevelEmbedding()
            self.spatial = nn.ModuleList(SpatialHead(c, min(c, HEAD_WIDTH)) for c in channels)
            self.temporal = nn.ModuleList(TemporalHead(c, min(c, HEAD_WIDTH)) for c in channels)

    def forward(self, features: Sequence[Tensor], sigma_B: Tensor) -> list[Tensor]:
        """Logits of every head: spatial ones first, then temporal ones.

        Args:
            features: one tensor (B*F, C, h, w) per level.
            sigma_B: re-noise level of every clip.

        Raises:
            TrainingError: when the number of levels is not that of the heads.
        """
        if len(features) != len(self.spatial):
            raise TrainingError(
                "the discriminator got features of another encoder",
                expected=f"{len(self.spatial)} levels",
                found=str(len(features)),
            )
        level_BK = self.level(sigma_B)
        clips = [feature.float().unflatten(0, (len(sigma_B), -1)) for feature in features]
        spatial = [head(clip, level_BK) for head, clip in zip(self.spatial, clips, strict=True)]
        temporal = [head(clip, level_BK) for head, clip in zip(self.temporal, clips, strict=True)]
        return spatial + temporal
