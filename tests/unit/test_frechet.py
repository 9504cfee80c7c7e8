"""Fréchet distance: closed form, conventions, streaming, intervals."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import linalg

from vdmini_core.errors import DataError
from vdmini_core.metrics import (
    GaussianStats,
    frechet_difference,
    frechet_distance,
    frechet_infinite,
    frechet_with_interval,
    noise_floor,
)
from vdmini_core.metrics.frechet import checked_features

REFERENCE = Path(__file__).parents[3] / "shared" / "reference" / "frechet"


def sets(n=200, m=150, d=12, shift=0.3, seed=0):
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(d, d))
    return rng.normal(size=(n, d)) @ mix, rng.normal(size=(m, d)) @ mix * 1.2 + shift


def test_known_values_by_hand():
    # Variances 1 and 4 (n - 1), means 0 and 1: 1 + 1 + 4 - 2 * sqrt(4).
    a, b = np.array([[-1.0], [0.0], [1.0]]), np.array([[-1.0], [1.0], [3.0]])
    assert frechet_distance(a, b) == pytest.approx(2.0, abs=1e-12)
    assert frechet_distance(a, b, ddof=0) == pytest.approx(1 + (2 / 3) * (1 + 4 - 4), abs=1e-12)


def test_equals_the_matrix_square_root():
    a, b = sets()
    s, t = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = linalg.sqrtm(s @ t).real
    expected = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(s + t - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("n", "m"), [(24, 20), (400, 20), (24, 300)])
def test_fewer_samples_than_dimensions(n, m):
    a, b = sets(n, m, d=64)
    centred = [(x - x.mean(0)) / np.sqrt(len(x) - 1) for x in (a, b)]
    nuclear = np.linalg.svd(centred[0] @ centred[1].T, compute_uv=False).sum()
    traces = sum(np.sum(x**2) for x in centred)
    expected = np.sum((a.mean(0) - b.mean(0)) ** 2) + traces - 2 * nuclear
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(("n", "d"), [(200, 16), (10, 64)])
def test_a_set_is_at_no_distance_from_itself(n, d):
    a, _ = sets(n, 20, d)
    scale = float(np.sum(a.var(axis=0)))
    assert 0.0 <= frechet_distance(a, a) < 1e-10 * scale
    assert frechet_distance(a, a[::-1]) < 1e-10 * scale


@pytest.mark.skipif(not REFERENCE.is_dir(), reason="reference vectors are not here")
@pytest.mark.parametrize(
    ("pair", "tolerance"), [("n_greater_d", 1e-6), ("n_less_d", 1e-5), ("near_singular", 1e-5)]
)
def test_reference_vectors(pair, tolerance):
    from safetensors.numpy import load_file

    features = load_file(REFERENCE / "features.safetensors")
    expected = json.loads((REFERENCE / "expected.json").read_text())[pair]
    a, b = features[f"{pair}.real"], features[f"{pair}.fake"]
    for ddof, convention in ((1, "unbiased"), (0, "population")):
        closed = expected[f"closed_form_{convention}_covariance"]
        assert frechet_distance(a, b, ddof) == pytest.approx(closed, rel=tolerance)
        streamed = [GaussianStats(a.shape[1]).update(x) for x in (a, b)]
        assert frechet_distance(*streamed, ddof) == pytest.approx(closed, rel=tolerance)


@pytest.mark.parametrize("smallest", [1.0, 1e-3, 1e-5, 1e-9, 0.0])
def test_wide_spectra_lose_no_digits(smallest):
    # Covariances that commute have the distance of their standard deviations, whatever the rotation.
    d, n = 40, 400
    rng = np.random.default_rng(4)
    turn, basis = (np.linalg.qr(rng.normal(size=(k, d)))[0] for k in (d, n))
    basis = np.linalg.qr(basis - basis.mean(axis=0))[0]
    scales = np.geomspace(1.0, smallest, d) if smallest else np.r_[np.ones(d // 2), np.zeros(d - d // 2)]
    a, b = (basis * scales * s @ turn.T * np.sqrt(n) for s in (1.0, 1.5))
    assert frechet_distance(a, b, ddof=0) == pytest.approx(0.25 * np.sum(scales**2), rel=1e-9)


def test_statistics_stream_merge_and_survive_the_disk(tmp_path):
    a, b = sets(101, 90)
    workers = [GaussianStats(12).update(part[:7]).update(part[7:]) for part in (a[:40], a[40:])]
    merged = workers[0].merge(workers[1]).merge(GaussianStats(12))
    assert merged.n == 101
    np.testing.assert_allclose(merged.covariance(), np.cov(a, rowvar=False), rtol=1e-12, atol=1e-12)
    merged.save(tmp_path / "real.safetensors", {"extractor": "embedded"})
    loaded, passport = GaussianStats.load(tmp_path / "real.safetensors")
    assert passport == {"extractor": "embedded"}
    assert frechet_distance(loaded, b) == pytest.approx(frechet_distance(a, b), rel=1e-10)


def test_interval_covers_the_mean_of_its_size_and_is_deterministic():
    rng = np.random.default_rng(1)
    mix = np.random.default_rng(0).normal(size=(16, 16))
    results = [
        frechet_with_interval(rng.normal(size=(64, 16)) @ mix, rng.normal(size=(64, 16)) @ mix, s)
        for s in range(40)
    ]
    mean = np.mean([r.value for r in results])
    assert sum(r.low <= mean <= r.high for r in results) >= 34  # 85 % of 40; 95 % is aimed at
    a, b = sets(40, 40)
    assert frechet_with_interval(a, b, 3) == frechet_with_interval(a, b, 3)
    assert frechet_with_interval(a, b, 3).value == frechet_distance(a, b)


def test_paired_interval_is_the_narrower_one():
    a, _ = sets(64, 10, d=8)
    b = a + 0.1 * np.random.default_rng(2).normal(size=a.shape)
    assert (
        frechet_with_interval(a, b, paired=True).standard_error < frechet_with_interval(a, b).standard_error
    )


def test_difference_tells_apart_what_the_intervals_of_two_distances_do_not():
    rng = np.random.default_rng(4)
    covered, told, overlapping = 0, 0, 0
    for seed in range(30):
        truth = rng.normal(size=(64, 8))
        damage = rng.normal(size=truth.shape) * rng.gamma(1, 1, size=(64, 1))  # some clips are hard
        worse, better = truth + damage, truth + 0.85 * damage
        found = frechet_difference(worse, better, truth, seed)
        apart = [frechet_with_interval(x, truth, seed, paired=True) for x in (worse, better)]
        assert found.value == pytest.approx(apart[0].value - apart[1].value, abs=1e-9)
        told += found.low > 0
        overlapping += apart[0].low < apart[1].high
        same = frechet_difference(truth + damage, truth + damage[::-1], truth, seed)
        covered += same.low <= 0 <= same.high
    assert told >= 24 and overlapping >= 20 and covered >= 26
    with pytest.raises(DataError, match="differ in length"):
        frechet_difference(truth, truth[:-1], truth)


def test_extrapolation_takes_the_bias_away():
    rng = np.random.default_rng(3)
    pairs = [(rng.normal(size=(200, 32)), rng.normal(size=(200, 32))) for _ in range(4)]
    plain = np.mean([frechet_distance(a, b) for a, b in pairs])  # all bias: one distribution
    assert abs(np.mean([frechet_infinite(a, b) for a, b in pairs])) < 0.3 * plain


def test_noise_floor():
    a, _ = sets(200, 10, d=8)
    floor = noise_floor(a, 50, seed=1)
    assert floor.n == 50 and floor.mean > 0 and floor == noise_floor(a, 50, seed=1)
    assert noise_floor(a, 100).mean < floor.mean
    with pytest.raises(DataError, match="disjoint"):
        noise_floor(a, 101)


def test_errors_say_what_is_wrong():
    a, b = sets(20, 20)
    broken = a.copy()
    broken[3, 1] = np.nan
    with pytest.raises(DataError, match=r"clips \[3\]"):
        frechet_distance(broken, b)
    broken[7, 0], broken[3, 1] = np.inf, -np.inf
    with pytest.raises(DataError, match=r"clips \[3, 7\]"):
        frechet_distance(broken, b)
    huge = np.array([[1e308], [1e308], [0.0]])  # their sum overflows, they do not
    assert checked_features(huge, "features").shape == (3, 1)
    with pytest.raises(DataError, match="too few"):
        frechet_distance(a[:1], b)
    with pytest.raises(DataError, match="different features"):
        frechet_distance(a, b[:, :5])
    with pytest.raises(DataError, match="matrix"):
        frechet_distance(a[0], b)
    with pytest.raises(DataError, match="paired"):
        frechet_with_interval(a, b[:10], paired=True)
