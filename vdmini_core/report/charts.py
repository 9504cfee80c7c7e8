"""The charts people look at: sensitivity of every unit, loss terms, quality against speed.

Each function takes the data as it lies on disk and a path ending in `.svg` or `.png`; the same data gives
the same bytes. Keys that a profile did not measure are left out of the picture, never guessed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, NullLocator

from vdmini_core.params import is_number
from vdmini_core.report.figures import (
    GRID,
    INK,
    MOTION,
    MUTED,
    PALETTE,
    TOTAL,
    TOTAL_LIGHT,
    house_style,
    plan_figure,
    save,
    split_name,
)

__all__ = ["frontier_chart", "loss_chart", "measured", "plan_figure", "sensitivity_chart"]

_PANELS = (
    ("fvd", "Whole clip: Fréchet distance to the teacher's clips", "total"),
    ("content", "Content: single frames", "content"),
    ("motion", "Motion: change between frames", "motion"),
    ("paired_mse", "Same noise, same first frame: mean squared error", "total"),
)
_VARIANTS = (("removed", ""), ("replaced", "-light"))
_GROUPS = (("block", "whole blocks"), ("pair", "pairs"), ("layer", "layers"))
Interval = tuple[float, float, float]


def measured(row: Any, key: str) -> Interval | None:
    """Value with its interval: a number with `<key>_low`/`_high` beside it, or {value, low, high}."""
    if not isinstance(row, dict):
        return None
    entry: Any = row.get(key)
    value: Any
    low: Any
    high: Any
    if isinstance(entry, dict):
        value, low, high = entry.get("value"), entry.get("low"), entry.get("high")
    else:
        value, low, high = entry, row.get(f"{key}_low"), row.get(f"{key}_high")
    if not is_number(value):
        return None
    return float(value), float(low if is_number(low) else value), float(high if is_number(high) else value)


def sensitivity_chart(sensitivity: dict[str, Any], path: Path) -> None:
    """Damage of every unit when removed and replaced, split in content and motion, above what it costs.

    Args:
        sensitivity: the contents of `sensitivity.json`.
        path: where to write, `.svg` or `.png`.
    """
    units = list(sensitivity.get("units") or ())
    groups = [
        (title, rows)
        for kind, title in _GROUPS
        if (rows := [u for u in units if u.get("kind", "pair") == kind])
    ]
    groups = groups or [("", units)]
    panels = [p for p in _PANELS if any(measured(u.get(v), p[0]) for u in units for v, _ in _VARIANTS)][:3]
    with house_style():
        figure = Figure(
            figsize=(11.5, 1.75 * (len(panels) + 1) + 0.6), layout=ConstrainedLayoutEngine(hspace=0.06)
        )
        widths = [max(len(rows), 3) + 1.0 for _, rows in groups]
        grid = figure.subplots(len(panels) + 1, len(groups), squeeze=False, width_ratios=widths, sharex="col")
        for column, (title, rows) in enumerate(groups):
            for axes, panel in zip(grid[:, column], panels, strict=False):
                _damage(axes, rows, panel, sensitivity.get("noise_floor"))
            _cost(grid[-1, column], rows, units)
            _name_units(grid[-1, column], rows)
            grid[0, column].annotate(
                title,
                (0, 1),
                (0, 25),
                xycoords="axes fraction",
                textcoords="offset points",
                color=MUTED,
                fontsize=10,
            )
        _titles(figure, grid, panels, units)
        save(figure, Path(path))


def _damage(axes: Axes, rows: Sequence[dict[str, Any]], panel: tuple[str, str, str], floor: Any) -> None:
    key, _, colour = panel
    heights: list[float] = []
    for number, (variant, shade) in enumerate(_VARIANTS):
        for x, unit in enumerate(rows):
            if (found := measured(unit.get(variant), key)) is None:
                continue
            value, low, high = found
            heights.append(value)
            at = x + (number - 0.5) * 0.38
            axes.bar(at, value, 0.36, color=PALETTE[colour + shade])
            if high > low:
                axes.plot([at, at], [low, high], color=INK, lw=1.1, solid_capstyle="butt")
    noise = measured(floor, key) or measured({"v": floor}, "v")
    if noise is not None:
        axes.axhline(noise[2], color=INK, lw=1, ls=(0, (4, 3)))
    _scale(axes, heights)


def _scale(axes: Axes, heights: Sequence[float]) -> None:
    """A logarithmic axis where one giant would flatten all others, and says so."""
    ordered = sorted(h for h in heights if h > 0)
    if ordered and len(ordered) == len(heights) and ordered[-1] > 40 * ordered[len(ordered) // 2]:
        axes.set_yscale("log")
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_ylabel("log scale", fontsize=8)
    else:
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_locator(MaxNLocator(4))


def _cost(axes: Axes, rows: Sequence[dict[str, Any]], units: Sequence[dict[str, Any]]) -> None:
    """Share of parameters and FLOPs of each unit, in percent of all units of the widest kind."""
    for number, (key, colour) in enumerate((("parameters", MUTED), ("flops", PALETTE["grid"]))):
        kinds: dict[str, float] = {}
        for unit in units:
            kinds[unit.get("kind", "pair")] = kinds.get(unit.get("kind", "pair"), 0.0) + float(
                unit.get(key) or 0
            )
        whole = max(kinds.values(), default=0.0) or 1.0
        for x, unit in enumerate(rows):
            share = 100 * float(unit.get(key) or 0) / whole
            edge = MUTED if number else colour
            axes.bar(x + (number - 0.5) * 0.38, share, 0.36, color=colour, edgecolor=edge, lw=0.8)
    axes.yaxis.set_major_locator(MaxNLocator(4))


def _name_units(axes: Axes, rows: Sequence[dict[str, Any]]) -> None:
    """Tick labels: `D.1` under its pairs 0 and 1; a dagger where surgery cannot remove the unit alone."""
    names = [str(unit["name"]) for unit in rows]
    marks = ["" if unit.get("removable", True) else "†" for unit in rows]
    pairs = all(split_name(name)[1] for name in names)
    labels = [(split_name(n)[1] if pairs else n) + mark for n, mark in zip(names, marks, strict=True)]
    longest = max((len(label) for label in labels), default=0)
    axes.set_xticks(range(len(names)), labels, rotation=90 if longest > 5 else 0, color=INK)
    axes.set_xlim(-0.7, len(names) - 0.3)
    if not pairs:
        return
    blocks = [split_name(name)[0] for name in names]
    for block in dict.fromkeys(blocks):
        places = [x for x, other in enumerate(blocks) if other == block]
        style: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
        middle = (places[0] + places[-1]) / 2
        axes.annotate(block, (middle, 0), (0, -22), ha="center", va="top", weight="bold", fontsize=9, **style)


def _titles(
    figure: Figure, grid: Any, panels: Sequence[tuple[str, str, str]], units: Sequence[dict[str, Any]]
) -> None:
    for row, (_, title, _) in enumerate(panels):
        grid[row, 0].set_title(title)
    grid[-1, 0].set_title("Cost: share of parameters and FLOPs, %")
    handles: list[Any] = [
        Patch(color=TOTAL, label="removed"),
        Patch(color=TOTAL_LIGHT, label="replaced"),
        Line2D([], [], color=INK, lw=1.1, label="interval"),
        Line2D([], [], color=INK, lw=1, ls=(0, (4, 3)), label="noise floor"),
        Patch(color=MUTED, label="parameters"),
        Patch(facecolor=GRID, edgecolor=MUTED, label="FLOPs"),
    ]
    if any(not unit.get("removable", True) for unit in units):
        handles.append(Line2D([], [], ls="", label="†  not removable on its own"))
    figure.legend(
        handles=handles, loc="outside lower left", ncols=len(handles), fontsize=9, columnspacing=1.6
    )


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
