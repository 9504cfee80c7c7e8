"""What VBench found, as a small table: its summary scores first, then every dimension."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vdmini_core.metrics.vbench_results import DIMENSIONS, GROUPS
from vdmini_core.params import is_number
from vdmini_core.report.facts import ROWS

TITLES = {"i2v": "VBench-I2V", "t2v": "VBench"}


@dataclass(frozen=True)
class Table:
    """Lines of (label, one percentage a column, whether it sums others up); columns are models."""

    title: str
    columns: dict[str, str]
    lines: tuple[tuple[str, tuple[str, ...], bool], ...]


def vbench_table(metrics: dict[str, Any]) -> Table | None:
    """The table of `metrics.json`'s `vbench`, or None where VBench has scored nothing."""
    found = metrics.get("vbench")
    found = found if isinstance(found, dict) else {}
    scores, kind = found.get("scores"), found.get("kind")
    if not isinstance(scores, dict) or kind not in TITLES:
        return None
    columns = {row: label for row, label in ROWS.items() if isinstance(scores.get(row), dict)}
    sums = ("total_score", *(f"{group}_score" for group in GROUPS[kind]))
    lines = []
    for name in (*sums, *DIMENSIONS[kind]):
        values = [scores[row].get(name) for row in columns]
        if any(is_number(value) for value in values):
            shown = tuple(f"{100 * value:.2f}" if is_number(value) else "\u2013" for value in values)
            lines.append((_label(name), shown, name in sums))
    return Table(TITLES[kind], columns, tuple(lines)) if lines else None


def _label(name: str) -> str:
    words = name.replace("_", " ").replace("i2v", "I2V")
    return words[:1].upper() + words[1:]
