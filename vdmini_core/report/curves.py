"""Curves: every loss term over the steps, and quality against speed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator, NullLocator

from vdmini_core.params import is_number
from vdmini_core.report.figures import (
    MOTION,
    PALETTE,
    TOTAL,
    TOTAL_LIGHT,
    house_style,
    plain_numbers,
    save,
)
from vdmini_core.report.values import measured

_LOSS_TITLES = {
    "total": "Total",
    "task": "Task",
    "icd": "ICD (features)",
    "mca_generator": "MCA, student's side",
    "mca_discriminator": "MCA, discriminator",
    "grad_norm": "Gradient norm",
    "lr": "Learning rate",
}


def loss_chart(losses: Sequence[dict[str, Any]], path: Path) -> None:
    """Every loss term in a panel of its own: raw as a faint line, smoothed as a strong one.

    Args:
        losses: rows of `losses.jsonl`, each with `step` and named terms.
        path: where to write, `.svg` or `.png`.
    """
    seen = {key for row in losses for key, value in row.items() if is_number(value)} - {"step"}
    terms = [key for key in _LOSS_TITLES if key in seen] + sorted(seen - set(_LOSS_TITLES))
    columns = min(3, len(terms)) or 1
    lines = max(1, math.ceil(len(terms) / columns))
    with house_style():
        figure = Figure(
            figsize=(11.5 if columns == 3 else 3.9 * columns, 2.25 * lines),
            layout=ConstrainedLayoutEngine(hspace=0.1, wspace=0.05),
        )
        grid = figure.subplots(lines, columns, squeeze=False)
        for axes in grid.flat[len(terms) :]:
            axes.set_axis_off()
        for axes, term in zip(grid.flat, terms, strict=False):
            _term(axes, losses, term)
        save(figure, Path(path))


def _term(axes: Axes, losses: Sequence[dict[str, Any]], term: str) -> None:
    points = [(row.get("step", i), row[term]) for i, row in enumerate(losses) if is_number(row.get(term))]
    steps, values = [p[0] for p in points], [p[1] for p in points]
    colour = {"icd": PALETTE["content"], "mca_generator": MOTION, "mca_discriminator": MOTION}.get(
        term, TOTAL
    )
    axes.set_title(_LOSS_TITLES.get(term, term))
    if term != "lr":
        axes.plot(steps, values, color=colour, alpha=0.3, lw=0.9)
    axes.plot(steps, values if term == "lr" else _smooth(values), color=colour, lw=1.9)
    if min(values) > 0 and max(values) > 30 * min(values) and term != "lr":
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(plain_numbers())
        axes.yaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.margins(x=0.02)
    axes.set_xlabel("step", fontsize=8.5)


def _smooth(values: Sequence[float]) -> list[float]:
    """Centred running mean over about a fifteenth of the run, the window cut at both ends."""
    reach = max(1, len(values) // 30)
    windows = (values[max(0, i - reach) : i + reach + 1] for i in range(len(values)))
    return [sum(window) / len(window) for window in windows]


def frontier_chart(points: Sequence[dict[str, Any]], path: Path) -> None:
    """Quality against speed; the line joins the points that no other beats in both.

    Args:
        points: rows with `name`, `speedup` (or `flops_ratio`) and `fvd` (or `fvd_teacher`, `fvd_real`) with
            optional `_low`/`_high`; rows that lack either are left out.
        path: where to write, `.svg` or `.png`.
    """
    quality = next(
        (key for key in ("fvd", "fvd_teacher", "fvd_real") if any(measured(p, key) for p in points)), "fvd"
    )
    placed = [
        (s, q, str(p.get("name", ""))) for p in points if (s := _speed(p)) and (q := measured(p, quality))
    ]
    with house_style():
        figure = Figure(figsize=(7.2, 4.4), layout=ConstrainedLayoutEngine())
        axes = figure.subplots()
        best = [p for p in placed if not any(o[0] >= p[0] and o[1][0] < p[1][0] for o in placed)]
        axes.plot(
            *zip(*[(s, q[0]) for s, q, _ in sorted(best)], strict=True) if best else ([], []),
            color=TOTAL_LIGHT,
            lw=1.5,
        )
        for speed, (value, low, high), name in placed:
            axes.plot([speed, speed], [low, high], color=TOTAL, lw=1.2)
            axes.plot([speed], [value], "o", color=TOTAL, ms=6.5)
            axes.annotate(name, (speed, value), (9, -13), textcoords="offset points", fontsize=9)
        axes.margins(x=0.18, y=0.15)
        axes.set_xlabel("speed-up of one denoiser pass over the teacher, ×  (right is faster)")
        axes.set_title("Fréchet distance (lower is better)")
        save(figure, Path(path))


def _speed(point: dict[str, Any]) -> float | None:
    if is_number(point.get("speedup")):
        return float(point["speedup"])
    ratio = measured(point, "flops_ratio")
    return 1.0 / ratio[0] if ratio and ratio[0] > 0 else None
