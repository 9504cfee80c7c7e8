"""The two small networks behind the extractors `embedded` (whole clips) and `content` (single frames).

Both are trained by `vdmini_core.metrics.train_embedded` to tell what a clip shows, how it moves and how it
was damaged; the layer before the answers is the feature. Any number of frames; norms are frozen, so a clip's
features do not depend on its batch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

SIDE = 64
CLIP_DIM = 64
FRAME_DIM = 32


def _frame_stage(channels: int, out: int, stride: int) -> list[nn.Module]:
    return [nn.Conv2d(channels, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU(inplace=True)]


class _ClipStage(nn.Module):
    """A convolution in space, then one in time (Tran et al. 2018, (2+1)D)."""

    def __init__(self, channels: int, out: int, time_stride: int = 1) -> None:
        super().__init__()
        self.space = nn.Conv3d(channels, out, (1, 3, 3), (1, 2, 2), (0, 1, 1), bias=False)
        self.norm = nn.BatchNorm3d(out)
        self.time = nn.Conv3d(out, out, (3, 1, 1), (time_stride, 1, 1), (1, 0, 0), bias=False)
        self.time_norm = nn.BatchNorm3d(out)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.space(x)))
        return torch.relu(self.time_norm(self.time(x)))


def _mean_and_spread(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    return torch.cat([x.mean(dim=dims), x.var(dim=dims, unbiased=False).add(1e-5).sqrt()], dim=1)


class ClipNetwork(nn.Module):
    """Clips (B, 3, F, 64, 64) in [0, 1], F >= 2 -> features (B, 64); sees space and time."""

    def __init__(self, targets: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv3d(3, 24, (3, 5, 5), (1, 2, 2), (1, 2, 2), bias=False),
            nn.BatchNorm3d(24),
            nn.ReLU(inplace=True),
        )
        self.stages = nn.ModuleList([_ClipStage(24, 48), _ClipStage(48, 96), _ClipStage(96, 128, 2)])
        self.neck = nn.Linear(2 * (24 + 48 + 96 + 128), CLIP_DIM)
        self.head = nn.Sequential(nn.ReLU(), nn.Linear(CLIP_DIM, targets))

    def features(self, clips: Tensor) -> Tensor:
        """The layer before the answers."""
        x = self.stem(clips * 2 - 1)
        pooled = [_mean_and_spread(x, (2, 3, 4))]
        for stage in self.stages:
            x = stage(x)
            pooled.append(_mean_and_spread(x, (2, 3, 4)))
        return self.neck(torch.cat(pooled, dim=1))

    def forward(self, clips: Tensor) -> Tensor:
        """Answers (B, targets), for training."""
        return self.head(self.features(clips))


class FrameNetwork(nn.Module):
    """Frames (N, 3, 64, 64) in [0, 1] -> features (N, 32); knows nothing of time."""

    def __init__(self, targets: int) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            nn.Sequential(*_frame_stage(before, after, 2))
            for before, after in ((3, 24), (24, 48), (48, 96), (96, 128))
        )
        self.neck = nn.Linear(2 * (24 + 48 + 96 + 128), FRAME_DIM)
        self.head = nn.Sequential(nn.ReLU(), nn.Linear(FRAME_DIM, targets))

    def stage_outputs(self, frames: Tensor) -> list[Tensor]:
        """Activations after each stage: (N, 24, 32, 32), (N, 48, 16, 16), (N, 96, 8, 8), (N, 128, 4, 4)."""
        x, outputs = frames * 2 - 1, []
        for stage in self.stages:
            x = stage(x)
            outputs.append(x)
        return outputs

    def features(self, frames: Tensor) -> Tensor:
        """The layer before the answers."""
        pooled = [_mean_and_spread(x, (2, 3)) for x in self.stage_outputs(frames)]
        return self.neck(torch.cat(pooled, dim=1))

    def forward(self, frames: Tensor) -> Tensor:
        """Answers (N, targets), for training."""
        return self.head(self.features(frames))


def content_features(network: FrameNetwork, clips_BCFHW: Tensor) -> Tensor:
    """Mean and spread over the frames of per-frame features: (B, 64).

    Sorting first makes a shuffled clip give the same bits, not just the same value up to rounding.
    """
    B, _, frames = clips_BCFHW.shape[:3]
    flat = clips_BCFHW.transpose(1, 2).flatten(0, 1)
    per_frame = network.features(flat).reshape(B, frames, FRAME_DIM).sort(dim=1).values
    return torch.cat([per_frame.mean(dim=1), per_frame.std(dim=1, unbiased=False)], dim=1)
