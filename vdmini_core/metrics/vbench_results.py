"""VBench's result files -> flat metrics, with its own Quality, Semantic (or I2V) and Total scores.

VBench writes `<name>_eval_results.json`: {dimension: [score, details ...]}, one or several dimensions a file.
Score of a group: sum of weight * (score - low) / (high - low) over its dimensions, by the sum of weights;
Total: the groups' weighted mean. A group is given only when VBench scored all of it (VBench's own script
takes 0 for what is missing).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from vdmini_core.errors import DataError
from vdmini_core.foreign import read_json_file
from vdmini_core.params import is_number


class Scale(NamedTuple):
    """Lowest and highest value VBench normalises a dimension with, and its weight in its group."""

    low: float = 0.0
    high: float = 1.0
    weight: float = 1.0


# Facts of VBench's scripts/constant.py (Vchitect/VBench at commit 45e79ec, Apache-2.0).
_SUBJECT, _BACKGROUND = Scale(0.1462), Scale(0.2615)
_QUALITY = {
    "subject_consistency": _SUBJECT,
    "background_consistency": _BACKGROUND,
    "motion_smoothness": Scale(0.706, 0.9975),
    "dynamic_degree": Scale(weight=0.5),
    "aesthetic_quality": Scale(),
    "imaging_quality": Scale(),
}
_SEMANTIC = {
    "object_class": Scale(),
    "multiple_objects": Scale(),
    "human_action": Scale(),
    "color": Scale(),
    "spatial_relationship": Scale(),
    "scene": Scale(0.0, 0.8222),
    "appearance_style": Scale(0.0009, 0.2855),
    "temporal_style": Scale(0.0, 0.364),
    "overall_consistency": Scale(0.0, 0.364),
}
_I2V = {
    "i2v_subject": _SUBJECT,
    "i2v_background": _BACKGROUND,
    "camera_motion": Scale(weight=0.1),
}
_FLICKERING = {"temporal_flickering": Scale(0.6293)}
# kind -> group -> (weight of the group in the total, its dimensions)
GROUPS: dict[str, dict[str, tuple[float, dict[str, Scale]]]] = {
    "t2v": {"quality": (4.0, _QUALITY | _FLICKERING), "semantic": (1.0, _SEMANTIC)},
    "i2v": {"quality": (1.0, _QUALITY), "i2v": (1.0, _I2V)},
}
# VBench-I2V also scores flickering; it enters no group there.
DIMENSIONS: dict[str, tuple[str, ...]] = {
    "t2v": (*_QUALITY, *_FLICKERING, *_SEMANTIC),
    "i2v": (*_I2V, *_QUALITY, *_FLICKERING),
}


def read_results(path: Path, kind: str) -> dict[str, float]:
    """Flat metrics of one model.

    Args:
        path: a result file, or a folder of them (VBench's `--output_path`; other JSON in it, such as
            `*_full_info.json`, is passed over).
        kind: `i2v` or `t2v`.

    Returns:
        Dimension -> score as VBench wrote it, in the order of `DIMENSIONS`, then `quality_score`,
        `semantic_score` or `i2v_score`, and `total_score`, each where it is complete. Empty for a folder
        without results.

    Raises:
        DataError: naming file and dimension: unreadable, unknown, no number, or two files that disagree.
    """
    files = sorted(path.rglob("*.json")) if path.is_dir() else [path]
    found: dict[str, tuple[float, Path]] = {}
    for file in files:
        for dimension, value in _read_file(file, kind).items():
            before = found.setdefault(dimension, (value, file))
            if before[0] != value:
                raise DataError(
                    f"two result files of VBench disagree on {dimension}",
                    found=f"{before[1]}: {before[0]}, {file}: {value}",
                    fix="keep the file that belongs to these videos",
                )
    scores = {name: found[name][0] for name in DIMENSIONS[kind] if name in found}
    return scores | group_scores(scores, kind)


def _read_file(file: Path, kind: str) -> dict[str, float]:
    try:
        data: Any = read_json_file(file)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{file} is not a result file of VBench",
            found=str(error),
            fix="give what VBench wrote, *_eval_results.json",
        ) from None
    if not isinstance(data, dict):
        return {}
    for dimension, entry in data.items():
        if dimension not in DIMENSIONS[kind]:
            raise DataError(
                f"{file} holds a dimension that VBench of kind `{kind}` does not have",
                expected=", ".join(DIMENSIONS[kind]),
                found=dimension,
                fix="set evaluate.vbench.kind to the VBench that was run",
            )
        # Scores lie in 0..1 (a cosine may fall below 0, rounding just above 1); imaging_quality lay in
        # 0..100 before VBench's commit f8a6bd1.
        if not (isinstance(entry, list) and entry and is_number(entry[0]) and abs(entry[0]) <= 1 + 1e-3):
            raise DataError(
                f"{dimension} in {file} is not a score of VBench",
                expected="[a number up to 1, details ...]",
                found=json.dumps(entry)[:80],
                fix="NaN means that VBench found no video of this dimension",
            )
    return {dimension: float(entry[0]) for dimension, entry in data.items()}


def group_scores(scores: Mapping[str, float], kind: str) -> dict[str, float]:
    """`<group>_score` of every complete group, and `total_score` where all are complete; about 0 to 1."""
    groups: dict[str, float] = {}
    total = 0.0
    for group, (weight, scales) in GROUPS[kind].items():
        if scales.keys() <= scores.keys():
            normal = (s.weight * (scores[n] - s.low) / (s.high - s.low) for n, s in scales.items())
            groups[f"{group}_score"] = sum(normal) / sum(s.weight for s in scales.values())
            total += weight * groups[f"{group}_score"]
    if len(groups) == len(GROUPS[kind]):
        groups["total_score"] = total / sum(weight for weight, _ in GROUPS[kind].values())
    return groups
