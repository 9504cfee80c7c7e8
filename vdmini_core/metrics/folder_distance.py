"""Fréchet distance between two folders of videos, or saved statistics of either: both sides treated alike.

The value always comes from streamed statistics, so that a folder and its saved statistics give the very same
number. The interval and the noise floor need the features (n, d) themselves: folders have them, saved
statistics do not.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vdmini_core.errors import DataError
from vdmini_core.metrics.extractors import GIVEN_WEIGHTS, Extractor
from vdmini_core.metrics.folder import Features, FolderSide, Measured, Settings, folders_opened
from vdmini_core.metrics.frechet import frechet_distance
from vdmini_core.metrics.passport import Passport, join, version_remarks
from vdmini_core.metrics.saved_stats import SUFFIX, Saved, load_stats
from vdmini_core.metrics.uncertainty import NoiseFloor, frechet_with_interval, noise_floor

CONFIDENCE = 0.95


@dataclass(frozen=True)
class FolderDistance:
    """A distance with all that is needed to trust it.

    Attributes:
        value: Fréchet distance.
        interval: (low, high) of the value expected of such samples at this n; None with a note that says why.
        floor: real clips against other real clips; None with a note that says why.
        passport: what the value depends on.
        notes: remarks for the person.
        skipped: file -> reason, of either side.
    """

    value: float
    interval: tuple[float, float] | None
    floor: NoiseFloor | None
    passport: Passport
    notes: tuple[str, ...]
    skipped: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        floor = self.floor and {"mean": self.floor.mean, "sd": self.floor.sd, "n": self.floor.n}
        assert self.passport.generated is not None
        return {
            "value": self.value,
            "interval": self.interval and list(self.interval),
            "confidence": CONFIDENCE,
            "noise_floor": floor,
            "n": {"real": self.passport.real.clips, "generated": self.passport.generated.clips},
            "passport": self.passport.to_json(),
            "notes": list(self.notes),
            "skipped": self.skipped,
        }


def folder_distance(
    real: Path, generated: Path, settings: Settings, *, with_floor: bool = True
) -> FolderDistance:
    """Distance between two sets, each a folder of videos or statistics written by `fvd-stats`.

    Args:
        real, generated: the sets.
        settings: how clips are read; what is not given follows saved statistics, so that both sides agree.
        with_floor: read as many real clips again as the value uses, where there are as many, for a noise
            floor at the same n; without it the floor is made of the halves of the value's own real clips.

    Raises:
        DataError: naming files that cannot be used, too few clips, or every difference between the sides.
    """
    saved = {path: load_stats(path) for path in (real, generated) if path.suffix == SUFFIX}
    for path, item in saved.items():
        _demand_asked(path, item, settings)
    settings = settings.following(next(iter(saved.values()), None))
    folders = [path for path in dict.fromkeys((real, generated)) if path not in saved]
    extract = _load(settings, saved) if folders or "weights" in settings.options else None
    measured = {path: Measured(item.stats, item.passport) for path, item in saved.items()}
    _demand_n(measured, settings.n)
    names = f"real ({real})", f"generated ({generated})"
    extra: Features | None = None
    with ExitStack() as stack:
        if folders:
            assert extract is not None
            sides = dict(zip(folders, stack.enter_context(folders_opened(settings, *folders)), strict=True))
            _look(sides, real, settings, with_floor)
            planned = {path: item.passport for path, item in measured.items()}
            planned |= {path: side.passport(extract) for path, side in sides.items()}
            join(planned[real], planned[generated], names)  # before hours are spent
            measured |= {path: side.measure(extract, keep=True) for path, side in sides.items()}
            extra = _for_floor(sides.get(real), extract, measured[real], with_floor)
    return _distance(measured[real], measured[generated], extra, names, settings.seed)


def _demand_asked(path: Path, saved: Saved, settings: Settings) -> None:
    """Refuse options that saved statistics contradict, before anything else is read."""
    passport = saved.passport
    keys = ("extractor", "frames", "fps", "stride", "size")
    asked = {key: getattr(settings, key) for key in keys} | dict(settings.options)
    there = {key: getattr(passport, key) for key in keys} | saved.options()
    there["sha256"] = passport.weights_sha256
    if asked.get("sha256"):
        asked["sha256"] = asked["sha256"].lower()
    lines = [
        f"{key}: {value} asked for, {'none' if there.get(key) is None else there[key]} there"
        for key, value in asked.items()
        if value is not None and key != "weights" and value != there.get(key)
    ]
    if lines:
        raise DataError(
            f"{path} was not made as asked for",
            found="".join(f"\n      {line}" for line in lines),
            fix="make it again with `fvd-stats` and these options, or drop them",
        )


def _load(settings: Settings, saved: Mapping[Path, Saved]) -> Extractor:
    """The extractor, with the weights that saved sides were measured with."""
    wanted = {
        path: _weights(item.passport.weights_sha256, dict(item.passport.options))
        for path, item in saved.items()
    }
    if settings.extractor in GIVEN_WEIGHTS and "weights" not in settings.options and saved:
        path, weights = next(iter(wanted.items()))
        raise DataError(
            f"{path} was measured with `{settings.extractor}`, whose weights are not given",
            expected=weights,
            fix="--weights FILE",
        )
    extract = settings.load()
    identity = extract.passport()
    found = _weights(identity["weights_sha256"], identity)
    for path, weights in wanted.items():
        if weights != found:
            raise DataError(
                f"{path} was measured with other weights of `{extract.name}`",
                expected=f"{weights}, as in its passport",
                found=found,
                fix="give those weights, or make it again with `fvd-stats` and these",
            )
    return extract


def _weights(sha256: str | None, options: Mapping[str, Any]) -> str:
    """Weights as a passport names them: by their bytes, or by their name on the hub."""
    return str(options.get("weights") or f"sha256 {sha256}")


def _look(sides: dict[Path, FolderSide], real: Path, settings: Settings, with_floor: bool) -> None:
    for path, side in sides.items():
        side.look(settings.n if path == real and with_floor and settings.n else 0)


def _for_floor(
    side: FolderSide | None, extract: Extractor, real: Measured, with_floor: bool
) -> Features | None:
    """Real features for the floor: the value's own and, where as many more can be had, those too."""
    if side is None or real.features is None:
        return None
    n = real.stats.n
    if not with_floor or side.waiting < 2 * n:
        return real.features
    return np.concatenate([real.features, side.more(extract, n)])


