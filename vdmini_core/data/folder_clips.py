"""Clips straight from a folder of videos, for metrics: chosen by a seed, none twice, none quietly left out.

Where `ingest` makes a data set and sets aside what is of no use, a metric must take a folder as it is: still
clips and copies count, and a file that cannot be used is an error unless the caller says otherwise.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vdmini_core.data.decode_pool import DecodePool
from vdmini_core.data.discovery import Found, every_file
from vdmini_core.data.sampling import starts_in
from vdmini_core.errors import DataError
from vdmini_core.progress import track

SAME_RATE = 0.01  # relative: 29.97 and 30 are one rate
_SHOWN = 20


@dataclass(frozen=True)
class ClipSpec:
    """What a clip is and how clips are chosen, the same for every folder of a comparison.

    Attributes:
        frames: of a clip, at least 2.
        fps: sample by time at this rate.
        stride: or take every `stride`-th frame, whatever the rate. With neither, consecutive frames are taken
            and all files must have one rate.
        size: (height, width): short side scaled and centre cropped, antialiased; None: as the files are,
            which must then all have one size.
        clips_per_video: at most; they follow one another from the video's start without overlap.
        seed: orders the videos (by a hash of name and seed); the first ones are used.
        skip_bad: leave out and list files that cannot be used.
    """

    frames: int
    fps: float | None = None
    stride: int | None = None
    size: tuple[int, int] | None = None
    clips_per_video: int = 1
    seed: int = 0
    skip_bad: bool = False


@dataclass(frozen=True)
class FolderClip:
    """One decoded clip: its file's name, start in ticks, frames uint8 (F, H, W, 3), and who decoded it."""

    name: str
    start: int
    frames: NDArray[np.uint8]
    decoder: str


@dataclass(frozen=True)
class _Pick:
    file: Found
    start: int
    size: tuple[int, int]
    rate: float


