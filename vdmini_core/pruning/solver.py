"""The integer program behind `auto`: least damage under budgets, and the next best answers after it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from vdmini_core.models.base import Cut

# HiGHS calls objectives equal within 1e-6; damages are scaled so that nothing that matters is that small.
LARGEST, SMALLEST = 1e4, 1e-4


@dataclass(frozen=True)
class Budget:
    """Upper bound on one cost: of `total`, at least `total - limit` must be saved by the chosen cuts."""

    name: str
    total: float
    limit: float
    savings: tuple[float, ...]

    def met(self, chosen: Sequence[int]) -> bool:
        """Whether the cuts with these indices save enough."""
        return self.left(chosen) <= self.limit

    def left(self, chosen: Sequence[int]) -> float:
        """What remains of `total` after these cuts."""
        return self.total - sum(self.savings[i] for i in chosen)


def best_cuts(
    cuts: Sequence[Cut], damages: Sequence[float], budgets: Sequence[Budget], count: int
) -> list[list[int]]:
    """Up to `count` sets of cuts within all budgets, least total damage first, as indices.

    Minimises the sum of damages over binary decisions, subject to the budgets and to the cuts' conflicts;
    each further answer excludes those before it.
    """
    if not cuts:
        return [[]] if all(budget.met([]) for budget in budgets) else []
    weights = scaled_damages(damages)
    constraints = [*_structure(cuts), *(_saving(budget) for budget in budgets)]
    found: list[list[int]] = []
    for _ in range(count + 32):  # rounding may let through sets just over a budget: those are dropped
        chosen = _solve(weights, constraints)
        if chosen is None:
            break
        if all(budget.met(chosen) for budget in budgets):
            found.append(chosen)
        if len(found) == count:
            break
        constraints.append(_exclude(chosen, len(cuts)))
    return found


def scaled_damages(damages: Sequence[float]) -> np.ndarray:
    """Damages in [SMALLEST, LARGEST], so that each removal costs something and ties favour fewer of them."""
    values = np.maximum(np.asarray(damages, dtype=float), 0.0)
    top = values.max() if values.size and values.max() > 0 else 1.0
    return np.maximum(values / top * LARGEST, SMALLEST)


def _solve(weights: np.ndarray, constraints: Sequence[LinearConstraint]) -> list[int] | None:
    result = milp(
        c=weights,
        constraints=list(constraints),
        integrality=np.ones(len(weights)),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": 0.0},
    )
    return None if result.x is None else [int(i) for i in np.flatnonzero(result.x > 0.5)]


def _saving(budget: Budget) -> LinearConstraint:
    # In shares of the total: counts of 1e9 and more are beyond the solver's tolerances.
    share = np.asarray(budget.savings, dtype=float) / budget.total
    return LinearConstraint(share, lb=1.0 - budget.limit / budget.total, ub=np.inf)


def _structure(cuts: Sequence[Cut]) -> list[LinearConstraint]:
    index = {cut.name: i for i, cut in enumerate(cuts)}
    constraints = []
    for cut in cuts:
        for other in cut.conflicts:
            if other not in index:
                continue  # a finer cut that is not on offer
            row = np.zeros(len(cuts))
            row[[index[cut.name], index[other]]] = 1.0
            constraints.append(LinearConstraint(row, ub=1.0))
    return constraints


def _exclude(chosen: Sequence[int], size: int) -> LinearConstraint:
    """At least one decision differs from `chosen`."""
    row = np.ones(size)
    row[list(chosen)] = -1.0
    return LinearConstraint(row, lb=1.0 - len(chosen))