def _demand_n(measured: dict[Path, Measured], n: int | None) -> None:
    for path, item in measured.items():
        if n is not None and item.stats.n != n:
            raise DataError(
                f"{path} holds another number of clips",
                expected=f"{n} (--n)",
                found=str(item.stats.n),
                fix=f"make it again with `fvd-stats --n {n}`, or drop --n",
            )


def _distance(
    real: Measured, generated: Measured, for_floor: Features | None, names: tuple[str, str], seed: int
) -> FolderDistance:
    passport = join(real.passport, generated.passport, names)
    value = frechet_distance(generated.stats, real.stats)
    n_real, n_generated = real.stats.n, generated.stats.n
    notes = []
    if n_real != n_generated:
        notes.append(
            f"{n_real} real against {n_generated} generated clips: the bias depends on both numbers; "
            "give --n to make them equal"
        )
    if real.passport.real.data == generated.passport.real.data:
        notes.append("both sides hold the very same clips")
    interval, why_not = _interval(real, generated, value, seed)
    floor, remark = _floor(for_floor, min(n_real, n_generated), seed)
    notes += [note for note in (why_not, remark, *version_remarks(real.passport, generated.passport)) if note]
    return FolderDistance(
        value, interval, floor, passport, tuple(notes), {**real.skipped, **generated.skipped}
    )


def _interval(
    real: Measured, generated: Measured, value: float, seed: int
) -> tuple[tuple[float, float] | None, str]:
    if real.features is None or generated.features is None:
        return None, "no interval: it needs the features of every clip, saved statistics hold their moments"
    if min(len(real.features), len(generated.features)) < 3:
        return None, "no interval: two clips have no spread"
    found = frechet_with_interval(generated.features, real.features, seed, confidence=CONFIDENCE)
    reach = found.high - found.value
    return (max(0.0, value - reach), value + reach), ""


def _floor(features: Features | None, n: int, seed: int) -> tuple[NoiseFloor | None, str]:
    if features is None:
        return None, "no noise floor: it needs the features of real clips, give the folder"
    size = min(n, len(features) // 2)
    if size < 2:
        return None, "no noise floor: it needs at least 4 real clips"
    floor = noise_floor(features, size, seed)
    if size == n:
        return floor, ""
    return floor, (
        f"the noise floor is {size} against {size} real clips, for there are no {2 * n}: "
        f"at {n} against {n} it would be lower"
    )
