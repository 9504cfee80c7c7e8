"""The page of a progressive run: its students in numbers, and on the frontier of quality against speed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from vdmini_core.params import is_number
from vdmini_core.report.facts import LABELS, number, value_of
from vdmini_core.report.figures import INK, MOTION, MUTED, TOTAL, TOTAL_LIGHT, house_style, save
from vdmini_core.report.page import TEMPLATES, environment, inline_svg
from vdmini_core.report.values import measured, short_count

ONE_SHOT = "one shot"
CHARTS = ("students.svg", "students.png")
MEASURES = ("fvd_teacher", "fvd_real", "mse_teacher", "content_teacher", "motion_teacher")
WORDS = LABELS | {
    "content_teacher": "Content, to the teacher’s",
    "motion_teacher": "Motion, to the teacher’s",
}


def render_rounds(students: Sequence[dict[str, Any]], metrics: dict[str, Any], out: Path) -> Path:
    """Write `index.html` and the chart in two formats.

    Args:
        students: one row a student: `name`, `speedup` by part, `params`, `params_ratio`, `flops_ratio`, the
            measures with `_low` and `_high`, `removed`, `depth`, `steps`, `model`, `version`, `report`.
        metrics: `metrics.json` of one of them, for the teacher's own row.
        out: where to write; it exists.
    """
    for chart in CHARTS:
        students_chart(students, out / chart)
    drawn = (out / CHARTS[0]).read_text(encoding="utf-8")
    alt = f"Distance to the teacher against speed-up of {len(students)} students"
    page = out / "index.html"
    context = {
        "style": Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
        "chart": inline_svg(drawn, "students", alt),
        "students": students,
        "lines": _lines(students, metrics),
    }
    page.write_text(environment().get_template("rounds.html").render(context), encoding="utf-8")
    return page


def students_chart(students: Sequence[dict[str, Any]], path: Path) -> None:
    """Distance to the teacher's clips against the denoiser's speed-up, a point a student.

    Args:
        students: as `render_rounds` takes them; those without the two figures are left out.
        path: where to write, `.svg` or `.png`.
    """
    placed = [
        (float(speed), found, str(row["name"]))
        for row in students
        if is_number(speed := (row.get("speedup") or {}).get("unet"))
        and (found := measured(row, "fvd_teacher"))
    ]
    with house_style():
        figure = Figure(figsize=(7.2, 4.4), layout=ConstrainedLayoutEngine())
        axes = figure.subplots()
        axes.plot([1], [0], "s", color=INK, ms=7)
        axes.annotate("teacher", (1, 0), (8, 6), textcoords="offset points", fontsize=9, color=MUTED)
        rounds = [(1.0, 0.0), *((x, found[0]) for x, found, name in placed if name != ONE_SHOT)]
        axes.plot(*zip(*rounds, strict=True), color=TOTAL_LIGHT, lw=1.5, zorder=1)
        for x, (value, low, high), name in placed:
            colour, marker = (MOTION, "*") if name == ONE_SHOT else (TOTAL, "o")
            axes.plot([x, x], [low, high], color=colour, lw=1.2)
            axes.plot([x], [value], marker, color=colour, ms=10 if marker == "*" else 7)
            axes.annotate(name, (x, value), (8, 6), textcoords="offset points", fontsize=9)
        axes.margins(x=0.12, y=0.12)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("times as fast as the teacher's denoiser, measured in turns")
        axes.set_title("Fréchet distance to the teacher's clips, after recovery (lower is better)")
        save(figure, Path(path))


def _lines(students: Sequence[dict[str, Any]], metrics: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """Rows of the table: what is measured, then one text a column, the teacher's first."""

    def row(label: str, teacher: str, texts: list[str]) -> tuple[str, list[str]]:
        return label, [teacher, *texts]

    params = value_of(metrics, "teacher", "params")
    lines = [
        row("Denoiser parameters", _count(params), [_count(s.get("params")) for s in students]),
        row("Share of the teacher’s FLOPs", "100 %", [_percent(s.get("flops_ratio")) for s in students]),
    ]
    for part, label in (("unet", "Denoiser speed"), ("end_to_end", "Speed end to end")):
        speeds = [(s.get("speedup") or {}).get(part) for s in students]
        lines.append(row(label, "1×", [f"{v:.2f}×" if is_number(v) else "–" for v in speeds]))
    for key in MEASURES:
        values = [s.get(key) for s in students]
        own = value_of(metrics, "teacher", key)
        if any(is_number(v) for v in values):
            texts = [number(v) if is_number(v) else "–" for v in values]
            lines.append(row(f"{WORDS[key]} ↓", number(own) if own is not None else "–", texts))
    return lines


def _count(value: Any) -> str:
    return short_count(value) if is_number(value) else "–"


def _percent(value: Any) -> str:
    return f"{100 * value:.0f} %" if is_number(value) else "–"
