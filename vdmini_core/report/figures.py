"""How our pictures look and are saved, and the plan drawn on the denoiser.

One palette for every chart. The page maps these very colours to CSS variables (`INK` -> `--chart-ink`),
so that an inlined SVG follows light and dark mode while the file on disk stays readable anywhere.
Letters are saved as paths: the same picture on every machine, whatever fonts it has.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from matplotlib.ticker import FuncFormatter

from vdmini_core.report.values import is_removed, short_count, split_name

PALETTE = {
    "ink": "#1c2530",
    "muted": "#5b6875",
    "grid": "#dfe4e9",
    "paper": "#ffffff",
    "total": "#33557f",
    "total-light": "#a9bcd4",
    "content": "#14786c",
    "content-light": "#93c9c0",
    "motion": "#c2541c",
    "motion-light": "#efb391",
}
INK, MUTED, GRID, PAPER = (PALETTE[name] for name in ("ink", "muted", "grid", "paper"))
TOTAL, TOTAL_LIGHT = PALETTE["total"], PALETTE["total-light"]
CONTENT, MOTION = PALETTE["content"], PALETTE["motion"]

_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "vdmini",
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "text.color": INK,
    "text.parse_math": False,  # names come from outside: a `$` in one is no formula
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 9,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "hatch.linewidth": 0.7,
    "figure.facecolor": PAPER,
    "axes.facecolor": "none",
}


@contextmanager
def house_style() -> Iterator[None]:
    """Within the context matplotlib draws the way all our charts look, whatever the user's own rc says."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def plain_numbers() -> FuncFormatter:
    """Tick labels of a logarithmic axis as numbers: its own are formulas, which we do not parse."""
    return FuncFormatter(lambda value, _: f"{value:g}")


def save(figure: Figure, path: Path) -> None:
    """Write `figure` as SVG or PNG by the extension of `path`, the same bytes for the same picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"Date": None, "Creator": None} if path.suffix == ".svg" else {"Software": None}
    figure.savefig(path, metadata=metadata, dpi=160, bbox_inches="tight", pad_inches=0.12)


def plan_figure(plan: dict[str, Any], units: list[dict[str, Any]], path: Path) -> None:
    """Draw the denoiser with what the plan keeps (solid) and removes (hollow, hatched, struck out).

    Pairs that lose only their temporal sub-layer are pale.

    A U-Net is drawn as a U, its pairs as boxes whose area follows their parameters; layers of a transformer
    stand in rows in the order data meets them, each stack from the beginning of a row.

    Args:
        plan: the contents of `plan.json`.
        units: units as plain data (`Unit.to_dict()` or the rows of `sensitivity.json`).
        path: where to write, `.svg` or `.png`.
    """
    blocks = _blocks(units)
    removed = [str(name) for name in plan.get("removed") or ()]
    largest = max((parameters for boxes in blocks.values() for _, parameters in boxes), default=1) or 1
    with house_style():
        figure = Figure(figsize=(10.5, 6.2))
        axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
        axes.set_axis_off()
        axes.set_aspect("equal")
        rows = "D.0" not in blocks
        places = _row_places(blocks) if rows else _u_places(blocks)
        _skips(axes, blocks, places, removed)
        for block, boxes in blocks.items():
            title = block.rpartition(".")[2] if rows else block
            _block(axes, title, boxes, places[block], removed, largest)
        if rows:
            _name_rows(axes, places)
        if blocks:
            _key(axes, blocks, removed)
        axes.autoscale_view()
        save(figure, Path(path))


def _blocks(units: Sequence[dict[str, Any]]) -> dict[str, list[tuple[str, int]]]:
    """Block -> its boxes (unit name, parameters): its pairs, or itself where it has none."""
    blocks: dict[str, list[tuple[str, int]]] = {}
    for unit in units:
        if unit.get("kind") == "temporal":
            continue
        name = str(unit["name"])
        block, index = split_name(name)
        boxes = blocks.setdefault(block, [])
        if index:
            boxes.append((name, int(unit.get("parameters") or 0)))
    whole = {str(unit["name"]): int(unit.get("parameters") or 0) for unit in units}
    return {block: boxes or [(block, whole.get(block, 0))] for block, boxes in blocks.items()}


_PITCH = 1.25  # room of one box, in the units of the drawing
_ROW = 1.85


def _u_places(blocks: dict[str, list[tuple[str, int]]]) -> dict[str, tuple[float, float]]:
    """Left end and height of each block: down blocks descend on the left, up blocks rise on the right."""
    downs = sorted(block for block in blocks if block.startswith("D."))
    ups = sorted(block for block in blocks if block.startswith("U."))
    depth = len(downs) - 1
    places: dict[str, tuple[float, float]] = {}
    for level, block in enumerate(downs):
        places[block] = (level * 1.0 - (depth + 1.2 + len(blocks[block]) * _PITCH), -level * _ROW)
    for index, block in enumerate(ups):
        level = len(ups) - 1 - index
        places[block] = (depth + 1.2 - level * 1.0, -level * _ROW)
    for block in blocks:
        places.setdefault(block, (-len(blocks[block]) * _PITCH / 2, -(depth + 0.85) * _ROW))
    return places


def _row_places(
    blocks: dict[str, list[tuple[str, int]]], columns: int = 10
) -> dict[str, tuple[float, float]]:
    """Left end and height of each layer; a new stack (`double`, `single`) begins a new row."""
    places: dict[str, tuple[float, float]] = {}
    row, column, before = 0, 0, ""
    for block in blocks:
        stack = block.rpartition(".")[0]
        if places and (column == columns or stack != before):
            row, column = row + 1, 0
        places[block] = (column * _PITCH, -row * 1.2 * _ROW)
        column, before = column + 1, stack
    return places


def _name_rows(axes: Axes, places: dict[str, tuple[float, float]]) -> None:
    """The stack's name before its rows: above the boxes there is room for numbers only."""
    for block, (x, y) in places.items():
        if x == 0:
            stack = block.rpartition(".")[0]
            axes.text(-0.25, y, stack, ha="right", va="center", weight="bold", fontsize=10.5, color=INK)


