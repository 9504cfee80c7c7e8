"""How far a Fréchet distance can be trusted: interval, noise floor, extrapolation to many clips."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats as distributions

from vdmini_core.errors import DataError
from vdmini_core.metrics.frechet import (
    checked_features,
    frechet_distance,
    gaussian_distance,
    moments,
    too_few,
)

JACKKNIFE_GROUPS = 16


@dataclass(frozen=True)
class FrechetResult:
    """A distance with its interval: the value expected of such samples at this n lies in [low, high]."""

    value: float
    low: float
    high: float
    standard_error: float


@dataclass(frozen=True)
class NoiseFloor:
    """Distance of real clips to other real clips, `n` against `n`: mean and spread over random splits."""

    mean: float
    sd: float
    values: tuple[float, ...]
    n: int


def frechet_with_interval(
    a: ArrayLike,
    b: ArrayLike,
    seed: int = 0,
    *,
    paired: bool = False,
    confidence: float = 0.95,
    groups: int = JACKKNIFE_GROUPS,
) -> FrechetResult:
    """Fréchet distance with a delete-group jackknife interval.

    A bootstrap sample repeats clips, so its covariance loses rank and every replicate is biased upward
    (at d = 400, n = 256 it gives 397-416 for a value of 295). Deleting a random group leaves distinct
    clips; the replicates' common bias cancels in their spread, and the interval is centred on the value
    itself. It covers the mean of the distance over samples *of this size*, bias included: compare it with
    a noise floor at the same n.

    Args:
        a: features (n, d).
        b: features (m, d).
        seed: of the random groups.
        paired: row i of both belongs to the same condition and noise; the same groups leave both sets.
        confidence: of the interval.
        groups: how many groups a set is divided into.
    """
    first, second = checked_features(a, "first set"), checked_features(b, "second set")
    if paired and len(first) != len(second):
        raise DataError("paired sets differ in length", expected=str(len(first)), found=str(len(second)))
    whole_a, whole_b = moments(first, "first set"), moments(second, "second set")
    value = gaussian_distance(whole_a, whole_b)
    rng = np.random.default_rng(seed)
    left_a = [moments(first[keep], "first set") for keep in _delete_groups(len(first), groups, rng)]
    if paired:
        rng = np.random.default_rng(seed)
    left_b = [moments(second[keep], "second set") for keep in _delete_groups(len(second), groups, rng)]
    if paired:
        variance, freedom = _jackknife([gaussian_distance(p, q) for p, q in zip(left_a, left_b, strict=True)])
    else:
        variance_a, free_a = _jackknife([gaussian_distance(p, whole_b) for p in left_a])
        variance_b, free_b = _jackknife([gaussian_distance(whole_a, q) for q in left_b])
        variance, freedom = variance_a + variance_b, free_a + free_b
    error = float(np.sqrt(variance))
    reach = error * float(distributions.t.ppf(0.5 + confidence / 2, max(freedom, 1)))
    return FrechetResult(value, max(0.0, value - reach), value + reach, error)


def frechet_difference(
    a: ArrayLike,
    b: ArrayLike,
    reference: ArrayLike,
    seed: int = 0,
    *,
    confidence: float = 0.95,
    groups: int = JACKKNIFE_GROUPS,
) -> FrechetResult:
    """How much further `a` is from `reference` than `b` is, with a delete-group jackknife interval.

    Row i of all three belongs to the same condition and noise, so what makes a clip hard is in both distances
    and cancels: the interval is narrower than those of the distances, and says whether they differ at all.
    It covers a true difference in 92 to 97 of 100 trials of mild damage; where a few clips of 64 carry nearly
    all of it (gamma-distributed hardness) in 78 to 88 only: read a narrow miss of nought with care, or take
    more clips.

    Args:
        a: features (n, d).
        b: features (n, d).
        reference: features (n, d).
        seed: of the random groups, the same ones in all sets.
        confidence: of the interval.
        groups: how many groups a set is divided into.

    Returns:
        The difference, negative where `a` is nearer; `low` may be below nought.

    Raises:
        DataError: sets of different lengths, too few clips, features that are not finite.
    """
    sets = [checked_features(x, name) for x, name in ((a, "first set"), (b, "second set"))]
    truth = checked_features(reference, "reference")
    if len({len(x) for x in (*sets, truth)}) != 1:
        found = ", ".join(str(len(x)) for x in (*sets, truth))
        raise DataError("paired sets differ in length", expected="three of one length", found=found)

    def difference(keep: NDArray[np.intp] | slice) -> float:
        theirs = moments(truth[keep], "reference")
        first, second = (gaussian_distance(moments(x[keep], "set"), theirs) for x in sets)
        return first - second

    rng = np.random.default_rng(seed)
    replicates = [difference(keep) for keep in _delete_groups(len(truth), groups, rng)]
    variance, freedom = _jackknife(replicates)
    value, error = difference(slice(None)), float(np.sqrt(variance))
    reach = error * float(distributions.t.ppf(0.5 + confidence / 2, max(freedom, 1)))
    return FrechetResult(value, value - reach, value + reach, error)


def frechet_infinite(a: ArrayLike, b: ArrayLike, seed: int = 0, sizes: int = 6, draws: int = 8) -> float:
    """Extrapolate to infinitely many samples: the bias falls as 1/n (Chong & Forsyth 2020, FID-infinity).

    Args:
        a: features (n, d).
        b: features (m, d).
        seed: of the subsets.
        sizes: subset sizes between half and all of the samples.
        draws: subsets averaged at each size.
    """
    first, second = checked_features(a, "first set", least=4), checked_features(b, "second set", least=4)
    rng = np.random.default_rng(seed)
    shares, values = np.linspace(0.5, 1.0, sizes), []
    for share in shares:
        found = []
        for _ in range(draws if share < 1 else 1):
            rows = [rng.permutation(len(x))[: round(share * len(x))] for x in (first, second)]
            found.append(frechet_distance(first[rows[0]], second[rows[1]]))
        values.append(np.mean(found))
    return float(np.polyfit(1.0 / shares, values, 1)[1])


def noise_floor(real: ArrayLike, n: int | None = None, seed: int = 0, repeats: int = 8) -> NoiseFloor:
    """What the distance shows between two sets of real clips, each of size `n` (default: the halves).

    Raises:
        DataError: when there are fewer than 2 n real clips; the floor at another n is another number.
    """
    values = checked_features(real, "real features", least=4)
    size = len(values) // 2 if n is None else n
    if not 2 <= size <= len(values) // 2:
        raise DataError(
            "the noise floor needs two disjoint sets of real clips",
            expected=f"at least {2 * size} clips, n >= 2",
            found=f"{len(values)} clips, n = {size}",
        )
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(repeats):
        order = rng.permutation(len(values))
        found.append(frechet_distance(values[order[:size]], values[order[size : 2 * size]]))
    spread = float(np.std(found, ddof=1)) if repeats > 1 else 0.0
    return NoiseFloor(float(np.mean(found)), spread, tuple(found), size)


def _delete_groups(n: int, groups: int, rng: np.random.Generator) -> list[NDArray[np.intp]]:
    # Two samples must remain, so tiny sets get as many groups as they have clips.
    count = min(groups, n)
    if n - -(-n // count) < 2:
        raise too_few(n, "an interval", least=3)
    order = rng.permutation(n)
    return [np.sort(np.delete(order, np.arange(part, n, count))) for part in range(count)]


def _jackknife(replicates: list[float]) -> tuple[float, int]:
    count = len(replicates)
    return float(np.var(replicates) * (count - 1)), count - 1
