"""Video metrics: Fréchet distances with intervals, extractors, paired measures, speed.

The names below are the public ones; each is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vdmini_core.metrics.extractors import Extractor, load_extractor
    from vdmini_core.metrics.folder_distance import folder_distance
    from vdmini_core.metrics.frechet import GaussianStats, frechet_distance
    from vdmini_core.metrics.ground_truth import sprite_errors
    from vdmini_core.metrics.paired import (
        paired_mse,
        paired_permutation_test,
        perceptual_distance,
        psnr,
        ssim,
        temporal_difference_error,
    )
    from vdmini_core.metrics.passport import Passport, require_comparable
    from vdmini_core.metrics.sanity import sanity_table
    from vdmini_core.metrics.speed import compare_latency, count_flops, measure_latency, peak_memory
    from vdmini_core.metrics.uncertainty import (
        FrechetResult,
        NoiseFloor,
        frechet_difference,
        frechet_infinite,
        frechet_with_interval,
        noise_floor,
    )

_HOMES = {
    "Extractor": "metrics.extractors",
    "FrechetResult": "metrics.uncertainty",
    "GaussianStats": "metrics.frechet",
    "NoiseFloor": "metrics.uncertainty",
    "Passport": "metrics.passport",
    "compare_latency": "metrics.speed",
    "count_flops": "metrics.speed",
    "folder_distance": "metrics.folder_distance",
    "frechet_difference": "metrics.uncertainty",
    "frechet_distance": "metrics.frechet",
    "frechet_infinite": "metrics.uncertainty",
    "frechet_with_interval": "metrics.uncertainty",
    "load_extractor": "metrics.extractors",
    "measure_latency": "metrics.speed",
    "noise_floor": "metrics.uncertainty",
    "paired_mse": "metrics.paired",
    "paired_permutation_test": "metrics.paired",
    "perceptual_distance": "metrics.paired",
    "peak_memory": "metrics.speed",
    "psnr": "metrics.paired",
    "sanity_table": "metrics.sanity",
    "sprite_errors": "metrics.ground_truth",
    "require_comparable": "metrics.passport",
    "ssim": "metrics.paired",
    "temporal_difference_error": "metrics.paired",
}

__all__ = [
    "Extractor",
    "FrechetResult",
    "GaussianStats",
    "NoiseFloor",
    "Passport",
    "compare_latency",
    "count_flops",
    "folder_distance",
    "frechet_difference",
    "frechet_distance",
    "frechet_infinite",
    "frechet_with_interval",
    "load_extractor",
    "measure_latency",
    "noise_floor",
    "paired_mse",
    "paired_permutation_test",
    "peak_memory",
    "perceptual_distance",
    "psnr",
    "require_comparable",
    "sanity_table",
    "sprite_errors",
    "ssim",
    "temporal_difference_error",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"vdmini_core.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
