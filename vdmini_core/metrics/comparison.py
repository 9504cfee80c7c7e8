"""The table of an evaluation: every row against real clips and against the teacher's clips.

Rows are clips (n, F, H, W, 3) uint8 that share conditions and, where generated, noise: clip i of every row
starts from the first frame of real test clip i.

* `fvd_real`: to the real test clips. For the row `real`, *other* real clips (validation, then training
  clips) of the same number take the place of generated ones: the noise floor of that column.
* `fvd_teacher`, `mse_teacher`, `psnr_teacher`, ...: to the teacher's clips of the same conditions and noise.
  For `real` these are the real test clips themselves.
* `content_*`, `motion_*`: the same distances by what single frames show, and by how things move.
* `trajectory_error` (pixels), `colour_error`, `shape_error`: against the known truth of procedural clips.
* `i3d_*`, `videomae_*`: the same by the network of a published protocol, where `evaluate.fvd` names one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vdmini_core.data.clip_source import Clips, ClipSource, as_source, parts
from vdmini_core.metrics.extractors import EXTRACTORS, Extractor, load_extractor
from vdmini_core.metrics.frechet import frechet_distance
from vdmini_core.metrics.ground_truth import sprite_errors
from vdmini_core.metrics.paired import (
    paired_mse,
    perceptual_distance,
    psnr,
    ssim,
    temporal_difference_error,
)
from vdmini_core.metrics.protocol import Protocol
from vdmini_core.metrics.uncertainty import frechet_with_interval, noise_floor
from vdmini_core.progress import progress_bar

PREFIX = {"embedded": "fvd", "content": "content", "motion": "motion"}
SMALLEST_SSIM_SIDE = 11
Features = dict[str, NDArray[np.float32]]


def compare_rows(
    rows: Mapping[str, Clips],
    other_real: Clips,
    seed: int,
    device: str = "cpu",
    truth: Mapping[str, NDArray[Any]] | None = None,
    *,
    protocol: Protocol | None = None,
) -> dict[str, Any]:
    """Quality of every row; a few clips of each are in memory at once.

    Args:
        rows: name -> clips (n, F, H, W, 3) uint8; `real` (test clips) and `teacher` must be among them.
        other_real: real clips that are not test clips, for the row `real` and the noise floor.
        seed: of the groups of the intervals and the splits of the noise floor.
        device: of the extractors.
        truth: of the real clips, where they are procedural (see `ground_truth.sprite_errors`).
        protocol: one more network and the part of the clips that it sees, measured under its own name.

    Returns:
        `rows`: name -> measures; `noise_floor`: prefix -> mean, sd, n; `passport`: extractor -> passport.
    """
    sources = {name: as_source(clips) for name, clips in rows.items()}
    other = as_source(other_real)
    table: dict[str, dict[str, Any]] = {name: {} for name in rows}
    floors: dict[str, Any] = {}
    extractors = [load_extractor(name, device=device) for name in EXTRACTORS]
    _measure(extractors, sources, other, seed, table, floors)
    if protocol is not None:
        extractors.append(protocol.extract)
        views = {name: protocol.view(clips, protocol.chosen) for name, clips in sources.items()}
        _measure([protocol.extract], views, protocol.view(other), seed, table, floors)
    for name, clips in sources.items():
        if name != "teacher":
            table[name] |= _paired(clips, sources["teacher"])
        if truth is not None:
            table[name] |= _against_truth(clips, sources["real"], truth)
    passports = {extract.name: extract.passport() for extract in extractors}
    return {"rows": table, "noise_floor": floors, "passport": passports}


def _measure(
    extractors: Sequence[Extractor],
    rows: Mapping[str, ClipSource],
    other: ClipSource,
    seed: int,
    table: dict[str, dict[str, Any]],
    floors: dict[str, Any],
) -> None:
    """Add the distances of every row and the noise floor by each extractor; chunks are read once for all."""
    what = "features of " + ", ".join(extract.name for extract in extractors)
    with progress_bar(what, sum(map(len, rows.values())) + len(other), "clip") as bar:
        found = {name: _features(extractors, clips, bar.update) for name, clips in rows.items()}
        others = _features(extractors, other, bar.update)
    for index, extract in enumerate(extractors):
        prefix = PREFIX.get(extract.name, extract.name)
        features = {name: each[index] for name, each in found.items()}
        for name in features:
            table[name] |= _distances(name, features, others[index], prefix, seed)
        floor = _floor(features["real"], others[index], seed)
        if floor is not None:
            floors[prefix] = floor


def _features(
    extractors: Sequence[Extractor], clips: ClipSource, advance: Callable[[int], Any]
) -> list[NDArray[np.float32]]:
    """Features (n, d) by each extractor."""
    found: list[list[NDArray[np.float32]]] = [[] for _ in extractors]
    for chunk in clips.chunks():
        for mine, extract in zip(found, extractors, strict=True):
            mine.append(extract(chunk))
        advance(len(chunk))
    return [
        np.concatenate(mine) if mine else np.zeros((0, extract.dim), np.float32)
        for mine, extract in zip(found, extractors, strict=True)
    ]


def _distances(
    name: str, features: Features, other: NDArray[np.float32], prefix: str, seed: int
) -> dict[str, Any]:
    if name == "real":
        # Same n on both sides: the bias of the distance depends on it.
        n = min(len(other), len(features["real"]))
        measures = _distance(f"{prefix}_real", other[:n], features["real"][:n], seed, paired=False)
    else:
        measures = _distance(f"{prefix}_real", features[name], features["real"], seed, paired=True)
    if name != "teacher":
        measures |= _distance(f"{prefix}_teacher", features[name], features["teacher"], seed, paired=True)
    return measures


def _distance(
    key: str, a: NDArray[np.float32], b: NDArray[np.float32], seed: int, *, paired: bool
) -> dict[str, Any]:
    if len(a) < 3:  # no spread to be had
        return {key: significant(frechet_distance(a, b))}
    result = frechet_with_interval(a, b, seed, paired=paired)
    low, high = significant(result.low), significant(result.high)
    return {
        key: significant(result.value),
        f"{key}_interval": [low, high],
        f"{key}_low": low,
        f"{key}_high": high,
    }


def _floor(real: NDArray[np.float32], other: NDArray[np.float32], seed: int) -> dict[str, Any] | None:
    pool = np.concatenate([real, other])
    n = min(len(real), len(pool) // 2)
    if n < 2:
        return None
    floor = noise_floor(pool, n, seed)
    return {"mean": significant(floor.mean), "sd": significant(floor.sd), "n": floor.n}


def _paired(clips: ClipSource, teacher: ClipSource) -> dict[str, float]:
    measures = {
        "mse_teacher": paired_mse,
        "psnr_teacher": psnr,
        "temporal_error_teacher": temporal_difference_error,
        "perceptual_teacher": perceptual_distance,
    }
    if min(clips.shape[2:4]) >= SMALLEST_SSIM_SIDE:
        measures["ssim_teacher"] = ssim
    values: dict[str, list[NDArray[np.float64]]] = {key: [] for key in measures}
    for ours, theirs in zip(clips.chunks(), teacher.chunks(), strict=True):
        for key, measure in measures.items():
            values[key].append(measure(ours, theirs))
    return {key: significant(float(np.concatenate(found).mean())) for key, found in values.items()}


def _against_truth(
    clips: ClipSource, real: ClipSource, truth: Mapping[str, NDArray[Any]]
) -> dict[str, float]:
    chunks = zip(parts(len(clips)), clips.chunks(), real.chunks(), strict=True)
    found = [
        sprite_errors(made.numpy(), true.numpy(), {name: values[part] for name, values in truth.items()})
        for part, made, true in chunks
    ]
    errors = {key: np.concatenate([each[key] for each in found]) for key in found[0]}
    # A clip whose sprites are all hidden says nothing; a set without any sprite to be seen has no measure.
    return {
        key: significant(float(np.nanmean(values)))
        for key, values in errors.items()
        if np.isfinite(values).any()
    }


def significant(value: float, digits: int = 6) -> float:
    """Rounded to significant digits, so that files do not carry the last bits of float arithmetic."""
    return float(f"{value:.{digits}g}")


def repeat_first_frame(clips: Tensor) -> Tensor:
    """The reference that any model must beat: every frame is the first one."""
    return clips[:, :1].expand_as(clips).contiguous()
