"""Fréchet distance between two sets of features, exact in float64 and honest about noise.

Every distance goes through one formula. With F such that F^T F is the covariance,

    d = |mean_a - mean_b|^2 + tr S_a + tr S_b - 2 ||F_a F_b^T||_*       (nuclear norm)

F is the centred data itself where there are fewer samples than dimensions, else the Cholesky factor, or the
symmetric square root by eigenvalues where the covariance is near-singular; nothing is ever imaginary, and
rank-deficient covariances need no epsilon.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

from vdmini_core.errors import DataError
from vdmini_core.foreign import parse_json

Array = NDArray[np.float64]
LEAST_PIVOT = 1e-6  # of the largest: below it a covariance counts as near-singular (condition 1e12)
SQUARING_ERROR = 1e-10  # of the nuclear norm: what rounding may at most cost where it is taken from squares


class GaussianStats:
    """Mean and scatter of features in one pass and constant memory; parts of workers can be merged.

    Attributes:
        n: samples seen.
        mean: (d,) float64.
        scatter: (d, d) float64, sum of outer products of the deviations from the mean.
    """

    def __init__(self, dim: int) -> None:
        self.n = 0
        self.mean: Array = np.zeros(dim)
        self.scatter: Array = np.zeros((dim, dim))

    def update(self, features: ArrayLike) -> GaussianStats:
        """Add features (n, d); returns itself."""
        values = checked_features(features, "features", least=1)
        part = GaussianStats(values.shape[1])
        part.n, part.mean = len(values), values.mean(axis=0)
        centred = values - part.mean
        part.scatter = centred.T @ centred
        return self.merge(part)

    def merge(self, other: GaussianStats) -> GaussianStats:
        """Add what another accumulator saw (Chan et al. 1979); returns itself."""
        if other.mean.shape != self.mean.shape:
            raise DataError(
                "statistics of different features cannot be merged",
                expected=f"{self.mean.size} dimensions",
                found=f"{other.mean.size}",
            )
        total = self.n + other.n
        if other.n:
            shift = other.mean - self.mean
            self.scatter = self.scatter + other.scatter + np.outer(shift, shift) * (self.n * other.n / total)
            self.mean = self.mean + shift * (other.n / total)
            self.n = total
        return self

    def covariance(self, ddof: int = 1) -> Array:
        """Covariance (d, d) with divisor n - ddof."""
        if self.n <= ddof:
            raise too_few(self.n, "statistics")
        return self.scatter / (self.n - ddof)

    def save(self, path: Path, passport: dict[str, Any] | None = None) -> None:
        """Write a safetensors file with the feature passport in its header."""
        tensors = {"n": np.array([self.n], dtype=np.int64), "mean": self.mean, "scatter": self.scatter}
        save_file(tensors, path, metadata={"passport": json.dumps(passport or {}, sort_keys=True)})

    @classmethod
    def load(cls, path: Path) -> tuple[GaussianStats, dict[str, Any]]:
        """Read what `save` wrote: the statistics and their passport.

        Raises:
            ValueError: for other shapes, or a passport that is no JSON.
            SafetensorError, OSError: for a file that is none, or cannot be read.
        """
        with safe_open(path, framework="numpy") as handle:
            mean, scatter, n = (handle.get_tensor(name) for name in ("mean", "scatter", "n"))
            if (mean.ndim, scatter.ndim, n.shape) != (1, 2, (1,)):
                raise ValueError(f"mean {mean.shape}, scatter {scatter.shape}, n {n.shape}")
            loaded = cls(0)
            loaded.n, loaded.mean, loaded.scatter = int(n[0]), mean, scatter
            return loaded, parse_json((handle.metadata() or {}).get("passport", "{}"))


def frechet_distance(a: ArrayLike | GaussianStats, b: ArrayLike | GaussianStats, ddof: int = 1) -> float:
    """Squared 2-Wasserstein distance of the Gaussians fitted to two feature sets.

    Args:
        a: features (n, d), n >= 2 and any d, or finished `GaussianStats`.
        b: the other set, of the same d.
        ddof: 1 divides covariances by n - 1 (the common convention), 0 by n (cd-fvd).

    Raises:
        DataError: on non-finite values, fewer than two samples, or different dimensions.
    """
    return gaussian_distance(moments(a, "first set", ddof), moments(b, "second set", ddof))


@dataclass(frozen=True)
class Moments:
    """A fitted Gaussian, ready for distances; costly to make, cheap to compare with."""

    mean: Array
    factor: Array  # (rank bound, d) with factor^T factor = covariance
    trace: float


def moments(data: ArrayLike | GaussianStats, what: str, ddof: int = 1) -> Moments:
    """Fit a Gaussian to features (n, d) or to finished statistics; `what` names it in errors."""
    if isinstance(data, GaussianStats):
        covariance = data.covariance(ddof)
        return Moments(data.mean, _root(covariance), float(np.trace(covariance)))
    values = checked_features(data, what)
    mean = values.mean(axis=0)
    centred = values - mean
    if len(values) <= values.shape[1]:
        centred /= np.sqrt(len(values) - ddof)
        return Moments(mean, centred, float(np.sum(centred * centred)))
    covariance = centred.T @ centred / (len(values) - ddof)
    return Moments(mean, _root(covariance), float(np.trace(covariance)))


def _root(covariance: Array) -> Array:
    """F with F^T F = covariance: any will do, and Cholesky's is sixty times cheaper than eigenvalues."""
    try:
        factor = np.asarray(np.linalg.cholesky(covariance), np.float64)
        pivots = np.diagonal(factor)
        if pivots.min() > LEAST_PIVOT * pivots.max():
            return factor.T
    except np.linalg.LinAlgError:
        pass
    eigenvalues, vectors = np.linalg.eigh(covariance)
    return np.sqrt(np.clip(eigenvalues, 0.0, None))[:, None] * vectors.T


