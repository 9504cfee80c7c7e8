"""What a metric accepts as videos: one check, one conversion, errors that name the clip."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vdmini_core.errors import DataError


def checked_videos(
    videos: Tensor, what: str = "videos", least_clips: int = 1, least_frames: int = 1
) -> Tensor:
    """Check clips (n, F, H, W, 3), uint8 or floats in [0, 1]; returned as they are.

    Raises:
        DataError: on another shape or type, too few clips or frames, NaN or values outside [0, 1],
            naming the clips.
    """
    videos = torch.as_tensor(videos)
    if videos.ndim != 5 or videos.shape[-1] != 3:
        raise DataError(
            f"{what} have the wrong shape",
            expected="(clips, frames, height, width, 3)",
            found=str(tuple(videos.shape)),
        )
    for least, found, unit in (
        (least_clips, videos.shape[0], "clips"),
        (least_frames, videos.shape[1], "frames a clip"),
    ):
        if found < least:
            raise DataError(f"{what}: too few {unit}", expected=f"at least {least}", found=str(found))
    if videos.dtype == torch.uint8:
        return videos
    if not videos.is_floating_point():
        raise DataError(
            f"{what} have the wrong type",
            expected="uint8, or floats in [0, 1]",
            found=str(videos.dtype).removeprefix("torch."),
        )
    for index, clip in enumerate(videos):
        _check_values(clip, f"clip {index} of {what}")
    return videos


def _check_values(clip_FHWC: Tensor, what: str) -> None:
    bad = [i for i, frame in enumerate(clip_FHWC) if not bool(torch.isfinite(frame).all())]
    if bad:
        raise DataError(
            f"{what} holds NaN or infinite values",
            found=f"frames {bad[:8]}",
            fix="leave them out, or make them anew",
        )
    low, high = float(clip_FHWC.min()), float(clip_FHWC.max())
    if low < -1e-3 or high > 1 + 1e-3:
        raise DataError(
            f"{what} leaves [0, 1]", expected="floats in [0, 1]", found=f"{low:.3g} to {high:.3g}"
        )


def as_unit_floats(videos: Tensor) -> Tensor:
    """uint8 or [0, 1] floats -> float32 in [0, 1]."""
    return videos.float() / 255 if videos.dtype == torch.uint8 else videos.float().clamp(0, 1)


def resized_frames(videos_BFHWC: Tensor, size: tuple[int, int]) -> Tensor:
    """Clips -> (B, F, 3, *size), float32 in [0, 1]: scaled, then resized (bilinear, antialiased)."""
    frames = as_unit_floats(videos_BFHWC).permute(0, 1, 4, 2, 3)
    if tuple(frames.shape[-2:]) == size:
        return frames
    flat = F.interpolate(frames.flatten(0, 1), size, mode="bilinear", align_corners=False, antialias=True)
    return flat.unflatten(0, frames.shape[:2]).clamp(0, 1)


def resized(videos_BFHWC: Tensor, side: int) -> Tensor:
    """Clips -> (B, 3, F, side, side), what the shipped networks take; values as `resized_frames`."""
    return resized_frames(videos_BFHWC, (side, side)).transpose(1, 2).contiguous()