class FolderClips:
    """The clips of a folder in a fixed order: every video's first clip, then every video's second.

    Attributes:
        size: (height, width) of the clips, known after `reserve`.
        fps: at which they are sampled, known after `reserve`; None with a stride.
        good: names of the files that gave the clips found so far.
        bad: name -> why a file could not be used.
    """

    def __init__(self, root: Path, spec: ClipSpec, pool: DecodePool, scratch: Path) -> None:
        if not root.is_dir():
            raise DataError(
                f"{root} is no folder of videos",
                expected="a folder, or statistics written by `fvd-stats` (.safetensors)",
                found="a file" if root.exists() else "nothing there",
            )
        self.root, self.size, self.fps = root, spec.size, spec.fps
        self.good: dict[str, None] = {}
        self.bad: dict[str, str] = {}
        self._spec, self._pool = spec, pool
        self._scratch = Path(tempfile.mkdtemp(dir=scratch))  # folders may share `scratch`
        self._numbers = count()
        self._queue: list[_Pick] = []
        self._clock = {"fps": spec.fps} if spec.fps is not None else {"stride": spec.stride or 1}
        files = [file for file in every_file(root) if file.status != "skipped"]
        self.bad |= {file.name: file.reason for file in files if file.status != "candidate"}
        self._videos = sorted((file for file in files if file.status == "candidate"), key=self._rank)
        self._source = self._picks()

    def reserve(self, wanted: int | None) -> int:
        """Look at files until `wanted` clips (None: all) wait to be taken; how many do.

        Raises:
            DataError: naming the files that cannot be used, unless `skip_bad`.
        """
        while wanted is None or len(self._queue) < wanted:
            fresh = self._look(len(self._videos) if wanted is None else wanted - len(self._queue))
            if not fresh:
                break
            self._settle(fresh)
            fitting = [pick for pick in fresh if self._fits(pick)]
            self._queue += fitting
            self.good |= dict.fromkeys(pick.file.name for pick in fitting)
        self._complain()
        return len(self._queue)

    def take(self, wanted: int) -> Iterator[FolderClip]:
        """The next `wanted` clips, or fewer where there are no more; each file is decoded once per call.

        Raises:
            DataError: naming a file that cannot be decoded, unless `skip_bad`: then others take its place.
        """
        while wanted > 0 and self.reserve(wanted):
            picks, self._queue = self._queue[:wanted], self._queue[wanted:]
            for clip in self._decode(picks):
                wanted -= 1
                yield clip

    def _rank(self, file: Found) -> bytes:
        return hashlib.sha256(f"{self._spec.seed}\0{file.name}".encode()).digest()

    def _look(self, most: int) -> list[_Pick]:
        first = next(self._source, None)
        if first is None:
            return []
        picks = chain([first], islice(self._source, most - 1))
        return list(track(picks, f"looking at {self.root.name}", most, "clip"))

    def _picks(self) -> Iterator[_Pick]:
        seen: list[list[_Pick]] = []
        for file, reply in self._pool.map(self._probe, self._videos):
            if "error" in reply:
                self.bad[file.name] = reply["error"]
                continue
            look = (reply["height"], reply["width"]), reply["source_fps"]
            starts = starts_in(reply["runs"], self._spec.frames)[: self._spec.clips_per_video]
            seen.append([_Pick(file, start, *look) for start in starts])
            yield seen[-1][0]
        for rank in range(1, self._spec.clips_per_video):
            yield from (picks[rank] for picks in seen if rank < len(picks))

    def _probe(self, file: Found) -> dict[str, Any]:
        request = {"op": "probe", "path": str(file.path), "frames": self._spec.frames, **self._clock}
        return self._pool.call(request)

    def _settle(self, picks: list[_Pick]) -> None:
        """Where no size or rate is asked for, it is the most frequent one, the earlier in a tie."""
        if self.size is None:
            self.size = Counter(pick.size for pick in picks).most_common(1)[0][0]
        if self.fps is None and self._spec.stride is None:
            # To a tenth: 29.97 and 30 are one rate, and the mean rate of a file wavers in its last digits.
            self.fps = Counter(round(pick.rate, 1) for pick in picks).most_common(1)[0][0]

    def _fits(self, pick: _Pick) -> bool:
        if pick.file.name in self.bad:
            return False
        if self._spec.size is None and pick.size != self.size:
            self.bad[pick.file.name] = (
                f"its frames have {_wide(pick.size)} pixels, others {_wide(self.size)}: give --size"
            )
        elif self._spec.fps is None and self.fps and abs(pick.rate / self.fps - 1) > SAME_RATE:
            self.bad[pick.file.name] = (
                f"it has {pick.rate:g} frames per second, others {self.fps:g}: give --fps or --stride"
            )
        return pick.file.name not in self.bad

    def _decode(self, picks: list[_Pick]) -> Iterator[FolderClip]:
        jobs: dict[str, list[_Pick]] = {}
        for pick in picks:
            jobs.setdefault(pick.file.name, []).append(pick)
        for group, (raw, reply) in self._pool.map(self._decode_file, jobs.values()):
            name = group[0].file.name
            if "error" in reply:
                self.bad[name] = reply["error"]
                self._complain()
                continue
            yield from self._read(name, raw, reply)

    def _decode_file(self, picks: list[_Pick]) -> tuple[Path, dict[str, Any]]:
        assert self.size is not None
        raw = self._scratch / f"{next(self._numbers)}.raw"
        request = {
            "op": "decode",
            "path": str(picks[0].file.path),
            "out": str(raw),
            "starts": sorted(pick.start for pick in picks),
            "frames": self._spec.frames,
            "height": self.size[0],
            "width": self.size[1],
            # Nothing is left out for what it shows: a model that stands still must pay for it.
            "min_motion": 0.0,
            "max_repeats": 1.0,
            **self._clock,
        }
        return raw, self._pool.call(request)

    def _read(self, name: str, raw: Path, reply: dict[str, Any]) -> Iterator[FolderClip]:
        assert self.size is not None
        shape = (self._spec.frames, *self.size, 3)
        try:
            with raw.open("rb") as file:
                for start in reply["starts"]:
                    pixels = np.frombuffer(bytearray(file.read(int(np.prod(shape)))), np.uint8)
                    yield FolderClip(name, start, pixels.reshape(shape), reply["decoder"])
        finally:
            raw.unlink()

    def complaint(self) -> str:
        """The files that cannot be used and why, a line each; empty where there are none."""
        lines = [f"{self.root / name}: {reason}" for name, reason in list(self.bad.items())[:_SHOWN]]
        if len(self.bad) > _SHOWN:
            lines.append(f"and {len(self.bad) - _SHOWN} more")
        return "".join(f"\n      {line}" for line in lines)

    def _complain(self) -> None:
        if not self.bad or self._spec.skip_bad:
            return
        raise DataError(
            f"{len(self.bad)} file{'s' * (len(self.bad) > 1)} in {self.root} cannot be used",
            found=self.complaint(),
            fix="mend or remove them; --skip-bad goes on without them and lists them",
        )


def _wide(size: tuple[int, int] | None) -> str:
    return f"{size[1]}x{size[0]}" if size else "none"
