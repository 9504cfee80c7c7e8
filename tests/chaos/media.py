"""Whole videos to start from: procedural clips in every container that `prepare` reads, and the odd ones.

Encoded in this process with PyAV, as the project itself writes videos; a codec that is not built in is left
out with a reason.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from vdmini_core.data.procedural import ProceduralSpec, render_clip

FPS, FRAMES, HEIGHT, WIDTH = 8, 32, 48, 64
SHARED = Path(__file__).resolve().parents[3] / "shared" / "clips"
Frames = NDArray[np.uint8]


@dataclass(frozen=True)
class Video:
    """Bytes of a file that can be used as it is, and the suffix they belong under."""

    label: str
    suffix: str
    data: bytes


@dataclass
class Media:
    """All that a corpus is made from.

    Attributes:
        videos: small ones of our own.
        real: those of the shared folder, none where it is absent.
        absent: what could not be made here -> why.
    """

    videos: list[Video]
    real: list[Video]
    absent: dict[str, str] = field(default_factory=dict)

    def draw(self, rng: random.Random) -> Video:
        """One of ours, or, one time in five, a real one."""
        return rng.choice(self.real if self.real and rng.random() < 0.2 else self.videos)

    def labelled(self, label: str) -> Video:
        """One of ours by its label."""
        return next(video for video in self.videos if video.label == label)


def clip(seed: int, frames: int = FRAMES, height: int = HEIGHT, width: int = WIDTH) -> Frames:
    """A procedural clip: uint8 (frames, height, width, 3)."""
    return render_clip(ProceduralSpec(frames, height, width, FPS), seed).frames


def encode(
    path: Path,
    frames: Frames,
    codec: str = "libx264",
    *,
    pixels: str = "yuv420p",
    times: list[float] | None = None,
    options: dict[str, str] | None = None,
    container: dict[str, str] | None = None,
) -> bytes:
    """Write frames (F, H, W, 3) and return the file's bytes; `times` are seconds, for a variable rate."""
    with av.open(str(path), "w", options=container or {}) as out:
        stream: Any = out.add_stream(codec, rate=Fraction(FPS))
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], pixels
        stream.options = {"threads": "1", **(options or {})}
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for index, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame = frame.reformat(format=pixels)
            if times is not None:
                frame.pts, frame.time_base = round(times[index] * 1000), Fraction(1, 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path.read_bytes()


def sound(path: Path, codec: str) -> bytes:
    """A second of noise and no picture."""
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream(codec, rate=16000)
        samples = np.random.default_rng(0).normal(0, 0.1, (1, 16000)).astype(np.float32)
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
        frame.sample_rate = 16000
        out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path.read_bytes()


_SLOW = {"preset": "ultrafast"}
_KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "h264-mp4": (".mp4", {"options": _SLOW}),
    "h264-faststart": (".mp4", {"options": _SLOW, "container": {"movflags": "+faststart"}}),
    "h264-fragments": (".mp4", {"options": _SLOW, "container": {"movflags": "frag_keyframe+empty_moov"}}),
    "h264-mkv": (".mkv", {"options": _SLOW}),
    "vp9-webm": (".webm", {"codec": "libvpx-vp9", "options": {"cpu-used": "8", "deadline": "realtime"}}),
    "mpeg4-avi": (".avi", {"codec": "mpeg4"}),
    "mjpeg-mov": (".mov", {"codec": "mjpeg", "pixels": "yuvj420p"}),
    "animated-gif": (".gif", {"codec": "gif", "pixels": "rgb8"}),
    "hevc-mp4": (".mp4", {"codec": "libx265", "options": {"preset": "ultrafast", "x265-params": "pools=1"}}),
    "ten-bits-h264": (".mp4", {"pixels": "yuv420p10le", "options": _SLOW}),
    "ten-bits-prores": (".mov", {"codec": "prores_ks", "pixels": "yuv422p10le"}),
    "ten-bits-av1": (".mkv", {"codec": "libsvtav1", "pixels": "yuv420p10le", "options": {"preset": "13"}}),
    "interlaced-h264": (".mp4", {"options": {**_SLOW, "x264-params": "interlaced=1:bff=1"}}),
    "interlaced-mpeg2": (".mov", {"codec": "mpeg2video", "options": {"flags": "+ildct+ilme"}}),
    "alpha-vp9": (".webm", {"codec": "libvpx-vp9", "pixels": "yuva420p", "options": {"cpu-used": "8"}}),
    "one-key-frame": (".mp4", {"options": {**_SLOW, "g": "1000"}}),
}


def make_media(scratch: Path, seed: int, only: tuple[str, ...] = ()) -> Media:
    """Encode the small videos (those named in `only`, or all) and read the shared ones, where they are."""
    scratch.mkdir(parents=True, exist_ok=True)
    media = Media([], [])
    for number, (label, (suffix, how)) in enumerate(_KINDS.items()):
        if only and label not in only:
            continue
        side = {"height": 128, "width": 128} if "av1" in label else {}
        try:
            data = encode(scratch / f"{label}{suffix}", clip(1000 * seed + number, **side), **how)
        except (av.FFmpegError, ValueError, LookupError) as error:
            media.absent[label] = f"{type(error).__name__}: {error}"
        else:
            media.videos.append(Video(label, suffix, data))
    if not SHARED.is_dir():
        media.absent["real clips"] = "the shared folder of real clips is not here"
    else:
        files = sorted(path for path in SHARED.glob("*/*") if path.is_file())
        media.real = [Video(f"real-{path.stem}", path.suffix, path.read_bytes()) for path in files]
    return media
