"""Clips of a split in memory, all or the first ones; how they lie on disk is in `vdmini_core.data.shards`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vdmini_core.data.shards import clip_shape, clips_path, save_clips, shards_of

if TYPE_CHECKING:
    import torch

__all__ = ["SPLITS", "clip_count", "clips_path", "contact_sheet", "load_clips", "save_clips"]

SPLITS = ("train", "validation", "test")


def clip_count(directory: Path, split: str) -> int:
    """How many clips a split holds, without reading them."""
    return sum(shard.count for shard in shards_of(directory, split))


def load_clips(directory: Path, split: str, limit: int | None = None) -> torch.Tensor:
    """Clips of a split: uint8 (n, F, H, W, 3); with `limit` only the first ones are read.

    Raises:
        DataError: when they are missing, or other than uint8.
    """
    import torch
    from safetensors import safe_open

    left = limit
    found: list[torch.Tensor] = []
    for shard in shards_of(directory, split):
        count = shard.count if left is None else min(left, shard.count)
        if found and not count:
            break
        clip_shape(shard.path, split)
        with safe_open(shard.path, framework="pt") as handle:
            found.append(handle.get_slice("clips")[:count])
        left = None if left is None else left - count
    clips: torch.Tensor = found[0] if len(found) == 1 else torch.cat(found)
    return clips


def contact_sheet(clips: NDArray[np.uint8], path: Path, gap: int = 2) -> None:
    """Write a PNG with a clip per row and at most 12 of its frames per column.

    Args:
        clips: uint8 (n, F, H, W, 3).
    """
    count, frames, height, width = clips.shape[:4]
    shown = np.unique(np.linspace(0, frames - 1, min(frames, 12)).round().astype(int))
    sheet = np.full((count * (height + gap) + gap, len(shown) * (width + gap) + gap, 3), 24, np.uint8)
    for row in range(count):
        for column, frame in enumerate(shown):
            top, left = gap + row * (height + gap), gap + column * (width + gap)
            sheet[top : top + height, left : left + width] = clips[row, frame]
    Image.fromarray(sheet).save(path, optimize=False)
