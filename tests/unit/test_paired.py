"""Paired measures: values by hand, direction, and errors that name the clip."""

import numpy as np
import pytest
import torch

from vdmini_core.errors import DataError
from vdmini_core.metrics import paired_mse, psnr, ssim, temporal_difference_error

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