def _skips(
    axes: Axes,
    blocks: dict[str, list[tuple[str, int]]],
    places: dict[str, tuple[float, float]],
    removed: Sequence[str],
) -> None:
    """One line per level from the down block to the up block that consumes its skips."""
    depth = max((int(b[2:]) for b in blocks if b.startswith("D.") and b[2:].isdigit()), default=-1)
    for level in range(depth + 1):
        down, up = f"D.{level}", f"U.{depth - level}"
        if down not in places or up not in places:
            continue
        alive = any(not is_removed(name, removed) for name, _ in blocks[up])
        left = places[down][0] + len(blocks[down]) * _PITCH
        ends = ([left + 0.05, places[up][0] - 0.2], [places[down][1]] * 2)
        axes.plot(*ends, color=MUTED if alive else GRID, lw=1.1 if alive else 1.0, ls=(0, (1, 2.4)), zorder=1)


def _block(
    axes: Axes,
    title: str,
    boxes: Sequence[tuple[str, int]],
    place: tuple[float, float],
    removed: Sequence[str],
    largest: int,
) -> None:
    x, y = place
    gone = all(is_removed(name, removed) for name, _ in boxes)
    colour = MUTED if gone else INK
    # area follows parameters, small ones stay visible
    sides = [max(0.3, 1.05 * math.sqrt(parameters / largest)) for _, parameters in boxes]
    middle, reach = x + len(boxes) * _PITCH / 2, max(sides) / 2
    axes.text(
        middle, y + reach + 0.14, title, ha="center", va="bottom", weight="bold", fontsize=10.5, color=colour
    )
    axes.plot([x + 0.1, x + len(boxes) * _PITCH - 0.1], [y, y], color=MUTED, lw=1.1, zorder=1)
    for number, (name, parameters) in enumerate(boxes):
        centre, text = x + (number + 0.5) * _PITCH, short_count(parameters)
        _box(axes, centre, y, sides[number], is_removed(name, removed), f"{name}.temporal" in removed)
        axes.text(centre, y - reach - 0.12, text, ha="center", va="top", fontsize=8, color=MUTED)


def _box(axes: Axes, x: float, y: float, side: float, gone: bool, pale: bool = False) -> None:
    look: dict[str, Any] = {"facecolor": TOTAL_LIGHT if pale else TOTAL, "edgecolor": TOTAL}
    if gone:
        look = {"facecolor": PAPER, "edgecolor": MOTION, "hatch": "\\\\\\\\", "linestyle": "-"}
    axes.add_patch(
        FancyBboxPatch(
            (x - side / 2, y - side / 2),
            side,
            side,
            boxstyle="round,pad=0,rounding_size=0.06",
            lw=1.2,
            zorder=2,
            **look,
        )
    )
    if gone:
        reach = side / 2 + 0.09
        axes.plot(
            [x - reach, x + reach],
            [y - reach, y + reach],
            color=MOTION,
            lw=2,
            zorder=3,
            solid_capstyle="round",
        )


def _key(axes: Axes, blocks: dict[str, list[tuple[str, int]]], removed: Sequence[str]) -> None:
    """What solid and hollow mean, with their numbers, under the drawing."""
    names = [name for boxes in blocks.values() for name, _ in boxes]
    gone = sum(is_removed(name, removed) for name in names)
    left, right = axes.dataLim.x0, axes.dataLim.x1
    y = axes.dataLim.y0 - 1.0
    start = (left + right) / 2 - (5.1 if "D.0" in blocks else 4.1)
    for offset, struck, text in ((0.0, False, f"kept: {len(names) - gone}"), (2.6, True, f"removed: {gone}")):
        _box(axes, start + offset, y, 0.42, struck)
        axes.text(start + offset + 0.45, y, text, va="center", fontsize=9.5)
    pale = sum(f"{name}.temporal" in removed for name in names)
    if pale:
        _box(axes, start, y - 0.75, 0.42, False, True)
        text = f"of the kept, without the temporal sub-layer: {pale}"
        axes.text(start + 0.45, y - 0.75, text, va="center", fontsize=9.5)
    note = "area follows parameters"
    if "D.0" in blocks:
        note += "; dotted: skip connections"
    axes.text(start + 5.9, y, note, va="center", fontsize=9, color=MUTED)
