"""A folder of videos -> statistics of features with their passport; pixels are never held beyond a chunk."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vdmini_core.data.decode_pool import DecodePool
from vdmini_core.data.folder_clips import ClipSpec, FolderClip, FolderClips
from vdmini_core.errors import DataError
from vdmini_core.metrics.extractors import Extractor, load_extractor
from vdmini_core.metrics.frechet import GaussianStats
from vdmini_core.metrics.passport import Passport, Side, features_passport
from vdmini_core.metrics.saved_stats import Asked, Saved
from vdmini_core.progress import track

DEFAULT_EXTRACTOR, DEFAULT_FRAMES = "embedded", 16
DECODE_TIMEOUT_S = 120.0
_CHUNK_CLIPS, _CHUNK_BYTES = 16, 2**28
Features = NDArray[np.float32]


@dataclass(frozen=True)
class Settings:
    """What is asked for; None follows saved statistics of the other side, else the default.

    Attributes:
        extractor: name; default `embedded`.
        options: of the extractor, those that were given (weights, sha256, convention, layer, bn_eps).
        frames, fps, stride, size, clips_per_video, seed, skip_bad: see `data.folder_clips.ClipSpec`.
        n: clips of each side; None: all there are.
        workers: decoding processes.
    """

    extractor: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    frames: int | None = None
    fps: float | None = None
    stride: int | None = None
    size: tuple[int, int] | None = None
    n: int | None = None
    clips_per_video: int = 1
    seed: int = 0
    skip_bad: bool = False
    device: str = "cpu"
    workers: int = 2

    def following(self, saved: Saved | None) -> Settings:
        """These settings with every gap filled from saved statistics, else from the defaults.

        Of size and rate only what those were asked to have is followed. Where they are the files' own, the
        other side's must be the same, just as between two folders.
        """
        if saved is None:
            return replace(
                self, extractor=self.extractor or DEFAULT_EXTRACTOR, frames=self.frames or DEFAULT_FRAMES
            )
        passport, asked = saved.passport, saved.asked
        clock = {} if self.fps or self.stride else {"fps": asked.fps, "stride": passport.stride}
        options = {**saved.options(), **self.options}
        if "://" in str(options.get("weights", "")) and passport.extractor == "i3d":
            options.setdefault("sha256", passport.weights_sha256)  # what is fetched must be those weights
        return replace(
            self,
            extractor=self.extractor or passport.extractor,
            options=options,
            frames=self.frames or passport.frames,
            size=self.size or asked.size,
            **clock,  # type: ignore[arg-type]
        )

    def asked(self) -> Asked:
        """What frames are brought to, for a file of statistics."""
        return Asked(self.fps, self.size)

    def spec(self) -> ClipSpec:
        """How clips are read and chosen."""
        assert self.frames is not None
        return ClipSpec(
            self.frames, self.fps, self.stride, self.size, self.clips_per_video, self.seed, self.skip_bad
        )

    def load(self) -> Extractor:
        """The extractor.

        Raises:
            DataError: when it is unknown, its weights are of no use, or it needs longer clips.
        """
        assert self.extractor is not None
        assert self.frames is not None
        extract = load_extractor(self.extractor, device=self.device, **self.options)
        if self.frames < extract.least_frames:
            raise DataError(
                f"`{self.extractor}` needs longer clips",
                expected=f"--frames {extract.least_frames} or more",
                found=f"--frames {self.frames}",
            )
        return extract


@dataclass(frozen=True)
class Measured:
    """One side: its statistics, their passport, the features where they are known, files left out."""

    stats: GaussianStats
    passport: Passport
    features: Features | None = None
    skipped: Mapping[str, str] = field(default_factory=dict)


class FolderSide:
    """A folder on its way to features."""

    def __init__(self, root: Path, settings: Settings, pool: DecodePool, scratch: Path) -> None:
        self.name = str(root)
        self._root, self._settings = root, settings
        self._source = FolderClips(root, settings.spec(), pool, scratch)
        self.waiting = 0

    def look(self, extra: int = 0) -> None:
        """Find the clips asked for, and `extra` ones where there are as many.

        Raises:
            DataError: naming files that cannot be used, or when there are too few clips.
        """
        n = self._settings.n
        self.waiting = self._source.reserve(None if n is None else n + extra)
        self._demand(self.waiting)

    def passport(self, extract: Extractor, side: Side | None = None) -> Passport:
        """What the features will depend on."""
        assert self._source.size is not None
        spec = self._settings.spec()
        return features_passport(
            extract.passport(),
            frames=spec.frames,
            fps=self._source.fps,
            stride=spec.stride,
            size=self._source.size,
            side=side or Side(self.waiting),
        )

    def measure(self, extract: Extractor, *, keep: bool) -> Measured:
        """Statistics of the clips asked for, in constant memory unless the features are to be kept."""
        stats, digest = GaussianStats(extract.dim), hashlib.sha256()
        kept: list[Features] = []
        decoders: set[str] = set()
        wanted = self._settings.n or self.waiting
        for clips, features in self._features(extract, wanted, "features of"):
            stats.update(features)
            kept += [features] if keep else []
            for clip in clips:
                digest.update(clip.frames.tobytes())
                decoders.add(clip.decoder)
        self._demand(stats.n)
        side = Side(
            stats.n, self._root.resolve().name, tuple(sorted(decoders)), digest.hexdigest(), self._choice()
        )
        skipped = {str(self._root / name): reason for name, reason in self._source.bad.items()}
        whole = np.concatenate(kept) if keep else None
        return Measured(stats, self.passport(extract, side), whole, skipped)

    def more(self, extract: Extractor, count: int) -> Features:
        """Features (at most `count`, d) of further clips, for the noise floor."""
        found = [features for _, features in self._features(extract, count, "noise floor from")]
        return np.concatenate(found) if found else np.zeros((0, extract.dim), np.float32)

    def _choice(self) -> str:
        many = self._settings.clips_per_video
        each = "first clip of each video" if many == 1 else f"up to {many} clips of each video from its start"
        return each if self._settings.n is None else f"{each}, videos ordered by seed {self._settings.seed}"

    def _features(
        self, extract: Extractor, wanted: int, what: str
    ) -> Iterator[tuple[list[FolderClip], Features]]:
        clips = track(self._source.take(wanted), f"{what} {self._root.name}", wanted, "clip")
        for chunk in _chunks(clips):
            features = extract(torch.from_numpy(np.stack([clip.frames for clip in chunk])))
            broken = np.flatnonzero(~np.isfinite(features).all(axis=1))
            if broken.size:
                names = ", ".join(str(self._root / chunk[i].name) for i in broken)
                raise DataError(
                    f"`{extract.name}` gives NaN or infinite features",
                    found=names,
                    fix="look at these videos, and leave them out",
                )
            yield chunk, features

    def _demand(self, found: int) -> None:
        n, bad = self._settings.n, self._source.complaint()
        if found < (n or 2):
            names = ", ".join(str(self._root / name) for name in self._source.good)
            raise DataError(
                f"{self.name} gives too few clips",
                expected=f"{n} (--n)" if n else "at least 2, for a covariance",
                found=f"{found} of {self._settings.frames} frames{f' ({names})' if 0 < found <= 3 else ''}"
                f"{'; not used:' if bad else ''}{bad}",
                fix="add videos, or raise --clips-per-video"
                + (", or lower --n on both sides (no clip counts twice)" if n else ""),
            )


def _chunks(clips: Iterator[FolderClip]) -> Iterator[list[FolderClip]]:
    chunk: list[FolderClip] = []
    for clip in clips:
        chunk.append(clip)
        if len(chunk) == _CHUNK_CLIPS or len(chunk) * clip.frames.nbytes >= _CHUNK_BYTES:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


@contextmanager
def folders_opened(settings: Settings, *roots: Path) -> Iterator[list[FolderSide]]:
    """The folders as sides that share decoding processes; scratch files are removed at the end."""
    with (
        tempfile.TemporaryDirectory(prefix="vdmini-fvd-") as scratch,
        DecodePool(settings.workers, DECODE_TIMEOUT_S) as pool,
    ):
        yield [FolderSide(root, settings, pool, Path(scratch)) for root in roots]


def folder_stats(root: Path, settings: Settings) -> Measured:
    """Statistics of a folder of videos, in one pass and constant memory.

    Raises:
        DataError: naming files that cannot be used, or when there are too few clips.
    """
    settings = settings.following(None)
    extract = settings.load()
    with folders_opened(settings, root) as (side,):
        side.look()
        return side.measure(extract, keep=False)
