"""Clips on disk: one safetensors file per split, written as a stream: no split has to fit in memory."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vdmini_core.errors import DataError

if TYPE_CHECKING:
    import torch

SPLITS = ("train", "validation", "test")


def clips_path(directory: Path, split: str) -> Path:
    """Where a split's clips lie."""
    return directory / f"clips-{split}.safetensors"


def save_clips(directory: Path, split: str, clips: Iterable[Any], shape: Sequence[int]) -> None:
    """Write the tensor `clips` of a split.

    Args:
        directory: an existing folder.
        split: train, validation or test.
        clips: uint8 arrays or tensors (F, H, W, 3), or buffers of as many bytes, one after the other.
        shape: (n, F, H, W, 3) of the whole.

    Raises:
        DataError: when `clips` holds more or fewer bytes than `shape` says.
    """
    total = int(np.prod(shape))
    entry = {"clips": {"dtype": "U8", "shape": list(shape), "data_offsets": [0, total]}}
    header = json.dumps(entry, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    written = 0
    with clips_path(directory, split).open("wb") as out:
        out.write(struct.pack("<Q", len(header)) + header)
        for clip in clips:
            data = clip if isinstance(clip, bytes) else np.ascontiguousarray(clip, np.uint8).tobytes()
            written += out.write(data)
    if written != total:
        raise DataError(f"clips of {split} do not fit", expected=f"{total} bytes", found=f"{written}")


def clip_count(directory: Path, split: str) -> int:
    """How many clips a split holds, without reading them."""
    return _shape(directory, split)[0]


def _shape(directory: Path, split: str) -> list[int]:
    from safetensors import safe_open

    path = clips_path(directory, split)
    if not path.is_file():
        raise DataError(
            f"there are no {split} clips here", found=str(directory), fix="run `vdmini prepare` first"
        )
    with safe_open(path, framework="np") as shard:
        if "clips" not in shard.keys():  # noqa: SIM118  not a dict
            raise DataError(f"{path.name} holds no tensor `clips`", found=", ".join(shard.keys()))
        clips = shard.get_slice("clips")
        shape: list[int] = clips.get_shape()
        if clips.get_dtype() != "U8" or len(shape) != 5 or shape[-1] != 3:
            raise DataError(
                f"{path} holds no clips",
                expected="uint8 (n, F, H, W, 3)",
                found=f"{clips.get_dtype()} {tuple(shape)}",
                fix="run `vdmini prepare` again",
            )
    return shape


def load_clips(directory: Path, split: str, limit: int | None = None) -> torch.Tensor:
    """Clips of a split: uint8 (n, F, H, W, 3); with `limit` only the first ones are read.

    Raises:
        DataError: when they are missing, or other than uint8.
    """
    from safetensors import safe_open

    count = clip_count(directory, split)
    with safe_open(clips_path(directory, split), framework="pt") as shard:
        clips: torch.Tensor = shard.get_slice("clips")[: count if limit is None else min(limit, count)]
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
