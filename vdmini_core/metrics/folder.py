"""Features and distances of folders of videos: `vdmini fvd`, `vdmini fvd-stats`.

Both sides are treated alike: the same sampling by time, the same resize, the same extractor. Clips are read a
few at a time, so memory does not grow with the folder.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vdmini_core.artifacts import library_versions
from vdmini_core.data.decode_pool import DecodePool
from vdmini_core.data.discovery import Found, discover
from vdmini_core.errors import DataError
from vdmini_core.metrics.extractor import Extractor
from vdmini_core.metrics.frechet import GaussianStats, frechet_distance
from vdmini_core.metrics.passport import FREE_BETWEEN_SIDES, require_comparable
from vdmini_core.metrics.uncertainty import frechet_with_interval, noise_floor
from vdmini_core.progress import track

BATCH = 16
Features = NDArray[np.float32]


@dataclass(frozen=True)
class Reading:
    """How clips are taken from files: one per video, from its start.

    Attributes:
        frames: of a clip.
        fps: sampled by time at this rate; None: the files' own, which must then be one.
        size: (height, width) after centre crop and resize; None: the files' own, which must be one.
        clips: how many videos are used, drawn by `seed` without replacement; None: all.
        seed: of the draw.
        skip_bad: leave files out that give no clip, instead of failing.
        workers, timeout_s: decoding processes, and their time a file.
    """

    frames: int = 16
    fps: float | None = None
    size: tuple[int, int] | None = None
    clips: int | None = None
    seed: int = 0
    skip_bad: bool = False
    workers: int = 2
    timeout_s: float = 60.0


@dataclass
class Side:
    """One side of a distance: features (n, d) or finished statistics, and the passport."""

    data: Features | GaussianStats
    passport: dict[str, Any]
    skipped: list[str] = field(default_factory=list)

    @property
    def clips(self) -> int:
        """Number of clips."""
        return self.data.n if isinstance(self.data, GaussianStats) else len(self.data)


def read_side(source: Path, extract: Extractor, reading: Reading) -> Side:
    """A folder's features, or statistics saved by `save_statistics`.

    Raises:
        DataError: naming the file that cannot be used.
    """
    if source.is_file():
        stats, passport = load_statistics(source)
        return Side(stats, passport)
    clips = FolderClips(source, reading)
    parts = [extract(batch) for batch in clips.batches()]
    return Side(np.concatenate(parts), clips.passport(extract), clips.skipped)


def folder_statistics(source: Path, extract: Extractor, reading: Reading) -> Side:
    """Mean and scatter of a folder's features in one pass and constant memory."""
    clips = FolderClips(source, reading)
    stats = GaussianStats(extract.dim)
    for batch in clips.batches():
        stats.update(extract(batch))
    return Side(stats, clips.passport(extract), clips.skipped)


def load_statistics(path: Path) -> tuple[GaussianStats, dict[str, Any]]:
    """Statistics and passport of a `.safetensors` file.

    Raises:
        DataError: when it is none, or holds values that are not finite.
    """
    try:
        stats, passport = GaussianStats.load(path)
    except Exception as error:
        raise DataError(
            f"{path} holds no statistics",
            expected="a folder of videos, or a file of `vdmini fvd-stats`",
            found=str(error).split("\n")[0],
        ) from error
    if not (np.isfinite(stats.mean).all() and np.isfinite(stats.scatter).all()) or not passport:
        raise DataError(f"{path} holds NaN or infinite statistics, or none of their passport")
    return stats, passport


def compare_sides(real: Side, generated: Side, seed: int = 0) -> dict[str, Any]:
    """Fréchet distance with interval and noise floor where both are known clip by clip.

    Returns:
        `value`; `low`, `high` (None where a side is statistics only); `noise_floor` of the real clips in
        halves (None where there are fewer than 8); `passport` with the clips of both sides.

    Raises:
        DataError: when the sides were not read alike, or are too small.
    """
    require_comparable(real.passport, generated.passport, FREE_BETWEEN_SIDES)
    shared = {key: value for key, value in real.passport.items() if key not in FREE_BETWEEN_SIDES}
    passport = {
        **shared,
        "clips": {"real": real.clips, "generated": generated.clips},
        "decoders": {"real": real.passport["decoders"], "generated": generated.passport["decoders"]},
        "versions": generated.passport["versions"],
    }
    result: dict[str, Any] = {"low": None, "high": None, "noise_floor": None, "passport": passport}
    if isinstance(real.data, GaussianStats) or isinstance(generated.data, GaussianStats):
        return {"value": frechet_distance(_stats(real), _stats(generated)), **result}
    found = frechet_with_interval(generated.data, real.data, seed)
    result |= {"value": found.value, "low": found.low, "high": found.high}
    if len(real.data) >= 8:
        floor = noise_floor(real.data, seed=seed)
        result["noise_floor"] = {"mean": floor.mean, "sd": floor.sd, "clips": floor.n}
    return result


def _stats(side: Side) -> GaussianStats:
    if isinstance(side.data, GaussianStats):
        return side.data
    return GaussianStats(side.data.shape[1]).update(side.data)


