"""The frontier that a plan lies on: the solver's best cut at several sizes, each really tried."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from torch import nn

from vdmini_core.errors import PlanError
from vdmini_core.models.base import Family, SamplingSettings, Unit
from vdmini_core.models.flops import total_flops
from vdmini_core.pruning.recipes import damage_of, on_offer
from vdmini_core.pruning.solver import Budget, best_cuts


def frontier_cuts(
    family: Family,
    denoiser: nn.Module,
    units: Sequence[Unit],
    sensitivity: Mapping[str, Any],
    settings: SamplingSettings,
    metric: str,
    count: int,
) -> list[tuple[str, ...]]:
    """Cuts of least damage by the profile at `count` FLOPs ratios, evenly spread over what is possible.

    Args:
        metric: which damage of the profile is summed (`PlanParams.metric`).

    Returns:
        Units removed, the largest student first; the same cut once. Units the profile has no row for stay.
    """
    asked, total = {row["name"] for row in sensitivity["units"]}, total_flops(denoiser, settings)
    known: dict[str, float] = {}
    cuts = on_offer(family.cuts(denoiser, settings), asked)
    for cut in cuts:
        with suppress(PlanError):  # a profile of blocks alone has no row for pairs
            known[cut.name] = damage_of(cut, sensitivity, metric, units)
    cuts = [
        replace(cut, conflicts=tuple(name for name in cut.conflicts if name in known))
        for cut in cuts
        if cut.name in known
    ]
    swallowed = {name for cut in cuts for name in cut.conflicts}
    most = sum(cut.flops for cut in cuts if cut.name not in swallowed)
    savings = tuple(float(cut.flops) for cut in cuts)
    found: list[tuple[str, ...]] = []
    for step in range(1, count + 1):
        budget = Budget("FLOPs ratio", total, total - most * step / (count + 1), savings)
        for answer in best_cuts(cuts, list(known.values()), [budget], 1):
            removed = tuple(unit for i in answer for unit in cuts[i].units)
            if removed not in found:
                found.append(removed)
    return found
