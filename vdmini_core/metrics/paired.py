"""Measures between clips that share condition and noise: one value per clip, so that few clips already tell.

All take two sets of clips (n, F, H, W, 3), uint8 or floats in [0, 1], n >= 2, and return float64 (n,).
They raise DataError on different shapes, NaN (naming the clip), wrong types, or fewer than two clips.
Clips are compared one by one, so memory does not grow with n.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from vdmini_core.errors import DataError
from vdmini_core.metrics.clips import as_unit_floats, checked_videos, resized
from vdmini_core.metrics.embedded import SIDE, FrameNetwork
from vdmini_core.metrics.filters import gaussian_filter

PSNR_CAP = 100.0  # dB; what equal clips get, so that no infinity reaches a report
_WINDOW_SIGMA, _WINDOW_RADIUS = 1.5, 5
_C1, _C2 = 0.01**2, 0.03**2  # for values in [0, 1]
PerClip = NDArray[np.float64]


def paired_mse(a: Tensor, b: Tensor) -> PerClip:
    """Mean squared error of pixel values in [0, 1]."""
    return _per_clip(a, b, _squared_error)


def psnr(a: Tensor, b: Tensor) -> PerClip:
    """Peak signal-to-noise ratio in dB from each clip's mean squared error, at most 100."""
    return -10 * np.log10(np.maximum(paired_mse(a, b), 10 ** (-PSNR_CAP / 10)))


def ssim(a: Tensor, b: Tensor) -> PerClip:
    """Structural similarity, mean over frames and colours (Wang et al. 2004: Gaussian 11 x 11, sigma 1.5)."""
    side = min(a.shape[2:4]) if a.ndim == 5 else 0
    if a.ndim == 5 and side < 2 * _WINDOW_RADIUS + 1:
        raise DataError(
            "frames are too small for SSIM", expected="at least 11 x 11 pixels", found=f"{side} pixels"
        )
    return _per_clip(a, b, _similarity)


def temporal_difference_error(a: Tensor, b: Tensor) -> PerClip:
    """Mean squared error of the changes from frame to frame; a constant error in looks does not count."""
    return _per_clip(a, b, lambda x, y: _squared_error(x.diff(dim=0), y.diff(dim=0)), least_frames=2)


def perceptual_distance(a: Tensor, b: Tensor, network: FrameNetwork | None = None) -> PerClip:
    """Distance of frames as a network sees them, in the manner of LPIPS (Zhang et al. 2018, Eq. 1).

    After every stage of the frame network that ships with the package, activations are brought to unit
    length over channels; their squared differences are averaged over places and frames and summed over
    stages. No learned weights on top, so values are not those of LPIPS.

    Args:
        a: clips.
        b: other clips of the same shape.
        network: another frame network.
    """
    if network is None:
        from vdmini_core.metrics.embedded_weights import frame_network

        network = frame_network()
    return _per_clip(a, b, lambda x, y: _stage_distance(network, x, y))


def _stage_distance(network: FrameNetwork, x_FHWC: Tensor, y_FHWC: Tensor) -> float:
    with torch.inference_mode():
        frames = [resized(z[None], SIDE)[0].transpose(0, 1) for z in (x_FHWC, y_FHWC)]
        pairs = zip(*(network.stage_outputs(z) for z in frames), strict=True)
        return sum(float((_unit(p) - _unit(q)).square().sum(dim=1).mean()) for p, q in pairs)


def _unit(activations_NCHW: Tensor) -> Tensor:
    return F.normalize(activations_NCHW, eps=1e-6)


def paired_permutation_test(a: PerClip, b: PerClip, seed: int = 0, rounds: int = 9999) -> float:
    """Chance that two sets of per-clip values differ this much in their mean if damage made no difference.

    Two-sided sign-flip test: under the null hypothesis the two values of a clip may be exchanged. The
    smallest value it can return is 1 / (rounds + 1).

    Args:
        a: a measure of every clip.
        b: the same measure of the same clips, otherwise treated.
        seed: of the flips.
        rounds: how many random flips.

    Raises:
        DataError: on different lengths or values that are not finite.
    """
    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if first.shape != second.shape or first.ndim != 1 or not len(first):
        raise DataError("paired values differ in number", expected=str(first.shape), found=str(second.shape))
    difference = first - second
    if not np.isfinite(difference).all():
        raise DataError(
            "values that are not finite cannot be tested",
            found=str(np.flatnonzero(~np.isfinite(difference))[:8]),
            fix="leave these clips out of both sides",
        )
    rng, seen = np.random.default_rng(seed), abs(difference.sum())
    flips = rng.integers(0, 2, (rounds, len(difference)), dtype=np.int8) * 2 - 1
    as_large = np.abs(flips @ difference) >= seen * (1 - 1e-12)
    return float((1 + as_large.sum()) / (rounds + 1))


def _per_clip(
    a: Tensor, b: Tensor, measure: Callable[[Tensor, Tensor], float], least_frames: int = 1
) -> PerClip:
    first = checked_videos(a, "first clips", least_clips=2, least_frames=least_frames)
    second = checked_videos(b, "second clips", least_clips=2, least_frames=least_frames)
    if first.shape != second.shape:
        raise DataError(
            "paired clips must have the same shape",
            expected=str(tuple(first.shape)),
            found=str(tuple(second.shape)),
        )
    pairs = zip(first, second, strict=True)
    return np.array([measure(as_unit_floats(x), as_unit_floats(y)) for x, y in pairs], dtype=np.float64)


def _squared_error(x: Tensor, y: Tensor) -> float:
    return float((x - y).double().square().mean())


def _similarity(x_FHWC: Tensor, y_FHWC: Tensor) -> float:
    x, y = x_FHWC.permute(0, 3, 1, 2).double(), y_FHWC.permute(0, 3, 1, 2).double()

    def local(image: Tensor) -> Tensor:
        return gaussian_filter(image, _WINDOW_SIGMA, _WINDOW_RADIUS, pad=False)

    mean_x, mean_y = local(x), local(y)
    var_x, var_y = local(x * x) - mean_x**2, local(y * y) - mean_y**2
    covariance = local(x * y) - mean_x * mean_y
    looks = (2 * mean_x * mean_y + _C1) / (mean_x**2 + mean_y**2 + _C1)
    structure = (2 * covariance + _C2) / (var_x + var_y + _C2)
    return float(torch.mean(looks * structure))
