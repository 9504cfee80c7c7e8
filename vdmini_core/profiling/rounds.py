"""More clips only where the order is open: a profile by rounds that stops by confidence.

All units meet the same noise and conditions, so what tells two of them apart is the difference of their
errors clip by clip, which varies far less than the errors themselves.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from itertools import pairwise
from typing import TypeVar

import numpy as np
from scipy import stats

Key = TypeVar("Key", bound=Hashable)


def rounds(first: int, most: int | None) -> list[tuple[int, int]]:
    """Clips [start, stop) of each round after one of `first` clips: twice as many each time, up to `most`."""
    found = []
    while most is not None and first < most:
        stop = min(2 * first, most)
        found.append((first, stop))
        first = stop
    return found


def undecided(errors: Mapping[Key, Sequence[float]], confidence: float = 0.95) -> list[Key]:
    """Who cannot be told from a neighbour in the order of mean errors.

    Args:
        errors: squared error of each clip, per unit. Clip i is the same for all; how many there are may
            differ, and neighbours are compared on those both have.
        confidence: of the two-sided interval of the mean difference (Student's t, paired by clip).

    Returns:
        Keys in the order given. Neighbours that differ by the same on every clip, above all by nothing,
        are decided: more clips would tell nothing.
    """
    order = sorted(errors, key=lambda key: float(np.mean(errors[key])))
    open_: set[Key] = set()
    for lower, upper in pairwise(order):
        common = min(len(errors[lower]), len(errors[upper]))
        if not _told_apart(errors[lower][:common], errors[upper][:common], confidence):
            open_ |= {lower, upper}
    return [key for key in errors if key in open_]


def _told_apart(one: Sequence[float], other: Sequence[float], confidence: float) -> bool:
    differences = np.asarray(other, dtype=np.float64) - np.asarray(one, dtype=np.float64)
    if len(differences) < 2:
        return False
    spread = float(stats.sem(differences))
    if spread == 0:
        return True
    return abs(float(differences.mean())) > spread * float(stats.t.ppf((1 + confidence) / 2, len(one) - 1))
