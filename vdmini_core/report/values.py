"""Small readings of our own data: a value with its interval, unit names, counts in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vdmini_core.params import is_number

Interval = tuple[float, float, float]


def measured(row: Any, key: str) -> Interval | None:
    """Value, low, high: of a number with `<key>_low`/`_high` beside it, {value, low, high} or {mean, sd}."""
    if not isinstance(row, dict):
        return None
    entry: Any = row.get(key)
    value: Any
    low: Any
    high: Any
    if isinstance(entry, dict):
        value, low, high = entry.get("value", entry.get("mean")), entry.get("low"), entry.get("high")
        if is_number(value) and is_number(entry.get("sd")):
            low, high = value - 2 * entry["sd"], value + 2 * entry["sd"]
    else:
        value, low, high = entry, row.get(f"{key}_low"), row.get(f"{key}_high")
    if not is_number(value):
        return None
    return float(value), float(low if is_number(low) else value), float(high if is_number(high) else value)


def short_count(value: float | int | None) -> str:
    """1523000 -> `1.52 M`; empty for None."""
    if value is None:
        return ""
    for size, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g} {suffix}"
    return f"{value:g}"


def split_name(name: str) -> tuple[str, str]:
    """`D.1.pair.0` -> (`D.1`, `0`); a whole block or a layer of another family has no second part.

    A temporal sub-layer is split as what it lies in.
    """
    block, _, index = name.removesuffix(".temporal").partition(".pair.")
    return block, index


def is_removed(name: str, removed: Sequence[str]) -> bool:
    """Whether a unit goes, itself or with the block it belongs to."""
    return any(name == gone or name.startswith(gone + ".") for gone in removed)
