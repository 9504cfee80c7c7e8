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

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vdmini_core.metrics.extractors import EXTRACTORS, load_extractor
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

PREFIX = {"embedded": "fvd", "content": "content", "motion": "motion"}
SMALLEST_SSIM_SIDE = 11
Features = dict[str, NDArray[np.float32]]


def compare_rows(
    rows: Mapping[str, Tensor],
    other_real: Tensor,
    seed: int,
    device: str = "cpu",
    truth: Mapping[str, NDArray[Any]] | None = None,
    *,
    protocol: Protocol | None = None,
) -> dict[str, Any]:
    """Quality of every row.

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
    table: dict[str, dict[str, Any]] = {name: {} for name in rows}
    floors: dict[str, Any] = {}
    passports: dict[str, Any] = {}
    for extractor_name in EXTRACTORS:
        extract = load_extractor(extractor_name, device=device)
        features: Features = {name: extract(clips) for name, clips in rows.items()}
        _measure(PREFIX[extractor_name], features, extract(other_real), seed, table, floors)
        passports[extractor_name] = extract.passport()
    if protocol is not None:
        extract = protocol.extract
        features = {name: extract(protocol.pick(clips), progress=True) for name, clips in rows.items()}
        _measure(extract.name, features, extract(protocol.see(other_real)), seed, table, floors)
        passports[extract.name] = extract.passport()
    for name, clips in rows.items():
        if name != "teacher":
            table[name] |= _paired(clips, rows["teacher"])
        if truth is not None:
            table[name] |= _against_truth(clips, rows["real"], truth)
    return {"rows": table, "noise_floor": floors, "passport": passports}


def _measure(
    prefix: str,
    features: Features,
    other: NDArray[np.float32],
    seed: int,
    table: dict[str, dict[str, Any]],
    floors: dict[str, Any],
) -> None:
    """Add the distances of every row and the noise floor by one extractor."""
    for name in features:
        table[name] |= _distances(name, features, other, prefix, seed)
    floor = _floor(features["real"], other, seed)
    if floor is not None:
        floors[prefix] = floor


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


def _paired(clips: Tensor, teacher: Tensor) -> dict[str, float]:
    measures = {
        "mse_teacher": paired_mse(clips, teacher),
        "psnr_teacher": psnr(clips, teacher),
        "temporal_error_teacher": temporal_difference_error(clips, teacher),
        "perceptual_teacher": perceptual_distance(clips, teacher),
    }
    if min(clips.shape[2:4]) >= SMALLEST_SSIM_SIDE:
        measures["ssim_teacher"] = ssim(clips, teacher)
    return {key: significant(float(values.mean())) for key, values in measures.items()}


def _against_truth(clips: Tensor, real: Tensor, truth: Mapping[str, NDArray[Any]]) -> dict[str, float]:
    errors = sprite_errors(clips.numpy(), real.numpy(), truth)
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
