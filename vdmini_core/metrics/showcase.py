"""Clips for the eye: single rows, and rows side by side with their names, enlarged to be seen."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from vdmini_core.data.video import write_mp4

SHOWN_HEIGHT = 192  # small clips are enlarged by a whole factor up to about this
_GAP, _BAR = 8, 24
_BACK, _INK = (18, 20, 24), (235, 235, 235)
Frames = NDArray[np.uint8]


def write_videos(rows: Mapping[str, Tensor], out: Path, count: int, fps: float) -> list[Path]:
    """Write `<row>/clip-NN.mp4` for every row and `side-by-side-NN.mp4`; returns the latter.

    Args:
        rows: name -> clips (n, F, H, W, 3) uint8, in the order shown.
        out: folder, made where it is missing.
        count: clips written, clamped to those there are.
        fps: frames per second.
    """
    together = []
    for index in range(min([count, *(len(clips) for clips in rows.values())])):
        films = {name: clips[index].numpy() for name, clips in rows.items()}
        for name, film in films.items():
            (out / name).mkdir(parents=True, exist_ok=True)
            write_mp4(out / name / f"clip-{index:02d}.mp4", film, fps)
        together.append(out / f"side-by-side-{index:02d}.mp4")
        write_mp4(together[-1], side_by_side(films), fps)
    return together


def side_by_side(films: Mapping[str, Frames]) -> Frames:
    """Films (F, H, W, 3) uint8 in one row with their names above: (F, H', W', 3)."""
    frames = min(len(film) for film in films.values())
    pictures = [_panel([film[t] for film in films.values()], list(films)) for t in range(frames)]
    return np.stack(pictures)


def _panel(images: list[Frames], names: list[str]) -> Frames:
    height, width = images[0].shape[:2]
    scale = max(1, round(SHOWN_HEIGHT / height))
    shown_width, shown_height = width * scale, height * scale
    total_width = len(images) * (shown_width + _GAP) + _GAP
    total_height = shown_height + _BAR + _GAP
    # H.264 in 4:2:0 wants even sides.
    canvas = Image.new("RGB", (total_width + total_width % 2, total_height + total_height % 2), _BACK)
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size=13)
    for column, (image, name) in enumerate(zip(images, names, strict=True)):
        left = _GAP + column * (shown_width + _GAP)
        draw.text(
            (left + shown_width / 2, _BAR / 2), name.replace("_", " "), fill=_INK, font=font, anchor="mm"
        )
        enlarged = Image.fromarray(image).resize((shown_width, shown_height), Image.Resampling.NEAREST)
        canvas.paste(enlarged, (left, _BAR))
    return np.asarray(canvas)
