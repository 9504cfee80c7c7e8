"""Statistics of one set of features on disk, with the passport without which they would be of no use."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError

from vdmini_core.errors import DataError, ModelError
from vdmini_core.foreign import demand_header
from vdmini_core.metrics.frechet import GaussianStats
from vdmini_core.metrics.passport import Passport

SUFFIX = ".safetensors"
_MADE_BY = "a file written by `fvd-stats`"


@dataclass(frozen=True)
class Asked:
    """What frames were brought to, beyond what their files already had.

    The passport tells how clips were seen, but not whether that took any work. Only what was asked for is
    applied to the other side: a native size or rate must be met, or it would be a difference of treatment.

    Attributes:
        fps: sampled by time at this rate; None: as the files are, or a stride.
        size: (height, width) scaled and cropped to; None: as the files are.
    """

    fps: float | None = None
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class Saved:
    """One file: the statistics of a set, their passport, and what was asked for when it was made."""

    stats: GaussianStats
    passport: Passport
    asked: Asked = Asked()

    def options(self) -> dict[str, Any]:
        """What `load_extractor` needs to make the same extractor again, but for the weights."""
        named = dict(self.passport.options)
        found: dict[str, Any] = {key: named[key] for key in ("bn_eps", "dtype") if key in named}
        if self.passport.extractor == "i3d":
            # Both texts begin with the option's name (metrics.i3d_extractor).
            found["layer"] = (self.passport.layer or "").split(",")[0]
            found["convention"] = (self.passport.resize or "").split(":")[0]
        return found


def load_stats(path: Path) -> Saved:
    """Read and check saved statistics.

    Raises:
        DataError: naming the file, when it is missing, something else, damaged, holds NaN or has no passport.
    """
    if not path.is_file():
        raise DataError(f"{path} is not there", expected=_MADE_BY)
    try:
        demand_header(path)
        stats, raw = GaussianStats.load(path)
    except ModelError as error:
        raise DataError(
            f"{path} holds no statistics", expected=_MADE_BY, found=error.problem, fix=error.fix
        ) from None
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(
            f"{path} holds no statistics", expected=_MADE_BY, found=str(error).split("\n")[0]
        ) from None
    if not raw:
        raise DataError(f"{path} has no passport: nothing says what its numbers depend on", expected=_MADE_BY)
    asked = _asked(raw.pop("asked", None) if isinstance(raw, dict) else None)
    passport = Passport.from_json(raw, f"the passport of {path}")
    _check(stats, passport, path)
    return Saved(stats, passport, asked)


def _asked(raw: Any) -> Asked:
    """Statistics may not tell: then nothing is applied, and the sides must agree as they are."""
    if not isinstance(raw, Mapping):
        return Asked()
    fps, size = raw.get("fps"), raw.get("size")
    try:
        found = Asked(
            None if fps is None else float(fps), None if size is None else (int(size[0]), int(size[1]))
        )
        if found.fps is not None and not 0 < found.fps < math.inf:
            raise ValueError
    except (TypeError, ValueError, IndexError, KeyError, OverflowError):
        raise DataError(
            "the passport does not say what was asked for",
            expected="`asked`: fps, a number above 0, and size, (height, width)",
            found=repr(dict(raw))[:120],
            fix="make the statistics again with `fvd-stats`",
        ) from None
    return found


def _check(stats: GaussianStats, passport: Passport, path: Path) -> None:
    d = passport.dim
    if stats.mean.shape != (d,) or stats.scatter.shape != (d, d) or stats.n != passport.real.clips:
        raise DataError(
            f"{path} does not fit its own passport",
            expected=f"{passport.real.clips} clips, {d} features",
            found=f"{stats.n} clips, mean {stats.mean.shape}, scatter {stats.scatter.shape}",
        )
    if stats.n < 2:
        raise DataError(
            f"{path} holds statistics of too few clips", expected="at least 2", found=str(stats.n)
        )
    if not (np.isfinite(stats.mean).all() and np.isfinite(stats.scatter).all()):
        raise DataError(f"{path} holds NaN or infinite numbers", fix="make it again with `fvd-stats`")


def save_stats(saved: Saved, path: Path) -> None:
    """Write the statistics of one side with their passport, whole or not at all.

    Raises:
        DataError: for another suffix, or a folder that is not there.
    """
    checked_output(path)
    temporary = path.with_name(f".{path.name}.tmp")
    saved.stats.save(temporary, saved.passport.to_json() | {"asked": asdict(saved.asked)})
    temporary.replace(path)


def checked_output(path: Path) -> Path:
    """The path, when statistics can be written there.

    Raises:
        DataError: for another suffix, or a folder that is not there.
    """
    if path.suffix != SUFFIX:
        raise DataError(
            f"statistics are written to a {SUFFIX} file", found=str(path), fix=f"name it *{SUFFIX}"
        )
    if not path.resolve().parent.is_dir():
        raise DataError(
            "the output's folder does not exist", found=str(path.parent), fix="make it, or name another"
        )
    return path
