"""One video file: write it, read its time line, bring its frames to size. Frames: `vdmini_core.data.readers`.

Light on purpose (numpy, Pillow, and the decoders on use): the decoding worker imports it, torch stays out.
Untrusted files go through `vdmini_core.data.decode_pool`, which may kill its worker; the functions here
run in the caller's own process.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vdmini_core.errors import DataError

Frames = NDArray[np.uint8]
# Demuxers that only read the file they are given: playlists (HLS, concat, DASH) would open other files.
CONTAINERS = {
    "mov",
    "mp4",
    "matroska",
    "webm",
    "avi",
    "gif",
    "mpegts",
    "mpeg",
    "flv",
    "asf",
    "ogg",
    "h264",
    "hevc",
}
MAX_PIXELS = 16384 * 16384


def write_mp4(path: Path, frames: Frames, fps: float, crf: int = 12) -> None:
    """Write an H.264 file that every browser plays; the same frames give the same bytes.

    Args:
        frames: uint8 RGB (F, H, W, 3); odd sizes are padded by one repeated row or column (4:2:0).
        fps: frames per second.
        crf: quality of libx264, 0 (lossless) to 51.

    Raises:
        DataError: when `frames` has another shape or type.
    """
    import av

    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not len(frames):
        raise DataError(
            "cannot write these frames as a video",
            expected="uint8 (F, H, W, 3), at least one frame",
            found=f"{frames.dtype} {frames.shape}",
        )
    frames = np.pad(frames, ((0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)), mode="edge")
    container_options = {"movflags": "+faststart", "fflags": "+bitexact"}
    with av.open(str(path), "w", format="mp4", options=container_options) as container:
        stream: Any = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(100_000))
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        # x264's macroblock tree reads uninitialised memory in frames of few macroblocks (seen at 64x64, not
        # without its assembly): the same frames then gave up to 14 different files.
        stream.options = {
            "crf": str(crf),
            "preset": "medium",
            "threads": "1",
            "flags": "+bitexact",
            "x264-params": "mbtree=0",
        }
        stream.codec_context.thread_count = 1
        # Say what the conversion below does (BT.601, limited range), so that no player has to guess.
        stream.codec_context.colorspace, stream.codec_context.color_range = 6, 1
        for image in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            container.mux(stream.encode(frame.reformat(format="yuv420p", dst_colorspace=6)))
        container.mux(stream.encode())


@dataclass(frozen=True)
class VideoInfo:
    """What a file's packets say, before frames are decoded.

    Attributes:
        times: seconds of every frame from the first one, sorted, (n,) float64.
        stamps: the same in units of the stream's time base, as the decoder reports them, (n,) int64.
        keys: sorted stamps of key frames.
        counted: the stream has no time stamps: `stamps` count frames and `times` follow the nominal rate.
        width, height: pixels of the upright frame.
        aspect: width of a pixel over its height, upright.
        rotation: degrees counterclockwise that make the frame upright, a multiple of 90.
        fps: mean frames per second.
        floats: pixels are floating-point numbers (OpenEXR), which may be NaN.
    """

    times: NDArray[np.float64]
    stamps: NDArray[np.int64]
    keys: NDArray[np.int64]
    counted: bool
    width: int
    height: int
    aspect: float
    rotation: int
    fps: float
    codec: str
    container: str
    floats: bool = False


def read_info(path: Path) -> VideoInfo:
    """Read a file's time line and decode its first frame.

    Raises:
        DataError: in plain words, when it is no video that can be read.
    """
    import av

    try:
        with opened(path) as container:
            stream = video_stream(container)
            codec, rate = stream.codec_context.name, stream.average_rate or stream.guessed_rate
            names, base = container.format.name, stream.time_base
            stamps, keys, counted = _stamps(container, stream)
        if not len(stamps):
            raise DataError("there is not one frame in it")
        with opened(path) as container:
            stream = video_stream(container)
            first = next(container.decode(stream), None)
            if first is None:
                raise DataError("not one frame could be decoded")
            turn, width, height = quarter_turns(first), first.width, first.height
            aspect = float(stream.codec_context.sample_aspect_ratio or 1)
            floats = "f32" in first.format.name or "f16" in first.format.name
    except (av.FFmpegError, ValueError, OSError) as error:
        raise DataError(f"not a readable video ({plain(error)})") from None
    scale = 1 / float(rate or 25) if counted else float(base)
    times = (stamps - stamps[0]) * scale
    if turn % 2:
        width, height, aspect = height, width, 1 / aspect
    fps = (len(times) - 1) / times[-1] if len(times) > 1 and times[-1] > 0 else float(rate or 0)
    return VideoInfo(
        times,
        stamps,
        keys,
        counted,
        width,
        height,
        aspect,
        90 * turn,
        float(fps),
        codec,
        names.split(",")[0],
        floats,
    )


def opened(path: Path) -> Any:
    """Open a container of a kind we read, with no access to anything but the file itself.

    A stream of it must not be used after it is closed: PyAV 18 then crashes the process.
    """
    import av

    # Absolute: of a relative path, what stands before a colon would be taken for a protocol.
    container = av.open(
        str(path.absolute()), options={"protocol_whitelist": "file"}, metadata_errors="replace"
    )
    if not CONTAINERS & set(container.format.name.split(",")):
        name = container.format.name
        container.close()
        raise DataError(f"its content is `{name}`, not a video file")
    return container


def video_stream(container: Any) -> Any:
    """The main picture stream, set to one thread."""
    stream = container.streams.best("video")
    if stream is None:
        raise DataError(
            "there is no picture in it, only "
            + (container.streams[0].type if container.streams else "a header")
        )
    if stream.codec_context is None:
        raise DataError("its pictures are of a codec that no decoder here reads")
    size = stream.codec_context.width * stream.codec_context.height
    if size > MAX_PIXELS:
        raise DataError(
            f"its header claims {stream.codec_context.width}x{stream.codec_context.height} pixels"
        )
    stream.thread_type = "NONE"  # one thread: memory stays small and the pool has its own processes
    return stream


def _stamps(container: Any, stream: Any) -> tuple[NDArray[np.int64], NDArray[np.int64], bool]:
    """Presentation stamps of all frames, decoding stamps where there are none, else a count."""
    packets = [(p.pts, p.dts, p.is_keyframe) for p in container.demux(stream) if p.size and not p.is_discard]
    for column in (0, 1):
        if packets and all(packet[column] is not None for packet in packets):
            keys = np.array(sorted(p[column] for p in packets if p[2]), np.int64)
            return np.array(sorted(p[column] for p in packets), np.int64), keys, False
    return np.arange(len(packets)), np.zeros(0, np.int64), True


def quarter_turns(frame: Any) -> int:
    """Quarter turns counterclockwise that make a decoded frame upright, from its display matrix."""
    return round(frame.rotation / 90) % 4


def plain(error: BaseException) -> str:
    """What a decoder said, in one short line."""
    text = getattr(error, "strerror", None) or str(error)
    return " ".join(str(text).split())[:160]


def fit(frame: Frames, height: int, width: int, aspect: float = 1.0) -> Frames:
    """Scale the short side and crop the centre, in one antialiased step.

    Args:
        frame: uint8 (H, W, 3).
        aspect: width of a source pixel over its height.

    Returns:
        uint8 (height, width, 3).
    """
    high, wide = frame.shape[:2]
    crop_wide = min(wide, high * width / height / aspect)
    crop_high = min(high, wide * aspect * height / width)
    left, top = (wide - crop_wide) / 2, (high - crop_high) / 2
    box = (left, top, left + crop_wide, top + crop_high)
    image = Image.fromarray(np.ascontiguousarray(frame))
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR, box=box))


def read_video(path: Path, max_frames: int | None = None) -> tuple[Frames, VideoInfo]:
    """Frames of a trusted file (our own), all or the first `max_frames`, and its time line.

    Returns:
        uint8 (F, H, W, 3), upright, at full size.

    Raises:
        DataError: when it cannot be read.
    """
    from vdmini_core.data.readers import AvReader

    info = read_info(path)
    reader = AvReader(path, info)
    try:
        return np.stack(list(reader.frames(range(len(info.times))[:max_frames]))), info
    finally:
        reader.close()
