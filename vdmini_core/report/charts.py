"""The chart the method starts from: sensitivity of every unit, in content and motion, above its cost.

Each function of this package's charts takes the data as it lies on disk and a path ending in `.svg` or
`.png`; the same data gives the same bytes. Keys that a profile did not measure are left out of the
picture, never guessed. All charts can be imported from here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, NullLocator

from vdmini_core.report.curves import frontier_chart, loss_chart, speedup_chart
from vdmini_core.report.figures import (
    GRID,
    INK,
    MUTED,
    PALETTE,
    TOTAL,
    TOTAL_LIGHT,
    house_style,
    plain_numbers,
    plan_figure,
    save,
)
from vdmini_core.report.values import measured, split_name

__all__ = ["frontier_chart", "loss_chart", "plan_figure", "sensitivity_chart", "speedup_chart"]

_PANELS = (
    ("fvd", "Whole clip: Fréchet distance to the teacher's clips", "total"),
    ("content", "Content: single frames", "content"),
    ("motion", "Motion: change between frames", "motion"),
    ("paired_mse", "Same start, same noise: mean squared error", "total"),
)
_VARIANTS = (("removed", ""), ("replaced", "-light"))
_GROUPS = (
    ("block", "whole blocks"),
    ("pair", "pairs"),
    ("temporal", "temporal sub-layers"),
    ("layer", "layers"),
)


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
            figsize=(11.5 if len(groups) < 3 else 15.5, 1.75 * (len(panels) + 1) + 0.6),
            layout=ConstrainedLayoutEngine(hspace=0.06),
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
        for line, panel in zip(grid, panels, strict=False):
            _scale(line, _heights(units, panel[0]), _floor(sensitivity.get("noise_floor"), panel[0]))
        _titles(figure, grid, panels, units)
        save(figure, Path(path))


def _damage(axes: Axes, rows: Sequence[dict[str, Any]], panel: tuple[str, str, str], floor: Any) -> None:
    key, _, colour = panel
    for number, (variant, shade) in enumerate(_VARIANTS):
        for x, unit in enumerate(rows):
            if (found := measured(unit.get(variant), key)) is None:
                continue
            value, low, high = found
            at = x + (number - 0.5) * 0.38
            axes.bar(at, value, 0.36, color=PALETTE[colour + shade])
            if high > low:
                axes.plot([at, at], [low, high], color=INK, lw=1.1, solid_capstyle="butt")
    noise = _floor(floor, key)
    if noise is not None:
        axes.axhline(noise, color=INK, lw=1, ls=(0, (4, 3)))


def _tried(units: Sequence[dict[str, Any]], variant: str) -> bool:
    return any(unit.get(variant) for unit in units)


def _floor(floor: Any, key: str) -> float | None:
    """Upper end of the noise floor."""
    found = measured(floor, key) or measured({"v": floor}, "v")
    return found[2] if found else None


def _heights(units: Sequence[dict[str, Any]], key: str) -> list[float]:
    found = (measured(unit.get(variant), key) for unit in units for variant, _ in _VARIANTS)
    return [values[0] for values in found if values is not None]


def _scale(line: Sequence[Axes], heights: Sequence[float], floor: float | None) -> None:
    """One axis for a whole line: logarithmic, and says so, where one giant would flatten all others.

    A logarithmic axis starts a little below the noise floor: how far below it a unit lies means nothing.
    """
    ordered = sorted(h for h in heights if h > 0)
    logarithmic = bool(ordered) and ordered[-1] > 40 * ordered[len(ordered) // 2]
    for axes in line:
        if logarithmic:
            axes.set_yscale("log")
            axes.set_ylim(floor / 10 if floor else ordered[0] / 2, 3 * ordered[-1])
            axes.yaxis.set_major_formatter(plain_numbers())
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
    """Tick labels: `D.1` under its pairs 0 and 1; a dagger where surgery cannot remove the unit alone.

    Among temporal sub-layers that of `M`, which has no pairs, is named by its block alone.
    """
    names = [str(unit["name"]) for unit in rows]
    marks = ["" if unit.get("removable", True) else "†" for unit in rows]
    pairs = any(split_name(name)[1] for name in names)
    shown = [split_name(n)[1] if pairs else n for n in names]
    longest = max((len(name) for name in shown), default=0)
    gap = "" if pairs or longest > 5 else "\n"  # names of blocks stand close together
    labels = [name + (gap + mark if mark else "") for name, mark in zip(shown, marks, strict=True)]
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
    colours = {"removed": TOTAL, "replaced": TOTAL_LIGHT}
    handles: list[Any] = [
        *(Patch(color=colours[name], label=name) for name, _ in _VARIANTS if _tried(units, name)),
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
