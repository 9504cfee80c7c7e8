"""Paired measures: values by hand, direction, and errors that name the clip."""

import numpy as np
import pytest
import torch

from vdmini_core.errors import DataError
from vdmini_core.metrics import (
    paired_mse,
    paired_permutation_test,
    perceptual_distance,
    psnr,
    ssim,
    temporal_difference_error,
)

MEASURES = (paired_mse, psnr, ssim, temporal_difference_error)


def clips(n=3, frames=4, side=16, seed=0):
    return torch.rand((n, frames, side, side, 3), generator=torch.Generator().manual_seed(seed))


def test_equal_clips():
    a = clips()
    assert paired_mse(a, a).tolist() == [0, 0, 0]
    assert psnr(a, a).tolist() == [100, 100, 100]
    np.testing.assert_allclose(ssim(a, a), 1)
    assert temporal_difference_error(a, a).tolist() == [0, 0, 0]


def test_values_per_clip():
    a = torch.full((2, 3, 16, 16, 3), 0.5)
    b = a.clone()
    b[1] += 0.1
    np.testing.assert_allclose(paired_mse(a, b), [0, 0.01], atol=1e-7)
    np.testing.assert_allclose(psnr(a, b), [100, 20], atol=1e-4)
    # A constant error in looks is no error in motion.
    np.testing.assert_allclose(temporal_difference_error(a, b), [0, 0], atol=1e-12)
    b[0, 1] += 0.2
    np.testing.assert_allclose(temporal_difference_error(a, b)[0], 0.04, atol=1e-7)
    # Flat pictures: only the luminance term of SSIM is left.
    expected = (2 * 0.5 * 0.6 + 1e-4) / (0.5**2 + 0.6**2 + 1e-4)
    np.testing.assert_allclose(ssim(a, b)[1], expected, atol=1e-6)


def test_uint8_and_floats_agree():
    a, b = ((clips(seed=s) * 255).round().to(torch.uint8) for s in (0, 1))
    for measure in MEASURES:
        np.testing.assert_allclose(measure(a, b), measure(a.float() / 255, b.float() / 255), rtol=1e-5)


def test_errors():
    a = clips()
    for measure in MEASURES:
        with pytest.raises(DataError, match="same shape"):
            measure(a, a[:, :3])
        with pytest.raises(DataError, match="too few clips"):
            measure(a[:1], a[:1])
        broken = a.clone()
        broken[2, 1, 0, 0, 0] = float("nan")
        with pytest.raises(DataError, match=r"clip 2 of second clips"):
            measure(a, broken)
        with pytest.raises(DataError, match="leaves"):
            measure(a, a * 255)
    with pytest.raises(DataError, match="too few frames"):
        temporal_difference_error(a[:, :1], a[:, :1])
    with pytest.raises(DataError, match="11 x 11"):
        ssim(a[:, :, :8, :8], a[:, :, :8, :8])


def test_perceptual_distance_rises_with_damage_and_knows_no_order():
    clips = torch.rand((3, 2, 8, 8, 3), generator=torch.Generator().manual_seed(0))
    smooth = clips.repeat_interleave(4, 2).repeat_interleave(4, 3)
    assert perceptual_distance(smooth, smooth).max() == 0
    weak = perceptual_distance(smooth, (smooth * 0.9).clamp(0, 1))
    strong = perceptual_distance(smooth, (smooth * 0.5).clamp(0, 1))
    assert (weak > 0).all() and (weak < strong).all()
    a = perceptual_distance(smooth, smooth.flip(0))
    b = perceptual_distance(smooth.flip(1), smooth.flip(0).flip(1))
    np.testing.assert_allclose(a, b, rtol=1e-4)


def test_permutation_test_is_exact_for_few_and_sees_small_steady_differences():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=64)
    assert paired_permutation_test(noise + 0.2 + 0.1 * rng.normal(size=64), noise) < 0.001
    # All 2^4 sign patterns: only the observed one and its mirror are as large.
    assert paired_permutation_test(np.array([1.0, 2.0, 3.0, 4.0]), np.zeros(4)) == pytest.approx(
        2 / 16, abs=0.02
    )
    assert paired_permutation_test(noise, noise) == 1.0
    with pytest.raises(DataError, match="differ in number"):
        paired_permutation_test(noise, noise[1:])


def test_permutation_test_keeps_its_level():
    rng = np.random.default_rng(1)
    found = [
        paired_permutation_test(*rng.normal(size=(2, 20)), seed=trial, rounds=199) for trial in range(200)
    ]
    assert 0.01 <= np.mean(np.array(found) <= 0.05) <= 0.1
