"""Small videos whose frames carry their own number, and files that only pretend to be videos."""

from __future__ import annotations

import wave
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

SHARED = Path(__file__).parents[3] / "shared" / "clips"
BITS = 8


def shared_clip(name: str) -> Path:
    """A real clip of the shared folder, or a skip that says why."""
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"the folder of real clips is not here: {path}")
    return path


def numbered(count: int, size: int = 64) -> np.ndarray:
    """Frames (count, size, size, 3): the number as eight black or white bars, and a moving grey strip."""
    frames = np.zeros((count, size, size, 3), np.uint8)
    for number in range(count):
        for bit in range(BITS):
            left = bit * size // BITS
            frames[number, : size // 2, left : left + size // BITS] = 255 * (number >> bit & 1)
        offset = 3 * number % size
        frames[number, size // 2 :, offset : offset + size // 4] = 160
    return frames


def number_of(frame: np.ndarray) -> int:
    """The number a frame carries, after any resize."""
    height, width = frame.shape[:2]
    centres = ((np.arange(BITS) + 0.5) * width / BITS).astype(int)
    return sum(int(frame[height // 4, x].mean() > 127) << bit for bit, x in enumerate(centres))


def encode(
    path: Path,
    frames: np.ndarray,
    fps: float = 30,
    codec: str = "libx264",
    times: list[float] | None = None,
    options: dict[str, str] | None = None,
) -> Path:
    """Write a video with a codec and, for a variable rate, the time of each frame in seconds."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1000))
        stream.width, stream.height = frames.shape[2], frames.shape[1]
        stream.pix_fmt = "rgb8" if codec == "gif" else "yuv420p"
        stream.options = {"threads": "1", **(options or {})}
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for index, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=stream.pix_fmt)
            if times is not None:
                frame.pts, frame.time_base = round(times[index] * 1000), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def rotate_flag(path: Path, quarter_turns_clockwise: int) -> None:
    """Set the display matrix of an mp4's picture track, as a phone held sideways does."""
    data = bytearray(path.read_bytes())
    place = data.index(b"tkhd") + 4 + 40
    cos, sin = [(1, 0), (0, 1), (-1, 0), (0, -1)][quarter_turns_clockwise % 4]
    matrix = [cos << 16, sin << 16, 0, -sin << 16, cos << 16, 0, 0, 0, 1 << 30]
    data[place : place + 36] = b"".join(int(v).to_bytes(4, "big", signed=True) for v in matrix)
    path.write_bytes(data)


def audio_only(path: Path) -> Path:
    """An mp4 with sound and no picture."""
    with av.open(str(path), "w", format="mp4") as container:
        stream: Any = container.add_stream("aac", rate=16000)
        samples = np.zeros((1, 16000), np.float32)
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def wav(path: Path) -> None:
    """A sound file under whatever name."""
    with wave.open(str(path), "wb") as out:
        out.setparams((1, 2, 8000, 0, "NONE", ""))
        out.writeframes(b"\0" * 16000)