def gaussian_distance(a: Moments, b: Moments) -> float:
    """The formula of this module."""
    if a.mean.shape != b.mean.shape:
        raise DataError(
            "the two sets hold different features", expected=f"d = {a.mean.size}", found=f"d = {b.mean.size}"
        )
    overlap = _nuclear_norm(a.factor @ b.factor.T)
    distance = float(np.sum((a.mean - b.mean) ** 2) + a.trace + b.trace - 2.0 * overlap)
    return max(distance, 0.0)  # rounding of identical sets


def _nuclear_norm(product: Array) -> float:
    """Sum of singular values.

    They are the roots of the eigenvalues of product product^T, which take a third of the time. Rounding moves
    eigenvalues by epsilon times the largest and so a root s by epsilon largest^2 / 2 s: fine for most sets of
    full rank (a square product), not where tiny ones abound.
    """
    if product.shape[0] == product.shape[1]:
        squares = np.linalg.eigvalsh(product @ product.T)
        if squares[0] > 0:
            roots = np.sqrt(squares)
            error = np.finfo(np.float64).eps * squares[-1] * np.sum(1 / roots)
            if error <= SQUARING_ERROR * roots.sum():
                return float(roots.sum())
    return float(np.linalg.svd(product, compute_uv=False).sum())


def checked_features(features: ArrayLike, what: str, least: int = 2) -> Array:
    """Features as float64 (n, d).

    Raises:
        DataError: on another shape, too few rows or non-finite values.
    """
    values = np.asarray(features, dtype=np.float64)
    if values.ndim != 2 or values.shape[1] == 0:
        raise DataError(f"{what} must be a matrix", expected="shape (clips, d)", found=str(values.shape))
    if len(values) < least:
        raise too_few(len(values), what, least)
    with np.errstate(over="ignore", invalid="ignore"):
        total = values.sum()  # one bad value spoils it, so the common case is one cheap pass
    if not np.isfinite(total):
        bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
        if bad.size:
            raise DataError(
                f"{what} holds non-finite values",
                found=f"clips {bad[:8].tolist()}",
                fix="leave these clips out",
            )
    return values


def too_few(n: int, what: str, least: int = 2) -> DataError:
    """The error of a set that is too small."""
    return DataError(f"too few clips for {what}", expected=f"at least {least}", found=str(n))
