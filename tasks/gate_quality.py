"""Better, equal, worse: how the gate compares two measured values, and what two models cost."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any, NamedTuple

from vdmini_core.params import FEWEST_ROUNDS, is_number

SIZES = ("params", "vae_decoder_params")  # of what pruning can shrink


class Speed(NamedTuple):
    """A denoiser's speed-up over its teacher: median, and slowest and fastest round where that is known."""

    median: float | None
    rounds: tuple[float, float] | None


class Change(Enum):
    """How one value stands to another; UNKNOWN where that cannot be told."""

    BETTER = "better"
    EQUAL = "equal"
    WORSE = "worse"
    UNKNOWN = "unknown"


def quality(ours: Mapping[str, Any], theirs: Mapping[str, Any], measure: str) -> Change:
    """Compare a distance (smaller is better) by its intervals: where they overlap, it is equal.

    Both distances are to the same clips from the same noise, so that their errors go together and the test
    is a strict one: what does not overlap is different beyond doubt, what does may still be.

    Args:
        ours, theirs: rows of the metrics with `<measure>_low` and `<measure>_high`.
        measure: name of the distance.
    """
    asked = [row.get(f"{measure}_{end}") for row in (ours, theirs) for end in ("low", "high")]
    bounds = [bound for bound in asked if is_number(bound)]
    if len(bounds) < len(asked):
        return Change.UNKNOWN
    our_low, our_high, their_low, their_high = bounds
    if not (_within(ours, measure) and _within(theirs, measure)):
        return Change.UNKNOWN
    if our_high < their_low:
        return Change.BETTER
    return Change.WORSE if our_low > their_high else Change.EQUAL


def _within(row: Mapping[str, Any], measure: str) -> bool:
    return bool(row[f"{measure}_low"] <= row[measure] <= row[f"{measure}_high"])


def costs(
    ours: Mapping[str, Any],
    theirs: Mapping[str, Any],
    speeds: tuple[Speed, Speed] | None,
    min_gain: float,
) -> list[tuple[Change, str]]:
    """Speed and size of two models, each with a sentence; what is not known of both is left out.

    Args:
        ours, theirs: rows of the metrics with the counts of `SIZES` that are known.
        speeds: ours and theirs over one and the same teacher; None where they cannot be compared.
        min_gain: relative difference below which two figures count as equal.
    """
    found = []
    if speeds is not None and (change := _faster(*speeds, min_gain)) is not None:
        found.append(change)
    counted = [key for key in SIZES if is_number(ours.get(key)) and is_number(theirs.get(key))]
    size, their_size = (sum(int(row[key]) for key in counted) for row in (ours, theirs))
    if size and their_size:
        found.append((_against(their_size / size, min_gain), f"{size:,} parameters against {their_size:,}"))
    return found


def _faster(mine: Speed, other: Speed, min_gain: float) -> tuple[Change, str] | None:
    """Machines vary: a difference counts where the slowest round of one beats the other's fastest."""
    if not is_number(mine.median) or not is_number(other.median) or other.median <= 0:
        return None
    text = f"speed-up {mine.median:.3g}x against {other.median:.3g}x"
    change = _against(mine.median / other.median, min_gain)
    if change is Change.EQUAL:
        return change, text
    if mine.rounds is None or other.rounds is None:
        few = (
            f"fewer than {FEWEST_ROUNDS} rounds timed, which tells nothing: raise `evaluate.latency_repeats`"
        )
        return Change.EQUAL, f"{text} ({few})"
    (low, high), (their_low, their_high) = mine.rounds, other.rounds
    if low > their_high or high < their_low:
        return change, text
    rounds = f"rounds from {low:.3g} to {high:.3g} and {their_low:.3g} to {their_high:.3g}"
    return Change.EQUAL, f"{text} (not told apart: {rounds})"


def _against(factor: float, min_gain: float) -> Change:
    # Two equal figures are no gain, even where any gain will do.
    if factor > 1 and factor >= 1 + min_gain:
        return Change.BETTER
    return Change.WORSE if factor < 1 / (1 + min_gain) else Change.EQUAL
