"""How clips are brought to I3D's 224 x 224: three conventions that exist side by side.

Numbers of different conventions must not be compared (field measurements differ by more than many papers'
gains), so each is an option with a name:

* `videogpt`: floats are first cut down to 8 bits (truncated), the shorter side is scaled to 224, the middle
  cut out, values moved to [-1, 1] (VideoGPT; common_metrics_on_video_quality, `fvd/videogpt`);
* `styleganv`: the same without the 8 bits (`fvd/styleganv` there);
* `cdfvd`: 8 bits, both sides scaled to 224 without regard to their ratio (content-debiased FVD 0.1.1).

All interpolate bilinearly without antialiasing, `align_corners=False`.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from vdmini_core.metrics.i3d import SIDE

Convention = Literal["videogpt", "styleganv", "cdfvd"]
CONVENTIONS: tuple[Convention, ...] = get_args(Convention)
RESIZE = {
    "videogpt": "8 bits, shorter side to 224 (bilinear), centre crop, then to [-1, 1]",
    "styleganv": "shorter side to 224 (bilinear), centre crop, then to [-1, 1]",
    "cdfvd": "8 bits, both sides to 224 (bilinear), then to [-1, 1]",
}


def preprocess(videos_BTHWC: Tensor, convention: Convention) -> Tensor:
    """Clips uint8 or floats in [0, 1] -> float32 (B, 3, T, 224, 224) in [-1, 1], channels last in memory."""
    B, T, height, width = videos_BTHWC.shape[:4]
    frames = _levels(videos_BTHWC, convention).flatten(0, 1).permute(0, 3, 1, 2)
    if convention == "cdfvd":
        size = (SIDE, SIDE)
    elif height < width:
        size = (SIDE, math.ceil(width * SIDE / height))
    else:
        size = (math.ceil(height * SIDE / width), SIDE)
    if size != (height, width):
        frames = F.interpolate(frames, size, mode="bilinear", align_corners=False)
    top, left = (size[0] - SIDE) // 2, (size[1] - SIDE) // 2
    frames = frames[..., top : top + SIDE, left : left + SIDE]
    clips = frames.permute(0, 2, 3, 1).contiguous().view(B, T, SIDE, SIDE, 3).permute(0, 4, 1, 2, 3)
    # The order of operations is that of the sources: a rounding here is felt in the 1024 pooled features.
    return clips.mul_(2).div_(255).sub_(1) if convention == "cdfvd" else clips.sub_(0.5).mul_(2)


def _levels(videos: Tensor, convention: Convention) -> Tensor:
    """Float32 values from 0 to 255 for `cdfvd`, from 0 to 1 for the others."""
    if videos.dtype == torch.uint8:
        levels = videos.float()
    elif convention == "styleganv":
        return videos.float().clamp(0, 1)
    else:
        levels = (videos.float().clamp(0, 1) * 255).trunc()
    return levels if convention == "cdfvd" else levels / 255
