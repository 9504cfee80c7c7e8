"""Curves: every loss term over the steps, and quality against speed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator, NullFormatter, NullLocator

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
    "adversarial_generator": "Against real clips, student's side",
    "adversarial_discriminator": "Against real clips, discriminator",
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
    """Damage before recovery against operations saved, of every cut that was tried.

    Args:
        points: rows of `frontier.json`: `flops_ratio`, `paired_mse` with `_low` and `_high`, and the marks
            `best`, `paper`, `chosen`; rows without the figures are left out.
        path: where to write, `.svg` or `.png`.
    """
    placed = [
        (1 / ratio[0], found, row)
        for row in points
        if (ratio := measured(row, "flops_ratio")) and ratio[0] > 0 and (found := measured(row, "paired_mse"))
    ]
    with house_style():
        figure = Figure(figsize=(11.5, 4.4), layout=ConstrainedLayoutEngine())
        axes = figure.subplots()
        line = sorted((x, found[0]) for x, found, row in placed if row.get("best"))
        axes.plot(*zip(*line, strict=True) if line else ([], []), color=TOTAL_LIGHT, lw=1.5)
        named: dict[str, Any] = {}
        for x, (value, low, high), row in placed:
            name = next((key for key in _FRONTIER_MARKS if row.get(key)), "tried")
            marker, colour, label = _FRONTIER_MARKS.get(name, ("o", PALETTE["muted"], "tried together"))
            if name == "chosen" and row.get("paper"):
                label = "this plan: the paper's recipe"
            above = 4 if name == "chosen" else 3  # cuts that were tried lie where it lies
            axes.plot([x, x], [low, high], color=colour, lw=1.2)
            named[label] = axes.plot([x], [value], marker, color=colour, ms=7, ls="", zorder=above)[0]
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(plain_numbers())
        low, high = axes.get_ylim()
        wide = high > 20 * low  # decades label the axis by themselves; within one nothing would
        axes.yaxis.set_minor_formatter(NullFormatter() if wide else plain_numbers())
        axes.margins(x=0.08, y=0.15)
        axes.set_xlabel("operations of the teacher's denoiser per operation of the student's, ×")
        axes.set_title("Squared error to the teacher's latents, before recovery (lower is better)")
        if named:
            axes.legend(named.values(), named.keys(), frameon=False, loc="best")
        save(figure, Path(path))


# The first that holds: what a point of the frontier is drawn as.
_FRONTIER_MARKS = {
    "chosen": ("*", MOTION, "this plan"),
    "paper": ("s", PALETTE["ink"], "the paper's recipe"),
    "best": ("o", TOTAL, "best by the profile at its size"),
}


def speedup_chart(speedup: dict[str, Any], path: Path) -> None:
    """How many times as fast the student is: denoiser, VAE decoder, end to end.

    Args:
        speedup: part -> times as fast as the teacher, as in `timing.json` of `evaluate`.
        path: where to write, `.svg` or `.png`.
    """
    names = {"unet": "denoiser", "vae_decoder": "VAE decoder", "end_to_end": "end to end"}
    found = [(title, float(speedup[part])) for part, title in names.items() if is_number(speedup.get(part))]
    with house_style():
        figure = Figure(figsize=(11.5, 0.6 + 0.4 * len(found)), layout=ConstrainedLayoutEngine())
        axes = figure.subplots()
        places = range(len(found))
        axes.barh(places, [value for _, value in found], 0.6, color=TOTAL)
        for place, (_, value) in enumerate(found):
            axes.annotate(f"{value:.2f} x", (value, place), (5, -3), textcoords="offset points", fontsize=9)
        axes.axvline(1, color=PALETTE["muted"], lw=1, ls=(0, (3, 2)))
        axes.set_yticks(places, [name for name, _ in found])
        axes.invert_yaxis()
        axes.margins(x=0.12)
        axes.set_title("Times as fast as the teacher, measured in turns")
        save(figure, Path(path))