class FolderClips:
    """Clips of a folder's videos, a few at a time; `skipped` says which files gave none, with the reason."""

    def __init__(self, folder: Path, reading: Reading) -> None:
        self.folder, self.reading = folder, reading
        self.skipped: list[str] = []
        self._decoders: set[str] = set()
        self._read = 0
        self._shape: dict[str, Any] = {}

    def batches(self) -> Iterator[Tensor]:
        """Clips uint8 (at most 16, F, H, W, 3).

        Raises:
            DataError: naming the first file that gives no clip (without `skip_bad`), or too few.
        """
        reading = self.reading
        with DecodePool(reading.workers, reading.timeout_s) as pool, tempfile.TemporaryDirectory() as scratch:
            files = self._chosen(pool)
            jobs = list(enumerate(files))
            decoded = pool.map(lambda job: self._decode(pool, job, Path(scratch)), jobs)
            waiting: list[Tensor] = []
            wanted = reading.clips or len(jobs)
            for (_, file), reply in track(decoded, f"reading {self.folder.name}", wanted, "clip"):
                if "error" in reply:
                    self._refuse(file.name, reply["error"])
                    continue
                self._decoders.add(reply["decoder"])
                waiting.append(reply["clip"])
                if self._read + len(waiting) == wanted < len(jobs):
                    break
                if len(waiting) == BATCH:
                    yield self._batch(waiting)
            if waiting:
                yield self._batch(waiting)
        least = 2 if reading.clips is None else reading.clips
        if self._read < least:
            raise DataError(
                f"too few clips in {self.folder}",
                expected=f"at least {least}",
                found=f"{self._read}" + "".join(f"\n      {line}" for line in self.skipped[:20]),
            )

    def passport(self, extract: Extractor) -> dict[str, Any]:
        """What the features depend on, once all batches were read."""
        shape = self._shape
        return {
            "extractor": extract.passport(),
            "frames": self.reading.frames,
            "fps": shape["fps"],
            "size": [shape["height"], shape["width"]],
            "clips": self._read,
            "split": f"first {self.reading.frames} frames of a video, drawn by seed {self.reading.seed}",
            "decoders": sorted(self._decoders),
            "covariance": "n - 1",
            "versions": library_versions(),
        }

    def _batch(self, waiting: list[Tensor]) -> Tensor:
        batch = torch.stack(waiting)
        waiting.clear()
        self._read += len(batch)
        return batch

    def _refuse(self, name: str, reason: str) -> None:
        if not self.reading.skip_bad:
            raise DataError(
                f"{self.folder / name} gives no clip",
                found=reason,
                fix="mend or remove it, or leave such files out with --skip-bad",
            )
        self.skipped.append(f"{name}: {reason}")

    def _chosen(self, pool: DecodePool) -> list[Found]:
        """Files in order of use; their common rate and size where these were not given."""
        files = []
        for file in discover(self.folder):
            if file.status == "candidate":
                files.append(file)
            elif file.status == "quarantined":
                self._refuse(file.name, file.reason)
        order = np.random.default_rng(self.reading.seed).permutation(len(files))
        count = len(files) if self.reading.clips is None else self.reading.clips
        if len(files) < count:
            raise DataError(
                f"too few videos in {self.folder}",
                expected=f"{count}",
                found=f"{len(files)}",
                fix="lower --n",
            )
        # With `skip_bad` the next file drawn stands in for one that gives no clip.
        chosen = [files[i] for i in (order if self.reading.skip_bad else order[:count])]
        self._shape = self._common_shape(pool, chosen)
        return chosen

    def _common_shape(self, pool: DecodePool, files: list[Found]) -> dict[str, Any]:
        fps, size = self.reading.fps, self.reading.size
        shape: dict[str, Any] = {"fps": fps}
        if size is not None:
            shape |= {"height": size[0], "width": size[1]}
        first: dict[str, str] = {}
        if fps is not None and size is not None:
            return shape
        probes = pool.map(lambda f: self._probe(pool, f), files)
        for file, facts in track(probes, f"looking at {self.folder.name}", len(files), "file"):
            for key in ("fps", "height", "width"):
                value = facts.get("source_fps" if key == "fps" else key)
                if value is None or (key == "fps" and fps is not None) or (key != "fps" and size is not None):
                    continue
                if first.setdefault(key, file.name) != file.name and shape[key] != value:
                    raise DataError(
                        f"the videos of {self.folder} differ in {key}",
                        expected=f"{shape[key]:g} as {first[key]}",
                        found=f"{value:g} in {file.name}",
                        fix="give --fps" if key == "fps" else "give --size",
                    )
                shape[key] = value
        return shape

    def _probe(self, pool: DecodePool, file: Found) -> dict[str, Any]:
        # One frame at a low rate: every readable file has facts, whatever its length.
        return pool.call({"op": "probe", "path": str(file.path), "frames": 1, "fps": self.reading.fps or 1.0})

    def _decode(self, pool: DecodePool, job: tuple[int, Found], scratch: Path) -> dict[str, Any]:
        number, file = job
        shape, frames = self._shape, self.reading.frames
        if len(shape) < 3:
            return {"error": "no facts of it could be read"}
        request = {**shape, "frames": frames, "path": str(file.path), "out": str(scratch / f"{number}.raw")}
        seen = pool.call({**request, "op": "probe"})
        if "error" in seen:
            return seen
        if not any(first == 0 for first, _ in seen["runs"]):
            return {"error": "most frames of its first clip would be repeats"}
        # Still clips count: a frozen video is what a metric is there to see.
        reply = pool.call({**request, "op": "decode", "starts": [0], "min_motion": 0.0, "max_repeats": 1.0})
        if "error" in reply:
            return reply
        raw = Path(request["out"])
        clip = np.frombuffer(raw.read_bytes(), np.uint8).reshape(frames, shape["height"], shape["width"], 3)
        raw.unlink()
        return {**reply, "clip": torch.from_numpy(clip.copy())}
