"""Decode chosen frames: decord first, PyAV for what decord refuses or gets wrong.

decord 0.6.0 carries an FFmpeg of 2018: no AV1, and rotation only where the container says it the old way.
`decode_worker` therefore compares a few frames of every file with PyAV's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vdmini_core.data.video import Frames, VideoInfo, opened, quarter_turns, video_stream
from vdmini_core.errors import DataError

_CHUNK_BYTES = 96 * 2**20  # decoded frames held at once on the way to their final size
_SEEK_GAP = 24  # frames: nearer than that, decoding on is cheaper than seeking


class Reader(Protocol):
    """Decodes chosen frames of one file, in rising order."""

    name: str

    def frames(self, indices: Sequence[int]) -> Iterator[Frames]:
        """Upright RGB frames (H, W, 3) at rising `indices` of the time line."""
        ...


class DecordReader:
    """decord with one thread. It applies rotation itself where the container says it the old way."""

    name = "decord"

    def __init__(self, path: Path, info: VideoInfo) -> None:
        import decord

        decord.logging.set_level(decord.logging.QUIET)
        self._reader = decord.VideoReader(str(path), num_threads=1)
        if len(self._reader) != len(info.times):
            raise DataError(f"decord counts {len(self._reader)} frames, the packets {len(info.times)}")
        self._chunk = max(1, _CHUNK_BYTES // max(1, info.width * info.height * 3))

    def frames(self, indices: Sequence[int]) -> Iterator[Frames]:
        """See `Reader.frames`."""
        for begin in range(0, len(indices), self._chunk):
            yield from self._reader.get_batch(list(indices[begin : begin + self._chunk])).asnumpy()


class AvReader:
    """PyAV: decodes on from where it stands, or seeks where a key frame makes that cheaper."""

    name = "pyav"

    def __init__(self, path: Path, info: VideoInfo) -> None:
        self._path, self._info = path, info
        self._container: Any = None
        self._restart()

    def frames(self, indices: Sequence[int]) -> Iterator[Frames]:
        """See `Reader.frames`."""
        for index in indices:
            stamp = int(self._info.stamps[index])
            self._approach(index, stamp)
            while self._position is None or self._position < stamp:
                self._advance()
            # A conversion to 8 bits would make them black and say nothing.
            if self._info.floats and not _finite(self._current):
                raise DataError(f"frame {index} holds NaN or infinite values")
            image = self._current.to_ndarray(format="rgb24")
            yield np.ascontiguousarray(np.rot90(image, quarter_turns(self._current)))

    def close(self) -> None:
        """Close the file."""
        self._container.close()

    def _restart(self) -> None:
        if self._container is not None:
            self._container.close()
        self._container = opened(self._path)
        self._decoding = self._container.decode(video_stream(self._container))
        self._position: int | None = None
        self._count = -1

    def _approach(self, index: int, stamp: int) -> None:
        """Seek when the wanted frame lies behind, or ahead beyond a key frame."""
        here = self._info.stamps[0] if self._position is None else self._position
        behind = self._position is not None and stamp < self._position
        far = index - np.searchsorted(self._info.stamps, here) > _SEEK_GAP
        keys = self._info.keys
        key_between = np.searchsorted(keys, stamp, "right") > np.searchsorted(keys, here, "right")
        if not behind and not (far and key_between):
            return
        if not self._info.counted and self._seek(stamp):
            return
        self._restart()

    def _seek(self, stamp: int) -> bool:
        """True when the decoder now stands at or before `stamp`."""
        stream = self._container.streams.best("video")
        self._container.seek(stamp, stream=stream, backward=True)
        self._decoding, self._position = self._container.decode(stream), None
        self._advance()
        return self._position is not None and self._position <= stamp

    def _advance(self) -> None:
        frame = next(self._decoding, None)
        if frame is None:
            raise DataError("the stream ends before its last time stamp (cut off or damaged)")
        if frame.is_corrupt:
            raise DataError("damaged frames in the stream")
        self._count += 1
        stamp = frame.dts if frame.pts is None else frame.pts
        self._position = self._count if self._info.counted or stamp is None else stamp
        self._current = frame


def _finite(frame: Any) -> bool:
    """True where no pixel of a frame of floating-point numbers is NaN or infinite."""
    name, planes = frame.format.name, frame.planes
    kind = np.dtype(f"{'>' if name.endswith('be') else '<'}f{2 if 'f16' in name else 4}")
    colours = 1 if len(planes) > 1 else len(frame.format.components)
    for plane in planes:
        rows = np.frombuffer(plane, kind).reshape(plane.height, -1)  # what pads a row is no pixel
        if not np.isfinite(rows[:, : plane.width * colours]).all():
            return False
    return True
