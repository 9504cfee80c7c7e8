"""Does a metric rise with damage, and does it see the damage it is meant to see?

After the sanity checks of the FVD paper (Unterthiner et al. 2018, Sec. 4.1), with damage to content (constant
over the frames of a clip) and to motion (of the order and the places of frames) told apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import Tensor

from vdmini_core.errors import DataError
from vdmini_core.metrics.clips import as_unit_floats
from vdmini_core.metrics.distortions import CONTENT, MOTION, SPEEDS, speed
from vdmini_core.metrics.frechet import Moments, gaussian_distance, moments

FLOOR_SPLITS = 20
FASTEST = max(SPEEDS)
Kind = Literal["content", "motion"]


@dataclass(frozen=True)
class Damage:
    """One kind of damage at one strength."""

    kind: Kind
    name: str
    strength: float


@dataclass(frozen=True)
class Scale:
    """What distances of real clips to other real clips look like at the sizes used."""

    clean: float
    floor: float
    floor_sd: float

    def reaction(self, distance: float) -> float:
        """How far a distance lies above the noise floor, in its standard deviations."""
        return (distance - self.floor) / self.floor_sd


def damages() -> list[Damage]:
    """Every damage of the suite, weakest first within its kind."""
    found = [Damage("content", n, s) for n, (_, strengths) in CONTENT.items() for s in strengths]
    found += [Damage("motion", n, s) for n, (_, strengths) in MOTION.items() for s in strengths]
    return found + [Damage("motion", "speed", s) for s in SPEEDS]


def damaged(films: Tensor, frames: int, damage: Damage, seed: int) -> Tensor:
    """Clips (n, frames, H, W, 3) floats in [0, 1], made of longer films (n, F, H, W, 3).

    Raises:
        DataError: when the films are too short to be played that fast.
    """
    needed = int(np.ceil((frames - 1) * FASTEST)) + 1
    if films.shape[1] < needed:
        raise DataError(
            "the films are too short to be played faster",
            expected=f"{needed} frames for clips of {frames}",
            found=str(films.shape[1]),
        )
    whole = as_unit_floats(films)
    if damage.name == "speed":
        return speed(whole, damage.strength, frames)
    function = (CONTENT | MOTION)[damage.name][0]
    return function(whole[:, :frames], damage.strength, torch.Generator().manual_seed(seed))


def damaged_sets(films: Tensor, frames: int, seed: int = 0) -> Iterator[tuple[Damage, Tensor]]:
    """Every damage with the clips it leaves."""
    for damage in damages():
        yield damage, damaged(films, frames, damage, seed)


def measure_scale(tried: NDArray[Any], reference: NDArray[Any], seed: int = 0) -> tuple[Scale, Moments]:
    """Scale of a metric from undamaged features (n, d) and (m, d), and the reference's Gaussian.

    The floor is the distance between random parts of n and m clips of all of them together.
    """
    pool, rng, size = np.concatenate([tried, reference]), np.random.default_rng(seed), len(tried)
    found = []
    for _ in range(FLOOR_SPLITS):
        order = rng.permutation(len(pool))
        parts = moments(pool[order[:size]], "part"), moments(pool[order[size:]], "other part")
        found.append(gaussian_distance(*parts))
    fitted = moments(reference, "reference clips")
    clean = gaussian_distance(moments(tried, "clips"), fitted)
    return Scale(clean, float(np.mean(found)), float(np.std(found, ddof=1))), fitted


def sanity_table(
    extract: Callable[[Tensor], NDArray[np.float32]],
    sets: Mapping[Damage, Tensor] | Sequence[tuple[Damage, Tensor]],
    clean: Tensor,
    reference: Tensor,
    seed: int = 0,
) -> dict[str, Any]:
    """Distances of all damaged sets to the reference clips, by damage, and what they say of the metric.

    Args:
        extract: features of clips.
        sets: damaged clips, each made of the films behind `clean`.
        clean: the same clips undamaged (n, F, H, W, 3).
        reference: other clips (m, F, H, W, 3).
        seed: of the random parts of the noise floor.

    Returns:
        `scale`; `rows`: one per kind of damage with strengths, distances, reactions and Spearman's rank
        correlation over clean and the strengths (None where all distances are equal);
        `median_reaction` over content and motion damage.
    """
    pairs = list(sets.items()) if isinstance(sets, Mapping) else list(sets)
    scale, fitted = measure_scale(extract(clean), extract(reference), seed)
    found = {
        damage: gaussian_distance(moments(extract(clips), damage.name), fitted) for damage, clips in pairs
    }
    rows = [_row(kind, name, found, scale) for kind, name in dict.fromkeys((d.kind, d.name) for d in found)]
    reactions = {
        kind: [scale.reaction(value) for damage, value in found.items() if damage.kind == kind]
        for kind in ("content", "motion")
    }
    return {
        "scale": {"clean": scale.clean, "floor": scale.floor, "floor_sd": scale.floor_sd},
        "rows": rows,
        "median_reaction": {kind: float(np.median(values)) for kind, values in reactions.items() if values},
    }


def _row(kind: Kind, name: str, found: Mapping[Damage, float], scale: Scale) -> dict[str, Any]:
    mine = {
        damage.strength: value
        for damage, value in found.items()
        if (damage.kind, damage.name) == (kind, name)
    }
    course = [scale.clean, *mine.values()]
    # Distances that agree to rounding (an extractor blind to the damage) have no order to speak of.
    told_apart = np.ptp(course) > 1e-6 * max(scale.clean, scale.floor_sd)
    return {
        "kind": kind,
        "damage": name,
        "strengths": list(mine),
        "distances": list(mine.values()),
        "reactions": [scale.reaction(value) for value in mine.values()],
        "spearman": float(spearmanr(range(len(course)), course)[0]) if told_apart else None,
    }
